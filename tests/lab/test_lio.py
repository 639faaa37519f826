"""The plugin lio on real logical volumes and files: who may do what, and that gone means gone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
from blockstore_plugins.lio import LioTarget

from blockstore.errors import BackendError, InUse, InvalidConnector, SessionAlive, Unreachable, VolumeMissing
from blockstore.targets.contract import Connection, Export
from tests.targets import damages

from .conftest import Disk, run
from .libiscsi import Refused, Session
from .lio import ALICE, BOB, CONFIGFS, MIB, an_export, is_closed, left_over, log_in, make_lv, make_target

pytestmark = pytest.mark.lab

OTHERS = 200
SAVED = Path("/etc/target/saveconfig.json")
PATTERN = b"alice's bytes...".ljust(512, b".") * 64


@pytest.fixture
def owner() -> str:
    """A word for this test's installation."""
    return uuid.uuid4().hex[:8]


@pytest.fixture
def shm() -> Iterator[Path]:
    """A directory on tmpfs, for files that are volumes."""
    directory = Path("/dev/shm") / uuid.uuid4().hex[:8]
    directory.mkdir()
    yield directory
    subprocess.run(["rm", "-r", directory], check=True)


@pytest.fixture
def lio(owner: str, disk: Disk, shm: Path) -> Iterator[LioTarget]:
    """A target that works; nothing of it may be left at the end, which is before that of disk and files."""
    made = make_target(owner, session_timeout_s=120.0)
    made.check()
    yield made
    for export_id in made.list_exports():
        made.withdraw(export_id)
    assert left_over(owner) == []


def make_file(directory: Path, mib: int = 16) -> Path:
    path = directory / f"volume-{uuid.uuid4()}"
    path.touch()
    os.truncate(path, mib * MIB)
    return path


def test_the_right_name_and_password_open_the_volume_and_nothing_else_does(lio: LioTarget, disk: Disk) -> None:
    export = make_lv(disk)
    connection = lio.export(export)
    assert connection.data == {
        "target_discovered": False,
        "target_portal": "127.0.0.1:3260",
        "target_iqn": f"iqn.2010-10.org.openstack:blockstore.{lio.owner}.{export.id}",
        "target_lun": 0,
        "auth_method": "CHAP",
        "auth_username": f"blockstore-{export.id}",
        "discard": True,
    }
    assert (connection.driver_volume_type, connection.secret_as) == ("iscsi", "auth_password")
    assert export.secret not in repr(connection)
    assert lio.sessions() == {}

    lies: tuple[dict[str, object], ...] = (
        {"password": "abcdefgh12345678"},
        {"password": None},
        {"user": "somebody"},
        {"initiator": BOB},
    )
    for lie in lies:
        with pytest.raises(Refused):
            log_in(connection, export, **lie)

    session = log_in(connection, export)
    assert lio.sessions() == {export.id: (ALICE,)}
    session.write(MIB, PATTERN)
    assert session.read(MIB, len(PATTERN)) == PATTERN
    session.close()
    with export.path.open("rb") as file:
        file.seek(MIB)
        assert file.read(len(PATTERN)) == PATTERN

    assert lio.export(export) == connection
    assert lio.list_exports() == {export.id}
    lio.withdraw(export.id)
    with pytest.raises(Refused):
        log_in(connection, export)
    assert lio.list_exports() == frozenset()
    assert is_closed(export.path)
    lio.withdraw(export.id)


def test_strangers_discover_nothing_and_other_users_read_no_password(lio: LioTarget, disk: Disk) -> None:
    export = make_lv(disk)
    connection = lio.export(export)
    iqn = connection.data["target_iqn"]
    for who, shown in ((ALICE, True), (BOB, False)):
        said = subprocess.run(
            ["iscsi-ls", "-i", who, "iscsi://127.0.0.1:3260"], capture_output=True, text=True, check=False
        ).stdout
        assert (iqn in said) == shown
    password = CONFIGFS / "iscsi" / iqn / "tpgt_1/acls" / ALICE / "auth/password"
    assert password.read_text().strip() == export.secret
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", str(password)]
    said = subprocess.run(as_nobody, capture_output=True, text=True, check=False)
    assert said.returncode != 0
    assert export.secret not in said.stdout


def test_a_read_only_export_cannot_be_written(lio: LioTarget, disk: Disk) -> None:
    writable = make_lv(disk, fill=PATTERN)
    export = an_export(writable.volume, writable.path, read_only=True)
    session = log_in(lio.export(export), export)
    assert session.write_protected()
    with pytest.raises(Refused):
        session.write(0, bytes(512))
    assert session.read(0, len(PATTERN)) == PATTERN
    # Beside one that may write, since the volume is opened once for both.
    writer = log_in(lio.export(writable), writable)
    assert not writer.write_protected()
    writer.write(0, bytes(512))
    assert session.read(0, 512) == bytes(512)
    with pytest.raises(Refused):
        session.write(0, PATTERN)


def test_discard_is_reported_where_the_device_can(lio: LioTarget, disk: Disk) -> None:
    able, unable = make_lv(disk), make_lv(disk)
    minor = os.minor(unable.path.stat().st_rdev)
    Path(f"/sys/block/dm-{minor}/queue/discard_max_bytes").write_text("0")
    for export, can in ((able, True), (unable, False)):
        connection = lio.export(export)
        assert connection.data["discard"] is can
        provisioning = log_in(connection, export).page(0xB2)
        assert bool(provisioning[5] & 0x80) is can  # LBPU


def test_two_initiators_share_a_volume_and_part_one_by_one(lio: LioTarget, disk: Disk) -> None:
    alice = make_lv(disk)
    bob = an_export(alice.volume, alice.path, BOB)
    to_alice, to_bob = lio.export(alice), lio.export(bob)
    assert to_alice.data["target_iqn"] != to_bob.data["target_iqn"]
    with pytest.raises(Refused):  # each has a password of its own
        log_in(to_bob, bob, password=alice.secret, user=to_alice.data["auth_username"])
    first, second = log_in(to_alice, alice), log_in(to_bob, bob)
    assert lio.sessions() == {alice.id: (ALICE,), bob.id: (BOB,)}
    first.write(0, PATTERN)
    assert second.read(0, len(PATTERN)) == PATTERN
    assert first.page(0x80) == second.page(0x80)
    assert alice.volume.removeprefix("volume-").encode() in first.page(0x80)

    lio.withdraw(alice.id)
    with pytest.raises(Refused):
        first.read(0, 512)
    second.write(0, PATTERN[::-1])
    assert second.read(0, len(PATTERN)) == PATTERN[::-1]
    assert not is_closed(alice.path)
    lio.withdraw(bob.id)
    assert is_closed(alice.path)


def test_a_grown_volume_is_seen_by_those_who_are_connected(lio: LioTarget, disk: Disk, shm: Path) -> None:
    device, path = make_lv(disk), make_file(shm)
    file = an_export(path.name, path)
    on_device, on_file = log_in(lio.export(device), device), log_in(lio.export(file), file)
    assert (on_device.size(), on_file.size()) == (64 * MIB, 16 * MIB)
    run("lvextend", "-L", "128m", f"{disk.vg}/{device.volume}")
    os.truncate(path, 32 * MIB)
    for export in (device, file):
        lio.resize(export.id)
    assert (on_device.size(), on_file.size()) == (128 * MIB, 32 * MIB)
    on_file.write(31 * MIB, PATTERN)
    assert on_file.read(31 * MIB, len(PATTERN)) == PATTERN
    assert lio.export(file).data["discard"] is True


def test_files_are_exported_and_none_is_made(lio: LioTarget, shm: Path, owner: str) -> None:
    path = make_file(shm)
    export = an_export(path.name, path)
    session = log_in(lio.export(export), export)
    session.write(0, PATTERN)
    session.close()
    lio.withdraw(export.id)
    assert path.read_bytes()[: len(PATTERN)] == PATTERN

    gone = an_export("volume-gone", shm / "volume-gone")
    with pytest.raises(VolumeMissing, match="volume-gone"):
        lio.export(gone)
    assert not gone.path.exists()
    (shm / "a,fd_dev_name=b").touch()
    with pytest.raises(BackendError, match="commas"):
        lio.export(an_export("v", shm / "a,fd_dev_name=b"))
    with pytest.raises(BackendError, match="neither"):
        lio.export(an_export("v", shm))
    with pytest.raises(InvalidConnector, match="initiator"):
        lio.export(dataclasses.replace(export, connector={"initiator": "iqn.2001-01.org.x:/../y"}))
    assert left_over(owner) == []


def test_what_somebody_holds_is_refused_and_nothing_is_left(lio: LioTarget, disk: Disk, owner: str) -> None:
    export = make_lv(disk)
    held = os.open(export.path, os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(InUse, match=export.volume):
            lio.export(export)
    finally:
        os.close(held)
    assert left_over(owner) == []
    lio.export(export)


def test_an_old_session_reads_nothing_of_the_next_volume(lio: LioTarget, disk: Disk) -> None:
    """CVE-2023-2088: A's host keeps its session; A is detached; B is attached, to the same host, then read by A's."""
    canary = b"bob's secret....".ljust(512, b"!") * 64
    first, second = make_lv(disk, fill=PATTERN), make_lv(disk, fill=canary)
    to_first = lio.export(first)
    idle, asked = log_in(to_first, first), log_in(to_first, first)
    assert idle.read(0, len(PATTERN)) == PATTERN
    lio.withdraw(first.id)
    with pytest.raises(Refused):
        asked.read(0, 512)
    to_second = lio.export(second)
    with pytest.raises(Refused):
        idle.read(0, len(canary))
    for password in (first.secret, second.secret):  # all that A ever knew, and even B's password
        with pytest.raises(Refused):
            Session(to_first.data, ALICE, password)
    with pytest.raises(Refused):
        log_in(to_second, second, password=first.secret, user=to_first.data["auth_username"])
    # The volume itself, exported again, has another name.
    again = an_export(first.volume, first.path)
    lio.export(again)
    with pytest.raises(Refused):
        log_in(to_first, first)
    assert log_in(to_second, second).read(0, len(canary)) == canary


def test_a_session_that_writes_is_cut_off_for_good(lio: LioTarget, disk: Disk) -> None:
    export = make_lv(disk)
    session = log_in(lio.export(export), export)
    written, ended = threading.Event(), threading.Event()

    def write_on() -> None:
        number = 0
        try:
            while True:
                number += 1
                session.write(0, number.to_bytes(8, "big") * 64 * 128)
                written.set()
        except Refused:
            ended.set()

    thread = threading.Thread(target=write_on)
    thread.start()
    assert written.wait(120)
    time.sleep(0.3)
    lio.withdraw(export.id)
    assert is_closed(export.path)
    after = run("sha1sum", str(export.path))
    assert ended.wait(120)
    thread.join()
    assert run("sha1sum", str(export.path)) == after


def commands_of(export: Export) -> int:
    """Return how many commands the kernel's target has taken for an export."""
    (storage,) = CONFIGFS.glob(f"core/*/*{export.volume}*")
    return int((storage / "statistics/scsi_lu/num_cmds").read_text())


def test_a_hanging_storage_delays_the_end_and_the_answer_says_so(owner: str, disk: Disk) -> None:
    lio, patient = make_target(owner, session_timeout_s=2.0), make_target(owner, session_timeout_s=120.0)
    lio.check()
    export, other = make_lv(disk), make_lv(disk)
    connection = lio.export(export)
    session = log_in(connection, export)
    run("dmsetup", "suspend", "--noflush", "--nolockfs", str(export.path))

    def write() -> None:
        with contextlib.suppress(Refused):
            session.write(0, PATTERN[:512])  # comes with its command: it is not asked for first

    before = commands_of(export)
    stuck = threading.Thread(target=write)
    stuck.start()
    try:
        while commands_of(export) == before:
            assert stuck.is_alive()
            time.sleep(0.01)
        time.sleep(0.5)  # now it is only a step from the storage
        for _ in range(2):
            with pytest.raises(SessionAlive, match=ALICE):
                lio.withdraw(export.id)
        assert lio.list_exports() == {export.id}
        assert lio.sessions() == {export.id: (ALICE,)}
        lio.check()
        for target in (lio, make_target(owner)):  # the one that cuts, and a service that was started anew
            assert target.faults() == {export.id: "it is being switched off, and waits for its storage"}
        with pytest.raises(Refused):
            log_in(connection, export, timeout_s=2)
        with pytest.raises(SessionAlive):  # by a service that was started anew
            make_target(owner, session_timeout_s=0.5).withdraw(export.id)
        # Others are served meanwhile.
        log_in(lio.export(other), other).write(0, PATTERN)
        patient.withdraw(other.id)
    finally:
        run("dmsetup", "resume", str(export.path))
    stuck.join()
    while lio.list_exports():  # as the service does, again and again
        with contextlib.suppress(SessionAlive):
            lio.withdraw(export.id)
    assert is_closed(export.path)
    assert left_over(owner) == []


def test_an_id_that_looks_like_a_number_is_a_name(lio: LioTarget, shm: Path) -> None:
    path = make_file(shm)
    for beginning in ("0b", "0e", "00"):
        export = an_export(path.name, path, id=beginning + str(uuid.uuid4())[2:])
        log_in(lio.export(export), export).close()


def test_an_export_that_is_made_again_keeps_its_sessions(lio: LioTarget, disk: Disk, owner: str) -> None:
    export = make_lv(disk)
    connection = lio.export(export)
    session = log_in(connection, export)
    session.write(0, PATTERN)
    assert make_target(owner).export(export) == connection
    assert session.read(0, len(PATTERN)) == PATTERN
    with pytest.raises(VolumeMissing):
        lio.export(dataclasses.replace(export, path=Path("/dev/none")))
    with pytest.raises(BackendError, match=export.volume):
        lio.export(dataclasses.replace(export, volume="volume-other"))
    assert session.read(0, len(PATTERN)) == PATTERN


def test_several_portals_of_both_families(owner: str, disk: Disk) -> None:
    lio = make_target(owner, portals="127.0.0.1:3260, [::1]:3270,127.0.0.2")
    lio.check()
    export = make_lv(disk)
    data = lio.export(export).data
    assert data["target_portals"] == ["127.0.0.1:3260", "[::1]:3270", "127.0.0.2:3260"]
    assert data["target_iqns"] == [data["target_iqn"]] * 3
    assert data["target_luns"] == [0, 0, 0]
    sessions = [Session(data, ALICE, export.secret, portal=portal) for portal in data["target_portals"]]
    lio.check()  # now LIO listens there itself
    # The configuration changes while the export lives.
    fewer = make_target(owner, portals="[::1]:3270")
    assert "target_portals" not in fewer.export(export).data
    with pytest.raises(Refused):
        Session(data, ALICE, export.secret, portal="127.0.0.2:3260")
    fewer.withdraw(export.id)
    for session in sessions:
        with pytest.raises(Refused):
            session.read(0, 512)
    assert left_over(owner) == []


def test_portals_that_cannot_be_are_named(owner: str) -> None:
    with pytest.raises(Unreachable, match=r"192\.0\.2\.1:3260.*\[target:lab\] portals"):
        make_target(owner, portals="192.0.2.1").check()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Unreachable, match=f"Another program listens at 127.0.0.1:{port}"):
            make_target(owner, portals=f"127.0.0.1:{port}").check()


def test_what_belongs_to_others_is_left_alone(lio: LioTarget, disk: Disk, shm: Path) -> None:
    path = make_file(shm)
    theirs = make_target(uuid.uuid4().hex[:8])
    export = an_export(path.name, path)
    session = log_in(theirs.export(export), export)
    foreign = CONFIGFS / "iscsi/iqn.2003-01.org.example:theirs"
    (foreign / "tpgt_1").mkdir(parents=True)
    (foreign / "tpgt_1/np/127.0.0.1:3260").mkdir()
    try:
        ours = make_lv(disk)
        lio.export(ours)
        assert lio.list_exports() == {ours.id}
        lio.withdraw(export.id)  # an id that another installation uses
        lio.withdraw(ours.id)
        assert session.read(0, 512) == bytes(512)
        assert (foreign / "tpgt_1/np/127.0.0.1:3260").is_dir()
    finally:
        for part in ("tpgt_1/np/127.0.0.1:3260", "tpgt_1", ""):
            (foreign / part).rmdir()
        theirs.withdraw(export.id)
    assert not Path("/etc/target/saveconfig.json").exists()


# --- what other tools saved and restored ------------------------------------------------------------------------


@pytest.fixture
def saved() -> Iterator[Path]:
    """The file of targetcli, which is gone afterwards."""
    SAVED.parent.mkdir(exist_ok=True)
    yield SAVED
    SAVED.unlink(missing_ok=True)


def targetctl(action: str) -> None:
    """Run what target.service runs, and targetcli's saveconfig does."""
    run(str(Path(sys.executable).with_name("targetctl")), action)


def reboot() -> None:
    """Lose all that is in the kernel; then do what target.service does."""
    targetctl("clear")
    assert list(CONFIGFS.glob("core/*_*")) == []
    targetctl("restore")


def test_what_target_service_restored_is_ended_and_made_again(
    lio: LioTarget, owner: str, disk: Disk, shm: Path, saved: Path
) -> None:
    path = make_file(shm)
    former, kept, file = make_lv(disk), make_lv(disk, fill=PATTERN), an_export(path.name, path)
    bob = an_export(kept.volume, kept.path, BOB)
    told = {export.id: lio.export(export) for export in (former, kept, file, bob)}
    foreign = CONFIGFS / "iscsi/iqn.2003-01.org.example:theirs"
    (foreign / "tpgt_1").mkdir(parents=True)
    targetctl("save")
    lio.withdraw(former.id)  # and its volume may be another's now
    reboot()
    assert lio.list_exports() == told.keys()
    stolen = log_in(told[former.id], former)
    assert stolen.read(0, 512) == bytes(512)

    # The service starts: it ends what has no attachment, then makes all others again, whole.
    again = make_target(owner)
    again.check()
    faults = again.faults()
    assert faults.keys() == told.keys()
    assert set(faults.values()) == {"its LUN leads to a storage object that another tool created"}
    again.withdraw(former.id)
    with pytest.raises(Refused):
        stolen.read(0, 512)
    with pytest.raises(Refused):
        log_in(told[former.id], former)
    assert is_closed(former.path)
    for export in (kept, file, bob):
        assert again.export(export) == told[export.id]
    assert again.faults() == {}
    # All have the one storage object that we made.
    assert sorted(found.name for found in CONFIGFS.glob("core/*_*/*") if found.is_dir()) == sorted(
        f"blockstore.{owner}.{volume}" for volume in (kept.volume, file.volume)
    )
    assert log_in(told[kept.id], kept).read(0, len(PATTERN)) == PATTERN
    assert log_in(told[bob.id], bob).read(0, len(PATTERN)) == PATTERN
    log_in(told[file.id], file).write(0, PATTERN)

    # What was saved is the administrator's, without us.
    assert owner not in saved.read_text()
    assert former.secret not in saved.read_text()
    assert foreign.name in saved.read_text()
    assert saved.stat().st_mode & 0o777 == 0o600
    for part in ("tpgt_1", ""):
        (foreign / part).rmdir()


def test_what_target_service_restored_can_be_detached(lio: LioTarget, owner: str, disk: Disk, saved: Path) -> None:
    """By a service that runs on, and that has not looked meanwhile; with and without what leads to the volume."""
    one, two = make_lv(disk), make_lv(disk)
    bob = an_export(one.volume, one.path, BOB)
    for export in (one, two, bob):
        lio.export(export)
    targetctl("save")
    reboot()
    lio.withdraw(one.id)
    assert not is_closed(one.path)
    lio.withdraw(bob.id)
    damages.of_lio()["the target is deleted"](
        damages.ExportedVolume(
            two,
            Connection(
                driver_volume_type="iscsi",
                data={"target_iqn": f"iqn.2010-10.org.openstack:blockstore.{owner}.{two.id}"},
            ),
        )
    )
    lio.withdraw(two.id)
    for export in (one, two):
        assert is_closed(export.path)
        run("lvremove", "-y", f"{disk.vg}/{export.volume}")
    assert left_over(owner) == []


def test_a_volume_that_another_tool_opened_again_is_taken_back(lio: LioTarget, disk: Disk, saved: Path) -> None:
    """Its target is gone, and only the storage object was restored: else the kernel says that it is in use."""
    export = make_lv(disk)
    connection = lio.export(export)
    targetctl("save")
    lio.withdraw(export.id)
    text = json.loads(saved.read_text())
    saved.write_text(json.dumps({**text, "targets": []}))
    targetctl("restore")
    assert not is_closed(export.path)
    assert lio.export(export) == connection
    log_in(connection, export).write(0, PATTERN)
    targetctl("restore")  # at once and without a look: ours are cleared, and the storage object is back
    lio.check()
    assert is_closed(export.path)


def test_a_session_without_a_password_ends_when_the_export_is_made_again(lio: LioTarget, disk: Disk) -> None:
    export = make_lv(disk)
    connection = lio.export(export)
    damages.of_lio()["no password is asked for"](damages.ExportedVolume(export, connection))
    intruder = log_in(connection, export, user=None, password=None)
    intruder.write(0, PATTERN)
    assert "without a password" in lio.faults()[export.id]
    assert lio.export(export) == connection
    with pytest.raises(Refused):
        intruder.read(0, 512)
    with pytest.raises(Refused):
        log_in(connection, export, user=None, password=None)
    log_in(connection, export).close()


def calls_of(work: Callable[[], object]) -> int:
    """Return how many functions a piece of work calls: what it costs, however busy the machine is."""
    count = 0

    def note(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    threading.setprofile(note)  # for what it does in threads of its own
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return count


@pytest.mark.slow
def test_the_cost_does_not_grow_with_the_number_of_exports(lio: LioTarget, shm: Path) -> None:
    def cycle() -> tuple[int, int]:
        """Return what an export and a withdrawal cost at least."""
        exports = [an_export(path.name, path) for path in (make_file(shm, 1) for _ in range(3))]
        exporting = [calls_of(lambda export=export: lio.export(export)) for export in exports]  # type: ignore[misc]
        ending = [calls_of(lambda export=export: lio.withdraw(export.id)) for export in exports]  # type: ignore[misc]
        return min(exporting), min(ending)

    lio.withdraw(str(uuid.uuid4()))
    alone = cycle()
    others = [an_export(path.name, path) for path in (make_file(shm, 1) for _ in range(OTHERS))]
    for export in others:
        lio.export(export)
    among = cycle()
    for what, one, many in zip(("export", "withdraw"), alone, among, strict=True):
        print(f"{what}: {one} calls alone, {many} beside {OTHERS} others")
        assert many < one + OTHERS // 2  # a walk over them all calls something for each
    assert len(lio.list_exports()) == OTHERS
    faults: list[object] = []
    cost = calls_of(lambda: faults.append(lio.faults()))
    assert faults == [{}]
    print(f"faults: {cost} calls for {OTHERS} exports")
    assert cost < 2000 * OTHERS
