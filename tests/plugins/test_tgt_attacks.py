"""Who is kept out by the tgt plugin, and that an old session leads to nobody's volume (A9, A10, A30)."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from blockstore_plugins import tgt

from blockstore.errors import SessionAlive, VolumeMissing

from .initiators import CommandFailed, LoginRefused, Raw, qemu_io, start_qemu_io, tool
from .mounts import mounted
from .tgt_rig import INITIATOR, MIB, OTHER, Rig

CANARY = b"CANARY-OF-ANOTHER-TENANT".ljust(512, b".")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(tmp_path) as rig:
        yield rig


# --- who gets in -------------------------------------------------------------------------------------------


def test_without_chap_nobody_gets_in(rig: Rig) -> None:
    login = rig.login_of(rig.export_of(rig.volume(CANARY)))
    assert tool(login, "iscsi-inq").returncode == 0
    without = rig.login_of(rig.export_of(rig.volume(CANARY)), user="", password="")
    assert tool(without, "iscsi-inq").returncode != 0
    with Raw(login) as raw, pytest.raises(LoginRefused):
        raw.authenticate("None")
    with Raw(login) as raw, pytest.raises(LoginRefused):
        raw.login_without_security()
    assert rig.target.sessions() == {}


def test_a_wrong_password_is_refused(rig: Rig) -> None:
    export = rig.export_of(rig.volume(CANARY))
    for password in ("wrong-password-1", export.secret.swapcase(), export.secret[:-1]):
        login = rig.login_of(export, password=password)
        assert tool(login, "iscsi-inq").returncode != 0
        with Raw(login) as raw, pytest.raises(LoginRefused):
            raw.login()


@pytest.mark.parametrize("name", [OTHER, INITIATOR.upper(), INITIATOR + "a", INITIATOR[:-1], "ALL", "a"])
def test_an_initiator_of_another_name_is_refused_though_it_knows_the_secret(rig: Rig, name: str) -> None:
    login = rig.login_of(rig.export_of(rig.volume(CANARY)), initiator=name)
    assert tool(login, "iscsi-inq").returncode != 0
    with Raw(login) as raw, pytest.raises(LoginRefused):
        raw.login()


def test_another_tenants_credentials_open_only_that_tenants_volume(rig: Rig) -> None:
    mine, theirs = rig.export_of(rig.volume()), rig.export_of(rig.volume(CANARY))
    my_login, their_login = rig.login_of(mine), rig.login_of(theirs)
    for user, password in (
        (my_login.user, mine.secret),
        (their_login.user, mine.secret),
        (my_login.user, theirs.secret),
    ):
        with Raw(rig.login_of(theirs, user=user, password=password)) as raw, pytest.raises(LoginRefused):
            raw.login()


def test_an_initiator_discovers_only_what_admits_it(rig: Rig) -> None:
    login = rig.login_of(rig.export_of(rig.volume()))
    for initiator, there in ((INITIATOR, True), (OTHER, False)):
        argv = ["iscsi-ls", "-i", initiator, f"iscsi://{rig.tgtd.portal}"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=600, env={"PATH": os.environ["PATH"]})
        assert (login.iqn in done.stdout) == there


def test_nobody_gets_in_while_a_target_is_half_made(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two calls the right initiator with the right secret, and one without any, try to get in."""
    export = rig.export_of(rig.volume(CANARY))
    login = rig.login_of(export)
    rig.target.withdraw(export.id)
    tries: list[str] = []
    call = tgt.Tgtd._call

    def try_first(self: tgt.Tgtd, what: str, *args: object, **kw: object) -> str:
        for method in ("CHAP", "None"):
            with suppress(OSError), Raw(login) as raw:
                try:
                    raw.authenticate(method)
                except LoginRefused:
                    tries.append(what)
                else:
                    pytest.fail(f"somebody got in before tgtd was told to {what}")
        return call(self, what, *args, **kw)

    monkeypatch.setattr(tgt.Tgtd, "_call", try_first)
    # Up to the call that admits it; the last one only sets the target ready, which it is.
    monkeypatch.setattr(
        tgt.Tgtd, "admit", lambda self, tid, initiator: monkeypatch.undo() or self.admit(tid, initiator)
    )
    rig.target.export(export)
    assert len(tries) >= 12
    with Raw(login).login():
        pass


# --- sessions that outlive their export --------------------------------------------------------------------


def test_a_session_of_libiscsi_never_reads_the_volume_that_is_exported_next(rig: Rig) -> None:
    mine, theirs = rig.export_of(rig.volume(b"mine")), rig.export_of(rig.volume(CANARY))
    with start_qemu_io(rig.login_of(mine)) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write("read -v 0 512\n")
        process.stdin.flush()
        while "read 512/512" not in (line := process.stdout.readline()):
            assert "minemine" in line or not line.strip()
        rig.target.withdraw(mine.id)
        rig.target.export(theirs)
        process.stdin.write("read -v 0 512\nread -v 512 512\n")
        process.stdin.flush()
        time.sleep(4)  # it tries to come back again and again
        assert mine.id not in rig.target.sessions()
        assert theirs.id not in rig.target.sessions()
        process.kill()
        out = process.stdout.read()
    assert "CANARY" not in out
    assert "read 512/512" not in out


def test_an_initiator_that_sleeps_through_its_detach_finds_nothing(rig: Rig) -> None:
    """The network or the host is silent while the session is cut; it wakes up when others use the node."""
    mine, theirs = rig.export_of(rig.volume(b"mine")), rig.export_of(rig.volume(CANARY))
    with start_qemu_io(rig.login_of(mine)) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write("read -v 0 512\n")
        process.stdin.flush()
        while "read 512/512" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGSTOP)
        process.stdin.write("read -v 0 512\n")
        process.stdin.flush()
        rig.target.withdraw(mine.id)
        rig.target.export(theirs)
        process.send_signal(signal.SIGCONT)
        time.sleep(3)
        process.kill()
        out = process.stdout.read()
    assert "CANARY" not in out
    assert "read 512/512" not in out


def test_an_old_session_gets_errors_and_not_one_byte(rig: Rig) -> None:
    mine = rig.export_of(rig.volume(b"mine"))
    with Raw(rig.login_of(mine)).login().ready() as raw:
        assert raw.read(0).startswith(b"mine")
        rig.target.withdraw(mine.id)
        rig.target.export(rig.export_of(rig.volume(CANARY)))
        for _ in range(3):
            with pytest.raises(OSError, match=r"closed|reset|Broken"):
                raw.read(0)


def test_a_login_that_waits_at_the_door_never_leads_to_another_volume(rig: Rig) -> None:
    """tgtd remembers the tid of a login that it let through; who has it when the login ends, gets the session."""
    mine, theirs = rig.export_of(rig.volume(b"mine")), rig.export_of(rig.volume(CANARY))
    login = rig.login_of(mine)
    with Raw(login) as early, Raw(login) as late:
        early.authenticate()
        late.authenticate()
        rig.target.withdraw(mine.id)
        with pytest.raises(LoginRefused):
            early.finish_login()
        rig.target.export(theirs)
        with pytest.raises(LoginRefused):
            late.finish_login()
    assert rig.target.sessions() == {}


def test_that_tids_are_never_used_again_is_what_prevents_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above, against a plugin that gives the same tid: if this fails, tgtd was mended."""
    monkeypatch.setattr(tgt.secrets, "choice", lambda tids: tids[0])
    mine, theirs = rig.export_of(rig.volume(b"mine")), rig.export_of(rig.volume(CANARY))
    with Raw(rig.login_of(mine)) as raw:
        raw.authenticate()
        rig.target.withdraw(mine.id)
        rig.target.export(theirs)
        raw.finish_login()
        assert raw.ready().read(0) == CANARY


def test_a_login_that_ends_in_the_middle_of_a_withdraw_is_cut(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    path = rig.volume(b"mine")
    mine = rig.export_of(path)
    with Raw(rig.login_of(mine)) as raw:
        raw.authenticate()
        delete = tgt.Tgtd.delete_target

        def finish_first(self: tgt.Tgtd, tid: int) -> None:
            monkeypatch.undo()
            raw.finish_login()
            delete(self, tid)

        monkeypatch.setattr(tgt.Tgtd, "delete_target", finish_first)
        rig.target.withdraw(mine.id)
        with pytest.raises((OSError, CommandFailed)):
            raw.read(0)
    assert rig.is_empty()
    assert not rig.holds(path)


# --- gone means gone ---------------------------------------------------------------------------------------


def test_no_write_lands_after_withdraw_has_returned(rig: Rig) -> None:
    for _ in range(10):
        path = rig.volume()
        export = rig.export_of(path)
        raw = Raw(rig.login_of(export)).login().ready()
        acknowledged = 0

        def write_on(raw: Raw = raw) -> None:
            nonlocal acknowledged
            with suppress(OSError), raw:
                for number in range(1, 100_000):
                    raw.write(number % 2048, number.to_bytes(4, "big") * 128)
                    acknowledged = number

        writer = threading.Thread(target=write_on)
        writer.start()
        while acknowledged < 20:
            time.sleep(0.001)
        rig.target.withdraw(export.id)
        left = path.read_bytes()
        writer.join()
        time.sleep(0.05)
        assert path.read_bytes() == left
        last = acknowledged % 2048 * 512
        assert left[last : last + 4] >= acknowledged.to_bytes(4, "big"), "an acknowledged write is lost"


def test_an_initiator_that_does_not_read_its_answers_cannot_keep_its_export(rig: Rig) -> None:
    path = rig.volume(b"mine")
    export = rig.export_of(path)
    with Raw(rig.login_of(export), timeout_s=1, receive_buffer=4096).login().ready() as raw:
        with suppress(TimeoutError):
            for _ in range(60):
                raw.send_command(struct.pack(">BBIBHB", 0x28, 0, 0, 0, 512, 0), expect=512 * 512)
        began = time.monotonic()
        rig.target.withdraw(export.id)
        assert time.monotonic() - began < rig.session_timeout_s / 2  # it is not waited for
    assert rig.is_empty()
    assert not rig.holds(path)


def test_an_initiator_that_is_gone_without_a_word_is_not_connected_for_ever(rig: Rig) -> None:
    rig.be_impatient(10.0)
    export = rig.export_of(rig.volume())
    with Raw(rig.login_of(export)).login():  # and answers no ping
        assert export.id in rig.target.sessions()
        deadline = time.monotonic() + 600
        while export.id in rig.target.sessions():
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_command_that_does_not_end_keeps_the_export_in_quarantine(rig: Rig, tmp_path: Path) -> None:
    """A write hangs in the storage: the detach says so, lets nobody in, and goes on when it is asked again."""
    with mounted(tmp_path, "ext4", "64M") as point:
        path = point / "volume"
        path.write_bytes(bytes(MIB))
        rig.be_impatient()
        export = rig.export_of(path)
        login = rig.login_of(export)
        subprocess.run(["fsfreeze", "--freeze", point], check=True)
        try:
            with Raw(login).login().ready() as raw:
                raw.send_command(struct.pack(">BBIBHB", 0x2A, 0, 0, 0, 1, 0), out=b"x" * 512)
                while not rig.tgtd.waits_for_storage():
                    time.sleep(0.01)
                with pytest.raises(SessionAlive, match=INITIATOR):
                    rig.target.withdraw(export.id)
            assert rig.holds(path)
            assert export.id in rig.target.list_exports()
            with Raw(login) as raw, pytest.raises(LoginRefused):
                raw.login()
            for target in (rig.target, rig.new_target()):
                with pytest.raises(VolumeMissing):  # does not bring it to life again
                    target.resize(export.id)
            with pytest.raises(SessionAlive):
                rig.new_target().withdraw(export.id)
            with pytest.raises(SessionAlive):  # nor is it offered to another one while the first has a session
                rig.new_target().export(replace(export, connector={"initiator": OTHER}))
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", point], check=True)
        rig.new_target(session_timeout_s=60.0).withdraw(export.id)
        assert rig.is_empty()
        assert not rig.holds(path)


def test_a_target_that_an_unfinished_resize_left_offline_is_completed(rig: Rig) -> None:
    export = rig.export_of(rig.volume(b"mine"))
    rig.login_of(export)
    tgtd, tid = tgt.Tgtd.find(rig.tgtd.socket), rig.target._made[export.id].tid
    tgtd.update_target(tid, "state", "offline")
    assert "read 4/4" in qemu_io(rig.login_of(export), "read -P 0x6d 0 1", "read 0 4").stdout


def test_the_secret_is_on_no_command_line(rig: Rig) -> None:
    export = rig.export_of(rig.volume())
    rig.target.export(export)
    rig.target.withdraw(export.id)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            assert export.secret.encode() not in path.read_bytes()
