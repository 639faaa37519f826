"""Volumes are extended."""

from __future__ import annotations

from blockstore.conformance.backend.case import absurd_gib, case
from blockstore.conformance.sandbox import Sandbox, expect, pattern, read_at, refuses, write_at
from blockstore.errors import BackendError, InUse, VolumeMissing


class ExtendCases:
    """Volumes are extended."""

    @case()
    def test_extend_keeps_bytes_and_grows_zeros(self, sandbox: Sandbox) -> None:
        """Extending, once or twice, keeps the bytes; the grown part reads as zeros, also on a used pool."""
        sandbox.dirty(2)
        name = sandbox.volume("kept")
        for _ in range(2):
            sandbox.backend.extend_volume(name, 3)
            sandbox.lists({name: 3})
            sandbox.volume_holds(name, "kept", 3, of_gib=1)
        sandbox.backend.create_volume(name, 3)

    @case()
    def test_extend_to_less_is_refused(self, sandbox: Sandbox) -> None:
        """Extending to less than the present size raises and cuts nothing."""
        name = sandbox.volume("kept", 2)
        refuses(BackendError, sandbox.backend.extend_volume, name, 1)
        sandbox.volume_holds(name, "kept", 2, of_gib=2)

    @case()
    def test_extend_missing_is_refused(self, sandbox: Sandbox) -> None:
        """Extending a volume that is not there raises VolumeMissing and makes nothing."""
        refuses(VolumeMissing, sandbox.backend.extend_volume, sandbox.name(), 2)
        sandbox.lists({})

    @case()
    def test_extend_without_space_changes_nothing(self, sandbox: Sandbox) -> None:
        """Extending to a thousand times the pool is refused and keeps size and bytes; a thin pool may do it."""
        name = sandbox.volume("kept")
        try:
            sandbox.backend.extend_volume(name, absurd_gib(sandbox.backend))
        except BackendError:
            sandbox.lists({name: 1})
            sandbox.volume_holds(name, "kept")
        else:
            expect(sandbox.has.thin, "A pool that is not thin must refuse to extend a volume beyond itself.")

    @case("online_extend")
    def test_declared_online_extend_works(self, sandbox: Sandbox) -> None:
        """A volume grows while it is open, and what has it open goes on."""
        name = sandbox.volume("kept")
        with sandbox.backend.open_volume(name, "r+b") as file:
            sandbox.backend.extend_volume(name, 2)
            expect(read_at(file, 0) == pattern("kept at 0"), "An open volume must stay readable when it grows.")
            write_at(file, 0, pattern("kept at 0"))
        sandbox.volume_holds(name, "kept", 2, of_gib=1)

    @case(lacks="online_extend")
    def test_undeclared_online_extend_refuses(self, sandbox: Sandbox) -> None:
        """Without online_extend, extending a volume that is open raises InUse and changes nothing."""
        name = sandbox.volume("kept")
        with sandbox.backend.open_volume(name, "r+b"):
            refuses(InUse, sandbox.backend.extend_volume, name, 2)
        sandbox.volume_holds(name, "kept")
        sandbox.backend.extend_volume(name, 2)
