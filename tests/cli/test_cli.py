"""The command: what each part of it prints, on a state directory that a served process left or still uses."""

from __future__ import annotations

import json
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import blockstore
from blockstore.app.service import Service
from blockstore.backends.contract import GIB
from blockstore.backends.memory import MemoryBackend
from blockstore.cli import main
from blockstore.db.models import OperationRow
from blockstore.db.session import Database
from blockstore.manager import copying, migration
from blockstore.operations import runner, states
from blockstore.operations.catalogue import CreateVolume, DeleteVolume, new_operation_id
from tests.conftest import Client, Served, backend_section, make_config
from tests.crash.invariants import check

MEMORY = "[backend:m]\nplugin = memory\n"


def run(*arguments: object) -> Result:
    words = [str(argument) for argument in arguments]
    if "--state-dir" in words and "--config" not in words:
        config = Path(words[words.index("--state-dir") + 1]) / "config.ini"
        words += ["--config", str(config)] if config.exists() else []  # what it is served with
    return CliRunner().invoke(main, words)


def said(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    (line,) = result.output.splitlines()
    assert line.startswith("blockstore: ")
    return line


@pytest.fixture
def state(start_service: Callable[..., Service], tmp_path: Path) -> Path:
    """A state directory with a finished operation and two open ones, whose service does not run."""
    state = tmp_path / "state"
    service = Service(make_config(state))
    service.start()
    Client(service).volume(name="first")
    service.stop()
    db = Database(f"sqlite:///{state}/blockstore.db")
    with db.write() as session:
        for kind, volume_id in ((CreateVolume, "v1"), (DeleteVolume, "v2")):
            states.enqueue(
                session, kind(operation_id=new_operation_id(), request_id="req-1", project_id="p", volume_id=volume_id)
            )
    db.dispose()
    return state


def open_operation(state: Path, kind: str) -> str:
    (line,) = (line for line in said("operation", "list", "--state-dir", state).splitlines() if kind in line)
    return line.split()[0]


# --- attaching ---------------------------------------------------------------------------------------------


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    """A served process with a volume named disk."""
    served = serve()
    make(served, "disk")
    return served


def make(served: Served, name: str) -> str:
    """Make a volume of 1 GiB and return its id when it is available."""
    volume = asked(served, "POST", "/volumes", {"volume": {"size": 1, "name": name}})["volume"]["id"]
    deadline = time.monotonic() + 30
    while status_of(served, volume) != "available":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return str(volume)


def status_of(served: Served, volume: str) -> str:
    return str(asked(served, "GET", f"/volumes/{volume}")["volume"]["status"])


def asked(served: Served, method: str, path: str, body: Any = None) -> Any:
    headers = {"Content-Type": "application/json", "OpenStack-API-Version": "volume 3.71"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(served.url + path, method=method, data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or b"null")


def test_attach_prints_the_path_and_detach_takes_it_back(served: Served) -> None:
    where = ("--state-dir", served.state_dir)
    path = Path(said("attach", "disk", *where).removesuffix("\n"))
    (volume,) = asked(served, "GET", "/volumes/detail")["volumes"]
    assert path == served.state_dir / "directory" / "volumes" / f"volume-{volume['id']}.raw"
    assert path.stat().st_size == 1 << 30
    assert (volume["status"], volume["attachments"][0]["host_name"]) == ("in-use", socket.gethostname())
    (shown,) = asked(served, "GET", "/attachments/detail")["attachments"]
    assert (shown["attach_mode"], shown["connection_info"]["access_mode"]) == ("rw", "rw")
    header, line = said("attachment", "list", *where).splitlines()
    assert header.split() == [
        "ATTACHMENT", "VOLUME", "PROJECT", "STATUS", "SERVER", "HOST", "TARGET", "CONNECTED", "REASON",
    ]  # fmt: skip
    assert line.split() == [
        shown["id"], volume["id"], "admin", "attached", "-", socket.gethostname(), "local", "nobody", "-",
    ]  # fmt: skip
    with held(path) as holder:
        assert str(holder) in said("attachment", "list", *where)
        assert said("attachment", "list", "--stale", *where) == "There are no such attachments.\n"
        line = refused("detach", "disk", *where)
        assert f"{path} is still in use on this node, by " in line
        assert line.endswith("Close it there first.")
        assert status_of(served, volume["id"]) == "in-use"
    assert shown["id"] in said("attachment", "list", "--stale", *where)
    assert said("detach", volume["id"], *where) == ""
    assert status_of(served, volume["id"]) == "available"
    assert said("attachment", "list", *where) == "There are no attachments.\n"
    assert refused("detach", "disk", *where) == (
        "blockstore: The volume disk is not attached to this node by `blockstore attach`."
    )


@contextmanager
def held(path: Path) -> Iterator[int]:
    """Have another process hold a file open, and return its id: a process's own files are no use of a volume to it."""
    argv = [sys.executable, "-c", "import sys; file = open(sys.argv[1], 'rb'); print(flush=True); input()", str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "\n"
        yield holder.pid
        holder.communicate("\n")


def test_attach_for_reading_only(served: Served) -> None:
    said("attach", "disk", "--read-only", "--state-dir", served.state_dir)
    (shown,) = asked(served, "GET", "/attachments/detail")["attachments"]
    assert (shown["attach_mode"], shown["connection_info"]["access_mode"]) == ("ro", "ro")


def test_attach_of_what_cannot_be_attached_is_one_sentence(served: Served) -> None:
    where = ("--state-dir", served.state_dir)
    said("attach", "disk", *where)
    (attachment,) = (a["id"] for a in asked(served, "GET", "/attachments")["attachments"])
    assert f"It is held by attachment {attachment} (no server, host {socket.gethostname()})." in refused(
        "attach", "disk", *where
    )
    assert refused("attach", "tape", *where) == "blockstore: No volumes are named tape; give the id."
    unknown = "00000000-0000-4000-8000-000000000000"
    assert refused("attach", unknown, *where) == f"blockstore: Volume {unknown} could not be found."
    second = make(served, "disk")
    assert refused("attach", "disk", *where) == "blockstore: 2 volumes are named disk; give the id."
    assert second in said("attach", second, *where)


def test_detach_leaves_the_attachments_of_others_alone(served: Served) -> None:
    """What a client attached through the API is not this command's to end."""
    (volume,) = (v["id"] for v in asked(served, "GET", "/volumes")["volumes"])
    connector = {"host": socket.gethostname()}
    made = asked(served, "POST", "/attachments", {"attachment": {"volume_uuid": volume, "connector": connector}})
    assert "is not attached to this node by" in refused("detach", "disk", "--state-dir", served.state_dir)
    line = said("attachment", "list", "--volume", volume, "--state-dir", served.state_dir)
    assert made["attachment"]["id"] in line
    other = "00000000-0000-4000-8000-000000000000"
    assert said("attachment", "list", "--volume", other, "--state-dir", served.state_dir) == (
        "There are no such attachments.\n"
    )


def test_what_os_initialize_connection_made_is_listed_and_can_be_ended(served: Served) -> None:
    """No list of the API shows it, and it keeps its volume from being given away."""
    where = ("--state-dir", served.state_dir)
    (volume,) = (v["id"] for v in asked(served, "GET", "/volumes")["volumes"])
    connector = {"host": socket.gethostname()}
    asked(served, "POST", f"/volumes/{volume}/action", {"os-initialize_connection": {"connector": connector}})
    assert asked(served, "GET", "/attachments?all_tenants=1")["attachments"] == []
    _, line = said("attachment", "list", *where).splitlines()
    attachment, found, project, *rest = line.split()
    assert (found, project, rest[:2]) == (volume, "admin", ["attaching", "(os-initialize_connection)"])
    assert said("attachment", "delete", attachment, *where) == ""
    assert said("attachment", "list", *where) == "There are no attachments.\n"
    assert refused("attachment", "delete", attachment, *where) == (
        f"blockstore: Volume attachment could not be found with filter: attachment_id = {attachment}."
    )
    assert status_of(served, volume) == "available"


def test_attach_survives_a_kill_of_the_service(served: Served, serve: Callable[..., Served]) -> None:
    path = said("attach", "disk", "--state-dir", served.state_dir)
    served.kill()
    again = serve(state_dir=served.state_dir)
    assert "attached" in said("attachment", "list", "--state-dir", again.state_dir)
    assert said("detach", "disk", "--state-dir", again.state_dir) == ""
    assert said("attach", "disk", "--state-dir", again.state_dir) == path


def test_attach_without_a_service_is_one_sentence(served: Served) -> None:
    served.stop()
    for command in ("attach", "detach"):
        line = refused(command, "disk", "--state-dir", served.state_dir)
        assert "is `blockstore serve` running?" in line


# --- in general --------------------------------------------------------------------------------------------


def test_version() -> None:
    assert said("--version") == f"blockstore, version {blockstore.__version__}\n"


def test_every_command_has_help_and_takes_the_state_directory() -> None:
    for name, command in main.commands.items():
        for path, leaf in [([name], command), *(([name, n], c) for n, c in getattr(command, "commands", {}).items())]:
            text = said(*path, "--help")
            assert leaf.help, path
            if not hasattr(leaf, "commands") and path != ["config", "example"]:
                assert "--state-dir" in text, path
                assert "--config" in text, path


def test_help_needs_no_database_library() -> None:
    code = "import sys, blockstore.cli; sys.exit('sqlalchemy' in sys.modules or 'flask' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_mistake_in_the_configuration_is_one_line(tmp_path: Path) -> None:
    config = tmp_path / "blockstore.ini"
    config.write_text("[service]\nlissen = 1\n")
    assert "[service] lissen is not an option" in refused("operation", "list", "--config", config)


# --- openrc ------------------------------------------------------------------------------------------------


def test_openrc_names_the_address_that_is_served(serve: Callable[..., Served]) -> None:
    served = serve(MEMORY)
    options = f"--state-dir {served.state_dir} --config {served.state_dir}/config.ini"
    script = f'eval "$({sys.executable} -m blockstore openrc {options})" && echo $OS_ENDPOINT'
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{served.url}\n"


def test_openrc_without_a_server_names_the_configured_address(tmp_path: Path) -> None:
    config = tmp_path / "config.ini"
    config.write_text("[service]\nauth = none\n")
    output = said("openrc", "--state-dir", tmp_path / "none", "--config", config)
    assert "OS_ENDPOINT=http://127.0.0.1:8776/v3;\n" in output


# --- operation -------------------------------------------------------------------------------------------------


def test_a_database_that_waits_for_its_migration(state: Path) -> None:
    """The package is new, and the service was not restarted yet: nothing is wrong with the file."""
    with closing(sqlite3.connect(state / "blockstore.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0010'")
    line = refused("operation", "list", "--state-dir", state)
    assert "The database is at revision 0010" in line
    assert "Restart the service" in line


def test_operation_list_shows_what_is_open(state: Path) -> None:
    lines = said("operation", "list", "--state-dir", state).splitlines()
    assert lines[0].split() == ["OPERATION", "WHAT", "RESOURCE", "STATE", "PROGRESS", "STARTED", "REASON"]
    assert [line.split()[1:5] for line in lines[1:]] == [
        ["DeleteVolume", "volume", "v2", "queued"],
        ["CreateVolume", "volume", "v1", "queued"],
    ]


def test_operation_list_all_and_of_one_resource(state: Path) -> None:
    everything = said("operation", "list", "--all", "--state-dir", state)
    assert re.search(r"PlaceVolume +volume \S+ +done", everything)
    assert len(said("operation", "list", "--all", "--limit", 1, "--state-dir", state).splitlines()) == 2
    assert len(said("operation", "list", "--resource", "v1", "--state-dir", state).splitlines()) == 2


def test_operation_list_says_when_there_is_nothing(start_service: Callable[..., Service], tmp_path: Path) -> None:
    start_service(make_config(tmp_path / "state"))
    assert said("operation", "list", "--state-dir", tmp_path / "state") == "No operations are waiting or running.\n"


def test_operation_list_without_a_database_is_one_sentence(tmp_path: Path) -> None:
    assert f"There is no database in {tmp_path}/none." in refused("operation", "list", "--state-dir", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_operation_show(state: Path) -> None:
    operation_id = open_operation(state, "DeleteVolume")
    shown = dict(
        line.split(maxsplit=1) for line in said("operation", "show", operation_id, "--state-dir", state).splitlines()
    )
    assert shown["operation"] == operation_id
    assert shown["what"] == "DeleteVolume"
    assert shown["volume"] == "v2"
    assert shown["request"] == "req-1"
    assert json.loads(shown["details"]) == {"volume_id": "v2", "pool": ""}
    assert "There is no operation nonsense." in refused("operation", "show", "nonsense", "--state-dir", state)


def test_operation_cancel_asks_what_may_be_stopped(state: Path) -> None:
    operation_id = open_operation(state, "CreateVolume")
    assert (
        said("operation", "cancel", operation_id, "--state-dir", state) == "Asked CreateVolume of volume v1 to stop.\n"
    )
    assert "stopping" in said("operation", "list", "--resource", "v1", "--state-dir", state)


def test_operation_cancel_refuses_what_may_not_be_stopped(state: Path) -> None:
    half = refused("operation", "cancel", open_operation(state, "DeleteVolume"), "--state-dir", state)
    assert "DeleteVolume cannot be stopped safely before its end." in half
    db = Database(f"sqlite:///{state}/blockstore.db")
    with db.read() as session:
        (done,) = (row.id for row in session.query(OperationRow) if row.kind == "CreateVolume" and row.state == "done")
    db.dispose()
    assert f"Operation {done} is done already." in refused("operation", "cancel", done, "--state-dir", state)
    assert "There is no operation nonsense." in refused("operation", "cancel", "nonsense", "--state-dir", state)


def test_a_running_move_shows_its_progress_and_is_stopped(
    start_service: Callable[..., Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    service = start_service(
        make_config(state, backends=(backend_section("a", "memory"), backend_section("b", "memory")))
    )
    api, half_way, gate = Client(service), threading.Event(), threading.Event()
    volume = api.volume(size=1)
    home = str(volume["os-vol-host-attr:host"])
    with service.backends[home].open_volume(f"volume-{volume['id']}", "r+b") as file:
        for place in range(0, GIB, GIB // 20):
            file.seek(place)
            file.write(b"some")

    def waiting_half_way(*which: Any) -> Callable[[int], None]:
        tell = runner.progress_of(*which)

        def told(percent: int) -> None:
            tell(percent)
            if percent >= copying.COPY_SHARE // 2:
                half_way.set()
                assert gate.wait(60)

        return told

    monkeypatch.setattr(migration, "progress_of", waiting_half_way)
    monkeypatch.setattr(runner, "PROGRESS_INTERVAL_S", 0)
    target = "blockstore@b" if home == "blockstore@a#a" else "blockstore@a"
    api("POST", f"/volumes/{volume['id']}/action", {"os-migrate_volume": {"host": target}})
    assert half_way.wait(30)
    shown, deadline = "", time.monotonic() + 20
    while not (found := re.search(r"(\S+) +MigrateVolume +volume \S+ +running +(\d+) %", shown)):
        assert time.monotonic() < deadline, shown  # it is noted once the operation has taken a second
        shown = said("operation", "list", "--state-dir", state)
    assert copying.COPY_SHARE // 2 <= int(found[2]) < copying.COPY_SHARE
    assert f"progress   {found[2]} %" in said("operation", "show", found[1], "--state-dir", state)
    assert (
        said("operation", "cancel", found[1], "--state-dir", state)
        == f"Asked MigrateVolume of volume {volume['id']} to stop.\n"
    )
    assert "stopping" in said("operation", "list", "--state-dir", state)
    gate.set()
    assert service.bus.wait_idle(30)
    assert "cancelled by the operator at" in said("operation", "show", found[1], "--state-dir", state)
    kept = api("GET", f"/volumes/{volume['id']}").json["volume"]
    assert (kept["status"], kept["migration_status"], kept["os-vol-host-attr:host"]) == ("available", "error", home)
    check(service.db, service.backends)


# --- backend -----------------------------------------------------------------------------------------------


def test_backend_list_says_which_are_down(tmp_path: Path) -> None:
    config = tmp_path / "blockstore.ini"
    config.write_text(f"{MEMORY}[backend:gone]\nplugin = directory\npath = {tmp_path}/not/mounted\n")
    lines = said("backend", "list", "--config", config, "--state-dir", tmp_path / "s").splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert rows["blockstore@m#m"][:2] == ["up", "1000.0"]
    assert "snapshots" in rows["blockstore@m#m"]
    assert rows["blockstore@gone#gone"][0] == "DOWN"
    assert f"{tmp_path}/not" in " ".join(rows["blockstore@gone#gone"])


def test_backend_check_runs_the_conformance_suite(tmp_path: Path) -> None:
    config = tmp_path / "blockstore.ini"
    config.write_text(MEMORY)
    output = said("backend", "check", "m", "--config", config, "--state-dir", tmp_path / "s")
    assert output.count("passed") > 20
    assert "failed" not in output


def test_backend_check_that_fails_has_exit_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryBackend, "extend_volume", lambda *_args: None)
    config = tmp_path / "blockstore.ini"
    config.write_text(MEMORY)
    result = run("backend", "check", "m", "--config", config, "--state-dir", tmp_path / "s")
    assert result.exit_code == 1
    assert "failed" in result.output


def test_backend_check_of_none_that_is_configured_is_one_sentence(tmp_path: Path) -> None:
    assert "There is no backend x. The configured backends are directory." in refused(
        "backend", "check", "x", "--state-dir", tmp_path
    )


# --- db ----------------------------------------------------------------------------------------------------


def test_db_upgrade_says_where_the_database_is(tmp_path: Path) -> None:
    assert re.fullmatch(r"The database is at revision \d+\.\n", said("db", "upgrade", "--state-dir", tmp_path / "s"))


def test_db_upgrade_keeps_off_a_served_state_directory(serve: Callable[..., Served]) -> None:
    served = serve(MEMORY)
    assert "Another blockstore uses" in refused("db", "upgrade", "--state-dir", served.state_dir)


@pytest.mark.parametrize(
    ("name", "words"),
    [("", "0 characters"), ("   ", "0 characters"), ("x" * 300, "300 characters"), ("a\0b", "NUL")],
    ids=["empty", "blank", "long", "NUL"],
)
def test_names_are_checked_as_the_api_checks_them(tmp_path: Path, name: str, words: str) -> None:
    where = ("--state-dir", tmp_path)
    for noun in ("user", "project"):
        line = refused(noun, "create", *where, "--", name)
        assert line.startswith(f"blockstore: Invalid input for field/attribute {noun}.name. Value: ")
        assert words in line


def test_a_password_is_checked_as_the_api_checks_it(tmp_path: Path) -> None:
    long = "secret-canary" * 400
    arguments = ["user", "create", "n", "--password-stdin", "--state-dir", str(tmp_path)]
    result = CliRunner().invoke(main, arguments, input=f"{long}\n")
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert "user.password" in line
    assert "at most 4096 are allowed" in line
    assert "canary" not in line


def test_names_that_tenants_choose_do_not_speak_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from blockstore.cli.output import print_table

    print_table(("NAME", "HOST"), [("a", "\x1b]0;title\x07\x1b[2J\nforged"), ("b", "c")], empty="")
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert len(said.splitlines()) == 3
    assert r"\x1b[2J\nforged" in said
