"""Targets tell who is connected."""

from __future__ import annotations

from blockstore.conformance.sandbox import BLOCK, expect
from blockstore.conformance.target.case import case
from blockstore.conformance.target.pair import Made, PairSandbox


class SessionCases:
    """Targets tell who is connected."""

    @case()
    def test_sessions_tell_who_is_connected(self, sandbox: PairSandbox) -> None:
        """sessions() tells who is connected to which export, also to a restarted service, and when they have left."""

        def looked_at(made: Made) -> None:
            idle = sandbox.exported(sandbox.volume())
            sandbox.connected(made, sandbox.again())
            expect(not sandbox.target.sessions().get(idle.id), "Nobody is connected to the other export.")

        _done, made = sandbox.held_over(f"read 0 {BLOCK}", looked_at)
        sandbox.gone(made)
        sandbox.target.withdraw(made.id)
        expect(made.id not in sandbox.target.sessions(), "A withdrawn export has no sessions.")
