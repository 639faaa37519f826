"""Snapshots of several volumes at one instant."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from blockstore.conformance.backend.case import case
from blockstore.conformance.sandbox import Sandbox, eventually, expect, read_at, refuses, write_at
from blockstore.errors import BackendError, NameTaken, NotSupported, VolumeMissing

WRITES_WITHIN_S = 30.0
"""Time within which two writes must end during a snapshot."""


class GroupSnapshotCases:
    """Snapshots of several volumes at one instant."""

    @case(lacks="group_snapshots")
    def test_undeclared_group_snapshots_refuse(self, sandbox: Sandbox) -> None:
        """Without group_snapshots, it raises NotSupported and freezes nothing."""
        one, two = sandbox.volume("one"), sandbox.volume("two")
        group = {one: sandbox.snapshot_name(one), two: sandbox.snapshot_name(two)}
        refuses(NotSupported, sandbox.backend.create_group_snapshot, group)
        sandbox.lists({one: 1, two: 1})

    @case("group_snapshots")
    def test_declared_group_snapshots_work(self, sandbox: Sandbox) -> None:
        """Several volumes are frozen; taken twice it is one, and each is a snapshot like any other."""
        one, two = sandbox.volume("one"), sandbox.volume("two", 2)
        group = {one: sandbox.snapshot_name(one), two: sandbox.snapshot_name(two)}
        sandbox.backend.create_group_snapshot(group)
        for name in (one, two):
            sandbox.fill(name, "later")
        sandbox.backend.create_group_snapshot(group)
        sandbox.lists({one: 1, two: 2}, {shot: name for name, shot in group.items()})
        sandbox.snapshot_holds(one, group[one], "one")
        sandbox.snapshot_holds(two, group[two], "two", 2)
        sandbox.backend.delete_snapshot(one, group[one])
        sandbox.lists({one: 1, two: 2}, {group[two]: two})
        sandbox.snapshot_holds(two, group[two], "two", 2)

    @case("group_snapshots")
    def test_half_a_group_snapshot_is_taken_anew(self, sandbox: Sandbox) -> None:
        """Where some of the snapshots are there, of a call that was cut short, all are of the new instant."""
        one, two = sandbox.volume("first"), sandbox.volume("first")
        group = {one: sandbox.snapshot_name(one), two: sandbox.snapshot_name(two)}
        sandbox.backend.create_snapshot(one, group[one])
        for name in (one, two):
            sandbox.fill(name, "second")
        sandbox.backend.create_group_snapshot(group)
        for name, shot in group.items():
            sandbox.snapshot_holds(name, shot, "second")

    @case("group_snapshots")
    def test_group_snapshots_are_of_one_instant(self, sandbox: Sandbox) -> None:
        """What is written to one volume after another was written is in no snapshot without the other's."""
        one, two = sandbox.volume(), sandbox.volume()
        groups = [{one: sandbox.snapshot_name(one), two: sandbox.snapshot_name(two)} for _ in range(5)]
        ended, count = threading.Event(), 0

        def write() -> None:
            nonlocal count
            with sandbox.backend.open_volume(one, "r+b") as first, sandbox.backend.open_volume(two, "r+b") as second:
                while not ended.is_set():
                    count += 1
                    for file in (first, second):
                        write_at(file, 0, count.to_bytes(8, "big"))
                        file.flush()

        def seen(volume: str, shot: str) -> int:
            with sandbox.backend.open_snapshot(volume, shot) as file:
                return int.from_bytes(read_at(file, 0, 8), "big")

        with ThreadPoolExecutor(1) as thread:
            writing = thread.submit(write)
            try:
                for group in groups:
                    _goes_on(lambda: count, writing.done)
                    sandbox.backend.create_group_snapshot(group)
            finally:
                ended.set()
            writing.result()  # raises if a write has failed
        for group in groups:
            first, second = (seen(name, shot) for name, shot in group.items())
            expect(
                first - second in (0, 1),
                f"Writes {first} and {second} are in snapshots of two volumes that were written in turns.",
            )
        expect(seen(one, groups[-1][one]) > 1, "Snapshots must hold what was written before.")

    @case("group_snapshots")
    def test_group_snapshot_refusals_freeze_nothing(self, sandbox: Sandbox) -> None:
        """A volume that is not there, or a name that is taken, and none of the group is frozen."""
        one, two, other = sandbox.volume("one"), sandbox.volume("two"), sandbox.volume("other")
        taken, shot = sandbox.snapshot(other), sandbox.snapshot_name(one)
        create = sandbox.backend.create_group_snapshot
        refuses(VolumeMissing, create, {one: shot, sandbox.name(): sandbox.prefix + "none"})
        refuses(NameTaken, create, {one: shot, two: taken})
        refuses(NameTaken, create, {one: shot, two: other})
        refuses(BackendError, create, {one: shot, two: shot})
        sandbox.lists({one: 1, two: 1, other: 1}, {taken: other})
        sandbox.snapshot_holds(other, taken, "other")


def _goes_on(count: Callable[[], int], has_ended: Callable[[], bool]) -> None:
    """Wait until the count has risen by at least two, or the counting has ended."""
    before = count()
    eventually(lambda: count() > before + 1 or has_ended(), "A volume must take writes.", WRITES_WITHIN_S)
