"""What an old session, a stranger, a guest, or a reused process number tries on the nbd plugin, and does not get."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockstore_plugins.nbd import NbdTarget

from blockstore.errors import BackendError

from . import nbd_initiators
from .nbd_initiators import MIB, SECRET, Session, export, free_port, make, processes, qemu_io, qemu_io_says, volume

OTHER_SECRET = "ABCDEFGH87654321"
MARK = 0xEE


@pytest.fixture
def place() -> Iterator[Path]:
    nbd_initiators.need_tools()
    with nbd_initiators.place() as path:
        yield path


@pytest.fixture(params=["unix", "tcp"])
def target(request: pytest.FixtureRequest, place: Path) -> Iterator[NbdTarget]:
    """A target that has one port, so that every export gets the port of the one before."""
    port = free_port()
    target = make(place, "127.0.0.1", ports=f"{port}-{port}") if request.param == "tcp" else make(place)
    yield target
    for export_id in target.list_exports():
        target.withdraw(export_id)


@pytest.fixture
def tcp(place: Path) -> Iterator[NbdTarget]:
    target = make(place, "127.0.0.1")
    yield target
    for export_id in target.list_exports():
        target.withdraw(export_id)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# --- old sessions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reconnects", [0, 3])
def test_an_old_session_never_reaches_the_next_volume(place: Path, target: NbdTarget, reconnects: int) -> None:
    """CVE-2023-2088: also not where the next export has the same port, and the old initiator comes back by itself."""
    mine, theirs = volume(place, "mine"), volume(place, "theirs")
    theirs.write_bytes(bytes([MARK]) * MIB)
    before = digest(theirs)
    wanted = export(mine)
    connection = target.export(wanted)
    with Session(connection, place, **{"reconnect-delay": reconnects}) as old:
        target.withdraw(wanted.id)
        left = digest(mine)
        new = target.export(export(theirs, secret=OTHER_SECRET))
        if "port" in new.data:
            assert new.data["port"] == connection.data["port"]
        for command in (f"read -P {MARK} 0 512", "write -P 1 0 512", "discard 0 4k", f"read -P {MARK} 4k 512"):
            assert "failed: " in old.ask(command)
        qemu_io(new, place, f"read -P {MARK} 0 1M", secret=OTHER_SECRET)
    assert qemu_io_says(connection, place, "read 0 512").returncode != 0
    assert digest(theirs) == before
    assert digest(mine) == left


def test_nothing_is_written_after_the_withdrawal(place: Path, target: NbdTarget) -> None:
    """While four initiators write as fast as they can."""
    wanted = export(volume(place))
    connection = target.export(wanted)
    argv = ["qemu-io", *(["-c", "aio_write -P 7 0 4M"] * 5000), *nbd_initiators.qemu_words(connection, place)]
    writers = [subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(4)]
    try:
        while not wanted.path.stat().st_blocks:
            time.sleep(0.01)
        target.withdraw(wanted.id)
        changed = wanted.path.stat().st_mtime_ns
        assert not list(processes(wanted.path))
        time.sleep(0.5)
        assert wanted.path.stat().st_mtime_ns == changed
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()


def test_an_initiator_that_does_not_answer_cannot_delay_the_withdrawal(place: Path, target: NbdTarget) -> None:
    wanted = export(volume(place))
    with Session(target.export(wanted), place) as hung:
        for _ in range(50):
            hung.tell("aio_read 0 4M")
        hung.process.send_signal(signal.SIGSTOP)
        target.withdraw(wanted.id)
        assert not list(processes(wanted.path))


# --- strangers ---------------------------------------------------------------------------------------------


def test_only_the_right_key_under_the_right_name_opens_the_door(place: Path, tcp: NbdTarget) -> None:
    file = volume(place)
    mine, theirs = export(file), export(file, secret=OTHER_SECRET)
    door = tcp.export(mine)
    other = tcp.export(theirs)
    before = digest(file)
    tries = {
        "another key": {"secret": OTHER_SECRET},
        "no TLS": {"tls": False},
        "another name": {"identity": "somebody"},
        "another export's name and key": {"identity": theirs.id, "secret": OTHER_SECRET},
    }
    for what, how in tries.items():
        done = qemu_io_says(door, place, "write -P 1 0 4k", **how)  # type: ignore[arg-type]
        assert done.returncode != 0, what
        assert "wrote" not in done.stdout, what
    assert digest(file) == before
    qemu_io(door, place, "read 0 4k")
    qemu_io(other, place, "read 0 4k", secret=OTHER_SECRET)


def test_strangers_that_hang_on_do_not_keep_the_initiator_out(place: Path, tcp: NbdTarget) -> None:
    connection = tcp.export(export(volume(place)))
    address = (connection.data["host"], connection.data["port"])
    strangers = [socket.create_connection(address) for _ in range(10)]
    try:
        qemu_io(connection, place, "write 0 4k")
    finally:
        for stranger in strangers:
            stranger.close()


@pytest.mark.parametrize("export_id", ["", ".", "..", ".ports", "a/b", "../s", "a\0b", "x" * 37, "a b"])
def test_an_id_that_is_a_path_is_refused(place: Path, target: NbdTarget, export_id: str) -> None:
    with pytest.raises(BackendError, match="is not an export's id"):
        target.export(export(place / "none.raw", id=export_id))
    with pytest.raises(BackendError, match="is not an export's id"):
        target.withdraw(export_id)


# --- guests ------------------------------------------------------------------------------------------------


def planted(place: Path, kind: str) -> bytes:
    """The bytes of a qcow2 file that sends its reader to a file of somebody else's."""
    secret = place / "canary"
    secret.write_bytes(b"CANARY" * 20000)
    image = place / "planted"
    where = ["-b", secret, "-F", "raw"] if kind == "backing" else ["-o", f"data_file={place / 'x'},data_file_raw=on"]
    if kind == "data":  # a comma in the path of the test would end the option
        os.chdir(place)
        where = ["-o", "data_file=canary,data_file_raw=on"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *where, image, "64k"], check=True)
    secret.write_bytes(b"CANARY" * 20000)
    return image.read_bytes()


@pytest.mark.parametrize("kind", ["backing", "data"])
def test_an_image_that_a_guest_wrote_is_never_opened(
    place: Path, target: NbdTarget, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    header = planted(place, kind)
    wanted = export(volume(place, size=4 * MIB))
    first = target.export(wanted)
    (place / "guest").write_bytes(header)
    subprocess.run(["nbdcopy", place / "guest", nbd_initiators.uri(first, place)], check=True)
    target.withdraw(wanted.id)
    assert wanted.path.read_bytes()[:4] == b"QFI\xfb"
    again = target.export(export(wanted.path))
    assert nbd_initiators.nbdinfo(again, place)["exports"][0]["export-size"] == 4 * MIB
    back = place / "back"
    subprocess.run(["nbdcopy", nbd_initiators.uri(again, place), back], check=True)
    assert back.read_bytes()[: len(header)] == header
    assert b"CANARYCANARY" not in back.read_bytes()


@pytest.mark.parametrize("kind", ["backing", "data"])
def test_a_qcow2_volume_that_names_another_file_is_refused(
    place: Path, target: NbdTarget, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    header = planted(place, kind)
    file = place / "bad.qcow2"
    file.write_bytes(header)
    for read_only in (False, True):
        with pytest.raises(BackendError, match="refers to another file for its data"):
            target.export(export(file, read_only=read_only))
    assert file.read_bytes() == header
    assert target.list_exports() == frozenset()


# --- process numbers ---------------------------------------------------------------------------------------


def test_another_process_with_the_same_number_is_left_alone(place: Path, target: NbdTarget) -> None:
    """The server died, and its number went to somebody who even has the same command line."""
    wanted = export(volume(place))
    target.export(wanted)
    (pid,) = processes(target.state_dir)
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    os.kill(pid, signal.SIGKILL)
    argv = ["bash", "-c", 'exec -a "$0" sleep 60', words[0]]
    with subprocess.Popen(argv) as innocent:
        try:
            (target.state_dir / wanted.id / "pid").write_text(f"{innocent.pid}\n")
            target.export(wanted)
            (target.state_dir / wanted.id / "pid").write_text(f"{innocent.pid}\n")  # while a server lives, too
            target.withdraw(wanted.id)
            assert innocent.poll() is None
            assert not list(processes(wanted.path))
            (target.state_dir / wanted.id).mkdir(0o700)
            (target.state_dir / wanted.id / "pid").write_text(f"{innocent.pid}\n")
            target.withdraw(wanted.id)
            assert innocent.poll() is None
        finally:
            innocent.kill()
    assert target.list_exports() == frozenset()


def test_the_secret_of_one_export_is_not_in_the_files_of_another(place: Path, tcp: NbdTarget) -> None:
    file = volume(place)
    mine, theirs = export(file), export(file, secret=OTHER_SECRET)
    tcp.export(mine)
    tcp.export(theirs)
    keys = (tcp.state_dir / mine.id / "keys.psk").read_text()
    assert keys == f"{mine.id}:{SECRET.encode().hex()}\n"
