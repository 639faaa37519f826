"""What makes a method a case of the suite, and what several groups of cases need."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, BinaryIO
from unittest import SkipTest

from blockstore.backends.contract import Backend
from blockstore.conformance.sandbox import Sandbox, expect, named_after
from blockstore.errors import OperationCancelled


def case(*needs: str, lacks: str = "") -> Callable[[Callable[[Any, Sandbox], None]], Callable[[Any, Backend], None]]:
    """Turn a method that takes a Sandbox into one that takes a backend.

    Skip the case if the backend lacks a capability of ``needs``, or has the capability ``lacks``.
    """

    def wrap(body: Callable[[Any, Sandbox], None]) -> Callable[[Any, Backend], None]:
        def test(self: Any, backend: Backend) -> None:
            backend.check()
            for flag in needs:
                if not getattr(backend.capabilities(), flag):
                    raise SkipTest(f"{backend.name} does not declare {flag}.")
            if lacks and getattr(backend.capabilities(), lacks):
                raise SkipTest(f"{backend.name} declares {lacks}.")
            with Sandbox(backend) as sandbox:
                body(self, sandbox)

        return named_after(body, test)

    return wrap


def enter(opener: Callable[..., AbstractContextManager[BinaryIO]], *args: Any) -> None:
    """Open a volume or a snapshot, and close it."""
    with opener(*args):
        pass


def absurd_gib(backend: Backend) -> int:
    """Return a size in GiB that no pool has, and whose number of bytes fits in 63 bits."""
    return min(int(backend.capacity().total_gib) * 1000 + 1000, 2**32)


class Cancelling:
    """A progress callback that cancels the operation at its first call."""

    def __init__(self) -> None:
        self.called = False

    def __call__(self, _percent: int) -> None:
        self.called = True
        raise OperationCancelled("The conformance suite cancelled this.")


def cancelled(call: Callable[..., None], *args: Any) -> bool:
    """Call with a progress that cancels; return False if the backend was done before it reported any progress."""
    cancel = Cancelling()
    try:
        call(*args, cancel)
    except OperationCancelled:
        expect(cancel.called, "OperationCancelled must come from the progress callback.")
        return True
    expect(not cancel.called, "The backend swallowed the exception its progress callback raised.")
    return False


def steady_progress(call: Callable[..., None], *args: Any) -> None:
    """Call, and fail unless the reported percentages are whole numbers from 0 to 100 that never fall."""
    seen: list[int] = []
    call(*args, seen.append)
    good = all(isinstance(percent, int) and 0 <= percent <= 100 for percent in seen) and seen == sorted(seen)
    expect(good, f"Progress must rise from 0 to 100 in whole numbers, but was {seen}.")
