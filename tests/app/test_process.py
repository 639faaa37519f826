"""The served process: what it refuses, what it leaves on disk, how it stops, and what a backend that is down does."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockstore import private_files
from blockstore.app.process import StateLock, _run, refuse_open_door
from blockstore.app.service import Service
from blockstore.config import Config, ServiceConfig
from blockstore.errors import ConfigError
from blockstore.identity import bootstrap
from tests.conftest import Served, make_config
from tests.plugins.mounts import mounted, need_root

Serve = Callable[..., Served]


def blockstore(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command that must end by itself."""
    argv = [sys.executable, "-m", "blockstore", *(str(argument) for argument in arguments)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, env={**os.environ, **env})


def ask(served: Served, method: str, path: str, body: Any = None) -> Any:
    """Send a request over the socket."""
    request = urllib.request.Request(
        f"{served.url}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "OpenStack-API-Version": "volume 3.71"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


def wait_for(true: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- who may come in ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"])
def test_address_that_others_reach_is_refused_with_a_sentence(listen: str, tmp_path: Path) -> None:
    config = tmp_path / "config.ini"
    config.write_text("[service]\nauth = none\n")
    done = blockstore("serve", "--state-dir", tmp_path / "s", "--listen", listen, "--config", config)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    host = listen.rpartition(":")[0].strip("[]")
    assert line.startswith(f"blockstore: Other hosts can reach {host}, and")
    assert "--insecure" in line


def test_insecure_is_the_way_to_serve_others_all_the_same(serve: Serve) -> None:
    served = serve(None, "--listen", "0.0.0.0:0", "--insecure")
    assert ask(served, "GET", "/volumes") == {"volumes": []}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1"])
def test_loopback_is_served(host: str) -> None:
    refuse_open_door(Config(service=ServiceConfig(auth="none")), host)


def test_name_that_is_no_address_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"Cannot listen on no-such-host\.invalid: it is not an address"):
        refuse_open_door(Config(), "no-such-host.invalid")


def test_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = blockstore("serve", "--state-dir", tmp_path / "s", "--listen", listen)
    assert done.returncode == 1
    assert done.stderr == f"blockstore: Cannot listen on {listen}: Address already in use.\n"


# --- what lies on disk -------------------------------------------------------------------------------------


def test_state_is_for_its_owner_alone(serve: Serve) -> None:
    before = os.umask(0)
    try:
        served = serve()
    finally:
        os.umask(before)
    ask(served, "POST", "/volumes", {"volume": {"size": 1}})
    wait_for(lambda: ask(served, "GET", "/volumes/detail")["volumes"][0]["status"] == "available")
    ours = {"blockstore.db", "blockstore.db-wal", "blockstore.db-shm", "lock", "endpoint"}
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in served.state_dir.iterdir()}
    assert stat.S_IMODE(served.state_dir.stat().st_mode) == 0o700
    assert {name: mode for name, mode in modes.items() if name in ours} == dict.fromkeys(ours, 0o600)
    made_by_the_test = {served.state_dir / "config.ini", served.log}
    for path in set(served.state_dir.rglob("*")) - made_by_the_test:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_state_directory_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = blockstore("serve", "--state-dir", tmp_path / "file" / "s", "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert done.stderr == f"blockstore: The state directory {tmp_path}/file/s cannot be used: Not a directory.\n"


def test_state_directory_that_others_may_enter_is_told_how_to_be_made_right(tmp_path: Path) -> None:
    state = tmp_path / "s"
    state.mkdir()
    state.chmod(0o755)
    for command in (("serve", "--listen", "127.0.0.1:0"), ("openrc",), ("user", "list"), ("policy", "list")):
        done = blockstore(*command, "--state-dir", state)
        assert done.returncode == 1
        assert done.stderr == (
            f"blockstore: The state directory {state} cannot be used: it has mode 0755, and other users must have no"
            f" access; run `chmod 700 {state}`.\n"
        )
    assert stat.S_IMODE(state.stat().st_mode) == 0o755
    assert list(state.iterdir()) == []


def test_state_directory_of_another_user_is_neither_obeyed_nor_changed(tmp_path: Path) -> None:
    """Root followed the link ``lock`` in it, and took its policy.yaml for the rules."""
    need_root()
    state, victim = tmp_path / "s", tmp_path / "victim"
    state.mkdir(mode=0o700)
    (state / "lock").symlink_to(victim)
    (state / "policy.yaml").write_text('"volume:get_all": ""\n')
    os.chown(state, 1, 1)
    done = blockstore("serve", "--state-dir", state, "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert "belongs to daemon (uid 1)" in done.stderr
    assert not victim.exists()
    os.chown(state, 0, 0)  # and now it is ours, with what was planted in it
    done = blockstore("serve", "--state-dir", state, "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert done.stderr.startswith(f"blockstore: {state}/lock: it is a symbolic link, which blockstore never creates")
    assert not victim.exists()


def test_planted_password_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    state, victim = tmp_path / "s", tmp_path / "victim"
    state.mkdir(mode=0o700)
    victim.write_text("precious")
    (state / "admin-password").symlink_to(victim)
    with pytest.raises(ConfigError, match="admin-password: it is a symbolic link"):
        bootstrap.read_password(state)
    bootstrap.write_password(state, "secret")
    assert victim.read_text() == "precious"
    assert bootstrap.read_password(state) == "secret"


def test_full_disk_at_start_is_a_sentence_whichever_file_it_is(tmp_path: Path) -> None:
    met = set()
    with mounted(tmp_path, "tmpfs", "8m") as disk:
        filler = disk / "filler"
        started = False
        for left in (0, 4, 8, 12, 16, 24, 48, 96, 192, 384, 768, 1536, 3072):
            state = disk / f"s{left}"
            state.mkdir(mode=0o700)
            fill(filler, left * 1024)
            sentence = start_and_stop(state)
            if not sentence:
                started = True
                break
            assert str(state) in sentence
            assert "full" in sentence
            met.add("database" if "database" in sentence else Path(sentence.partition("): ")[2].partition(",")[0]).name)
            assert not [path.name for path in state.iterdir() if path.name.startswith(".")]
            assert not (state / "blockstore.db").exists() or (state / "blockstore.db").stat().st_size
            filler.unlink()
            assert start_and_stop(state) == ""  # nothing that was left behind is in the way
            shutil.rmtree(state)
        assert started
        assert met >= {"attachments.key", "database"}


def test_served_process_says_that_the_disk_is_full(tmp_path: Path) -> None:
    with mounted(tmp_path, "tmpfs", "1m") as disk:
        fill(disk / "filler", 0)
        done = blockstore("serve", "--state-dir", disk / "s", "--listen", "127.0.0.1:0")
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"blockstore: The disk of the state directory {disk}/s is full")


def test_endpoint_that_cannot_be_noted_stops_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(make_config(tmp_path / "s"))
    service.start()

    def full(path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    class Server:
        address = ("127.0.0.1", 1)

    monkeypatch.setattr("blockstore.private_files.write", full)
    with pytest.raises(ConfigError, match=f"is full .*{tmp_path}/s/endpoint could not be written"):
        _run(service, Server())  # type: ignore[arg-type]
    assert not service.clock.running


def start_and_stop(state: Path) -> str:
    """Do what serve does before it listens; return the sentence with which that fails."""
    service = None
    try:
        with StateLock(state), private_files.explained(state):
            service = Service(make_config(state, auth="builtin"))
            service.start()
    except ConfigError as exc:
        if service is not None:
            service.bus.start()
            service.bus.stop()
            service.db.dispose()
        return exc.message
    assert service.stop()
    return ""


def fill(filler: Path, left: int) -> None:
    """Fill a file system but for so many bytes."""
    now = os.statvfs(filler.parent)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, now.f_bavail * now.f_frsize - left)


def test_second_process_on_a_state_directory_is_refused(serve: Serve) -> None:
    served = serve()
    done = blockstore("serve", "--state-dir", served.state_dir, "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert done.stderr == (
        f"blockstore: Another blockstore uses {served.state_dir}. Stop it, or choose another state directory with"
        " --state-dir.\n"
    )
    assert ask(served, "GET", "/volumes") == {"volumes": []}


def test_lock_is_free_again_when_its_process_was_killed(serve: Serve, tmp_path: Path) -> None:
    served = serve()
    served.kill()
    with (
        StateLock(served.state_dir),
        pytest.raises(ConfigError, match="Another blockstore"),
        StateLock(served.state_dir),
    ):
        pass


def test_database_that_does_not_answer_is_one_sentence(tmp_path: Path) -> None:
    config = tmp_path / "blockstore.ini"
    config.write_text(f"[database]\nurl = postgresql+psycopg://me:hunter2@/nothing?host={tmp_path}\n")
    config.chmod(0o600)
    done = blockstore("serve", "--config", config, "--state-dir", tmp_path / "s", "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"blockstore: [database] url: PostgreSQL refuses the database nothing on {tmp_path}: ")
    assert "hunter2" not in line


# --- what it prints ----------------------------------------------------------------------------------------


def test_greeting_says_what_where_and_what_to_type_next(serve: Serve) -> None:
    served = serve()
    greeting = served.log.read_text()
    assert f"serves {served.url} (no authentication" in greeting
    assert "backend directory: up, " in greeting
    assert f"state   {served.state_dir}" in greeting
    assert f"openrc --state-dir {served.state_dir}" in greeting
    assert "openstack volume create --size 1 first" in greeting


# --- the log level -----------------------------------------------------------------------------------------


def test_sighup_reads_the_log_level_again(serve: Serve) -> None:
    served = serve("[log]\nlevel = error\n[backend:m]\nplugin = memory\n")
    ask(served, "POST", "/volumes", {"volume": {"size": 1}})
    assert "blockstore.api" not in served.log.read_text()
    config = served.state_dir / "config.ini"
    config.write_text(config.read_text().replace("error", "info"))
    served.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "log level read again" in served.log.read_text())
    ask(served, "POST", "/volumes", {"volume": {"size": 1}})
    wait_for(lambda: "POST /v3/volumes 202" in served.log.read_text())


def test_sighup_with_a_mistake_in_the_file_changes_nothing(serve: Serve) -> None:
    served = serve("[log]\nlevel = info\n[backend:m]\nplugin = memory\n")
    (served.state_dir / "config.ini").write_text("[log]\nlevel = loud\n")
    served.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "log level not changed: " in served.log.read_text())
    assert ask(served, "GET", "/volumes") == {"volumes": []}


# --- stopping ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_cleanly(serve: Serve, number: signal.Signals) -> None:
    served = serve()
    served.process.send_signal(number)
    assert served.process.wait(60) == 0
    assert "stopped; nothing was cut off" in served.log.read_text()
    with pytest.raises(urllib.error.URLError):
        ask(served, "GET", "/volumes")


@pytest.mark.slow
def test_stop_lets_running_work_end_and_leaves_the_rest_to_the_next_start(serve: Serve) -> None:
    quick = "[service]\nworkers = 1\n[backend:m]\nplugin = memory\nmax_over_subscription_ratio = 9\n"
    served = serve(f"{quick}latency_s = 5\n")
    ids = [ask(served, "POST", "/volumes", {"volume": {"size": 1}})["volume"]["id"] for _ in range(6)]
    wait_for(lambda: "CreateVolume" in blockstore("operation", "list", "--state-dir", served.state_dir).stdout)
    assert served.stop() == 0
    assert "nothing was cut off" in served.log.read_text()
    again = serve(quick, state_dir=served.state_dir)
    wait_for(lambda: all(ask(again, "GET", f"/volumes/{i}")["volume"]["status"] == "available" for i in ids))
    assert "operations resumed" in again.log.read_text()


def test_stop_does_not_wait_for_ever(serve: Serve) -> None:
    served = serve("[service]\ndrain_timeout_s = 0.2\n[backend:m]\nplugin = memory\nlatency_s = 600\n")
    ask(served, "POST", "/volumes", {"volume": {"size": 1}})
    wait_for(lambda: "CreateVolume" in blockstore("operation", "list", "--state-dir", served.state_dir).stdout)
    started = time.monotonic()
    assert served.stop() == 0
    assert time.monotonic() - started < 60
    assert "interrupted operations are resumed at the next start" in served.log.read_text()


# --- backends ----------------------------------------------------------------------------------------------


def test_backend_that_is_down_does_not_keep_the_others_from_serving(serve: Serve, tmp_path: Path) -> None:
    served = serve(
        f"[backend:gone]\nplugin = directory\npath = {tmp_path}/not/mounted\n[backend:well]\nplugin = memory\n"
    )
    log = served.log.read_text()
    assert "backend gone: DOWN: " in log
    assert "backend well: up" in log
    volume = ask(served, "POST", "/volumes", {"volume": {"size": 1}})["volume"]
    wait_for(lambda: ask(served, "GET", f"/volumes/{volume['id']}")["volume"]["status"] == "available")
    pools = ask(served, "GET", "/scheduler-stats/get_pools?detail=true")["pools"]
    assert {p["name"].split("@")[1].split("#")[0]: p["capabilities"]["backend_state"] for p in pools} == {
        "gone": "down",
        "well": "up",
    }
