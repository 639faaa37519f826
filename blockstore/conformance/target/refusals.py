"""Missing volumes and undeclared formats."""

from __future__ import annotations

from unittest import SkipTest

from blockstore.backends.contract import GIB
from blockstore.conformance.sandbox import BLOCK, expect
from blockstore.conformance.target.case import case
from blockstore.conformance.target.pair import PairSandbox
from blockstore.errors import BackendError, VolumeMissing


class RefusalCases:
    """Missing volumes and undeclared formats."""

    @case()
    def test_a_missing_volume_is_refused(self, sandbox: PairSandbox) -> None:
        """A path that is gone raises VolumeMissing and leaves nothing."""
        name = sandbox.volume()
        export = sandbox.asks(name)
        sandbox.backend.delete_volume(name)
        sandbox.refuses_export(VolumeMissing, export)

    @case()
    def test_undeclared_formats_are_refused(self, sandbox: PairSandbox) -> None:
        """Formats that are not declared are refused, without a trace."""
        name = sandbox.volume("kept")
        for undeclared in sorted({"raw", "qcow2", "vmdk", "json:{}", ""} - sandbox.target.capabilities().formats):
            sandbox.refuses_export(BackendError, sandbox.asks(name, format=undeclared))
        sandbox.volume_holds(name, "kept")

    @case()
    def test_declared_formats_are_never_guessed(self, sandbox: PairSandbox) -> None:
        """A raw volume into which somebody wrote the header of a qcow2 file is still shown as its bytes."""
        if sandbox.backend.file_format != "raw":
            raise SkipTest(f"The volumes of {sandbox.backend.name} are not raw.")
        name = sandbox.volume()
        header = (b"QFI\xfb\0\0\0\2" + bytes(16) + b"\0\0\0\x10\0\0\0\0\0\0\0\0\0").ljust(BLOCK, b"\0")
        exported = sandbox.exported(name)
        sandbox.host.write(exported.connection_info, {0: header})
        sandbox.target.withdraw(exported.id)
        exported = sandbox.exported(name)
        expect(sandbox.host.size(exported.connection_info) == GIB, "A raw volume was taken for another format.")
        expect(
            sandbox.host.read(exported.connection_info, 0, length=BLOCK) == [header],
            "A raw volume was not shown as its bytes.",
        )
