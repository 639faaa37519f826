"""The LVM plugin without LVM: how many processes, in which words, and what their answers mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blockstore_plugins.lvm import LvmBackend, LvmOptions
from blockstore_plugins.lvm.commands import CHUNK, Lvm, cow_bytes

from blockstore.backends import process
from blockstore.backends.contract import GIB
from blockstore.errors import (
    BackendError,
    ConfigError,
    InUse,
    NameTaken,
    NoSpace,
    OperationCancelled,
    ToolFailed,
    Unreachable,
    VolumeMissing,
)

from .fake_lvm import FakeLv, FakeLvm


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeLvm:
    """Return a volume group of 100 GiB."""
    return FakeLvm(monkeypatch)


def make(lvm_type: str = "auto", **options: Any) -> LvmBackend:
    """Return a backend, not yet checked."""
    return LvmBackend("b", LvmOptions(volume_group="vg", lvm_type=lvm_type, **options), Path("/nonexistent"))


@pytest.fixture(params=["thick", "thin"])
def backend(fake: FakeLvm, request: pytest.FixtureRequest) -> LvmBackend:
    """Return a checked backend of each type."""
    made = make(request.param)
    made.check()
    fake.verbs()
    return made


def pieces(fake: FakeLvm) -> set[str]:
    """Return what is in the group besides the pool."""
    return set(fake.lvs) - {"vg-pool"}


# --- options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("volume_group", "-f"),
        ("volume_group", "@tag"),
        ("volume_group", "vg/lv"),
        ("volume_group", "vg\n"),
        ("volume_group", "--config=x"),
        ("volume_group", ".."),
        ("volume_group", ""),
        ("thin_pool", "-pool"),
        ("thin_pool", "a b"),
        ("thin_pool_size", "95"),
        ("thin_pool_size", "all"),
        ("thin_pool_size", "-1g"),
        ("volume_clear_size", -1),
    ],
)
def test_hostile_options_are_refused_at_once(option: str, value: object) -> None:
    """A mistake names section and option, before any tool runs."""
    with pytest.raises(ConfigError, match=rf"\[backend:b\] {option} is"):
        # type: ignore[arg-type]
        LvmBackend("b", LvmOptions(**{"volume_group": "vg", option: value}), Path("/nonexistent"))


# --- words and numbers of processes --------------------------------------------------------------------------


def test_thin_create_is_one_process(fake: FakeLvm) -> None:
    """Creating a thin volume costs what a bare lvcreate costs."""
    b = make("thin")
    b.check()
    fake.verbs()
    b.create_volume("v", 3)
    assert fake.ran == [("lvcreate", "-y", "-Wn", "-V", "3g", "-T", "-n", "v", "--", "vg/vg-pool")]


def test_thin_snapshot_and_clone_words(fake: FakeLvm) -> None:
    """A snapshot is one process and stays inactive; a clone is active and has no skip flag."""
    b = make("thin")
    b.check()
    b.create_volume("v", 1)
    fake.verbs()
    b.create_snapshot("v", "s")
    tag = "blockstore.snapshot-of=v"
    assert fake.ran == [("lvcreate", "-y", "-s", "-ky", "--addtag", tag, "-n", "s", "--", "vg/v")]
    fake.verbs()
    b.clone_volume("c", 1, "v")
    assert fake.ran[1:] == [("lvcreate", "-y", "-s", "-kn", "-ay", "-n", "c", "--", "vg/v")]
    fake.verbs()
    b.create_volume_from_snapshot("d", 2, "v", "s")
    assert fake.verbs() == ["lvs", "lvcreate", "lvextend", "lvrename"]


def test_a_thin_snapshot_is_activated_in_spite_of_its_skip_flag(
    fake: FakeLvm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Opening a thin snapshot runs lvchange -ay -K first."""
    b = make("thin")
    b.check()
    b.create_volume("v", 1)
    b.create_snapshot("v", "s")
    monkeypatch.setattr(Lvm, "path", lambda _self, lv: tmp_path / lv)
    (tmp_path / "s").write_bytes(b"bytes")
    with b.open_snapshot("v", "s") as file:
        assert file.read() == b"bytes"
    assert fake.ran[-1] == ("lvchange", "-ay", "-K", "--", "vg/s")


def test_the_pool_that_check_makes(fake: FakeLvm) -> None:
    """It zeroes, passes discards down, and leaves space for its own repair."""
    make("thin").check()
    words = "lvcreate -y --type thin-pool -l 95%FREE -Zy --discards passdown -n vg-pool -- vg"
    assert tuple(words.split()) in fake.ran
    fake.lvs.clear()
    fake.ran.clear()
    make("thin", thin_pool="p", thin_pool_size="500G").check()
    (made,) = (words for words in fake.ran if words[0] == "lvcreate")
    assert made[4:6] == ("-L", "500G")


def test_sudo_goes_before_every_tool(fake: FakeLvm, monkeypatch: pytest.MonkeyPatch) -> None:
    """With use_sudo, sudo -n runs the tool, and a missing sudo names its package."""
    seen = []

    def run(argv: Any, **options: Any) -> str:
        seen.append((tuple(argv[:3]), options["package"]))
        return fake.run(argv, **options)

    monkeypatch.setattr(process, "run", run)
    make(use_sudo=True).list_volumes()
    assert {(words[:2], package) for words, package in seen} == {(("sudo", "-n"), "sudo")}
    assert [words[2] for words, _ in seen[:2]] == ["pvs", "lvs"]


def test_thick_create_zeroes_before_it_names(fake: FakeLvm) -> None:
    """The order is: make under another name, clear all of it, rename."""
    b = make("thick")
    b.check()
    fake.verbs()
    b.create_volume("v", 2)
    assert fake.verbs() == ["lvs", "pvs", "lvcreate", "lvrename"]  # an empty group is proved once more
    assert fake.cleared == [("new.v", 0, 2 * GIB)]


def test_thick_extend_grows_onto_zeroed_extents(fake: FakeLvm) -> None:
    """The added extents are cleared as a volume of their own, and just those are given to the volume."""
    b = make("thick")
    b.create_volume("v", 1)
    fake.cleared.clear()
    fake.verbs()
    b.extend_volume("v", 3)
    assert fake.cleared == [("grow.v", 0, 2 * GIB)]
    words = ("lvextend", "-L", "3g", "--", "vg/v", "/dev/loop0:0-9", "/dev/loop1:3-4")
    assert fake.ran[-1] == words
    assert "issue_discards=0" in " ".join(fake.ran[-2])
    assert pieces(fake) == {"v"}


def test_thick_extend_with_a_snapshot_goes_offline_and_comes_back(fake: FakeLvm) -> None:
    """LVM resizes an origin only while inactive; the volume is active again afterwards."""
    b = make("thick")
    b.create_volume("v", 1)
    b.create_snapshot("v", "s")
    b.extend_volume("v", 2)
    assert (fake.lvs["v"].size, fake.lvs["v"].active) == (2 * GIB, True)


def test_thick_delete_takes_the_name_first(fake: FakeLvm) -> None:
    """A deleted volume is cleared under another name; volume_clear = none leaves that out."""
    b = make("thick")
    b.create_volume("v", 1)
    fake.cleared.clear()
    fake.verbs()
    b.delete_volume("v")
    assert fake.verbs() == ["lvs", "lvrename", "lvremove"]
    assert fake.cleared == [("old.v", 0, GIB)]
    b = make("thick", volume_clear="none")
    b.create_volume("v", 1)
    fake.cleared.clear()
    b.delete_volume("v")
    assert fake.cleared == []


def test_a_deleted_thick_snapshot_is_split_and_cleared(fake: FakeLvm) -> None:
    """Its copy-on-write area becomes a volume, is cleared, and goes."""
    b = make("thick")
    b.create_volume("v", 1)
    b.create_snapshot("v", "s")
    stored = fake.lvs["s"].size
    fake.cleared.clear()
    fake.verbs()
    b.delete_snapshot("v", "s")
    assert fake.verbs() == ["lvs", "lvrename", "lvconvert", "lvs", "lvremove"]
    assert fake.cleared == [("old.s", 0, stored)]


@pytest.mark.parametrize("gib", [1, 3, 1000, 16384])
def test_room_of_a_thick_snapshot(gib: int) -> None:
    """There is space for every chunk, an entry of 16 bytes for each, a header, and a spare table."""
    size = gib * GIB
    chunks = size // CHUNK
    space = cow_bytes(size) // CHUNK
    assert space >= chunks + 1 + -(-chunks * 16 // CHUNK) + 1
    assert space < chunks * 1.001 + 4


# --- meaning of errors ---------------------------------------------------------------------------------------

WORDS = [
    ('  Volume group "vg" not found\n  Cannot process volume group vg\n', Unreachable, "no volume group vg"),
    ('  Volume group "vg" has insufficient free space (3 extents): 256 required.', NoSpace, "vg is full"),
    ("  Insufficient free space: 24832 extents needed, but only 2303 available", NoSpace, "vg is full"),
    ("  Insufficient suitable allocatable extents for logical volume v: 6 more required", NoSpace, "vg is full"),
    ('  Logical Volume "v" already exists in volume group "vg"', NameTaken, "taken"),
    ("  Logical volume v already exists in Volume group vg.", NameTaken, "taken"),
    ('  Failed to find logical volume "vg/v"', VolumeMissing, "not in volume group vg"),
    ("  Logical volume v not found in volume group vg.", VolumeMissing, "not in"),
    ("  Snapshot origin LV v not found in Volume group vg.", VolumeMissing, "not in"),
    ("  Pool vg-pool not found in Volume group vg.", Unreachable, "thin pool no longer exists"),
    ("  Logical volume vg/v in use.", InUse, "holds it open"),
    ("  Logical volume vg/v contains a filesystem in use.", InUse, "holds it open"),
    ("  Logical volume vg/v is used by another device.", InUse, "holds it open"),
    ("  Snapshot origin volumes can be resized only while inactive: try lvchange -an.", InUse, "holds it open"),
    (
        "  New size given (1 extents) not larger than existing size (2 extents)",
        BackendError,
        "larger than that already",
    ),
    ('  Names starting "snapshot" are reserved. Please choose', BackendError, "does not accept this name"),
    ('  Names including "_cdata" are reserved.', BackendError, "does not accept this name"),
    ('  Name "vg-aaa" too long.\n  Failed to activate new LV vg/aaa.', BackendError, "does not accept this name"),
    (
        "  WARNING: Running as a non-root user. Functionality may be unavailable.\n"
        "  /dev/mapper/control: open failed: Permission denied\n"
        "  thin: Required device-mapper target(s) not detected in your kernel.",
        Unreachable,
        "needs root.*use_sudo = yes",
    ),
    ("sudo: a password is required", Unreachable, "without a password"),
    ("sudo: a terminal is required to read the password", Unreachable, "without a password"),
    ("blk is not in the sudoers file.", Unreachable, "without a password"),
    ("Sorry, user blk is not allowed to execute '/sbin/lvs' as root on lab.", Unreachable, "without a password"),
    ("sudo: lvs: command not found", Unreachable, "apt-get install lvm2"),
    ("  Cannot change VG vg while PVs are missing.", Unreachable, "lacks a physical volume"),
    ("  Refusing activation of partial LV vg/v.", Unreachable, "lacks a physical volume"),
    (
        '  WARNING: VG vg is missing PV abc (last written to /dev/sdb).\n  Failed to find logical volume "vg/v"',
        VolumeMissing,
        "not in volume group vg",
    ),
    (
        "  VG vg 94 metadata on /dev/loop1 (30153 bytes) exceeds maximum metadata size (29952 bytes)",
        NoSpace,
        "metadata area of volume group vg is full.*--metadatasize",
    ),
    ("  VG vg metadata on /dev/sdb (5 bytes) too large for circular buffer (4 bytes with 3 used)", NoSpace, "metadata"),
    ("  Cannot activate thin pool vg/p, perhaps skipped in lvm.conf volume_list?", Unreachable, "Add vg to it"),
    ("  Cannot update volume group vg with duplicate PV devices.", Unreachable, "pv_duplicate"),
    ("  thin: Required device-mapper target(s) not detected in your kernel.", BackendError, "no thin provisioning"),
    ("  /usr/sbin/thin_check: execvp failed: No such file", Unreachable, "thin-provisioning-tools"),
    (
        "  WARNING: Sum of all thin volume sizes (8.00 GiB) exceeds the size.\n"
        "  Cannot create new thin volume, free space in thin pool vg/vg-pool reached threshold.",
        NoSpace,
        "thin pool.*is full",
    ),
]


@pytest.mark.parametrize(("stderr", "error", "sentence"), WORDS, ids=[w[0].split("\n")[0].strip()[:40] for w in WORDS])
def test_meaning_of_words(
    stderr: str, error: type[BackendError], sentence: str, fake: FakeLvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of LVM's and sudo's complaints becomes an error with a name, and a sentence without LVM's chatter."""

    def run(argv: Any, **_options: Any) -> str:
        if argv[0] == "pvs":
            return fake.run(argv)
        raise ToolFailed(tuple(argv), 5, stderr)

    monkeypatch.setattr(process, "run", run)
    with pytest.raises(error, match=sentence) as caught:
        Lvm("vg", use_sudo=False, timeout_s=1).rename("v", "w")
    assert type(caught.value) is not ToolFailed
    assert "WARNING" not in str(caught.value)


def test_other_words_keep_what_the_tool_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown complaint is passed on whole, without the warnings before it."""

    def run(argv: Any, **_options: Any) -> str:
        raise ToolFailed(tuple(argv), 5, "  WARNING: It is late.\n  The moon is in the wrong phase.")

    monkeypatch.setattr(process, "run", run)
    with pytest.raises(ToolFailed, match="5: The moon is in the wrong phase"):
        Lvm("vg", use_sudo=False, timeout_s=1).group()


@pytest.mark.parametrize("said", ["", "[]", "{}", '{"report": 3}', '{"report": [[]]}', "lvs: hello"])
def test_a_report_that_is_none(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something other than the JSON report is a BackendError, not a traceback."""
    monkeypatch.setattr(process, "run", lambda *_args, **_options: said)
    with pytest.raises(BackendError, match="not its JSON report"):
        Lvm("vg", use_sudo=False, timeout_s=1).lvs()


def test_reading_a_report(fake: FakeLvm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows as LVM 2.03 prints them."""
    common = {"origin": "", "origin_size": "", "pool_lv": "", "lv_tags": "", "data_percent": "", "metadata_percent": ""}
    common |= {"kernel_discards": "", "lv_health_status": "", "lv_check_needed": "unknown"}
    common |= {"vg_uuid": fake.uuid, "vg_missing_pv_count": "0"}
    pool = {"data_percent": "64.37", "metadata_percent": "28.03", "kernel_discards": "passdown", "lv_check_needed": ""}
    cow = {"origin": "a", "origin_size": "1073741824", "lv_tags": "x,blockstore.snapshot-of=a", "data_percent": "48.58"}
    rows = [
        {**common, "lv_name": "a", "lv_attr": "owi-a-s---", "lv_size": "2147483648", "origin_size": "2147483648"},
        {**common, "lv_name": "s1", "lv_attr": "swi-a-s---", "lv_size": "2151677952", **cow},
        {**common, "lv_name": "p", "lv_attr": "twi-aotz--", "lv_size": "4064280576", **pool},
        {**common, "lv_name": "t", "lv_attr": "Vwi-aotz-k", "lv_size": "1073741824", "pool_lv": "p", "origin": "v"},
    ]
    report = json.dumps({"report": [{"lv": rows}]})
    monkeypatch.setattr(process, "run", lambda argv, **_: fake.run(argv) if argv[0] == "pvs" else report)
    lvs = Lvm("vg", use_sudo=False, timeout_s=1).lvs()
    assert [(lv.kind, lv.size, lv.stored) for lv in lvs.values()] == [
        ("plain", 2 * GIB, 2 * GIB),
        ("cow", GIB, 2151677952),
        ("pool", 4064280576, 4064280576),
        ("thin", GIB, GIB),
    ]
    assert (lvs["a"].open, lvs["t"].open, lvs["t"].active, lvs["t"].pool) == (False, True, True, "p")
    assert (lvs["p"].zeroes, lvs["p"].discards, lvs["p"].data_percent) == (True, "passdown", 64.37)
    assert lvs["s1"].tags == {"x", "blockstore.snapshot-of=a"}


# --- what check refuses, and what auto picks -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pool", "sentence"),
    [
        (FakeLv(GIB, "t", zeroes=False), "does not zero.*lvchange -Zy vg/vg-pool"),
        (FakeLv(GIB, "-"), "is not a thin pool"),
        (FakeLv(GIB, "t", health="failed"), "not usable.*lvconvert --repair"),
        (FakeLv(GIB, "t", health="metadata_read_only"), "not usable"),
    ],
)
def test_pools_that_are_refused(fake: FakeLvm, pool: FakeLv, sentence: str) -> None:
    """A pool that leaks, is none, or is broken."""
    fake.lvs["vg-pool"] = pool
    with pytest.raises(Unreachable, match=sentence):
        make("thin").check()


def test_a_full_pool_is_still_a_good_pool(fake: FakeLvm) -> None:
    """Volumes on it must go on, so check passes; new ones are refused with figures and a way out."""
    fake.pool(percent=(100.0, 12.5), health="out_of_data")
    b = make("auto")
    b.check()
    assert b.capacity().free_gib == 0
    with pytest.raises(NoSpace, match=r"data 100 %, metadata 12.5 %.*more data: lvextend -L \+100G vg/vg-pool"):
        b.create_volume("v", 1)
    fake.pool(percent=(50.0, 100.0))
    with pytest.raises(NoSpace, match="more metadata: lvextend --poolmetadatasize"):
        b.create_volume("v", 1)


def test_auto(fake: FakeLvm) -> None:
    """Thin with a pool or when empty, else thick; thick also when the kernel has no thin; decided once."""
    b = make("auto")
    b.check()
    assert b.capabilities().thin
    fake.lvs = {"root": FakeLv(GIB)}
    b = make("auto")
    b.check()
    assert b.capabilities().thick
    fake.lvs.clear()
    b.check()
    assert (b.capabilities().thick, fake.lvs) == (True, {})
    fake.thin = False
    fake.tags.clear()  # another group, in which no pool was
    b = make("auto")
    b.check()
    assert b.capabilities().thick
    with pytest.raises(BackendError, match="no thin provisioning"):
        make("thin").check()


def test_capacity(fake: FakeLvm) -> None:
    """Thin counts the pool, and virtual sizes of everything in it; thick counts the group."""
    fake.pool(percent=(25.0, 1.0))
    fake.lvs["foreign"] = FakeLv(20 * GIB, "V", pool="vg-pool")
    fake.lvs["elsewhere"] = FakeLv(20 * GIB, "V", pool="other")
    got = make("thin").capacity()
    assert (got.total_gib, got.free_gib, got.provisioned_gib) == (50, 37.5, 20)
    got = make("thick").capacity()
    assert (got.total_gib, got.free_gib, got.provisioned_gib) == (100, 50, 50)


# --- behaviour -------------------------------------------------------------------------------------------------


def test_everything_twice(backend: LvmBackend, fake: FakeLvm) -> None:
    """Each action, done again, succeeds and changes nothing."""
    calls: list[Callable[[], object]] = [
        lambda: backend.create_volume("v", 1),
        lambda: backend.create_snapshot("v", "s"),
        lambda: backend.create_volume_from_snapshot("f", 2, "v", "s"),
        lambda: backend.clone_volume("c", 1, "v"),
        lambda: backend.extend_volume("v", 2),
        lambda: backend.revert_volume("v", "s"),
        lambda: backend.delete_snapshot("v", "s"),
        lambda: backend.delete_volume("v"),
    ]
    for call in calls:
        call()
        before = {name: (lv.size, lv.tags) for name, lv in fake.lvs.items()}
        if call is calls[4]:
            assert backend.list_volumes()["v"] == 2
        call()
        assert {name: (lv.size, lv.tags) for name, lv in fake.lvs.items()} == before
    assert pieces(fake) == {"f", "c"}
    assert backend.list_volumes() == {"f": 2, "c": 1}


def test_a_snapshot_is_its_volumes_own(backend: LvmBackend, fake: FakeLvm) -> None:
    """A volume with snapshots stays; a snapshot is found only by way of its volume; names are not shared."""
    for name in ("v", "w"):
        backend.create_volume(name, 1)
    backend.create_snapshot("v", "s")
    with pytest.raises(InUse, match="has snapshots: s"):
        backend.delete_volume("v")
    backend.delete_snapshot("w", "s")
    backend.delete_volume("s")
    assert backend.list_snapshots() == {"s": "v"}
    for call in (
        lambda: backend.create_snapshot("w", "s"),
        lambda: backend.create_snapshot("v", "w"),
        lambda: backend.create_volume("s", 1),
        lambda: backend.create_volume("v", 2),
        lambda: backend.clone_volume("w", 2, "v"),
    ):
        with pytest.raises(NameTaken):
            call()
    with pytest.raises(VolumeMissing):
        backend.revert_volume("w", "s")
    with pytest.raises(VolumeMissing):
        backend.create_volume_from_snapshot("x", 1, "w", "s")
    assert pieces(fake) == {"v", "w", "s"}


def test_thin_snapshots_outlive_what_lvm_knows_of_them(fake: FakeLvm) -> None:
    """LVM forgets the origin when a revert puts another volume in its place; the tag does not."""
    b = make("thin")
    b.check()
    b.create_volume("v", 1)
    b.create_snapshot("v", "s1")
    b.create_snapshot("v", "s2")
    b.revert_volume("v", "s1")
    assert (fake.lvs["s1"].origin, fake.lvs["s2"].origin) == ("", "")
    assert b.list_snapshots() == {"s1": "v", "s2": "v"}
    with pytest.raises(InUse):
        b.delete_volume("v")


def test_what_is_open_is_left_alone(backend: LvmBackend, fake: FakeLvm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither deleted nor reverted; a device that udev looked into for a moment is not called open."""
    naps: list[float] = []
    monkeypatch.setattr("time.sleep", naps.append)
    backend.create_volume("v", 1)
    backend.create_snapshot("v", "s")
    fake.lvs["v"].open = True
    with pytest.raises(InUse, match="is open"):
        backend.revert_volume("v", "s")
    backend.delete_snapshot("v", "s")
    with pytest.raises(InUse, match="is open"):
        backend.delete_volume("v")
    assert len(naps) == 8
    monkeypatch.setattr("time.sleep", lambda _seconds: setattr(fake.lvs["v"], "open", False))
    backend.delete_volume("v")
    assert pieces(fake) == set()


def test_a_copy_that_fails_or_is_cancelled_leaves_nothing(backend: LvmBackend, fake: FakeLvm) -> None:
    """Too small, cancelled, or no space: neither volume nor helper stays."""
    backend.create_volume("v", 2)
    backend.create_snapshot("v", "s")

    def cancel(_percent: int) -> None:
        raise OperationCancelled("enough")

    with pytest.raises(OperationCancelled):
        backend.clone_volume("c", 3, "v", cancel)
    with pytest.raises(OperationCancelled):
        backend.create_volume_from_snapshot("c", 3, "v", "s", cancel)
    with pytest.raises(BackendError, match="not enough"):
        backend.clone_volume("c", 1, "v")
    fake.size = sum(lv.size for lv in fake.lvs.values()) + 3 * GIB
    if backend.capabilities().thick:
        with pytest.raises(NoSpace):
            backend.clone_volume("c", 2, "v")
    with pytest.raises(VolumeMissing):
        backend.clone_volume("c", 2, "nothing")
    assert pieces(fake) == {"v", "s"}


def test_thick_revert_copies_and_keeps_the_snapshot(fake: FakeLvm) -> None:
    """No lvconvert --merge, which would take the snapshot away; a grown volume is cut, its tail cleared."""
    b = make("thick")
    b.create_volume("v", 1)
    b.create_snapshot("v", "s")
    b.revert_volume("v", "s")
    assert fake.copied == [("s", "v", GIB)]
    b.extend_volume("v", 3)
    fake.cleared.clear()
    b.revert_volume("v", "s")
    assert fake.cleared == [("v", GIB, 3 * GIB)]
    assert (fake.lvs["v"].size, fake.lvs["s"].seen, fake.lvs["s"].origin) == (GIB, GIB, "v")
    assert not any("--merge" in argv for argv in fake.ran)
