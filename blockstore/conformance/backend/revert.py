"""Volumes are reverted to their snapshots."""

from __future__ import annotations

from blockstore.backends.contract import GIB
from blockstore.conformance.backend.case import cancelled, case, steady_progress
from blockstore.conformance.sandbox import Sandbox, refuses
from blockstore.errors import BackendError, NotSupported, VolumeMissing


class RevertCases:
    """Volumes are reverted to their snapshots."""

    @case(lacks="revert")
    def test_undeclared_revert_refuses(self, sandbox: Sandbox) -> None:
        """Without revert, it raises NotSupported and changes nothing."""
        name = sandbox.volume("kept")
        shot = sandbox.snapshot(name) if sandbox.has.snapshots else sandbox.prefix + "s"
        sandbox.fill(name, "second")
        refuses(NotSupported, sandbox.backend.revert_volume, name, shot)
        sandbox.volume_holds(name, "second")

    @case("snapshots", "revert")
    def test_declared_revert_works(self, sandbox: Sandbox) -> None:
        """Reverting, also twice, gives the volume its snapshot's bytes; the snapshot stays and can serve again."""
        name = sandbox.volume("first")
        shot = sandbox.snapshot(name)
        for tag in ("second", "third"):
            sandbox.fill(name, tag)
            for _ in range(2):
                sandbox.backend.revert_volume(name, shot)
                sandbox.lists({name: 1}, {shot: name})
                sandbox.volume_holds(name, "first")
                sandbox.snapshot_holds(name, shot, "first")

    @case("snapshots", "revert")
    def test_revert_removes_what_was_written_elsewhere(self, sandbox: Sandbox) -> None:
        """Reverting also brings back zeros where the snapshot had none of the bytes written since."""
        name = sandbox.volume()
        shot = sandbox.snapshot(name)
        sandbox.fill(name, "written")
        sandbox.backend.revert_volume(name, shot)
        sandbox.volume_is_zero(name)

    @case("snapshots", "revert")
    def test_revert_after_extend_restores_the_size(self, sandbox: Sandbox) -> None:
        """Reverting gives back the snapshot's size; extended again, the grown part reads as zeros, not as it was."""
        name = sandbox.volume("first")
        shot = sandbox.snapshot(name)
        sandbox.backend.extend_volume(name, 3)
        sandbox.fill(name, "second")
        sandbox.fill(name, "grown", GIB, 3 * GIB)
        sandbox.backend.revert_volume(name, shot)
        sandbox.lists({name: 1}, {shot: name})
        sandbox.volume_holds(name, "first")
        sandbox.backend.extend_volume(name, 3)
        sandbox.volume_holds(name, "first", 3, of_gib=1)

    @case("snapshots", "revert")
    def test_snapshots_around_a_revert_stay_usable(self, sandbox: Sandbox) -> None:
        """Snapshots taken before, after and since the one reverted to keep their bytes and can be deleted."""
        name = sandbox.volume()
        shots = {}
        for tag in "abc":
            sandbox.fill(name, tag)
            shots[tag] = sandbox.snapshot(name)
        sandbox.backend.revert_volume(name, shots["b"])
        sandbox.volume_holds(name, "b")
        sandbox.fill(name, "d")
        shots["d"] = sandbox.snapshot(name)
        for tag, shot in shots.items():
            sandbox.snapshot_holds(name, shot, tag)
        sandbox.backend.revert_volume(name, shots["a"])
        sandbox.backend.revert_volume(name, shots["c"])
        sandbox.volume_holds(name, "c")
        sandbox.lists({name: 1}, dict.fromkeys(shots.values(), name))
        for tag in "bdac":
            sandbox.backend.delete_snapshot(name, shots.pop(tag))
        sandbox.volume_holds(name, "c")
        sandbox.backend.delete_volume(name)

    @case("snapshots", "revert", "clone")
    def test_clones_survive_a_revert(self, sandbox: Sandbox) -> None:
        """A volume made from a snapshot keeps its bytes when the source is reverted to that snapshot."""
        source, made = sandbox.volume("first"), sandbox.name()
        shot = sandbox.snapshot(source)
        sandbox.backend.create_volume_from_snapshot(made, 1, source, shot)
        sandbox.fill(made, "mine")
        sandbox.fill(source, "second")
        sandbox.backend.revert_volume(source, shot)
        sandbox.volume_holds(source, "first")
        sandbox.volume_holds(made, "mine")

    @case("snapshots", "revert")
    def test_revert_refusals(self, sandbox: Sandbox) -> None:
        """Reverting to what is not there raises VolumeMissing and changes nothing."""
        name, other = sandbox.volume("kept"), sandbox.volume("other")
        shot = sandbox.snapshot(other)
        refuses(VolumeMissing, sandbox.backend.revert_volume, name, sandbox.prefix + "none")
        refuses(BackendError, sandbox.backend.revert_volume, name, shot)
        sandbox.volume_holds(name, "kept")
        sandbox.lists({name: 1, other: 1}, {shot: other})

    @case("snapshots", "revert")
    def test_revert_cancelled_can_be_completed(self, sandbox: Sandbox) -> None:
        """A cancelled revert passes the cancellation on; asked again, the volume equals the snapshot."""
        name = sandbox.volume("first")
        shot = sandbox.snapshot(name)
        sandbox.fill(name, "second")
        cancelled(sandbox.backend.revert_volume, name, shot)
        steady_progress(sandbox.backend.revert_volume, name, shot)
        sandbox.volume_holds(name, "first")
        sandbox.lists({name: 1}, {shot: name})
