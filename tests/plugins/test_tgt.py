"""The tgt plugin with a real tgtd and real initiators: what it offers, to whom, and what it says when it cannot."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blockstore_plugins.tgt import TgtOptions, TgtTarget

from blockstore.errors import ConfigError, InvalidConnector, NotSupported, Unreachable, VolumeMissing

from ..conftest import need
from ..tgtd import free_port
from .initiators import CommandFailed, Login, Raw, qemu_io, start_qemu_io, tool
from .mounts import need_root
from .tgt_rig import INITIATOR, MIB, OTHER, Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(tmp_path) as rig:
        yield rig


def page(login: Login, code: int) -> str:
    """Return a page of vital product data."""
    done = tool(login, "iscsi-inq", "-e", "1", "-c", str(code))
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- what the initiator is told ----------------------------------------------------------------------------


def test_the_connection_is_what_os_brick_and_the_reference_expect(rig: Rig) -> None:
    export = rig.export_of(rig.volume())
    connection = rig.target.export(export)
    iqn = f"iqn.2010-10.org.openstack:blockstore.0a1b2c3d.{export.id}"
    assert connection.driver_volume_type == "iscsi"
    assert connection.secret_as == "auth_password"
    assert connection.data == {
        "target_discovered": False,
        "target_portal": rig.tgtd.portal,
        "target_iqn": iqn,
        "target_lun": 1,
        "auth_method": "CHAP",
        "auth_username": f"blockstore-{export.id}",
        "discard": True,
    }
    assert rig.target.export(export) == connection


def test_multipath_gives_the_plural_keys_also_with_one_portal(rig: Rig) -> None:
    export = rig.export_of(rig.volume(), connector={"initiator": INITIATOR, "multipath": True})
    data = rig.target.export(export).data
    assert data["target_portals"] == [rig.tgtd.portal]
    assert data["target_iqns"] == [data["target_iqn"]]
    assert data["target_luns"] == [1]


def test_two_portals_one_of_them_ipv6_reach_the_same_volume(rig: Rig) -> None:
    need(socket.has_ipv6 and Path("/proc/net/if_inet6").exists(), "IPv6 in the kernel")
    second = f"[::1]:{free_port('::1')}"
    rig.target = rig.new_target(portals=f"{rig.tgtd.portal}, {second}")
    rig.target.check()
    rig.target.check()
    export = rig.export_of(rig.volume(b"canary" + bytes(506)))
    data = rig.target.export(export).data
    assert data["target_portals"] == [rig.tgtd.portal, second]
    assert len(data["target_iqns"]) == len(data["target_luns"]) == 2
    for portal in data["target_portals"]:
        with Raw(rig.login_of(export, portal=portal)).login().ready() as raw:
            assert raw.read(0).startswith(b"canary")
    assert "read 512/512" in qemu_io(rig.login_of(export, portal=second), "read 0 512").stdout


def test_a_volume_has_one_identity_in_all_its_exports(rig: Rig) -> None:
    path, volume = rig.volume(), "volume-11111111-2222-3333-4444-555555555555"
    logins = [rig.login_of(rig.export_of(path, volume=volume)) for _ in range(2)]
    other = rig.login_of(rig.export_of(rig.volume()))
    assert "[11111111-2222-3333-4444-555555555555]" in page(logins[0], 0x80)
    assert page(logins[0], 0x80) == page(logins[1], 0x80) != page(other, 0x80)
    names = [re.search(r"NAA\nDesignator:\[(.*?)\]\n", page(login, 0x83), re.S) for login in (*logins, other)]
    first, second, third = (found and found[1] for found in names)
    assert first
    assert first == second != third


def test_a_volume_of_any_name_has_an_identity(rig: Rig) -> None:
    for name in ("v", "a,scsi_sn=b", "volume-" + "x" * 200, "Bände", "a\nb"):
        login = rig.login_of(rig.export_of(rig.volume(), volume=name))
        assert re.search(r"\[[0-9a-f]{36}\]", page(login, 0x80))
        assert "Vendor:BLKSTORE" in tool(login, "iscsi-inq").stdout


# --- bytes -------------------------------------------------------------------------------------------------


def test_what_is_written_is_in_the_volume_and_is_read_back(rig: Rig) -> None:
    path = rig.volume()
    login = rig.login_of(rig.export_of(path))
    done = qemu_io(login, "write -P 0x5a 4096 65536", "flush", "read -P 0x5a 4096 65536", "read -P 0 0 4096")
    assert done.returncode == 0
    assert "failed" not in done.stdout
    assert path.read_bytes()[4096:69632] == b"\x5a" * 65536


def test_discard_gives_back_the_room_and_reads_as_zeros(rig: Rig) -> None:
    path = rig.volume(b"x" * 4096)
    before = path.stat().st_blocks
    login = rig.login_of(rig.export_of(path))
    assert "LBPME:1 LBPRZ:1" in tool(login, "iscsi-readcapacity16").stdout
    done = qemu_io(login, "discard 0 8M", "read -P 0 0 8M", "read -P 0x78 8M 8M")
    assert "failed" not in done.stdout
    assert path.stat().st_blocks < before * 0.6


def test_flush_reaches_the_disk_since_a_write_cache_is_reported(rig: Rig, tmp_path: Path) -> None:
    need(Path("/usr/bin/strace").exists(), "apt-get install strace")
    login = rig.login_of(rig.export_of(rig.volume()))
    trace = tmp_path / "trace"
    argv = ["strace", "-f", "-o", str(trace), "-e", "trace=fdatasync,pwrite64", "-p", str(rig.tgtd.process.pid)]
    with Raw(login).login().ready() as raw:
        # The caching page: WCE is bit 2.
        assert raw.command(bytes([0x1A, 8, 8, 0, 64, 0]), expect=64)[6] & 4
        with subprocess.Popen(argv, stderr=subprocess.PIPE) as strace:
            assert strace.stderr
            assert b"attached" in strace.stderr.readline()
            raw.write(0, b"w" * 512)
            raw.command(bytes([0x35]) + bytes(9))
            strace.terminate()
    assert re.search(r"pwrite64.*\n(.*\n)*?.*fdatasync\(\d+\) += 0", trace.read_text())


def test_read_only_is_read_only_for_every_command_that_writes(rig: Rig) -> None:
    path = rig.volume(b"old!" * 128)
    login = rig.login_of(rig.export_of(path, read_only=True))
    unmap = bytes([0, 22, 0, 16, *bytes(4), *bytes(8), 0, 0, 0, 1, *bytes(4)])
    writes: list[tuple[bytes, bytes]] = [
        (bytes([0x0A, 0, 0, 0, 1, 0]), b"n" * 512),  # WRITE(6)
        (bytes([0x2A, *bytes(6), 0, 1, 0]), b"n" * 512),  # WRITE(10)
        (bytes([0x2E, *bytes(6), 0, 1, 0]), b"n" * 512),  # WRITE AND VERIFY(10)
        (bytes([0x41, *bytes(6), 0, 1, 0]), b"n" * 512),  # WRITE SAME(10)
        (bytes([0x42, *bytes(6), 0, len(unmap), 0]), unmap),
    ]
    with Raw(login).login().ready() as raw:
        assert raw.read(0) == b"old!" * 128
        for cdb, data in writes:
            with pytest.raises(CommandFailed) as caught:
                raw.command(cdb, out=data)
            assert caught.value.sense_key == 7, cdb
        # Control page: an initiator clears "software write protect", which is another lock.
        raw.command(bytes([0x15, 0x10, 0, 0, 16, 0]), out=bytes([0, 0, 0, 0, 0x0A, 10, 2, 0x10, *bytes(6), 2, 0]))
        with pytest.raises(CommandFailed):
            raw.write(0, b"n" * 512)
    assert tool(login, "iscsi-test-cu", "-d", "-n", "-f", "-t", "ALL.ReadOnly").returncode == 0
    assert path.read_bytes()[:512] == b"old!" * 128


def test_one_volume_for_two_initiators_at_once(rig: Rig) -> None:
    path = rig.volume()
    first, second = (rig.export_of(path, connector={"initiator": name}) for name in (INITIATOR, OTHER))
    with Raw(rig.login_of(first)).login().ready() as one, Raw(rig.login_of(second)).login().ready() as two:
        one.write(7, b"1" * 512)
        assert two.read(7) == b"1" * 512
        assert rig.target.sessions() == {first.id: (INITIATOR,), second.id: (OTHER,)}
        rig.target.withdraw(first.id)
        two.write(8, b"2" * 512)
        with pytest.raises(OSError, match="closed"):
            one.read(8)
    assert rig.target.list_exports() == {second.id}


# All of iscsi-test-cu's families that concern a disk, but those which need a second session of a foreign initiator
# (it is refused) and those where tgtd 1.0.85 itself deviates: GetLBAStatus and Unmap beyond the end, and with zero
# blocks at the end; PrinServiceactionRange; iSCSIdatasn.
FAMILIES = """
    Inquiry Mandatory ModeSense6 NoMedia OrWrite Prefetch10 Prefetch16 PrinReadKeys PrinReportCapabilities ProutClear
    ProutRegister Read6 Read10 Read12 Read16 ReadCapacity10 ReadCapacity16 ReadOnly ReportSupportedOpcodes
    StartStopUnit TestUnitReady Verify10 Verify12 Verify16 Write10 Write12 Write16 WriteSame10 WriteSame16
    WriteVerify10 WriteVerify12 WriteVerify16 iSCSIcmdsn iSCSIResiduals iSCSITMF
"""


@pytest.mark.slow
def test_the_families_of_iscsi_test_cu_pass(rig: Rig) -> None:
    login = rig.login_of(rig.export_of(rig.volume()))
    for family in FAMILIES.split():
        done = tool(login, "iscsi-test-cu", "-d", "-n", "-f", "-t", f"ALL.{family}")
        assert done.returncode == 0, (family, done.stdout[-2000:])
    assert rig.tgtd.process.poll() is None


# --- growing -----------------------------------------------------------------------------------------------


def test_a_living_session_sees_the_new_size(rig: Rig) -> None:
    path = rig.volume(b"\1" * 512)
    export = rig.export_of(path)
    login = rig.login_of(export)
    with start_qemu_io(login) as process:
        assert process.stdin
        process.stdin.write("read -P 1 0 512\n")
        process.stdin.flush()
        os.truncate(path, 20 * MIB)
        rig.target.resize(export.id)
        assert "Total size:20971520" in tool(login, "iscsi-readcapacity16").stdout
        out, _ = process.communicate("read -P 1 0 512\nquit\n", timeout=600)
    assert out.count("read 512/512") == 2, out
    assert rig.target.export(export).data["target_iqn"] == login.iqn
    assert "[" in page(login, 0x80)


def test_no_write_is_lost_and_none_fails_while_the_volume_grows(rig: Rig) -> None:
    path = rig.volume(size=64 * MIB)
    export = rig.export_of(path)
    size, count = 65536, 1024
    with start_qemu_io(rig.login_of(export)) as process:
        assert process.stdin
        assert process.stdout
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
        reader.start()
        for number in range(count):
            while number == 0 and not rig.target.sessions():
                time.sleep(0.01)  # to be refused at its first login would be the end of it
            # Up to 1024 under way at once; each has a pattern of its own.
            process.stdin.write(f"aio_write -P {number % 251 + 1} {number * size} {size}\n")
            process.stdin.flush()
            if number % 256 == 128:
                os.truncate(path, 64 * MIB + (number // 256 + 1) * MIB)
                rig.target.resize(export.id)
        process.stdin.write("aio_flush\nflush\nquit\n")
        process.stdin.close()
        reader.join(600)
    assert sum("wrote" in line for line in lines) == count
    assert not [line for line in lines if "fail" in line or "rror" in line]
    data = path.read_bytes()
    assert len(data) == 68 * MIB
    assert not [n for n in range(count) if data[n * size : (n + 1) * size] != bytes([n % 251 + 1]) * size]


def test_resize_by_a_service_that_was_started_since_then(rig: Rig) -> None:
    path = rig.volume()
    export = rig.export_of(path, read_only=True)
    login = rig.login_of(export)
    os.truncate(path, 18 * MIB)
    rig.new_target().resize(export.id)
    assert "Total size:18874368" in tool(login, "iscsi-readcapacity16").stdout
    with Raw(login).login().ready() as raw, pytest.raises(CommandFailed):
        raw.write(0, bytes(512))


def test_resize_of_what_is_not_exported_says_so(rig: Rig) -> None:
    with pytest.raises(VolumeMissing, match="no complete export"):
        rig.target.resize("00000000-0000-0000-0000-000000000000")


def test_a_volume_that_cannot_be_opened_again_keeps_its_initiators_waiting(rig: Rig) -> None:
    path = rig.volume()
    export = rig.export_of(path)
    login = rig.login_of(export)
    path.rename(path.with_suffix(".away"))
    with pytest.raises(Exception, match="invalid"):
        rig.target.resize(export.id)
    path.with_suffix(".away").rename(path)
    rig.target.resize(export.id)
    assert "Total size:16777216" in tool(login, "iscsi-readcapacity16").stdout


# --- taking away -------------------------------------------------------------------------------------------


def test_withdraw_leaves_nothing_and_may_be_repeated(rig: Rig) -> None:
    path = rig.volume()
    export = rig.export_of(path)
    login = rig.login_of(export)
    with Raw(login).login().ready() as raw:
        assert rig.holds(path)
        rig.target.withdraw(export.id)
        assert not rig.holds(path)
        with pytest.raises(OSError, match="closed"):
            raw.read(0)
    assert rig.is_empty()
    rig.target.withdraw(export.id)
    rig.new_target().withdraw("00000000-0000-0000-0000-000000000000")


def test_an_export_called_again_keeps_its_sessions(rig: Rig) -> None:
    export = rig.export_of(rig.volume(b"x" * 512))
    with Raw(rig.login_of(export)).login().ready() as raw:
        rig.target.export(export)
        rig.new_target().export(export)
        assert raw.read(0) == b"x" * 512
    assert rig.target.list_exports() == {export.id}


def test_an_export_for_another_initiator_or_path_ends_the_first(rig: Rig) -> None:
    first = rig.export_of(rig.volume(b"1" * 512))
    second = rig.export_of(rig.volume(b"2" * 512), id=first.id, secret=first.secret, connector={"initiator": OTHER})
    with Raw(rig.login_of(first)).login().ready() as raw:
        login = rig.login_of(second)
        with pytest.raises(OSError, match="closed"):
            raw.read(0)
    with Raw(login).login().ready() as raw:
        assert raw.read(0) == b"2" * 512
    assert tool(rig.login_of(second, initiator=INITIATOR), "iscsi-inq").returncode != 0


def test_only_what_carries_the_owner_is_listed_or_touched(rig: Rig) -> None:
    mine, path = rig.export_of(rig.volume()), rig.volume()
    neighbour = rig.new_target(owner="ffffffff")
    theirs = rig.export_of(path)
    rig.target.export(mine)
    neighbour.export(theirs)
    assert rig.target.list_exports() == {mine.id}
    assert neighbour.list_exports() == {theirs.id}
    rig.target.withdraw(theirs.id)
    rig.new_target().withdraw(theirs.id)
    assert rig.holds(path)


# --- refusals ----------------------------------------------------------------------------------------------

GOOD = "iqn.2000-01.com.example:"
NOT_NAMES: list[Any] = [None, 7, True, b"iqn.2000-01.a:b", ["iqn.2000-01.a:b"], {"a": 1}, "", " ", "ALL", "*", "host"]
NOT_IQNS = [
    *("iqn.", "iqn.2000-01", "iqn.2000-01.", "iqn.2000-13.a:b", "iqn.200-01.a:b", "IQN.2000-01.a:b", " " + GOOD + "a"),
    *("eui.123", "eui.0123456789abcdeg", "eui.0123456789abcdef0", "naa.0123", "naa." + "0" * 31),
    *(GOOD + tail for tail in (",initiator-address=ALL", "a=b", "a b", "a\n", "a\0", "a\x7f", "a\tb", "a\u00e4")),
    *(GOOD + tail for tail in ("a/../b", "*", "a;b", "a'b", 'a"b', "a%00", "a" * 200)),
]


@pytest.mark.parametrize("initiator", NOT_NAMES + NOT_IQNS, ids=lambda name: repr(name)[:40])
def test_hostile_connectors_are_refused_before_tgtd_hears_of_them(tmp_path: Path, initiator: Any) -> None:
    options = TgtOptions(control_socket=str(tmp_path / "nothing"))
    target = TgtTarget("t", options, tmp_path, "0a1b2c3d")
    for connector in ({"initiator": initiator}, {}):
        with pytest.raises(InvalidConnector, match="initiator is"):
            target.export(Rig.export_of(tmp_path, connector=connector))


@pytest.mark.parametrize(
    "initiator",
    [
        "iqn.1993-08.org.debian:01:9a8b7c6d5e4f",
        "iqn.2000-12.com.Example:Host_1",
        "iqn.2001-04.com.example",
        "eui.02004567A425678D",
        "naa.52004567BA64678D",
        "naa.62004567BA64678D0123456789ABCDEF",
        "iqn.2000-01.com.example:" + "a" * 199,
    ],
)
def test_each_form_of_name_that_initiators_have_is_let_in(rig: Rig, initiator: str) -> None:
    login = rig.login_of(rig.export_of(rig.volume(), connector={"initiator": initiator}))
    with Raw(login).login().ready():
        assert list(rig.target.sessions().values()) == [(initiator,)]


def test_a_volume_that_is_not_there_is_missing_and_leaves_nothing(rig: Rig) -> None:
    for path in (rig.directory / "nothing", rig.directory, Path("/dev/null")):
        with pytest.raises(VolumeMissing, match=re.escape(str(path))):
            rig.target.export(rig.export_of(path))
    assert rig.is_empty()


def test_what_tgtd_could_misunderstand_is_refused(rig: Rig) -> None:
    comma = rig.directory / "a,bstype=aio"
    comma.write_bytes(bytes(MIB))
    good = rig.volume()
    for export in (
        rig.export_of(comma),
        rig.export_of(Path("relative")),
        rig.export_of(good, id="a,b"),
        rig.export_of(good, secret="0123456789ab,def"),
        rig.export_of(good, secret=""),
        rig.export_of(good, format="qcow2"),
    ):
        with pytest.raises(NotSupported):
            rig.target.export(export)
    assert rig.is_empty()


def test_a_failure_in_the_middle_leaves_nothing_behind(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockstore_plugins.tgt._identity", lambda volume: "nonsense=1")
    with pytest.raises(Exception, match="tgtd did not set up the LUN"):
        rig.target.export(rig.export_of(rig.volume()))
    assert rig.is_empty()


def test_the_secret_is_in_no_log_no_error_and_no_representation(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    export = rig.export_of(rig.volume())
    connection = rig.target.export(export)
    rig.tgtd.kill()
    errors = []
    for call in (rig.target.check, lambda: rig.target.export(export)):
        with pytest.raises(Unreachable) as caught:
            call()
        errors.append(repr(caught.value))
    assert "tgtd: make the account" in caplog.text
    for text in (caplog.text, rig.tgtd.log.read_text(), repr(export), repr(connection), repr(rig.target), *errors):
        assert export.secret not in text


# --- check and configuration -------------------------------------------------------------------------------


def test_check_says_what_to_do_when_there_is_no_tgtd(rig: Rig) -> None:
    rig.target.check()
    rig.tgtd.kill()
    for call in (rig.target.check, rig.target.list_exports, rig.target.sessions, lambda: rig.target.withdraw("a")):
        with pytest.raises(Unreachable, match=r"apt-get install tgt.*systemctl start tgt.*root.*control_socket"):
            call()


def test_check_says_what_to_do_when_tgtd_hangs_up(rig: Rig) -> None:
    rig.tgtd.directory.chmod(0o755)
    rig.tgtd.socket.chmod(0o777)
    os.setegid(65534)
    try:
        with pytest.raises(Unreachable, match="serves only the user that runs it"):
            rig.target.check()
    finally:
        os.setegid(0)


def test_check_refuses_a_portal_that_tgtd_cannot_listen_on(rig: Rig) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for portal in ("192.0.2.1:3260", f"127.0.0.1:{taken.getsockname()[1]}"):
            target = rig.new_target(portals=f"{rig.tgtd.portal},{portal}")
            with pytest.raises(Unreachable, match=rf"cannot listen on {re.escape(portal)}.*\[target:t\] portals"):
                target.check()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"portals": ""}, "portals"),
        ({"portals": "127.0.0.1"}, "portals"),
        ({"portals": "127.0.0.1:0"}, "portals"),
        ({"portals": "127.0.0.1:65536"}, "portals"),
        ({"portals": "127.0.0.256:3260"}, "portals"),
        ({"portals": "host:3260"}, "portals"),
        ({"portals": "::1:3260"}, "portals"),
        ({"portals": "[::1]:3260,"}, "portals"),
        ({"portals": "[::1%eth0]:3260"}, "portals"),
        ({"portals": "0.0.0.0:3260"}, "portals.*name the addresses"),
        ({"portals": "[::]:3260"}, "portals.*name the addresses"),
        ({"portals": "[::1]:3260,[0::1]:3260"}, "portals.*twice"),
        ({"control_socket": "socket.0"}, "control_socket"),
        ({"control_socket": ""}, "control_socket"),
        ({"control_socket": "/" + "a" * 108}, "control_socket"),
        ({"session_timeout_s": 4.0}, "session_timeout_s"),
        ({"session_timeout_s": float("nan")}, "session_timeout_s"),
        ({"session_timeout_s": 601.0}, "session_timeout_s"),
    ],
)
def test_a_mistake_in_the_options_names_section_and_option(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^\[target:t\] {words}"):
        TgtTarget("t", TgtOptions(**options), tmp_path, "0a1b2c3d")


def test_capabilities_are_known_without_a_tgtd(tmp_path: Path) -> None:
    capabilities = TgtTarget("t", TgtOptions(), tmp_path / "state", "0a1b2c3d").capabilities()
    assert capabilities.protocol == "iSCSI"
    assert capabilities.formats == {"raw"}
    assert capabilities.connector_needs == ("initiator",)
    assert capabilities.multiattach
    assert capabilities.online_extend
    assert not (tmp_path / "state").exists()


def test_initiators_see_blocks_of_512_bytes_whatever_the_disk_has(rig: Rig) -> None:
    """As the target says of itself: so a volume may come from a disk with the one to a disk with the other."""
    need_root()
    path = rig.volume()
    made = subprocess.run(
        ["losetup", "-f", "--show", "--sector-size", "4096", path], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no loop device can be had here: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    export = rig.export_of(device)
    try:
        shown = tool(rig.login_of(export), "iscsi-readcapacity16").stdout
        assert "LOGICAL BLOCK LENGTH IN BYTES:512" in shown
        assert rig.target.capabilities().block_size == 512
    finally:
        rig.target.withdraw(export.id)
        subprocess.run(["losetup", "-d", device], check=True)
