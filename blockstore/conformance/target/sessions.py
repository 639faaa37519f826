"""Targets tell who is connected."""

from __future__ import annotations

from blockstore.conformance.sandbox import BLOCK, expect
from blockstore.conformance.target.case import case
from blockstore.conformance.target.pair import ExportedVolume, PairSandbox


class SessionCases:
    """Targets tell who is connected."""

    @case()
    def test_sessions_tell_who_is_connected(self, sandbox: PairSandbox) -> None:
        """sessions() tells who is connected to which export, also to a restarted service, and when they have left."""

        def check_sessions(exported: ExportedVolume) -> None:
            idle = sandbox.exported(sandbox.volume())
            sandbox.connected(exported, sandbox.again())
            expect(not sandbox.target.sessions().get(idle.id), "Nobody is connected to the other export.")

        _done, exported = sandbox.held_over(f"read 0 {BLOCK}", check_sessions)
        sandbox.gone(exported)
        sandbox.target.withdraw(exported.id)
        expect(exported.id not in sandbox.target.sessions(), "A withdrawn export has no sessions.")
