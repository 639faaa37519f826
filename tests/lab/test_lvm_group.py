"""A volume group that is known by its UUID, half there, full, or not to be activated; and whatever lvm.conf says."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blockstore_plugins.lvm import LvmBackend

from blockstore.errors import InUse, NoSpace, Unreachable

from .conftest import Disk, lvm_backend, run, second_disk

pytestmark = pytest.mark.lab

VOLUME = "volume-5ba0a4a9-7dfb-4b5e-94a5-3d8ffbc7ee01"
SNAPSHOT = "snap-0f1a6a17-2d6a-4f0e-8bb2-5e9a8d6f4b02"
LVM_CONF = Path("/etc/lvm/lvm.conf")
FOR_PEOPLE = """
log { prefix="LVM says: " command_names=1 indent=0 verbose=1 report_command_log=1 }
report { compact_output=1 binary_values_as_numeric=1 prefixes=1 quoted=0 list_item_separator=";" columns_as_rows=1 }
"""


@contextmanager
def configured(text: str) -> Iterator[None]:
    """Add to lvm.conf."""
    before = LVM_CONF.read_text()
    LVM_CONF.write_text(before + text)
    try:
        yield
    finally:
        LVM_CONF.write_text(before)


def everything(b: LvmBackend) -> None:
    """Do one of each operation, and leave nothing."""
    b.create_volume(VOLUME, 1)
    with b.open_volume(VOLUME, "r+b") as file:
        file.write(b"x" * 4096)
    b.create_snapshot(VOLUME, SNAPSHOT)
    b.clone_volume("volume-c", 1, VOLUME)
    b.revert_volume(VOLUME, SNAPSHOT)
    b.extend_volume(VOLUME, 2)
    with b.open_volume("volume-c", "rb") as file:
        assert file.read(4096) == b"x" * 4096
    assert b.list_snapshots() == {SNAPSHOT: VOLUME}
    for name in ("volume-c", VOLUME):
        if name == VOLUME:
            b.delete_snapshot(VOLUME, SNAPSHOT)
        b.delete_volume(name)
    assert b.list_volumes() == {}


def test_lvm_conf_for_people(disk: Disk, lvm_type: str) -> None:
    """What makes reports nicer to read does not change how they are read."""
    with configured(FOR_PEOPLE):
        b = lvm_backend(disk, lvm_type)
        b.change_owner(None, "an-installation")
        assert b.owner() == "an-installation"
        b.create_volume(VOLUME, 1)
        b.create_snapshot(VOLUME, SNAPSHOT)
        assert b.list_snapshots() == {SNAPSHOT: VOLUME}
        b.delete_snapshot(VOLUME, SNAPSHOT)
        b.extend_volume(VOLUME, 2)
        assert b.list_volumes() == {VOLUME: 2}
        b.delete_volume(VOLUME)
        assert b.capacity().closed_because is None


def test_a_guests_disk_with_a_group_of_our_name(disk: Disk, lvm_type: str, caplog: pytest.LogCaptureFixture) -> None:
    """On the node that is a hypervisor too: nothing fails, nothing goes into the guest's disk, and it is named."""
    b = lvm_backend(disk, lvm_type)
    ours = b.identity()
    with second_disk(4) as guest:
        run("vgchange", "-an", disk.vg)  # vgcreate refuses a name below /dev; in a guest nothing of ours is there
        run("vgcreate", "--devices", guest, disk.vg, guest)
        fresh = lvm_backend(disk, lvm_type, check=False)
        with pytest.raises(Unreachable, match=f"2 volume groups of the name {disk.vg}.*{guest}"):
            fresh.check()
        b.recognise(ours)
        b.prove_identity()
        b.check()
        everything(b)
        assert run("lvs", "--devices", guest, "--noheadings", disk.vg) == ""
        assert f"{guest} holds another volume group of the name {disk.vg}" in caplog.text
        # Ours goes away, and theirs is all that is left of the name.
        run("vgchange", "--devices", disk.device, "-an", disk.vg)
        run("losetup", "-d", disk.device)
        with pytest.raises(Unreachable, match=f"{ours} is recorded, and .* was found.*on {guest}.*guest"):
            b.prove_identity()
        for call in (lambda: b.create_volume(VOLUME, 1), lambda: b.delete_volume(VOLUME)):
            with pytest.raises(Unreachable, match=f"{ours}.*not used: .* on {guest}"):
                call()
        run("losetup", disk.device, str(disk.image))
        b.prove_identity()
        b.create_volume(VOLUME, 1)
        assert run("lvs", "--devices", guest, "--noheadings", disk.vg) == ""
        run("vgremove", "--devices", guest, "-f", disk.vg)


def test_a_group_in_a_volume_of_ours(disk: Disk) -> None:
    """With scan_lvs in lvm.conf LVM sees what guests wrote into our volumes; here nobody looks."""
    b = lvm_backend(disk, "thick")
    b.create_volume(VOLUME, 1)
    theirs = f"/dev/{disk.vg}/{VOLUME}"
    with configured("devices { scan_lvs=1 }\n"):
        run("vgcreate", "--devices", theirs, "theirs", theirs)
        for again in (b, lvm_backend(disk, "thick")):
            again.check()
            assert again.list_volumes() == {VOLUME: 1}
        assert "theirs" in run("vgs", "--noheadings")
        b.delete_volume(VOLUME)
        assert "theirs" not in run("vgs", "--noheadings")


def test_a_copy_of_our_disk(make_disk: Callable[..., Disk]) -> None:
    """What carries our volumes is ours; when nothing is active, both are named and nothing is changed."""
    disk = make_disk(4)
    b = lvm_backend(disk, "thick")
    b.recognise(b.identity())
    b.create_volume(VOLUME, 1)
    with second_disk(4, copy_of=disk.image) as copy:
        b.check()
        b.create_volume("volume-2", 1)
        b.delete_volume("volume-2")
        run("vgchange", "--devices", disk.device, "-an", disk.vg)
        with pytest.raises(Unreachable, match=f"on two devices, .*({copy}|{disk.device}).*nothing shows which"):
            b.check()
    b.check()
    b.delete_volume(VOLUME)


def test_half_a_group(make_disk: Callable[..., Disk], lvm_type: str) -> None:
    """One of two disks is gone: complete volumes are used and deleted, new ones refused, and the disk is named."""
    disk = make_disk(6)
    b = lvm_backend(disk, lvm_type, thin_pool_size="3G")
    b.recognise(b.identity())
    b.create_volume(VOLUME, 1)
    with b.open_volume(VOLUME, "r+b") as file:
        file.write(b"kept")
    with second_disk(4) as lost:
        run("vgextend", disk.vg, lost)
        uuid = run("pvs", "--noheadings", "-o", "pv_uuid", lost).strip()
        run("lvcreate", "-y", "-Wn", "-Zn", "-L", "1g", "-n", "volume-torn", disk.vg, lost)
        b.check()
        run("lvchange", "-an", f"{disk.vg}/volume-torn")
        run("losetup", "-d", lost)
        b.prove_identity()
        b.check()
        closed = b.capacity().closed_because or ""
        assert f"{uuid} (last on {lost})" in closed
        assert "vgreduce --removemissing" in closed
        for call in (lambda: b.create_volume("volume-3", 1), lambda: b.extend_volume(VOLUME, 2)):
            with pytest.raises(Unreachable, match="lacks a physical volume"):
                call()
        if lvm_type == "thick":
            with pytest.raises(Unreachable, match="lacks a physical volume"), b.open_volume("volume-torn", "rb"):
                pass
        run("lvchange", "-an", f"{disk.vg}/{VOLUME}")
        with b.open_volume(VOLUME, "rb") as file:
            assert file.read(4) == b"kept"
        b.delete_volume(VOLUME)
        assert VOLUME not in b.list_volumes()
        run("vgreduce", "--removemissing", "--force", disk.vg)
        b.check()
        assert b.capacity().closed_because is None
        b.create_volume("volume-3", 1)


def test_full_metadata_area(make_disk: Callable[..., Disk], lvm_type: str) -> None:
    """Told before it is full, and no delete needs it."""
    disk = make_disk(8)
    run("vgremove", "-f", disk.vg)
    run("pvremove", "-y", disk.device)
    run("pvcreate", "--metadatasize", "48k", "--dataalignment", "16k", disk.device)
    run("vgcreate", "-s", "4m", disk.vg, disk.device)
    b = lvm_backend(disk, lvm_type)
    b.create_volume(VOLUME, 1)
    b.create_snapshot(VOLUME, SNAPSHOT)
    assert b.capacity().closed_because is None
    number = 0
    for size in (1000, 200, 40):  # tags fill it, the last of them to some bytes
        many = range(4 if size == 1000 else 1)
        while not subprocess.run(
            ["vgchange", *(f"--addtag=x{number}.{n}.{'x' * size}" for n in many), disk.vg],
            capture_output=True,
            check=False,
        ).returncode:
            number += 1
    capacity = b.capacity()
    assert (capacity.metadata_filled_percent or 0) > 95
    assert f"metadata area of volume group {disk.vg} is full" in (capacity.closed_because or "")
    with pytest.raises(NoSpace, match=f"metadata area of volume group {disk.vg} is full"):
        b.create_volume("volume-2", 1)
    b.check()
    b.delete_snapshot(VOLUME, SNAPSHOT)
    b.delete_volume(VOLUME)
    assert b.list_volumes() == {}
    assert disk.names() in ([], [f"{disk.vg}-pool"])


def test_what_may_be_activated(disk: Disk, lvm_type: str) -> None:
    """LVM succeeds and makes no device; the look reads the configuration."""
    lvm_backend(disk, lvm_type)
    run("vgchange", "-an", disk.vg)
    b = lvm_backend(disk, lvm_type, check=False)
    with configured('activation { volume_list=["other"] }\n'):
        with pytest.raises(Unreachable, match=f"volume_list in lvm.conf.*it is other. Add {disk.vg}"):
            b.check()
        with pytest.raises(Unreachable, match="volume_list"):
            b.create_volume(VOLUME, 1)
    read_only = configured(f'activation {{ read_only_volume_list=["{disk.vg}"] }}\n')
    with read_only, pytest.raises(Unreachable, match="read_only_volume_list"):
        b.check()
    with configured(f'activation {{ volume_list=["other", "{disk.vg}"] }}\n'):
        b.check()
        b.create_volume("volume-2", 1)


def test_no_space_for_backups_of_metadata(disk: Disk, lvm_type: str) -> None:
    """A full /etc/lvm refuses what adds, with its name, and lets everything be deleted."""
    b = lvm_backend(disk, lvm_type)
    b.create_volume(VOLUME, 1)
    b.create_snapshot(VOLUME, SNAPSHOT)
    archive = Path("/etc/lvm/archive")
    archive.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(archive))
    try:
        (archive / "full").write_bytes(b"x" * 4096)
        with configured("backup { archive=1 }\n"):
            with pytest.raises(NoSpace, match=r"/etc/lvm/archive/.*Free space there"):
                b.create_volume("volume-2", 1)
            b.delete_snapshot(VOLUME, SNAPSHOT)
            b.delete_volume(VOLUME)
            assert b.list_volumes() == {}
    finally:
        run("umount", str(archive))


def test_a_name_that_leaves_no_room(make_disk: Callable[..., Disk]) -> None:
    """The longest name of a group that serves, and one that is longer."""
    disk = make_disk(8)
    for name, fits in (("v" * 70, False), ("v" * 69, True)):
        run("vgrename", disk.vg, name)
        disk.vg = name
        b = lvm_backend(disk, "thick")
        assert (b.capacity().closed_because is None) == fits
    run("lvcreate", "-y", "-Wn", "-L", "4m", "-n", VOLUME, disk.vg)
    run("lvcreate", "-y", "-s", "-L", "4m", "-n", f"copy.{VOLUME}", f"{disk.vg}/{VOLUME}")


def test_who_has_it_open(disk: Disk, lvm_type: str) -> None:
    """The process is named, by LVM's look and by the kernel's refusal."""
    b = lvm_backend(disk, lvm_type)
    b.create_volume(VOLUME, 1)
    located = b.locate(VOLUME)
    assert located is not None
    with located.path.open("rb") as device, subprocess.Popen(["sleep", "60"], stdin=device) as sleeper:
        device.close()
        with pytest.raises(InUse, match=rf"PID {sleeper.pid} \(sleep\)"):
            b.delete_volume(VOLUME)
        sleeper.kill()
    b.delete_volume(VOLUME)
