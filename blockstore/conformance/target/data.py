"""Initiators read and write a volume's bytes."""

from __future__ import annotations

from blockstore.conformance.initiators import InitiatorRefused
from blockstore.conformance.sandbox import refuses
from blockstore.conformance.target.case import case
from blockstore.conformance.target.pair import PairSandbox


class DataCases:
    """Initiators read and write a volume's bytes."""

    @case()
    def test_what_the_initiator_writes_is_on_the_volume(self, sandbox: PairSandbox) -> None:
        """What was written through an export is read from the volume afterwards, which can be deleted then."""
        name = sandbox.volume()
        exported = sandbox.exported(name)
        sandbox.writes(exported, "outside")
        sandbox.reads(exported, "outside")
        sandbox.target.withdraw(exported.id)
        sandbox.volume_holds(name, "outside")
        sandbox.backend.delete_volume(name)

    @case()
    def test_what_is_on_the_volume_is_read_by_the_initiator(self, sandbox: PairSandbox) -> None:
        """An export has exactly the volume's size and bytes, and has them again for the next initiator."""
        name = sandbox.volume("inside", 2)
        for host in (sandbox.host, sandbox.other_host):
            exported = sandbox.exported(name, host)
            sandbox.reads(exported, "inside", 2, host=host)
            sandbox.target.withdraw(exported.id)
        sandbox.fill(name, "changed")
        sandbox.reads(sandbox.exported(name), "changed", 2)

    @case()
    def test_read_only_is_read_only(self, sandbox: PairSandbox) -> None:
        """Nobody writes through a read-only export; the same volume can be exported for writing afterwards."""
        sandbox.needs_doors()
        name = sandbox.volume("kept")
        exported = sandbox.exported(name, read_only=True)
        sandbox.reads(exported, "kept")
        refuses(InitiatorRefused, sandbox.writes, exported, "changed")
        sandbox.target.withdraw(exported.id)
        sandbox.volume_holds(name, "kept")
        exported = sandbox.exported(name)
        sandbox.writes(exported, "changed")
        sandbox.reads(exported, "changed")
