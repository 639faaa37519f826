"""Each failure that an operator meets has a sentence that says what to do; and what ``auto`` picks."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from blockstore.backends import process
from blockstore.backends.contract import GIB
from blockstore.errors import BackendError, InUse, NameTaken, NoSpace, Unreachable, VolumeMissing

from .conftest import Disk, lvm_backend, run

pytestmark = pytest.mark.lab


def test_no_such_volume_group(disk: Disk, lvm_type: str) -> None:
    """The group's name and how to make it."""
    disk.vg = "nosuchgroup"
    with pytest.raises(Unreachable, match=r"no volume group nosuchgroup.*vgcreate nosuchgroup DEVICE"):
        lvm_backend(disk, lvm_type)
    with pytest.raises(Unreachable, match="no volume group nosuchgroup"):
        lvm_backend(disk, lvm_type, check=False).create_volume("v", 1)


def test_tool_missing(disk: Disk, lvm_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package to install."""
    monkeypatch.setattr(process, "_search_path", lambda: "/nonexistent")
    with pytest.raises(Unreachable, match=r"pvs is not installed.*apt-get install lvm2"):
        lvm_backend(disk, lvm_type)


def test_not_root(disk: Disk, lvm_type: str) -> None:
    """Root, or use_sudo."""
    b = lvm_backend(disk, lvm_type)
    os.seteuid(65534)
    try:
        for call in (b.check, lambda: b.create_volume("v", 1), b.capacity):
            with pytest.raises(Unreachable, match=r"needs root.*use_sudo = yes"):
                call()
    finally:
        os.seteuid(0)


def test_use_sudo_without_sudo(disk: Disk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sudo's own refusals have a sentence, and a sudo that works is used for every tool."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    sudo = tmp_path / "sudo"
    sudo.write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    sudo.chmod(0o755)
    with pytest.raises(Unreachable, match="sudo does not let this user run LVM"):
        lvm_backend(disk, "thin", use_sudo=True)
    sudo.write_text('#!/bin/sh\n[ "$1" = -n ] || exit 9\nshift\nexec "$@"\n')
    b = lvm_backend(disk, "thin", use_sudo=True)
    b.create_volume("v", 1)
    assert b.list_volumes() == {"v": 1}


def test_group_full(make_disk: Callable[..., Disk]) -> None:
    """What does not fit is refused by name, and nothing is left."""
    disk = make_disk(2.5)
    b = lvm_backend(disk, "thick")
    b.create_volume("v", 1)
    for call in (
        lambda: b.create_volume("w", 2),
        lambda: b.extend_volume("v", 3),
        lambda: b.clone_volume("w", 1, "v"),
        lambda: (b.create_snapshot("v", "snap-1"), b.create_snapshot("v", "snap-2")),
    ):
        with pytest.raises(NoSpace, match=f"Volume group {disk.vg} is full.*free space"):
            call()
        assert disk.names() in (["v"], ["snap-1", "v"])
    assert b.capacity().free_gib < 1


def test_pool_data_full(make_disk: Callable[..., Disk]) -> None:
    """A thin pool without a free block: how full it is, and the command that grows it."""
    disk = make_disk(2)
    run("lvcreate", "-y", "-L", "64m", "-Zy", "--errorwhenfull", "y", "-T", f"{disk.vg}/{disk.vg}-pool")
    b = lvm_backend(disk, "auto")
    b.create_volume("v", 1)
    with b.open_volume("v", "rb"):
        direct = os.open(b.locate("v").path, os.O_WRONLY | os.O_DIRECT)
        block = mmap.mmap(-1, 2**20)
        with pytest.raises(OSError, match="No space left"):
            assert all(os.pwrite(direct, block, at) for at in range(0, 2**30, 2**20))
        os.close(direct)
    for call in (
        lambda: b.create_volume("w", 1),
        lambda: b.create_snapshot("v", "snap-v"),
        lambda: b.clone_volume("w", 1, "v"),
    ):
        with pytest.raises(NoSpace, match=f"{disk.vg}-pool is full: data 100 %.*more data: lvextend -L"):
            call()
    assert b.capacity().free_gib == 0
    b.delete_volume("v")
    b.create_volume("w", 1)
    assert b.list_volumes() == {"w": 1}


@pytest.mark.slow
def test_pool_metadata_full(make_disk: Callable[..., Disk]) -> None:
    """A thin pool without space for its tables says that it is those."""
    disk = make_disk(2, extent="1m")
    pool = f"{disk.vg}-pool"
    run("lvcreate", "-y", "-L", "64m", "--poolmetadatasize", "2m", "-Zy", "-T", f"{disk.vg}/{pool}")
    b = lvm_backend(disk, "auto")
    b.create_volume("v", 1)
    target = f"{disk.vg}-{disk.vg}--pool-tpool"
    for number in range(1000, 2000):
        if subprocess.run(["dmsetup", "message", target, "0", f"create_thin {number}"], capture_output=True).returncode:
            break
    else:
        pytest.fail("the pool's metadata did not fill up")
    with pytest.raises(BackendError) as caught:
        b.create_volume("w", 1)
    assert isinstance(caught.value, NoSpace), caught.value
    assert "more metadata: lvextend --poolmetadatasize" in str(caught.value)


def test_name_taken(disk: Disk, lvm_type: str) -> None:
    """By a volume of another size, by a snapshot, and by what is not ours."""
    b = lvm_backend(disk, lvm_type)
    b.create_volume("v", 1)
    b.create_snapshot("v", "snap-v")
    run("lvcreate", "-y", "-L", "64m", "-n", "swap", "-Wn", disk.vg)
    b.create_volume("v", 1)
    with pytest.raises(NameTaken, match="v exists and has 1 GiB, not 2"):
        b.create_volume("v", 2)
    with pytest.raises(NameTaken, match="snap-v is taken by a snapshot"):
        b.create_volume("snap-v", 1)
    with pytest.raises(NameTaken):
        b.create_volume("swap", 1)
    with pytest.raises(NameTaken):
        b.create_snapshot("v", "swap")


def test_names_that_lvm_reserves(disk: Disk, lvm_type: str) -> None:
    """LVM's own refusals of a name come through as a sentence."""
    b = lvm_backend(disk, lvm_type)
    for name in ("snapshot-1", "x_cdata", "a" + "-" * 62):
        with pytest.raises(BackendError, match="LVM does not accept this name"):
            b.create_volume(name, 1)
    b.create_volume("a" * 63, 1)
    assert b.list_volumes() == {"a" * 63: 1}


def test_open_devices(disk: Disk, lvm_type: str) -> None:
    """What is open is neither deleted nor reverted, and is whole afterwards."""
    b = lvm_backend(disk, lvm_type)
    b.create_volume("v", 1)
    b.create_snapshot("v", "snap-v")
    with b.open_volume("v", "r+b") as file:
        file.write(b"x" * 4096)
        with pytest.raises(InUse):
            b.revert_volume("v", "snap-v")
    with b.open_snapshot("v", "snap-v"), pytest.raises(InUse):
        b.delete_snapshot("v", "snap-v")
    b.delete_snapshot("v", "snap-v")
    with b.open_volume("v", "rb") as file, pytest.raises(InUse):
        b.delete_volume("v")
    with b.open_volume("v", "rb") as file:
        assert file.read(4096) == b"x" * 4096


def test_an_open_thick_volume_with_snapshots_does_not_grow(disk: Disk) -> None:
    """LVM cannot; the refusal says what can be done, and leaves everything as it was."""
    b = lvm_backend(disk, "thick")
    b.create_volume("v", 1)
    b.create_snapshot("v", "snap-v")
    with b.open_volume("v", "rb"), pytest.raises(InUse, match="Detach it, or delete its snapshots"):
        b.extend_volume("v", 2)
    assert (b.list_volumes(), disk.names()) == ({"v": 1}, ["snap-v", "v"])
    b.extend_volume("v", 2)
    assert b.list_volumes() == {"v": 2}


def test_a_revert_that_would_cut_other_snapshots_is_refused(disk: Disk) -> None:
    """A thick volume cannot become smaller than a snapshot that it keeps."""
    b = lvm_backend(disk, "thick")
    b.create_volume("v", 1)
    b.create_snapshot("v", "snap-1")
    b.extend_volume("v", 2)
    b.create_snapshot("v", "snap-2")
    with pytest.raises(InUse, match="snapshot of another size: snap-2"):
        b.revert_volume("v", "snap-1")
    b.delete_snapshot("v", "snap-2")
    b.revert_volume("v", "snap-1")
    assert b.list_volumes() == {"v": 1}


def test_auto(make_disk: Callable[..., Disk]) -> None:
    """Thin on an empty group or with a pool, thick beside other volumes; decided once."""
    empty = make_disk(4)
    b = lvm_backend(empty, "auto")
    assert (b.capabilities().thin, b.capabilities().thick) == (True, False)
    assert empty.names() == [f"{empty.vg}-pool"]
    assert lvm_backend(empty, "auto").capabilities().thin
    used = make_disk(4)
    run("lvcreate", "-y", "-Wn", "-L", "64m", "-n", "root", used.vg)
    b = lvm_backend(used, "auto")
    assert b.capabilities().thick
    assert used.names() == ["root"]
    run("lvremove", "-fy", f"{used.vg}/root")
    b.check()
    assert b.capabilities().thick
    assert used.names() == []


def test_pools_that_are_no_use(make_disk: Callable[..., Disk]) -> None:
    """A volume where the pool should be, and extents that do not divide a GiB."""
    disk = make_disk(4)
    run("lvcreate", "-y", "-Wn", "-L", "64m", "-n", f"{disk.vg}-pool", disk.vg)
    with pytest.raises(Unreachable, match="is not a thin pool"):
        lvm_backend(disk, "thin")
    odd = make_disk(6, extent="2g")
    with pytest.raises(Unreachable, match="1 GiB must be a multiple"):
        lvm_backend(odd, "thick")


def test_what_survives_a_reboot(disk: Disk, lvm_type: str) -> None:
    """After everything was deactivated, volumes and snapshots open, and thin snapshots in spite of their skip flag."""
    b = lvm_backend(disk, lvm_type)
    b.create_volume("v", 1)
    with b.open_volume("v", "r+b") as file:
        file.write(b"x" * 4096)
    b.create_snapshot("v", "snap-v")
    b.clone_volume("c", 1, "v")
    run("vgchange", "-an", disk.vg)
    b = lvm_backend(disk, lvm_type)
    with b.open_snapshot("v", "snap-v") as file:
        assert file.read(4096) == b"x" * 4096
    for name in ("c", "v"):
        with b.open_volume(name, "rb") as file:
            assert file.read(4096) == b"x" * 4096
    run("vgchange", "-an", disk.vg)
    b.revert_volume("v", "snap-v")
    run("vgchange", "-an", disk.vg)
    b.delete_volume("c")
    b.delete_snapshot("v", "snap-v")
    b.delete_volume("v")
    assert b.list_volumes() == {}


def test_foreign_volumes(disk: Disk, lvm_type: str) -> None:
    """What is not ours is listed where it is in our pool, and never counted as a snapshot or removed."""
    b = lvm_backend(disk, lvm_type)
    run("lvcreate", "-y", "-Wn", "-L", "64m", "-n", "swap", disk.vg)
    if lvm_type == "thin":
        run("lvcreate", "-y", "-V", "1g", "-T", f"{disk.vg}/{disk.vg}-pool", "-n", "foreign")
    assert b.list_volumes() == ({"foreign": 1} if lvm_type == "thin" else {"swap": 0.0625})
    assert b.list_snapshots() == {}
    if lvm_type == "thin":
        b.delete_volume("swap")
        assert "swap" in disk.names()
        with pytest.raises(VolumeMissing), b.open_volume("swap", "rb"):
            pass


def test_foreign_volumes_are_taken_over(disk: Disk, lvm_type: str) -> None:
    """Grown to whole GiB with zeros, its snapshots come along, and what does not fit stays what it was."""
    b = lvm_backend(disk, lvm_type)
    where = ("-V", "1500m", "-T", f"{disk.vg}/{disk.vg}-pool") if lvm_type == "thin" else ("-L", "1500m", disk.vg)
    run("lvcreate", "-y", "-n", "their_disk", *where)
    with b.open_volume("their_disk", "r+b") as file:
        file.write(b"theirs")
    (found,) = b.list_manageable()
    assert (found.reference, found.size_bytes, found.reason) == ("their_disk", 1500 * 2**20, None)
    for _ in range(2):
        assert b.manage_volume("their_disk", "volume-1") == 2
    assert b.list_volumes() == {"volume-1": 2}
    with b.open_volume("volume-1", "rb") as file:
        assert file.read(6) == b"theirs"
        file.seek(1500 * 2**20)
        assert not any(file.read(2**20))
    b.create_snapshot("volume-1", "snap-1")
    (shot,) = b.list_manageable_snapshots()
    assert (shot.reference, shot.volume, shot.size_bytes) == ("snap-1", "volume-1", 2 * GIB)
    # Let go with its snapshot, and taken back: the snapshot follows.
    assert b.manage_volume("volume-1", "volume-2") == 2
    assert b.list_snapshots() == {"snap-1": "volume-2"}
    b.manage_snapshot("volume-2", "snap-1", "snap-2")
    b.manage_snapshot("volume-2", "snap-1", "snap-2")
    assert b.list_snapshots() == {"snap-2": "volume-2"}
    b.revert_volume("volume-2", "snap-2")
    b.delete_snapshot("volume-2", "snap-2")
    b.delete_volume("volume-2")
    assert b.list_volumes() == {}


def test_foreign_snapshots_are_taken_over(disk: Disk, lvm_type: str) -> None:
    """What lvcreate -s made, without our tag."""
    b = lvm_backend(disk, lvm_type)
    b.create_volume("v", 1)
    more = () if lvm_type == "thin" else ("-L", "1100m")
    run("lvcreate", "-y", "-s", *more, "-n", "theirs", f"{disk.vg}/v")
    (shot,) = b.list_manageable_snapshots()
    assert (shot.reference, shot.volume) == ("theirs", "v")
    b.manage_snapshot("v", "theirs", "snap-1")
    assert b.list_snapshots() == {"snap-1": "v"}
    with b.open_snapshot("v", "snap-1") as file:
        assert file.seek(0, 2) == GIB
    b.delete_snapshot("v", "snap-1")
    b.delete_volume("v")
    assert b.list_volumes() == {}
