"""What makes a method a case of the suite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import SkipTest

from blockstore.conformance.sandbox import expect, named_after
from blockstore.conformance.target.pair import Pair, PairSandbox


def case(*needs: str, lacks: str = "") -> Callable[[Callable[[Any, PairSandbox], None]], Callable[[Any, Pair], None]]:
    """Turn a method that takes a PairSandbox into one that takes a pair.

    Skip the case if the backend or the target lacks a capability of ``needs``, or the target has ``lacks``.
    """

    def wrap(body: Callable[[Any, PairSandbox], None]) -> Callable[[Any, Pair], None]:
        def test(self: Any, pair: Pair) -> None:
            pair.backend.check()
            pair.target.check()
            can = pair.target.capabilities()
            expect(
                pair.backend.file_format in can.formats,
                f"The volumes of {pair.backend.name} are {pair.backend.file_format}, which {pair.target.name} does not"
                " export; the configuration must not join them.",
            )
            for flag in needs:
                for one, has in ((pair.backend, pair.backend.capabilities()), (pair.target, can)):
                    if not getattr(has, flag):
                        raise SkipTest(f"{one.name} does not declare {flag}.")
            if lacks and getattr(can, lacks):
                raise SkipTest(f"{pair.target.name} declares {lacks}.")
            with PairSandbox(pair) as sandbox:
                body(self, sandbox)

        return named_after(body, test)

    return wrap
