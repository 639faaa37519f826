"""Volumes are created and deleted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from blockstore.conformance.backend.case import absurd_gib, cancelled, case
from blockstore.conformance.sandbox import Sandbox, expect, refuses
from blockstore.errors import BackendError, InUse, NameTaken, NoSpace


class VolumeCases:
    """Volumes are created and deleted."""

    @case()
    def test_create_makes_a_volume_of_zeros(self, sandbox: Sandbox) -> None:
        """A new volume is listed, has exactly its size and reads as zeros."""
        one, three = sandbox.volume(), sandbox.volume(size_gib=3)
        sandbox.lists({one: 1, three: 3})
        sandbox.volume_is_zero(one)
        sandbox.volume_is_zero(three, 3)

    @case()
    def test_create_never_shows_old_bytes(self, sandbox: Sandbox) -> None:
        """A volume made where a written one was deleted reads as zeros."""
        for _ in range(2):
            sandbox.dirty()
        sandbox.volume_is_zero(sandbox.volume())

    @case()
    def test_create_twice_is_one_volume(self, sandbox: Sandbox) -> None:
        """Creating what is there succeeds and keeps its bytes."""
        name = sandbox.volume("kept")
        sandbox.backend.create_volume(name, 1)
        sandbox.lists({name: 1})
        sandbox.volume_holds(name, "kept")

    @case()
    def test_create_same_name_other_size_is_refused(self, sandbox: Sandbox) -> None:
        """Creating a name that exists with another size raises NameTaken and changes nothing."""
        name = sandbox.volume("kept", 2)
        refuses(NameTaken, sandbox.backend.create_volume, name, 1)
        refuses(NameTaken, sandbox.backend.create_volume, name, 3)
        sandbox.lists({name: 2})
        sandbox.volume_holds(name, "kept", 2, of_gib=2)

    @case()
    def test_no_space_leaves_nothing(self, sandbox: Sandbox) -> None:
        """A volume of a thousand times the pool is refused without a trace; a thin pool may take it, and removes it."""
        name = sandbox.name()
        try:
            sandbox.backend.create_volume(name, absurd_gib(sandbox.backend))
        except BackendError as exc:
            sandbox.lists({})
            if sandbox.has.thick and not sandbox.has.thin:
                expect(isinstance(exc, NoSpace), f"A full pool must raise NoSpace, not {type(exc).__name__}: {exc}")
        else:
            expect(sandbox.has.thin, "A pool that is not thin must refuse a volume larger than itself.")
            sandbox.lists({name: absurd_gib(sandbox.backend)})
            sandbox.backend.delete_volume(name)
        sandbox.lists({})
        sandbox.backend.create_volume(name, 1)
        sandbox.volume_is_zero(name)

    @case()
    def test_parallel_creates_of_different_names(self, sandbox: Sandbox) -> None:
        """Several threads create, write, freeze and delete different volumes at once."""
        names = [sandbox.name() for _ in range(8)]
        shots = {name: sandbox.snapshot_name(name) for name in names} if sandbox.has.snapshots else {}

        def work(name: str) -> None:
            sandbox.backend.create_volume(name, 1)
            sandbox.fill(name, name)
            if shots:
                sandbox.backend.create_snapshot(name, shots[name])

        def remove(name: str) -> None:
            if shots:
                sandbox.backend.delete_snapshot(name, shots[name])
            sandbox.backend.delete_volume(name)

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, names))
            sandbox.lists(dict.fromkeys(names, 1), {shot: name for name, shot in shots.items()})
            for name in names:
                sandbox.volume_holds(name, name)
            list(threads.map(remove, names))
        sandbox.lists({})

    @case()
    def test_delete_twice(self, sandbox: Sandbox) -> None:
        """Deleting removes a volume; deleting again, or what never was, succeeds."""
        name, other = sandbox.volume("gone"), sandbox.volume("kept")
        sandbox.backend.delete_volume(name)
        sandbox.backend.delete_volume(name)
        sandbox.backend.delete_volume(sandbox.name())
        sandbox.lists({other: 1})
        sandbox.volume_holds(other, "kept")

    @case()
    def test_delete_while_open_is_refused(self, sandbox: Sandbox) -> None:
        """Deleting a volume that is open raises InUse and keeps its bytes."""
        name = sandbox.volume("kept")
        with sandbox.backend.open_volume(name, "rb"):
            refuses(InUse, sandbox.backend.delete_volume, name)
        sandbox.volume_holds(name, "kept")
        sandbox.backend.delete_volume(name)

    @case()
    def test_delete_reports_progress_and_can_be_cancelled(self, sandbox: Sandbox) -> None:
        """Deleting passes a cancellation on, and can be asked again."""
        name = sandbox.volume("gone")
        cancelled(sandbox.backend.delete_volume, name)
        sandbox.backend.delete_volume(name)
        sandbox.lists({})
