"""Withdrawn exports let nobody in, and end old sessions."""

from __future__ import annotations

from blockstore.conformance.initiators import ConnectionInfo, InitiatorRefused
from blockstore.conformance.sandbox import BLOCK, expect, pattern
from blockstore.conformance.target.case import case
from blockstore.conformance.target.pair import MARK, READ_MARK, SCRATCH, ExportedVolume, PairSandbox
from blockstore.errors import InUse, SessionAlive


class WithdrawCases:
    """Withdrawn exports let nobody in, and end old sessions."""

    @case()
    def test_after_withdraw_nobody_gets_in(self, sandbox: PairSandbox) -> None:
        """After withdraw the initiator is refused."""
        sandbox.needs_doors()
        exported = sandbox.exported(sandbox.volume("kept"))
        sandbox.reads(exported, "kept")
        sandbox.target.withdraw(exported.id)
        sandbox.keeps_out(exported.connection_info, "Whose export was withdrawn")

    @case()
    def test_an_old_session_reads_nothing(self, sandbox: PairSandbox) -> None:
        """After withdraw a session that was there before reads nothing; or withdraw says who prevents it."""
        ended: list[bool] = []

        def withdrawn_and_written(exported: ExportedVolume) -> None:
            ended.append(_withdrawn(sandbox, exported))
            sandbox.marks(exported.export.volume)

        seen, exported = sandbox.held_over(READ_MARK, withdrawn_and_written)
        expect(not (seen and ended[-1]), "A session read what was written after its export had been withdrawn.")
        sandbox.gone(exported)
        sandbox.target.withdraw(exported.id)
        sandbox.lists_exports()

    @case()
    def test_an_old_session_writes_nothing(self, sandbox: PairSandbox) -> None:
        """After withdraw a session that was there before writes nothing; or withdraw says who prevents it."""
        ended: list[bool] = []

        def withdrawn(exported: ExportedVolume) -> None:
            ended.append(_withdrawn(sandbox, exported))

        _written, exported = sandbox.held_over(f"write -P {MARK} {SCRATCH} {BLOCK}", withdrawn, write=True)
        clean = sandbox.scratch_is_clean(exported.export.volume)
        expect(clean or not ended[-1], "A session wrote after its export had been withdrawn.")
        sandbox.target.withdraw(exported.id)

    @case()
    def test_an_old_session_never_reads_another_volume(self, sandbox: PairSandbox) -> None:
        """Who kept a session of one volume reads nothing of the volume that is exported next."""
        next_one = sandbox.volume()
        sandbox.marks(next_one)

        def next_volume(exported: ExportedVolume) -> None:
            if _withdrawn(sandbox, exported):
                sandbox.exported(next_one)

        seen, _made = sandbox.held_over(READ_MARK, next_volume)
        expect(not seen, "An old session read the bytes of another volume.")

    @case()
    def test_an_old_connection_never_leads_to_another_volume(self, sandbox: PairSandbox) -> None:
        """What was told of one export is of no use for the next, whoever uses it."""
        mine, next_one = sandbox.volume("mine"), sandbox.volume()
        sandbox.marks(next_one)
        old = sandbox.exported(mine)
        sandbox.target.withdraw(old.id)
        new = sandbox.exported(next_one)
        for connection_info in (old.connection_info, ConnectionInfo.of(old.connection, new.export.secret)):
            try:
                (got,) = sandbox.host.read(connection_info, 0, length=BLOCK)
            except InitiatorRefused:
                continue
            expect(got == pattern("mine at 0"), "An old connection led to another volume.")
            expect(not sandbox.has_doors, "An old connection must lead nowhere.")


def _withdrawn(sandbox: PairSandbox, exported: ExportedVolume) -> bool:
    """Withdraw an export in use; return True if it is gone. If not, check what the contract promises for that case."""
    try:
        sandbox.target.withdraw(exported.id)
    except InUse as exc:
        expect(str(exc), "InUse must name who holds the volume.")
        sandbox.lists_exports(exported)
        return False
    except SessionAlive:
        sandbox.lists_exports(exported)
        if sandbox.has_doors:
            sandbox.keeps_out(exported.connection_info, "Whoever comes after a withdraw that could not be finished")
        return False
    sandbox.lists_exports()
    return True
