"""How long a thread waits for the right to write, for which project, and how another thread answers meanwhile.

An operation has its own thread and may wait. A request may hold the only answering thread: it waits for a moment, and
longer only while another thread answers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

OPERATION_S = 30.0
REQUEST_S = 5.0

LendThread = Callable[[], contextlib.AbstractContextManager[bool]]
"""Lets another thread answer while it is entered. Gives False if no thread is left: then the caller may not wait."""


def _alone() -> contextlib.AbstractContextManager[bool]:
    return contextlib.nullcontext(True)


@dataclass(frozen=True, kw_only=True)
class WaitLimit:
    """The longest wait of one thread, and the context that it enters to wait."""

    wait_s: float = OPERATION_S
    lend_thread: LendThread = _alone


_WAIT_LIMIT: ContextVar[WaitLimit] = ContextVar("patience", default=WaitLimit())  # noqa: B039 - it is frozen


def current() -> WaitLimit:
    """Return the wait limit of this thread."""
    return _WAIT_LIMIT.get()


_PROJECT: ContextVar[str] = ContextVar("project", default="")


def project() -> str:
    """Return the project for which this thread works; "" for the service itself."""
    return _PROJECT.get()


@contextlib.contextmanager
def acting_for(project: str) -> Iterator[None]:
    """Write on behalf of a project inside the block: projects take turns."""
    token = _PROJECT.set(project)
    try:
        yield
    finally:
        _PROJECT.reset(token)


@contextlib.contextmanager
def limited(wait_s: float, lend_thread: LendThread = _alone) -> Iterator[None]:
    """Limit the wait for the right to write inside the block."""
    token = _WAIT_LIMIT.set(WaitLimit(wait_s=wait_s, lend_thread=lend_thread))
    try:
        yield
    finally:
        _WAIT_LIMIT.reset(token)
