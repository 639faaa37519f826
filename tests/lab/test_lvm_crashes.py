"""A service killed at any step of any action, then started again: the action completes, or goes, without a trace."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blockstore_plugins.lvm import LvmBackend, devices

from blockstore.backends import process
from blockstore.backends.contract import GIB
from tests import sampling
from tests.crash.steps import Crash, Steps

from .conftest import Disk, lvm_backend

pytestmark = [pytest.mark.lab, pytest.mark.slow]

PLACES = (0, GIB // 2, GIB - 4096)


class Killer(Steps):
    """Counts the steps of an action, which are tools started and regions cleared or copied, and kills at one."""

    def __init__(self, patch: pytest.MonkeyPatch):
        super().__init__()
        self._clear = devices.Exclusive.clear
        self._copy = devices.copy
        patch.setattr(process, "run", self.wrap(process.run))
        patch.setattr(devices, "copy", self.copy)
        patch.setattr(devices.Exclusive, "clear", lambda *args: self.clear(*args))

    def clear(self, device: devices.Exclusive, start: int, end: int, *progress: Any) -> None:
        """Clear a region, or half of it."""
        if self.is_fatal():
            self._clear(device, start, start + (end - start) // 2)
            raise Crash
        self._clear(device, start, end, *progress)

    def copy(self, source: Path, target: Path, length: int, *progress: Any, **options: Any) -> None:
        """Copy, or copy half."""
        if self.is_fatal():
            self._copy(source, target, length // 2, **options)
            raise Crash
        self._copy(source, target, length, *progress, **options)


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Killer:
    """Return a killer that lets everything through until it is told."""
    return Killer(monkeypatch)


def write(backend: LvmBackend, name: str, tag: str, places: tuple[int, ...] = PLACES) -> None:
    """Write a tag in a few places."""
    with backend.open_volume(name, "r+b") as file:
        for at in places:
            file.seek(at)
            file.write(tag.encode().ljust(4096, b"."))


def read(backend: LvmBackend, name: str, size: int, of: int = 1, snapshot: str = "") -> str:
    """Return the tag that all places have, or fail; beyond ``of`` GiB there must be zeros."""
    opened = backend.open_snapshot(name, snapshot) if snapshot else backend.open_volume(name, "rb")
    with opened as file:
        assert file.seek(0, 2) == size * GIB
        found = set()
        for at in PLACES:
            file.seek(at)
            found.add(file.read(4096).rstrip(b".\0"))
        for at in range(of * GIB, size * GIB, GIB // 8):
            file.seek(at)
            assert file.read(4096) == bytes(4096), at
    assert len(found) == 1, found
    return found.pop().decode()


def steps(killer: Killer, act: Callable[[LvmBackend], None], again: Callable[[], LvmBackend]) -> Iterator[LvmBackend]:
    """Kill an action at each step, or at a sample of them; yield the restarted service each time."""
    for step in sampling.steps(str(os.environ.get("PYTEST_CURRENT_TEST")), range(1, 120), 6):
        killed = killer.crashed(step, lambda: act(again()))
        yield again()
        if not killed:
            return
    raise AssertionError("The action never ended.")


@pytest.fixture
def again(disk: Disk, lvm_type: str) -> Callable[[], LvmBackend]:
    """Return what starts the service anew."""
    lvm_backend(disk, lvm_type)
    return lambda: lvm_backend(disk, lvm_type, check=False)


def pool_only(disk: Disk) -> list[str]:
    """Return what is on the disk besides the pool."""
    return [name for name in disk.names() if name != f"{disk.vg}-pool"]


@pytest.mark.parametrize("then", ["again", "delete"])
def test_create(killer: Killer, disk: Disk, again: Callable[[], LvmBackend], then: str) -> None:
    """A killed create is not listed, and is completed or removed."""
    for b in steps(killer, lambda b: b.create_volume("v", 1), again):
        assert b.list_volumes() in ({}, {"v": 1})
        if then == "again":
            b.create_volume("v", 1)
            assert read(b, "v", 1) == ""
            assert pool_only(disk) == ["v"]
        b.delete_volume("v")
        assert pool_only(disk) == []


@pytest.mark.parametrize("then", ["again", "delete"])
@pytest.mark.parametrize("source", ["volume", "snapshot"])
def test_copies(killer: Killer, disk: Disk, again: Callable[[], LvmBackend], then: str, source: str) -> None:
    """A killed clone leaves no helper, also when it is deleted instead of completed."""
    b = again()
    b.create_volume("v", 1)
    write(b, "v", "bytes")
    b.create_snapshot("v", "snap-v")

    def act(b: LvmBackend) -> None:
        if source == "volume":
            b.clone_volume("c", 2, "v")
        else:
            b.create_volume_from_snapshot("c", 2, "v", "snap-v")

    for b in steps(killer, act, again):
        assert b.list_volumes() in ({"v": 1}, {"v": 1, "c": 2})
        assert b.list_snapshots() == {"snap-v": "v"}
        if then == "again":
            act(b)
            assert read(b, "c", 2) == "bytes"
            assert pool_only(disk) == ["c", "snap-v", "v"]
        b.delete_volume("c")
        assert pool_only(disk) == ["snap-v", "v"]
    assert read(b, "v", 1) == "bytes"


def test_revert(killer: Killer, disk: Disk, again: Callable[[], LvmBackend]) -> None:
    """A killed revert, also to a smaller size, completes; no snapshot is ever lost."""
    b = again()
    b.create_volume("v", 1)
    write(b, "v", "first")
    b.create_snapshot("v", "snap-1")
    write(b, "v", "second")
    b.create_snapshot("v", "snap-2")

    def grow() -> None:
        b.extend_volume("v", 2)
        write(b, "v", "third", (*PLACES, GIB, 2 * GIB - 4096))

    grow()
    for b in steps(killer, lambda b: b.revert_volume("v", "snap-1"), again):
        assert list(b.list_volumes()) == ["v"]
        assert b.list_snapshots() == {"snap-1": "v", "snap-2": "v"}
        b.revert_volume("v", "snap-1")
        assert read(b, "v", 1) == "first"
        assert read(b, "v", 1, snapshot="snap-1") == "first"
        assert read(b, "v", 1, snapshot="snap-2") == "second"
        assert pool_only(disk) == ["snap-1", "snap-2", "v"]
        assert not [tags for _, tags in disk.lvs("lv_tags") if "resizing" in tags]
        grow()


def test_extend(killer: Killer, disk: Disk, again: Callable[[], LvmBackend]) -> None:
    """A killed extend shows no old bytes in the grown part, and completes; with and without a snapshot."""
    for shots in ([], ["snap-v"]):

        def make(shots: list[str] = shots) -> None:
            b = again()
            b.create_volume("v", 1)
            write(b, "v", "bytes")
            for shot in shots:
                b.create_snapshot("v", shot)

        make()
        for b in steps(killer, lambda b: b.extend_volume("v", 2), again):
            assert read(b, "v", round(b.list_volumes()["v"])) == "bytes"
            b.extend_volume("v", 2)
            assert read(b, "v", 2) == "bytes"
            assert pool_only(disk) == [*shots, "v"]
            for shot in shots:
                b.delete_snapshot("v", shot)
            b.delete_volume("v")
            make()
        for shot in shots:
            b.delete_snapshot("v", shot)
        b.delete_volume("v")


def test_snapshots(killer: Killer, disk: Disk, again: Callable[[], LvmBackend]) -> None:
    """A killed snapshot, and the killed removal of one, complete."""
    b = again()
    b.create_volume("v", 1)
    write(b, "v", "first")
    for b in steps(killer, lambda b: b.create_snapshot("v", "snap-v"), again):
        b.create_snapshot("v", "snap-v")
        assert read(b, "v", 1, snapshot="snap-v") == "first"
        b.delete_snapshot("v", "snap-v")
        assert pool_only(disk) == ["v"]
    b.create_snapshot("v", "snap-v")
    for b in steps(killer, lambda b: b.delete_snapshot("v", "snap-v"), again):
        b.delete_snapshot("v", "snap-v")
        assert pool_only(disk) == ["v"]
        assert b.list_snapshots() == {}
        assert read(b, "v", 1) == "first"
        b.create_snapshot("v", "snap-v")


def test_delete(killer: Killer, disk: Disk, again: Callable[[], LvmBackend]) -> None:
    """A killed delete completes."""
    again().create_volume("v", 1)
    for b in steps(killer, lambda b: b.delete_volume("v"), again):
        b.delete_volume("v")
        assert pool_only(disk) == []
        b.create_volume("v", 1)


def test_lvcreate_killed_before_it_attached_a_snapshot(disk: Disk) -> None:
    """A thick snapshot of which only the space was made is no snapshot; it is made anew, or removed."""
    b = lvm_backend(disk, "thick")
    b.create_volume("v", 1)
    for _ in range(2):
        process.run(
            [
                "lvcreate",
                "-y",
                "-Wn",
                "-Zn",
                "-L",
                "1g",
                "--addtag",
                "blockstore.snapshot-of=v",
                "-n",
                "snap-v",
                disk.vg,
            ]
        )
        assert (b.list_volumes(), b.list_snapshots()) == ({"v": 1}, {})
        b.create_snapshot("v", "snap-v")
        assert b.list_snapshots() == {"snap-v": "v"}
        b.delete_snapshot("v", "snap-v")
        assert pool_only(disk) == ["v"]


def test_manage(killer: Killer, disk: Disk, again: Callable[[], LvmBackend]) -> None:
    """A killed taking over is completed, with the bytes and the snapshot."""
    theirs, ours, b = "one", "two", again()
    b.create_volume(theirs, 1)
    write(b, theirs, "kept")
    b.create_snapshot(theirs, "shot")
    for restarted in steps(killer, lambda b: b.manage_volume(theirs, ours), again):
        assert restarted.manage_volume(theirs, ours) == 1
        assert read(restarted, ours, 1) == "kept"
        assert restarted.list_snapshots() == {"shot": ours}
        assert restarted.list_volumes() == {ours: 1}
        restarted.manage_volume(ours, theirs)
