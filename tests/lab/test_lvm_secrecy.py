"""No byte of anything deleted is ever read again, on disks full of old bytes: attacks A11 to A14, and A19."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blockstore_plugins.lvm import LvmBackend, devices

from blockstore.backends.contract import GIB
from blockstore.errors import BackendError, Unreachable

from .conftest import Disk, lvm_backend, run

pytestmark = pytest.mark.lab

DIRT = b"what the last tenant wrote, which nobody may see" * 2
SECRET = b"the present tenant's secret" * 3
STRIDE = 256 * 1024


@pytest.fixture
def dirty(make_disk: Callable[..., Disk]) -> Disk:
    """Return a disk with old bytes everywhere, which LVM knows nothing of."""
    return make_disk(7, dirt=DIRT, stride=STRIDE)


def dirt_in(path: Path, start: int = 0) -> list[int]:
    """Return the offsets at which a device does not read as zeros."""
    found, zeros = [], bytes(4 * 2**20)
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        at = start
        while data := file.read(4 * 2**20):
            if data != zeros[: len(data)]:
                found.append(at)
            at += len(data)
    return found


def scatter(backend: LvmBackend, name: str, data: bytes, start: int = 0, end: int = GIB) -> None:
    """Write in many places."""
    with backend.open_volume(name, "r+b") as file:
        for at in range(start, end, 4 * 2**20):
            file.seek(at)
            file.write(data.ljust(4096, b"\0"))


def test_the_disk_is_dirty(dirty: Disk) -> None:
    """The canary of these tests is there: a bare thick volume shows it."""
    run("lvcreate", "-y", "-Wn", "-Zn", "-L", "1g", "-n", "bare", dirty.vg)
    assert len(dirt_in(Path("/dev") / dirty.vg / "bare")) > 200


def test_new_volumes_on_a_dirty_disk(dirty: Disk, lvm_type: str) -> None:
    """A volume made where others left bytes reads as zeros, wherever it is, also after a write into each block."""
    b = lvm_backend(dirty, lvm_type)
    for name, size in (("a", 1), ("b", 3)):
        b.create_volume(name, size)
        assert dirt_in(b.locate(name).path) == []
    scatter(b, "b", b"x")
    with b.open_volume("b", "rb") as file:
        data = file.read(8 * 2**20)
    assert data.replace(b"x", b"\0") == bytes(8 * 2**20)


def test_deleted_bytes_do_not_come_back(disk: Disk, lvm_type: str) -> None:
    """Write, delete, create until every extent was reused: zeros; and the disk below holds no byte of it."""
    b = lvm_backend(disk, lvm_type)
    b.create_volume("a", 2)
    scatter(b, "a", SECRET, end=2 * GIB)
    assert disk.holds(SECRET)
    b.delete_volume("a")
    assert not disk.holds(SECRET)
    for size in (1, 3, 2):
        b.create_volume("next", size)
        assert dirt_in(b.locate("next").path) == []
        b.delete_volume("next")


def test_without_clearing_new_volumes_are_zero_all_the_same(make_disk: Callable[..., Disk]) -> None:
    """volume_clear = none leaves bytes on the disk, but no volume ever shows them."""
    disk = make_disk(4)
    b = lvm_backend(disk, "thick", volume_clear="none", discard=False)
    b.create_volume("a", 3)
    scatter(b, "a", SECRET, end=3 * GIB)
    b.delete_volume("a")
    assert disk.holds(SECRET)
    b.create_volume("next", 3)
    assert dirt_in(b.locate("next").path) == []


def test_only_the_start_is_cleared_when_so_configured(disk: Disk) -> None:
    """volume_clear_size clears that many MiB of a deleted volume, and no more."""
    b = lvm_backend(disk, "thick", volume_clear_size=1, discard=False)
    b.create_volume("a", 1)
    scatter(b, "a", SECRET, end=2**20)
    b.delete_volume("a")
    assert not disk.holds(SECRET)
    b.create_volume("a", 1)
    scatter(b, "a", SECRET, start=8 * 2**20)
    b.delete_volume("a")
    assert disk.holds(SECRET)


def test_a_thick_volume_has_its_name_only_when_it_is_zero(dirty: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is zeroed, and while the part that it grows by is, nothing by its name can be read there."""
    b = lvm_backend(dirty, "thick")
    seen = []
    real = devices.Exclusive.clear

    def clear(device: devices.Exclusive, *args: object) -> None:
        seen.append(dirty.lvs("lv_size"))
        real(device, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(devices.Exclusive, "clear", clear)
    b.create_volume("v", 1)
    b.extend_volume("v", 2)
    assert seen == [[["new.v", "1.00g"]], [["grow.v", "1.00g"], ["v", "1.00g"]]]


@pytest.mark.parametrize("frozen", [False, True])
def test_the_grown_part(dirty: Disk, lvm_type: str, frozen: bool) -> None:
    """An extended volume keeps its bytes and reads as zeros beyond them, also while open, also with a snapshot."""
    b = lvm_backend(dirty, lvm_type)
    b.create_volume("v", 1)
    scatter(b, "v", SECRET)
    if frozen:
        b.create_snapshot("v", "snap-v")
        b.extend_volume("v", 2)
    else:
        with b.open_volume("v", "r+b") as file:
            b.extend_volume("v", 2)
            assert file.seek(0, os.SEEK_END) == 2 * GIB
            file.seek(GIB)
            file.write(bytes(4096))
    assert dirt_in(b.locate("v").path, GIB) == []
    b.extend_volume("v", 3)
    assert dirt_in(b.locate("v").path, GIB) == []


def test_a_deleted_snapshot_leaves_nothing(disk: Disk, lvm_type: str) -> None:
    """What a volume overwrote lives in its snapshot; when that goes, no byte of it stays on the disk."""
    b = lvm_backend(disk, lvm_type, discard=True)
    b.create_volume("v", 1)
    scatter(b, "v", SECRET)
    b.create_snapshot("v", "snap-v")
    scatter(b, "v", b"overwritten")
    with b.open_snapshot("v", "snap-v") as file:
        assert file.read(len(SECRET)) == SECRET
    assert disk.holds(SECRET)
    b.delete_snapshot("v", "snap-v")
    for name, size in (("a", 1), ("b", 2)):
        b.create_volume(name, size)
        assert dirt_in(b.locate(name).path) == []
    if lvm_type == "thick":
        assert not disk.holds(SECRET)


def test_a_new_snapshot_on_a_dirty_disk_shows_its_volume(dirty: Disk, lvm_type: str) -> None:
    """The copy-on-write area is made of dirty extents, none of which can be read."""
    b = lvm_backend(dirty, lvm_type)
    b.create_volume("v", 1)
    b.create_snapshot("v", "snap-v")
    scatter(b, "v", b"x")
    with b.open_snapshot("v", "snap-v") as file:
        for _ in range(256):
            assert file.read(4 * 2**20) == bytes(4 * 2**20)


@pytest.mark.parametrize("source", ["volume", "snapshot"])
def test_copies_onto_a_dirty_disk(dirty: Disk, lvm_type: str, source: str) -> None:
    """A copy has zeros where its source has zeros and beyond its source: none is skipped onto old bytes."""
    b = lvm_backend(dirty, lvm_type)
    b.create_volume("v", 1)
    with b.open_volume("v", "r+b") as file:
        file.seek(GIB // 2)
        file.write(SECRET)
    if source == "volume":
        b.clone_volume("c", 2, "v")
    else:
        b.create_snapshot("v", "snap-v")
        b.create_volume_from_snapshot("c", 2, "v", "snap-v")
    assert dirt_in(b.locate("c").path) == [GIB // 2]


def test_a_thick_snapshot_cannot_overflow(make_disk: Callable[..., Disk]) -> None:
    """Every chunk of a volume is overwritten, and its snapshots still have all bytes."""
    disk = make_disk(5)
    b = lvm_backend(disk, "thick")
    b.create_volume("v", 1)
    scatter(b, "v", SECRET)
    b.create_snapshot("v", "snap-v")
    with b.open_volume("v", "r+b") as file:
        for at in range(0, GIB, 64 * 1024):
            file.seek(at)
            file.write(b"y" * 4096)
    assert ["snap-v", ""] in disk.lvs("lv_snapshot_invalid")
    with b.open_snapshot("v", "snap-v") as file:
        for at in range(0, GIB, 4 * 2**20):
            file.seek(at)
            assert file.read(4096) == SECRET.ljust(4096, b"\0")


def test_a_pool_that_does_not_zero_is_refused(dirty: Disk) -> None:
    """A pool made with -Zn fails the check with the command that mends it; mended, it is taken."""
    pool = f"{dirty.vg}/{dirty.vg}-pool"
    run("lvcreate", "-y", "-L", "2g", "-Zn", "-T", pool)
    for lvm_type in ("auto", "thin"):
        b = lvm_backend(dirty, lvm_type, check=False)
        with pytest.raises(Unreachable, match=f"does not zero.*lvchange -Zy {pool}"):
            b.check()
    run("lvchange", "-Zy", pool)
    b.check()
    b.create_volume("v", 1)
    assert dirt_in(b.locate("v").path) == []


def test_pools_that_we_make_zero_and_pass_discards_down(disk: Disk) -> None:
    """The pool of a first check zeroes what it hands out, and a deleted volume's space is given back to the disk."""
    b = lvm_backend(disk, "thin")
    assert disk.lvs("zero", "discards") == [[f"{disk.vg}-pool", "zero", "passdown"]]
    b.create_volume("v", 1)
    with b.open_volume("v", "r+b") as file:
        for _ in range(64):
            file.write(SECRET.ljust(2**20, b"z"))
    os.sync()
    used = disk.image.stat().st_blocks * 512
    b.delete_volume("v")
    os.sync()
    assert used - disk.image.stat().st_blocks * 512 > 60 * 2**20


@pytest.fixture(scope="module", params=["thick", "thin"])
def untouched(request: pytest.FixtureRequest) -> Iterator[LvmBackend]:
    """Return a backend of each type, for cases that change nothing."""
    disk = Disk(16)
    yield lvm_backend(disk, request.param)
    disk.close()


@pytest.mark.parametrize("name", ["-f", "--config=x", "@tag", "../v", "a/b", "a b", "v\n", "new.v", "", "v;id", "é"])
def test_hostile_names_reach_no_tool(untouched: LvmBackend, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that LVM might take for something else is refused before anything runs."""
    b = untouched
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_options: pytest.fail("a tool was started"))
    for call in (
        lambda: b.create_volume(name, 1),
        lambda: b.delete_volume(name),
        lambda: b.extend_volume(name, 2),
        lambda: b.locate(name).path,
        lambda: b.open_volume(name, "rb").__enter__(),
        lambda: b.create_snapshot("v", name),
        lambda: b.create_snapshot(name, "s"),
        lambda: b.delete_snapshot("v", name),
        lambda: b.clone_volume(name, 1, "v"),
        lambda: b.clone_volume("c", 1, name),
        lambda: b.create_volume_from_snapshot("c", 1, "v", name),
        lambda: b.revert_volume("v", name),
    ):
        with pytest.raises(BackendError):
            call()
