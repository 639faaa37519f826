"""The nbd plugin serves QEMU and libnbd: what they write is in the file, and what cannot be served has a sentence."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockstore_plugins.nbd import NbdOptions, NbdTarget, folder

from blockstore.errors import BackendError, ConfigError, InUse, Unreachable, VolumeMissing
from blockstore.targets.contract import Connection

from ..conftest import need
from . import nbd_initiators
from .nbd_initiators import (
    MIB,
    SECRET,
    Session,
    export,
    make,
    nbdinfo,
    processes,
    qemu_io,
    uri,
    volume,
)


@pytest.fixture
def place() -> Iterator[Path]:
    nbd_initiators.need_tools()
    with nbd_initiators.place() as path:
        yield path


@pytest.fixture(params=["unix", "tcp"])
def target(request: pytest.FixtureRequest, place: Path) -> Iterator[NbdTarget]:
    target = make(place, "127.0.0.1" if request.param == "tcp" else "")
    target.check()
    yield target
    for export_id in target.list_exports():
        target.withdraw(export_id)
    assert not target.list_exports()
    assert [path.name for path in target.state_dir.rglob("*")] in ([], [".ports"])


def server(target: NbdTarget, export_id: str) -> int:
    """The process that serves an export, as its pid file says."""
    return int((target.state_dir / export_id / "pid").read_text())


def die(pid: int) -> None:
    """Kill a process and wait until it is gone."""
    fd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([fd], [], [])
    os.close(fd)


# --- bytes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_what_qemu_writes_is_in_the_volume(place: Path, target: NbdTarget, image_format: str) -> None:
    file = volume(place, image_format=image_format)
    wanted = export(file)
    connection = target.export(wanted)
    qemu_io(connection, place, "write -P 171 1M 2M", "flush", "read -P 171 1M 2M", "read -P 0 3M 1M")
    target.withdraw(wanted.id)
    plain = place / "plain"
    subprocess.run(["qemu-img", "convert", "-f", image_format, "-O", "raw", file, plain], check=True)
    assert plain.read_bytes()[MIB : 3 * MIB] == b"\xab" * 2 * MIB
    plain.unlink()


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_nbdcopy_carries_a_volume_in_and_out(place: Path, target: NbdTarget, image_format: str) -> None:
    source = place / "source"
    source.write_bytes(os.urandom(5 * MIB) + bytes(3 * MIB))
    wanted = export(volume(place, image_format=image_format, size=8 * MIB))
    there = uri(target.export(wanted), place)
    subprocess.run(["nbdcopy", "--flush", source, there], check=True)
    subprocess.run(["nbdcopy", there, place / "back"], check=True)
    assert (place / "back").read_bytes() == source.read_bytes()


def test_a_server_says_that_it_keeps_flushes_and_takes_discards(place: Path, target: NbdTarget) -> None:
    said = nbdinfo(target.export(export(volume(place))), place)
    assert said["TLS"] is target._host.startswith("1")
    (found,) = said["exports"]
    assert found["export-size"] == 64 * MIB
    for can in ("can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"):
        assert found[can] is True, can
    assert found["is_read_only"] is False


def test_a_flush_reaches_the_disk(place: Path) -> None:
    """As strace sees it: the server syncs the file before it answers."""
    need(shutil.which("strace"), "apt-get install strace")
    target = make(place)
    wanted = export(volume(place))
    connection = target.export(wanted)
    trace = place / "trace"
    argv = ["strace", "-f", "-qq", "-e", "trace=fdatasync,fsync", "-o", trace, "-p", str(server(target, wanted.id))]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as strace:
        try:
            while not any(
                "TracerPid:\t0" not in status.read_text()
                for status in Path(f"/proc/{server(target, wanted.id)}/task").glob("*/status")
            ):
                if strace.poll() is not None:
                    pytest.skip("strace may not look at other processes here")
            qemu_io(connection, place, "write 0 4k", "flush")
        finally:
            strace.terminate()
    target.withdraw(wanted.id)
    assert "fdatasync" in trace.read_text()


def test_a_discard_gives_the_room_back(place: Path, target: NbdTarget) -> None:
    file = volume(place)
    connection = target.export(export(file))
    qemu_io(connection, place, "write -P 1 0 16M", "flush")
    assert file.stat().st_blocks * 512 >= 16 * MIB
    qemu_io(connection, place, "discard 0 8M", "flush")
    assert file.stat().st_blocks * 512 <= 9 * MIB
    qemu_io(connection, place, "write -P 0 8M 8M", "flush")  # zeros that are written take no space either
    assert file.stat().st_blocks * 512 <= MIB
    qemu_io(connection, place, "read -P 0 0 16M")


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_read_only_export_refuses_writes(place: Path, target: NbdTarget, image_format: str) -> None:
    file = volume(place, image_format=image_format)
    before = file.read_bytes()
    connection = target.export(export(file, read_only=True))
    assert nbdinfo(connection, place)["exports"][0]["is_read_only"] is True
    assert connection.data["discard"] is False
    qemu_io(connection, place, "read -P 0 0 1M")
    with subprocess.Popen(["nbdcopy", "/etc/hostname", uri(connection, place)], stderr=subprocess.PIPE) as copy:
        assert copy.wait(600) != 0
    assert file.read_bytes() == before


def test_a_block_device_is_served(place: Path, target: NbdTarget) -> None:
    need(os.geteuid() == 0 and shutil.which("losetup"), "root, for a loop device")
    file = volume(place)
    made = subprocess.run(["losetup", "-f", "--show", file], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr}")
    device = Path(made.stdout.strip())
    try:
        wanted = export(device, format="raw")
        connection = target.export(wanted)
        qemu_io(connection, place, "write -P 9 1M 1M", "flush", "discard 1M 512k", "read -P 9 1536k 512k")
        target.withdraw(wanted.id)
        assert file.read_bytes()[MIB + MIB // 2 : 2 * MIB] == b"\x09" * (MIB // 2)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


# --- several exports ---------------------------------------------------------------------------------------


def test_two_exports_of_a_raw_volume_see_each_other(place: Path, target: NbdTarget) -> None:
    file = volume(place)
    one, two, third = (target.export(export(file, read_only=ro)) for ro in (False, False, True))
    with Session(one, place) as first, Session(two, place) as second, Session(third, place) as reader:
        assert "wrote" in first.ask("write -P 5 0 512")
        assert "wrote" in second.ask("write -P 6 512 512")  # the same page of the kernel's
        for session in (first, second, reader):
            while "ops/sec" in (said := session.ask("read -P 5 0 512")):
                pass
            assert "read 512/512" in said
    qemu_io(one, place, "read -P 6 512 512")
    assert file.read_bytes()[:1024] == b"\5" * 512 + b"\6" * 512


def test_a_second_export_of_a_qcow2_volume_is_in_use(place: Path, target: NbdTarget) -> None:
    file = volume(place, image_format="qcow2")
    connection = target.export(export(file))
    for read_only in (False, True):
        with pytest.raises(InUse, match="Another process has the volume's file open"):
            target.export(export(file, read_only=read_only))
    assert target.list_exports() == {connection.data["export"]}
    qemu_io(connection, place, "write 0 1M")


def test_many_at_once_have_ports_of_their_own(place: Path, target: NbdTarget) -> None:
    file = volume(place)
    wanted = [export(file) for _ in range(40)]
    connections: list[Connection] = []
    failures: list[BaseException] = []

    def work(part: int) -> None:
        try:
            for one in wanted[part::8]:
                target.export(one)
                target.withdraw(one.id)
                made = target.export(one)
                connections.append(made)
                assert target.export(one) == made
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert target.list_exports() == {one.id for one in wanted}
    assert len({one.data["uri"] for one in connections}) == 40
    if "port" in connections[0].data:
        assert len({one.data["port"] for one in connections}) == 40


def test_growth_is_seen_by_the_next_export(place: Path, target: NbdTarget) -> None:
    """Not by this one, therefore online_extend is not declared."""
    assert not target.capabilities().online_extend
    file = volume(place)
    wanted, again = export(file), export(file)
    connection = target.export(wanted)
    os.truncate(file, 128 * MIB)
    assert nbdinfo(connection, place)["exports"][0]["export-size"] == 64 * MIB
    assert nbdinfo(target.export(again), place)["exports"][0]["export-size"] == 128 * MIB


# --- living long -------------------------------------------------------------------------------------------


def test_again_keeps_the_session_and_returns_the_same(place: Path, target: NbdTarget) -> None:
    wanted = export(volume(place))
    connection = target.export(wanted)
    with Session(connection, place) as session:
        pid = server(target, wanted.id)
        assert target.export(wanted) == connection
        # By a service that was restarted, and told to listen elsewhere from now on.
        other = make(place, "" if "port" in connection.data else "127.0.0.1")
        assert other.export(wanted) == connection
        assert server(target, wanted.id) == pid
        assert "wrote" in session.ask("write 0 4k")


def test_a_server_outlives_the_service(place: Path) -> None:
    """The service's whole process group and session end; the machine's disk does not."""
    file = volume(place)
    code = f"""
import os, signal, sys
from pathlib import Path
from blockstore_plugins.nbd import NbdOptions, NbdTarget
from blockstore.targets.contract import Export
NbdTarget("nbd", NbdOptions(), Path({str(place / "s")!r}), "test").export(
    Export(id="one", volume="v", path=Path({str(file)!r})))
os.killpg(0, signal.SIGKILL)
"""
    died = subprocess.run([sys.executable, "-c", code], start_new_session=True, check=False)
    assert died.returncode == -signal.SIGKILL
    target = make(place)
    assert target.list_exports() == {"one"}
    pid = server(target, "one")
    assert os.getsid(pid) == pid
    qemu_io(target.export(export(file, id="one")), place, "write -P 1 0 4k")
    assert server(target, "one") == pid
    target.withdraw("one")


def test_a_server_that_was_killed_is_restored_where_it_was(place: Path, target: NbdTarget) -> None:
    """As after a reboot: the directory is there, and no process."""
    file = volume(place)
    wanted = export(file)
    connection = target.export(wanted)
    qemu_io(connection, place, "write -P 7 0 4k", "flush")
    for other in [target.export(export(file)) for _ in range(5)]:
        target.withdraw(other.data["export"])
    die(server(target, wanted.id))
    assert target.list_exports() == {wanted.id}
    assert target.sessions() == {}
    assert target.export(wanted) == connection
    qemu_io(connection, place, "read -P 7 0 4k")


def test_sessions_tell_who_is_connected(place: Path, target: NbdTarget) -> None:
    file = volume(place)
    wanted, idle = export(file), export(file)
    connection = target.export(wanted)
    target.export(idle)
    assert target.sessions() == {}
    with Session(connection, place), Session(connection, place):
        seen = target.sessions()
        assert seen.keys() == {wanted.id}
        assert len(seen[wanted.id]) == 2
        assert all(
            who.startswith("127.0.0.1:" if "port" in connection.data else "a process") for who in seen[wanted.id]
        )
    target.withdraw(wanted.id)
    assert target.sessions() == {}


def test_a_second_connection_is_let_in_while_a_dead_one_hangs(place: Path, target: NbdTarget) -> None:
    connection = target.export(export(volume(place)))
    with Session(connection, place) as hung:
        hung.process.send_signal(signal.SIGSTOP)
        qemu_io(connection, place, "write 0 4k")


def test_withdraw_of_what_is_not_there_is_a_success(target: NbdTarget) -> None:
    target.withdraw("not-there")
    assert target.list_exports() == frozenset()


def test_ipv6(place: Path) -> None:
    target = make(place, "::1")
    try:
        target.check()
    except Unreachable as exc:
        pytest.skip(str(exc))
    wanted = export(volume(place))
    connection = target.export(wanted)
    assert connection.data["uri"].startswith(f"nbds://{wanted.id}@[::1]:")
    qemu_io(connection, place, "write -P 3 0 1M", "read -P 3 0 1M")
    with Session(connection, place):
        (who,) = target.sessions()[wanted.id]
        assert who.startswith("[::1]:")
    target.withdraw(wanted.id)


def test_the_socket_directory_lets_its_group_in_and_nobody_else(place: Path) -> None:
    need(os.geteuid() == 0 and shutil.which("setpriv"), "root, and apt-get install util-linux")
    sockets, group = place / "run", 4242
    sockets.mkdir()
    os.chown(sockets, 0, group)
    sockets.chmod(0o2750)
    place.chmod(0o755)
    target = make(place, socket_dir=sockets)
    target.check()
    wanted = export(volume(place))
    connection = target.export(wanted)
    assert Path(connection.data["socket"]).parent == sockets

    def tried(gid: int) -> int:
        user = ["setpriv", "--reuid=65534", f"--regid={gid}", "--clear-groups"]
        argv = [*user, "nbdinfo", "--size", connection.data["uri"]]
        return subprocess.run(argv, capture_output=True, check=False).returncode

    assert tried(group) == 0
    assert tried(65534) != 0
    target.withdraw(wanted.id)
    assert not list(sockets.iterdir())


# --- what cannot be ----------------------------------------------------------------------------------------


def test_what_cannot_be_exported_leaves_nothing(place: Path, target: NbdTarget) -> None:
    (place / "garbage.qcow2").write_bytes(b"x" * 200)
    (place / "directory").mkdir()
    os.mkfifo(place / "pipe")
    cases: list[tuple[str, str, type[BackendError]]] = [
        ("gone", "raw", VolumeMissing),
        ("gone.qcow2", "qcow2", VolumeMissing),
        ("garbage.qcow2", "qcow2", BackendError),
        ("directory", "raw", BackendError),
        ("pipe", "raw", BackendError),
        ("garbage.qcow2", "vmdk", BackendError),
    ]
    for name, image_format, error in cases:
        with pytest.raises(error, match=name):
            target.export(export(place / name, format=image_format))
    assert target.list_exports() == frozenset()


def test_a_volume_that_is_gone_after_a_reboot_leaves_nothing(place: Path, target: NbdTarget) -> None:
    wanted = export(volume(place))
    target.export(wanted)
    die(server(target, wanted.id))
    wanted.path.unlink()
    with pytest.raises(VolumeMissing):
        target.export(wanted)
    assert target.list_exports() == frozenset()


def test_a_port_that_something_else_has_is_passed_over(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        target = make(place, "127.0.0.1", ports=f"{port}-{port}")
        target.check()
        with pytest.raises(Unreachable, match="Widen the option ports"):
            target.export(export(volume(place)))
        assert target.list_exports() == frozenset()
    wanted = export(place / "a:b, c.raw")
    assert target.export(wanted).data["port"] == port
    with pytest.raises(Unreachable, match="Widen the option ports"):
        target.export(export(place / "a:b, c.raw"))
    die(server(target, wanted.id))
    with pytest.raises(Unreachable, match="Widen the option ports"):
        target.export(export(place / "a:b, c.raw"))  # kept for the one whose server is to come back
    assert target.export(wanted).data["port"] == port
    target.withdraw(wanted.id)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"listen": "example.org"}, r"^\[target:nbd\] listen is 'example.org'; an IPv4 or IPv6 address"),
        ({"listen": "0.0.0.0"}, r"^\[target:nbd\] listen is '0.0.0.0'; the one address"),
        ({"listen": "::"}, r"^\[target:nbd\] listen is '::'; the one address"),
        ({"ports": "10"}, r"^\[target:nbd\] ports is '10'; a range of ports"),
        ({"ports": "20-10"}, r"^\[target:nbd\] ports"),
        ({"ports": "1-65536"}, r"^\[target:nbd\] ports"),
        ({"ports": "0-5"}, r"^\[target:nbd\] ports"),
        ({"socket_dir": Path("here")}, r"^\[target:nbd\] socket_dir is here; an absolute path"),
        (
            {"socket_dir": Path("/" + "x" * 80)},
            r"^\[target:nbd\] socket_dir must be set to a shorter path: .* 118 bytes",
        ),
    ],
)
def test_mistakes_in_the_options_are_named(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        NbdTarget("nbd", NbdOptions(**options), Path("/s"), "test")  # type: ignore[arg-type]


def test_the_longest_socket_path_serves(place: Path) -> None:
    sockets = place / ("x" * (107 - 36 - 2 - len(str(place))))
    sockets.mkdir()
    target = make(place, socket_dir=sockets)
    wanted = export(volume(place))
    connection = target.export(wanted)
    assert len(connection.data["socket"]) == 107
    qemu_io(connection, place, "read 0 4k")
    target.withdraw(wanted.id)


def test_check_says_what_is_missing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(place, "127.0.0.1").check()
    with pytest.raises(Unreachable, match=r"Nothing can listen on 192\.0\.2\.1: .* Correct the option listen"):
        make(place, "192.0.2.1", ports="1000-1001").check()
    with pytest.raises(Unreachable, match="install -d -m 2750"):
        make(place, socket_dir=place / "none").check()
    (place / "open").mkdir()
    (place / "open").chmod(0o777)
    with pytest.raises(Unreachable, match="chmod go-w"):
        make(place, socket_dir=place / "open").check()
    (place / "s").chmod(0o755)
    with pytest.raises(Unreachable, match="chmod 700"):
        make(place).check()
    (place / "s").chmod(0o700)
    tool = place / "bin" / "qemu-nbd"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho an old one\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    with pytest.raises(Unreachable, match="too old"):
        make(place).check()
    tool.write_text("#!/bin/sh\necho --pid-file\n")
    with pytest.raises(Unreachable, match="without TLS-PSK"):
        make(place, "127.0.0.1", ports="1000-1001").check()


def test_a_server_that_does_not_listen_to_reason_is_killed(
    place: Path, target: NbdTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "TERM_S", 0.2)
    wanted = export(volume(place))
    target.export(wanted)
    os.kill(server(target, wanted.id), signal.SIGSTOP)
    target.withdraw(wanted.id)
    assert not list(processes(wanted.path))
    assert not (target.state_dir / wanted.id).exists()


def test_secrets_are_in_a_private_file_and_nowhere_else(
    place: Path, target: NbdTarget, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    wanted = export(volume(place))
    connection = target.export(wanted)
    spelled = SECRET.encode().hex()
    command = Path(f"/proc/{server(target, wanted.id)}/cmdline").read_text()
    for text in (str(connection), caplog.text, command, repr(wanted)):
        assert SECRET not in text
        assert spelled not in text
    for file in (target.state_dir / wanted.id).iterdir():
        if file.is_file() and spelled in file.read_text():
            assert (file.name, file.stat().st_mode & 0o777) == ("keys.psk", 0o600)
    if "port" in connection.data:
        assert connection.secret_as == "auth_password"
        with pytest.raises(BackendError, match="no usable secret"):
            target.export(export(wanted.path, secret=""))
        assert target.list_exports() == {wanted.id}
    assert (target.state_dir / wanted.id).stat().st_mode & 0o777 == 0o700
