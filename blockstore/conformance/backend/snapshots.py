"""Snapshots of one volume."""

from __future__ import annotations

from blockstore.backends.contract import GIB
from blockstore.conformance.backend.case import cancelled, case, enter
from blockstore.conformance.sandbox import Sandbox, pattern, places, refuses, write_at
from blockstore.errors import BackendError, InUse, NameTaken, NotSupported, VolumeMissing


class SnapshotCases:
    """Snapshots of one volume."""

    @case(lacks="snapshots")
    def test_undeclared_snapshots_refuse(self, sandbox: Sandbox) -> None:
        """Without snapshots, each of their methods raises NotSupported."""
        name = sandbox.volume("kept")
        refuses(NotSupported, sandbox.backend.create_snapshot, name, sandbox.prefix + "s")
        refuses(NotSupported, sandbox.backend.delete_snapshot, name, sandbox.prefix + "s")
        refuses(NotSupported, enter, sandbox.backend.open_snapshot, name, sandbox.prefix + "s")
        sandbox.lists({name: 1})
        sandbox.volume_holds(name, "kept")

    @case("snapshots")
    def test_declared_snapshots_work(self, sandbox: Sandbox) -> None:
        """A snapshot stays as it was while its volume is overwritten and extended; made twice, it is one."""
        name = sandbox.volume("first")
        shot = sandbox.snapshot(name)
        sandbox.fill(name, "second")
        sandbox.backend.create_snapshot(name, shot)
        sandbox.lists({name: 1}, {shot: name})
        sandbox.snapshot_holds(name, shot, "first")
        sandbox.volume_holds(name, "second")
        sandbox.backend.extend_volume(name, 2)
        sandbox.snapshot_holds(name, shot, "first")

    @case("snapshots")
    def test_snapshot_of_an_open_volume(self, sandbox: Sandbox) -> None:
        """A volume in use can be frozen; what is written afterwards stays out."""
        name = sandbox.volume("first")
        with sandbox.backend.open_volume(name, "r+b") as file:
            shot = sandbox.snapshot(name)
            for offset in places(0, GIB):
                write_at(file, offset, pattern(f"second at {offset}"))
        sandbox.snapshot_holds(name, shot, "first")
        sandbox.volume_holds(name, "second")

    @case("snapshots")
    def test_a_snapshot_cannot_be_written(self, sandbox: Sandbox) -> None:
        """A snapshot is opened for reading only."""
        name = sandbox.volume("first")
        shot = sandbox.snapshot(name)
        try:
            with sandbox.backend.open_snapshot(name, shot) as file:
                file.write(b"changed")
        except (OSError, ValueError, BackendError):
            pass
        sandbox.snapshot_holds(name, shot, "first")

    @case("snapshots")
    def test_delete_snapshot_twice(self, sandbox: Sandbox) -> None:
        """Deleting a snapshot keeps the volume; deleting again, or what never was, succeeds."""
        name = sandbox.volume("kept")
        shot = sandbox.snapshot(name)
        for _ in range(2):
            sandbox.backend.delete_snapshot(name, shot)
            sandbox.lists({name: 1})
        sandbox.backend.delete_snapshot(name, sandbox.snapshot_name(name))
        sandbox.backend.delete_snapshot(sandbox.name(), sandbox.snapshot_name(name))
        sandbox.volume_holds(name, "kept")

    @case("snapshots")
    def test_delete_snapshot_can_be_cancelled(self, sandbox: Sandbox) -> None:
        """Deleting a snapshot passes a cancellation on, and can be asked again."""
        name = sandbox.volume("kept")
        shot = sandbox.snapshot(name)
        cancelled(sandbox.backend.delete_snapshot, name, shot)
        sandbox.backend.delete_snapshot(name, shot)
        sandbox.lists({name: 1})

    @case("snapshots")
    def test_delete_volume_with_snapshots_is_refused(self, sandbox: Sandbox) -> None:
        """Deleting a volume that has snapshots raises InUse and keeps both."""
        name = sandbox.volume("kept")
        shot = sandbox.snapshot(name)
        for _ in range(2):
            refuses(InUse, sandbox.backend.delete_volume, name)
        sandbox.lists({name: 1}, {shot: name})
        sandbox.snapshot_holds(name, shot, "kept")
        sandbox.volume_holds(name, "kept")
        sandbox.backend.delete_snapshot(name, shot)
        sandbox.backend.delete_volume(name)

    @case("snapshots")
    def test_snapshot_names_are_not_shared(self, sandbox: Sandbox) -> None:
        """One name is one thing: taken by another volume's snapshot, by a volume, or by a snapshot, it is refused."""
        one, two = sandbox.volume("one"), sandbox.volume("two")
        shot = sandbox.snapshot_name(one, two)
        sandbox.backend.create_snapshot(one, shot)
        refuses(NameTaken, sandbox.backend.create_snapshot, two, shot)
        refuses(NameTaken, sandbox.backend.create_snapshot, one, two)
        refuses(NameTaken, sandbox.backend.create_volume, shot, 1)
        if sandbox.has.clone:
            refuses(NameTaken, sandbox.backend.clone_volume, shot, 1, two)
            refuses(NameTaken, sandbox.backend.create_volume_from_snapshot, shot, 1, one, shot)
        sandbox.lists({one: 1, two: 1}, {shot: one})
        sandbox.snapshot_holds(one, shot, "one")
        sandbox.backend.delete_snapshot(one, shot)
        sandbox.backend.create_snapshot(two, shot)
        sandbox.lists({one: 1, two: 1}, {shot: two})
        sandbox.snapshot_holds(two, shot, "two")

    @case("snapshots")
    def test_missing_sources_of_snapshots(self, sandbox: Sandbox) -> None:
        """A snapshot of a volume that is not there, or the bytes of one that is not there, raise VolumeMissing."""
        name = sandbox.volume()
        refuses(VolumeMissing, sandbox.backend.create_snapshot, sandbox.name(), sandbox.prefix + "s")
        refuses(VolumeMissing, enter, sandbox.backend.open_snapshot, name, sandbox.prefix + "s")
        refuses(VolumeMissing, enter, sandbox.backend.open_snapshot, sandbox.name(), sandbox.prefix + "s")
        sandbox.lists({name: 1})

    @case("snapshots")
    def test_several_snapshots_go_in_any_order(self, sandbox: Sandbox) -> None:
        """Of five snapshots the middle, the oldest and the newest are deleted; the others keep their bytes."""
        name = sandbox.volume()
        shots = {}
        for tag in "abcde":
            sandbox.fill(name, tag)
            shots[tag] = sandbox.snapshot(name)
        sandbox.fill(name, "now")
        for tag in "cae":
            sandbox.backend.delete_snapshot(name, shots.pop(tag))
            sandbox.lists({name: 1}, dict.fromkeys(shots.values(), name))
            for left, shot in shots.items():
                sandbox.snapshot_holds(name, shot, left)
        sandbox.volume_holds(name, "now")
