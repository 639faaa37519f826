"""Volumes from volumes and from snapshots."""

from __future__ import annotations

from blockstore.backends.contract import GIB
from blockstore.conformance.backend.case import absurd_gib, cancelled, case, steady_progress
from blockstore.conformance.sandbox import Sandbox, expect, pattern, places, refuses, write_at
from blockstore.errors import BackendError, NameTaken, NotSupported, VolumeMissing


class CloneCases:
    """Volumes from volumes and from snapshots."""

    @case(lacks="clone")
    def test_undeclared_clone_refuses(self, sandbox: Sandbox) -> None:
        """Without clone, volumes from volumes and from snapshots raise NotSupported and make nothing."""
        source = sandbox.volume("kept")
        target = sandbox.name()
        refuses(NotSupported, sandbox.backend.clone_volume, target, 1, source)
        shot = sandbox.snapshot(source) if sandbox.has.snapshots else sandbox.prefix + "s"
        refuses(NotSupported, sandbox.backend.create_volume_from_snapshot, target, 1, source, shot)
        sandbox.lists({source: 1}, {shot: source} if sandbox.has.snapshots else {})

    @case("clone")
    def test_declared_clone_works(self, sandbox: Sandbox) -> None:
        """A clone has its source's bytes and is independent of it: each changes, either goes; no helper stays."""
        source, clone = sandbox.volume("source"), sandbox.name()
        sandbox.backend.clone_volume(clone, 1, source)
        sandbox.lists({source: 1, clone: 1})
        sandbox.volume_holds(clone, "source")
        sandbox.fill(source, "changed")
        sandbox.volume_holds(clone, "source")
        sandbox.fill(clone, "mine")
        sandbox.volume_holds(source, "changed")
        sandbox.backend.clone_volume(clone, 1, source)
        sandbox.volume_holds(clone, "mine")
        sandbox.backend.delete_volume(source)
        sandbox.lists({clone: 1})
        sandbox.volume_holds(clone, "mine")

    @case("clone")
    def test_clone_of_a_clone(self, sandbox: Sandbox) -> None:
        """A clone can be cloned, and the first two can go."""
        first, second, third = sandbox.volume("bytes"), sandbox.name(), sandbox.name()
        sandbox.backend.clone_volume(second, 1, first)
        sandbox.backend.clone_volume(third, 1, second)
        sandbox.backend.delete_volume(second)
        sandbox.backend.delete_volume(first)
        sandbox.lists({third: 1})
        sandbox.volume_holds(third, "bytes")

    @case("clone")
    def test_clone_larger(self, sandbox: Sandbox) -> None:
        """A clone may be larger than its source, and reads as zeros beyond it, also on a used pool."""
        sandbox.dirty(3)
        source, clone = sandbox.volume("source"), sandbox.name()
        sandbox.backend.clone_volume(clone, 3, source)
        sandbox.lists({source: 1, clone: 3})
        sandbox.volume_holds(clone, "source", 3, of_gib=1)

    @case("clone")
    def test_clone_of_an_open_volume(self, sandbox: Sandbox) -> None:
        """A volume in use can be cloned; what is written afterwards stays out."""
        source, clone = sandbox.volume("source"), sandbox.name()
        with sandbox.backend.open_volume(source, "r+b") as file:
            sandbox.backend.clone_volume(clone, 1, source)
            for offset in places(0, GIB):
                write_at(file, offset, pattern(f"changed at {offset}"))
        sandbox.volume_holds(clone, "source")
        sandbox.volume_holds(source, "changed")

    @case("clone")
    def test_clone_refusals_make_nothing(self, sandbox: Sandbox) -> None:
        """A source that is gone, a smaller size and a name of another size are refused without a trace."""
        source, taken, target = sandbox.volume("source", 2), sandbox.volume("taken"), sandbox.name()
        refuses(VolumeMissing, sandbox.backend.clone_volume, target, 1, sandbox.name())
        refuses(BackendError, sandbox.backend.clone_volume, target, 1, source)
        refuses(NameTaken, sandbox.backend.clone_volume, taken, 2, source)
        sandbox.lists({source: 2, taken: 1})
        sandbox.volume_holds(taken, "taken")
        sandbox.volume_holds(source, "source", 2, of_gib=2)

    @case("clone")
    def test_clone_without_space_leaves_nothing(self, sandbox: Sandbox) -> None:
        """A clone of a thousand times the pool is refused without a trace; a thin pool may make it."""
        source, target = sandbox.volume("source"), sandbox.name()
        try:
            sandbox.backend.clone_volume(target, absurd_gib(sandbox.backend), source)
        except BackendError:
            sandbox.lists({source: 1})
        else:
            expect(sandbox.has.thin, "A pool that is not thin must refuse a clone larger than itself.")
            sandbox.backend.delete_volume(target)
        sandbox.volume_holds(source, "source")

    @case("clone")
    def test_clone_cancelled_leaves_nothing(self, sandbox: Sandbox) -> None:
        """A cancelled clone passes the cancellation on and leaves nothing; asked again, it succeeds."""
        source, target = sandbox.volume("source"), sandbox.name()
        if cancelled(sandbox.backend.clone_volume, target, 1, source):
            sandbox.lists({source: 1})
        steady_progress(sandbox.backend.clone_volume, target, 1, source)
        sandbox.lists({source: 1, target: 1})
        sandbox.volume_holds(target, "source")

    @case("snapshots", "clone")
    def test_volume_from_snapshot(self, sandbox: Sandbox) -> None:
        """A volume made from a snapshot has its bytes and is independent of snapshot and source, whatever changes."""
        source = sandbox.volume("first")
        shot = sandbox.snapshot(source)
        sandbox.fill(source, "second")
        made, other = sandbox.name(), sandbox.name()
        sandbox.backend.create_volume_from_snapshot(made, 1, source, shot)
        sandbox.backend.create_volume_from_snapshot(other, 1, source, shot)
        sandbox.lists({source: 1, made: 1, other: 1}, {shot: source})
        sandbox.volume_holds(made, "first")
        sandbox.fill(made, "mine")
        sandbox.backend.create_volume_from_snapshot(made, 1, source, shot)
        sandbox.volume_holds(made, "mine")
        sandbox.volume_holds(other, "first")
        sandbox.snapshot_holds(source, shot, "first")
        sandbox.volume_holds(source, "second")
        sandbox.backend.delete_snapshot(source, shot)
        sandbox.volume_holds(other, "first")
        sandbox.backend.delete_volume(source)
        sandbox.lists({made: 1, other: 1})
        sandbox.volume_holds(other, "first")
        sandbox.volume_holds(made, "mine")

    @case("snapshots", "clone")
    def test_volume_from_snapshot_larger(self, sandbox: Sandbox) -> None:
        """A volume may be larger than its snapshot, and reads as zeros beyond it, though the source grew and wrote."""
        sandbox.dirty(3)
        source = sandbox.volume("first")
        shot = sandbox.snapshot(source)
        sandbox.backend.extend_volume(source, 2)
        sandbox.fill(source, "second")
        made = sandbox.name()
        sandbox.backend.create_volume_from_snapshot(made, 3, source, shot)
        sandbox.lists({source: 2, made: 3}, {shot: source})
        sandbox.volume_holds(made, "first", 3, of_gib=1)

    @case("snapshots", "clone")
    def test_volume_from_snapshot_refusals_make_nothing(self, sandbox: Sandbox) -> None:
        """A snapshot that is gone, a smaller size and a name of another size are refused without a trace."""
        source, taken, target = sandbox.volume("first", 2), sandbox.volume("taken"), sandbox.name()
        shot = sandbox.snapshot(source)
        create = sandbox.backend.create_volume_from_snapshot
        refuses(VolumeMissing, create, target, 2, source, sandbox.prefix + "none")
        refuses(BackendError, create, target, 1, source, shot)
        refuses(NameTaken, create, taken, 2, source, shot)
        sandbox.lists({source: 2, taken: 1}, {shot: source})
        sandbox.volume_holds(taken, "taken")

    @case("snapshots", "clone")
    def test_volume_from_snapshot_cancelled_leaves_nothing(self, sandbox: Sandbox) -> None:
        """A cancelled copy passes the cancellation on and leaves nothing; asked again, it succeeds."""
        source, target = sandbox.volume("first"), sandbox.name()
        shot = sandbox.snapshot(source)
        if cancelled(sandbox.backend.create_volume_from_snapshot, target, 1, source, shot):
            sandbox.lists({source: 1}, {shot: source})
        steady_progress(sandbox.backend.create_volume_from_snapshot, target, 1, source, shot)
        sandbox.lists({source: 1, target: 1}, {shot: source})
        sandbox.volume_holds(target, "first")
