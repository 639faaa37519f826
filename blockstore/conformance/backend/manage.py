"""Existing volumes and snapshots are managed."""

from __future__ import annotations

from blockstore.backends.contract import GIB
from blockstore.conformance.backend.case import case
from blockstore.conformance.sandbox import Sandbox, expect, refuses
from blockstore.errors import BackendError, InUse, NameTaken, NotSupported, VolumeMissing


class ManageCases:
    """Existing volumes and snapshots are managed."""

    @case(lacks="manage")
    def test_undeclared_manage_refuses(self, sandbox: Sandbox) -> None:
        """A backend that does not declare manage raises NotSupported and changes nothing."""
        name = sandbox.volume("kept")
        refuses(NotSupported, sandbox.backend.list_manageable)
        refuses(NotSupported, sandbox.backend.list_manageable_snapshots)
        refuses(NotSupported, sandbox.backend.manage_volume, name, sandbox.prefix + "ours")
        refuses(NotSupported, sandbox.backend.manage_snapshot, name, "s", sandbox.prefix + "shot")
        sandbox.lists({name: 1}, {})

    @case("manage")
    def test_declared_manage_works(self, sandbox: Sandbox) -> None:
        """A volume is listed, and managed under a new name with its bytes; twice is once."""
        name, ours = sandbox.volume("theirs"), sandbox.name()
        found = {one.name: one for one in sandbox.backend.list_manageable()}
        expect(name in found, "list_manageable must name every volume.")
        expect(found[name].size_bytes == GIB, "list_manageable must tell the size in bytes.")
        expect(
            sandbox.backend.manage_volume(found[name].reference, ours) == 1, "manage_volume returns the size in GiB."
        )
        expect(sandbox.backend.manage_volume(found[name].reference, ours) == 1, "Managed twice is managed once.")
        sandbox.lists({ours: 1}, {})
        sandbox.volume_holds(ours, "theirs")
        sandbox.backend.extend_volume(ours, 2)
        sandbox.lists({ours: 2}, {})

    @case("manage")
    def test_manage_refusals_change_nothing(self, sandbox: Sandbox) -> None:
        """What is not there, a name that is taken and names that are none are refused."""
        name, other = sandbox.volume("one"), sandbox.volume("two")
        reference = {one.name: one for one in sandbox.backend.list_manageable()}[name].reference
        missing = reference.replace(name, sandbox.prefix + "none")
        refuses(VolumeMissing, sandbox.backend.manage_volume, missing, sandbox.prefix + "ours")
        refuses(NameTaken, sandbox.backend.manage_volume, reference, other)
        for bad in ("", "..", "../up", "-f", "a/b", "/etc/passwd", "a@b"):
            refuses(BackendError, sandbox.backend.manage_volume, bad, sandbox.prefix + "ours")
        refuses(BackendError, sandbox.backend.manage_volume, reference, "../up")
        sandbox.lists({name: 1, other: 1}, {})
        sandbox.volume_holds(name, "one")
        sandbox.volume_holds(other, "two")

    @case("manage")
    def test_manage_of_an_open_volume_is_refused(self, sandbox: Sandbox) -> None:
        """What somebody writes to is not renamed."""
        name = sandbox.volume("theirs")
        reference = {one.name: one for one in sandbox.backend.list_manageable()}[name].reference
        with sandbox.backend.open_volume(name, "r+b"):
            refuses(InUse, sandbox.backend.manage_volume, reference, sandbox.prefix + "ours")
        sandbox.lists({name: 1}, {})

    @case("manage", "snapshots")
    def test_snapshots_are_taken_over(self, sandbox: Sandbox) -> None:
        """A snapshot of a volume of ours gets a new name and keeps its bytes; twice is once."""
        name = sandbox.volume("before")
        theirs, ours = sandbox.snapshot(name), sandbox.snapshot_name(name)
        sandbox.fill(name, "after")
        found = {one.name: one for one in sandbox.backend.list_manageable_snapshots()}
        expect(theirs in found, "list_manageable_snapshots must name every snapshot.")
        expect(found[theirs].size_bytes == GIB, "list_manageable_snapshots must tell the size in bytes.")
        volumes = {one.reference for one in sandbox.backend.list_manageable()}
        expect(found[theirs].volume in volumes, "A snapshot must name its volume as list_manageable does.")
        for _ in range(2):
            sandbox.backend.manage_snapshot(name, found[theirs].reference, ours)
        sandbox.lists({name: 1}, {ours: name})
        sandbox.snapshot_holds(name, ours, "before")
        other = sandbox.volume("other")
        refuses(BackendError, sandbox.backend.manage_snapshot, other, ours, sandbox.prefix + "third")
        sandbox.lists({name: 1, other: 1}, {ours: name})
