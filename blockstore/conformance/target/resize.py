"""Exports of volumes that grow."""

from __future__ import annotations

from blockstore.backends.contract import GIB
from blockstore.conformance.sandbox import BLOCK, expect, pattern, read_at, refuses
from blockstore.conformance.target.case import case
from blockstore.conformance.target.pair import PairSandbox
from blockstore.errors import NotSupported


class ResizeCases:
    """Exports of volumes that grow."""

    @case("online_extend")
    def test_declared_online_extend_works(self, sandbox: PairSandbox) -> None:
        """An export shows the new size after resize, also when that is asked twice, and the new part can be used."""
        name = sandbox.volume("kept")
        exported = sandbox.exported(name)
        sandbox.backend.extend_volume(name, 2)
        sandbox.target.resize(exported.id)
        sandbox.target.resize(exported.id)
        size = sandbox.host.size(exported.connection_info)
        expect(size == 2 * GIB, f"After resize the initiator must see {2 * GIB} bytes, but sees {size}.")
        sandbox.host.write(exported.connection_info, {2 * GIB - BLOCK: pattern("new")})
        sandbox.target.withdraw(exported.id)
        with sandbox.backend.open_volume(name, "rb") as file:
            expect(read_at(file, 0) == pattern("kept at 0"), "A volume's bytes changed when it grew.")
            expect(read_at(file, 2 * GIB - BLOCK) == pattern("new"), "The new part did not keep what was written.")

    @case(lacks="online_extend")
    def test_undeclared_online_extend_refuses(self, sandbox: PairSandbox) -> None:
        """Without online_extend, resize raises NotSupported and the export goes on."""
        exported = sandbox.exported(sandbox.volume("kept"))
        refuses(NotSupported, sandbox.target.resize, exported.id)
        sandbox.reads(exported, "kept")
