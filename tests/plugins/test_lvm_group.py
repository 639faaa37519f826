"""The LVM plugin and its volume group: known by its UUID, half there, full, or not to be activated."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blockstore_plugins.lvm import LvmBackend, LvmOptions, members, names

from blockstore.backends import holders, process
from blockstore.errors import BackendError, InUse, NoSpace, ToolFailed, Unreachable

from .fake_lvm import FakeLv, FakeLvm

VOLUME = "volume-5ba0a4a9-7dfb-4b5e-94a5-3d8ffbc7ee01"
SNAPSHOT = "snap-0f1a6a17-2d6a-4f0e-8bb2-5e9a8d6f4b02"
OTHER = "2fH3tY-xIJz-EW7Q-5A5b-jABo-Je5L-oKq2ah"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeLvm:
    return FakeLvm(monkeypatch)


def make(fake: FakeLvm, lvm_type: str = "thick", *, recorded: bool = True, **options: Any) -> LvmBackend:
    options.setdefault("volume_group", "vg")
    made = LvmBackend("b", LvmOptions(lvm_type=lvm_type, **options), Path("/nonexistent"))
    made.recognise(fake.uuid if recorded else "")
    return made


# --- which group ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lvm_type", ["thick", "thin"])
def test_a_guests_group_of_the_same_name_is_named_and_left_alone(
    fake: FakeLvm, lvm_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Every command is given our devices (the double refuses others), and the log names the intruder once."""
    b = make(fake, lvm_type)
    b.check()
    fake.pvs.append(fake.pv("/dev/sdx", "pv-9", vg_uuid=OTHER))
    with caplog.at_level(logging.WARNING):
        b.prove_identity()
        b.check()
        b.create_volume(VOLUME, 1)
        b.create_snapshot(VOLUME, SNAPSHOT)
        b.clone_volume("volume-c", 2, VOLUME)
        b.revert_volume(VOLUME, SNAPSHOT)
        b.extend_volume("volume-c", 3)
        b.delete_volume("volume-c")
        b.delete_snapshot(VOLUME, SNAPSHOT)
        b.delete_volume(VOLUME)
    named = [record.getMessage() for record in caplog.records if "/dev/sdx" in record.getMessage()]
    assert len(named) == 1
    assert f"vgrename {OTHER}" in named[0]


def test_two_groups_of_the_name_at_first_use_are_refused(fake: FakeLvm) -> None:
    """Nobody knows which: both UUIDs and devices are named."""
    fake.pvs.append(fake.pv("/dev/sdx", "pv-9", vg_uuid=OTHER))
    b = make(fake, recorded=False)
    for call in (b.check, b.identity, lambda: b.create_volume(VOLUME, 1), lambda: b.delete_volume(VOLUME)):
        with pytest.raises(Unreachable, match=r"2 volume groups of the name vg") as caught:
            call()
        for what in (OTHER, fake.uuid, "/dev/sdx", "/nosuch/loop0, /nosuch/loop1"):
            assert what in str(caught.value)


def test_a_group_that_took_the_place_of_ours_is_not_it(fake: FakeLvm) -> None:
    """Its UUID is told, for who says that it is new; meanwhile nothing is made in it, or deleted as gone."""
    b = make(fake)
    b.check()
    fake.pvs = [fake.pv("/dev/sdx", "pv-9", vg_uuid=OTHER)]
    assert b.identity() == OTHER
    with pytest.raises(Unreachable, match=rf"backend accept b --found {OTHER}.*on /dev/sdx.*guest"):
        b.prove_identity()
    for call in (
        lambda: b.create_volume(VOLUME, 1),
        lambda: b.delete_volume(VOLUME),
        b.list_volumes,
    ):
        with pytest.raises(Unreachable, match=rf"{fake.uuid}.*not used: {OTHER} on /dev/sdx"):
            call()
    b.recognise(OTHER)
    fake.uuid = OTHER
    b.check()


def test_the_same_device_with_another_group_deletes_nothing(fake: FakeLvm) -> None:
    """A group that was made anew on our own devices since the last look: the report itself proves which it is."""
    b = make(fake)
    b.check()
    b.create_volume(VOLUME, 1)
    fake.uuid = OTHER
    fake.pvs = [fake.pv("/nosuch/loop0", "pv-8"), fake.pv("/nosuch/loop1", "pv-9")]
    for lvs in ({VOLUME: FakeLv(2**30)}, {}):
        fake.lvs = dict(lvs)
        with pytest.raises(Unreachable):
            b.delete_volume(VOLUME)
        assert fake.lvs == lvs


def test_a_group_in_a_volume_of_ours_is_not_looked_at(fake: FakeLvm) -> None:
    """Volumes belong to guests; only a group that is nowhere else is looked for on logical volumes."""
    fake.pvs.append(fake.pv("/dev/mapper/vg-volume--1", "pv-9", vg_uuid=OTHER))
    b = make(fake, recorded=False)
    b.check()
    assert b.identity() == fake.uuid


def test_a_renamed_group_is_told(fake: FakeLvm) -> None:
    """It is known by its UUID, and the sentence says both ways out."""
    b = make(fake, volume_group="former")
    with pytest.raises(Unreachable, match=rf"now named vg.*vgrename {fake.uuid} former, or correct volume_group"):
        b.check()


def test_no_group_leads_to_filters_before_vgcreate(fake: FakeLvm) -> None:
    """What hides a disk comes before what would overwrite it."""
    fake.pvs = []
    with pytest.raises(Unreachable, match=r"no volume group vg.*global_filter.*devices file.*vgcreate vg DEVICE"):
        make(fake, recorded=False).check()


@pytest.mark.parametrize(("carries", "refused"), [("", True), ("/dev/a", False), ("/dev/b", True)])
def test_a_disk_that_is_there_twice(
    fake: FakeLvm, monkeypatch: pytest.MonkeyPatch, carries: str, refused: bool
) -> None:
    """The device that carries our volumes is ours; when nothing shows which is the copy, both are named."""
    monkeypatch.setattr(members, "_carries", lambda device, _uuid: device == carries)
    fake.pvs = [fake.pv("/dev/a", "pv-0"), fake.pv("/dev/b", "pv-0", pv_duplicate="duplicate")]
    b = make(fake)
    if refused:
        with pytest.raises(Unreachable, match=r"is on two devices, /dev/a and /dev/b"):
            b.check()
        return
    fake.pvs.pop()  # the double wants all of the group's devices
    fake_pvs = [*fake.pvs, fake.pv("/dev/b", "pv-0", pv_duplicate="duplicate")]
    monkeypatch.setattr(fake, "_pvs", lambda _pvs, report=fake._pvs: report(fake_pvs))
    b.check()
    b.create_volume(VOLUME, 1)


def test_devices_are_found_once_and_again_when_they_change(fake: FakeLvm, monkeypatch: pytest.MonkeyPatch) -> None:
    """No operation looks for devices, except when the kernel or LVM says that they are others."""
    disks = {"/nosuch/loop0": "7:0 1", "/nosuch/loop1": "7:1 2", "/nosuch/loop2": "7:2 3"}
    monkeypatch.setattr(members, "standing", lambda device: disks.get(device, ""))
    b = make(fake)
    b.check()
    b.create_volume(VOLUME, 1)
    fake.verbs()
    b.create_snapshot(VOLUME, SNAPSHOT)
    assert "pvs" not in fake.verbs()
    fake.pvs.append(fake.pv("/nosuch/loop2", "pv-2"))  # vgextend: LVM says that one is missing
    b.create_volume("volume-2", 1)
    assert fake.verbs().count("pvs") == 1
    disks["/nosuch/loop1"] = "7:1 9"  # another disk under the same name
    b.delete_snapshot(VOLUME, SNAPSHOT)
    assert fake.verbs()[0] == "pvs"


def test_lvm_before_devices_existed_gets_a_filter(fake: FakeLvm, monkeypatch: pytest.MonkeyPatch) -> None:
    """LVM 2.03.11 does not know the option; the filter shows it the same devices."""
    seen: list[str] = []

    def run(argv: Any, **options: Any) -> str:
        if "--devices" in argv:
            raise ToolFailed(tuple(argv), 3, f"  {argv[0]}: unrecognized option '--devices'")
        words = list(argv)
        if argv[0] != "pvs" and argv[0] != "lvmconfig":
            seen.append(words[words.index("--config") + 1])
            words[1:1] = ["--devices", "/nosuch/loop0,/nosuch/loop1"]
        return fake.run(words, **options)

    monkeypatch.setattr(process, "run", run)
    b = make(fake)
    b.check()
    b.create_volume(VOLUME, 1)
    assert all('global_filter=["a|^/nosuch/loop0$|", "a|^/nosuch/loop1$|", "r|.*|"]' in config for config in seen)


# --- a group of which a disk is missing ---------------------------------------------------------------------------


def half(fake: FakeLvm) -> LvmBackend:
    """Return a backend whose second disk went away after volumes were made."""
    b = make(fake)
    b.check()
    b.create_volume(VOLUME, 1)
    fake.pvs[1] = fake.pv("[unknown]", "pv-1", pv_missing="missing")
    b.check()
    return b


def test_half_a_group_still_serves(fake: FakeLvm) -> None:
    """Complete volumes are there; new ones are refused with the disk's UUID, its last device, and what to do."""
    b = half(fake)
    assert list(b.list_volumes()) == [VOLUME]
    closed = b.capacity().closed_because or ""
    for what in ("pv-1 (last on /nosuch/loop1)", "--restoremissing vg", "--removemissing --force vg"):
        assert what in closed
    for call in (lambda: b.create_volume("volume-2", 1), lambda: b.extend_volume(VOLUME, 2)):
        with pytest.raises(Unreachable, match="lacks a physical volume"):
            call()
    fake.cleared.clear()
    b.delete_volume(VOLUME)
    assert fake.cleared == [(VOLUME, 0, 2**30)]
    assert fake.lvs == {}
    fake.pvs[1] = fake.pv("/nosuch/loop1", "pv-1")
    b.check()
    assert b.capacity().closed_because is None
    b.create_volume("volume-2", 1)


def test_the_last_device_is_taken_from_lvms_warning(fake: FakeLvm, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart nobody remembers; LVM's metadata does."""
    fake.pvs[1] = fake.pv("[unknown]", "pv-1", pv_missing="missing")

    def run(argv: Any, *, complaints: list[str] | None = None, **options: Any) -> str:
        if complaints is not None:
            complaints.append("  WARNING: VG vg is missing PV pv-1 (last written to /dev/sdq).\n")
        return fake.run(argv, **options)

    monkeypatch.setattr(process, "run", run)
    b = make(fake)
    b.check()
    assert "pv-1 (last on /dev/sdq)" in (b.capacity().closed_because or "")


def test_a_pool_on_a_missing_disk_is_down(fake: FakeLvm) -> None:
    """Nothing of it can be used."""
    fake.pool(health="partial")
    fake.pvs[1] = fake.pv("[unknown]", "pv-1", pv_missing="missing")
    with pytest.raises(Unreachable, match=r"vg/vg-pool is on a missing disk.*pv-1"):
        make(fake, "thin").check()


def test_a_pool_that_was_there_is_not_made_anew(fake: FakeLvm) -> None:
    """A new one would be empty, and every delete would answer that the volume is gone."""
    b = make(fake, "thin")
    b.check()
    del fake.lvs["vg-pool"]
    with pytest.raises(Unreachable, match=r"vg/vg-pool, which holds the volumes.*lvcreate --type.*-n vg-pool"):
        b.check()
    assert fake.lvs == {}
    fake.tags.clear()  # another group, which an administrator accepted
    fake.uuid = OTHER
    fake.pvs = [fake.pv("/nosuch/loop0", "pv-0"), fake.pv("/nosuch/loop1", "pv-1")]
    b.recognise(b.identity())
    b.check()
    assert set(fake.lvs) == {"vg-pool"}


# --- full -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [VOLUME, SNAPSHOT, "a-b", "volume-", "snap-x-y"])
def test_names_of_what_is_deleted_do_not_grow(name: str) -> None:
    """A full metadata area takes no longer name."""
    assert len(names.old(name)) == len(name)


def test_names_of_what_is_deleted_differ() -> None:
    """Also from those of other unfinished things, whatever the volumes are called."""
    ours = ["x", "new-x", "old-x", "old-new-x", "was-x", "a-b", "a_b", "a-b-c", "grow-x", "copy-x"]
    taken = {mark + name for mark in (names.NEW, names.WAS, names.GROW, names.COPY) for name in ours}
    old = [names.old(name) for name in ours]
    assert len(set(old)) == len(ours)
    assert not taken & {*old}
    assert not {*old} & {*ours}


@pytest.mark.parametrize("space", [0, -100])
def test_a_full_metadata_area_is_told_and_lets_delete(fake: FakeLvm, space: int) -> None:
    """Renames that do not grow are tried; where LVM refuses even those, the volume is cleared under its own name."""
    b = make(fake)
    b.create_volume(VOLUME, 1)
    b.create_snapshot(VOLUME, SNAPSHOT)
    fake.metadata_free = space
    b.check()
    capacity = b.capacity()
    assert (capacity.metadata_filled_percent or 0) >= 100
    assert "metadata area of volume group vg is full" in (capacity.closed_because or "")
    with pytest.raises(NoSpace, match="metadata area of volume group vg is full"):
        b.create_volume("volume-2", 1)
    b.delete_snapshot(VOLUME, SNAPSHOT)
    b.delete_volume(VOLUME)
    assert fake.lvs == {}


def test_nothing_new_when_five_percent_of_the_metadata_area_are_left(fake: FakeLvm) -> None:
    """Deletes never come to the end of it."""
    b = make(fake)
    fake.metadata_free = 1044480 // 2 * 6 // 100
    assert b.capacity().closed_because is None
    fake.metadata_free = 1044480 // 2 * 4 // 100
    assert "are reserved for deletions" in (b.capacity().closed_because or "")


@pytest.mark.parametrize("lvm_type", ["thick", "thin"])
def test_without_space_for_backups_of_metadata_volumes_are_deleted(
    fake: FakeLvm, lvm_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What adds is refused, with the place that is full; what frees does without the backup."""
    b = make(fake, lvm_type)
    b.check()
    b.create_volume(VOLUME, 1)
    b.create_snapshot(VOLUME, SNAPSHOT)
    fake.backup_fails = True
    for call in (lambda: b.create_volume("volume-2", 1), lambda: b.extend_volume(VOLUME, 2)):
        with pytest.raises(NoSpace, match=r"/etc/lvm/archive/.*Free space there"):
            call()
    b.delete_snapshot(VOLUME, SNAPSHOT)
    b.delete_volume(VOLUME)
    assert set(fake.lvs) <= {"vg-pool"}
    assert "/etc/lvm/archive" in caplog.text


# --- what the look proves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ('\tvolume_list="other"\n', "does not let LVM activate.*it is other. Add vg"),
        ('\tvolume_list=["other","vg/volume-1","@tag"]\n', "does not let LVM activate"),
        ("\tvolume_list=[]\n", "it is empty"),
        ('\tread_only_volume_list=["vg"]\n', "read-only"),
        ('\tvolume_list=["other","vg"]\n', None),
        ('\tvolume_list=["@ours"]\n', None),
        ('\tvolume_list=["@*"]\n\tread_only_volume_list="x"\n', None),
        ("\tchecks=0\n", None),
    ],
)
def test_lists_of_what_may_be_activated(fake: FakeLvm, config: str, sentence: str | None) -> None:
    """LVM succeeds and activates nothing; only its configuration tells."""
    fake.config = f"activation {{\n{config}}}\n"
    fake.tags = {"ours"}
    b = make(fake)
    if sentence is None:
        b.check()
    else:
        with pytest.raises(Unreachable, match=sentence):
            b.check()


@pytest.mark.parametrize(("lvm_type", "most"), [("thick", 69), ("thin", 57)])
def test_names_of_groups_that_leave_no_room_for_names_of_volumes(fake: FakeLvm, lvm_type: str, most: int) -> None:
    """The kernel takes 127 characters, in which a hyphen of LVM's is two."""

    def closed(name: str) -> str | None:
        fake.pvs = [fake.pv("/nosuch/loop0", "pv-0", vg=name)]
        b = LvmBackend("b", LvmOptions(volume_group=name, lvm_type=lvm_type), Path("/nonexistent"))
        monkey = FakeLv(2**40, "t")
        fake.lvs = {f"{name}-pool": monkey}
        return b._closed_because(b._lvm.group())

    assert closed("v" * most) is None
    assert "is too long" in (closed("v" * (most + 1)) or "")
    assert "is too long" in (closed("v" * (most - 1) + "-") or "")


def test_who_holds_a_device_is_named(fake: FakeLvm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only that somebody does."""
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    monkeypatch.setattr(holders, "of", lambda path: f"PID 7 (qemu) has {path.name}")
    b = make(fake)
    b.create_volume(VOLUME, 1)
    fake.lvs[VOLUME].open = True
    with pytest.raises(InUse, match=rf"PID 7 \(qemu\) has {VOLUME}"):
        b.delete_volume(VOLUME)


CALLS: dict[str, Callable[[LvmBackend], object]] = {
    "list": lambda b: b.list_volumes(),
    "identity": lambda b: b.identity(),
    "owner": lambda b: b.owner(),
}


@pytest.mark.parametrize("call", CALLS)
def test_reports_are_read_whatever_lvm_conf_says(fake: FakeLvm, call: str) -> None:
    """The double refuses a report that is not told how to look; here it is one of each kind."""
    try:
        CALLS[call](make(fake))
    except BackendError as exc:
        pytest.fail(str(exc))
