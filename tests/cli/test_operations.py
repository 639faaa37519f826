"""Operations are listed, shown and cancelled, beside a service or after it."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from blockstore.app.service import Service
from blockstore.backends.contract import GIB
from blockstore.db.models import OperationRow
from blockstore.db.session import Database
from blockstore.manager import copying, migration
from blockstore.operations import journal, runner
from blockstore.operations.catalogue import CreateVolume, DeleteVolume, new_operation_id
from tests.cli.invoking import refused, said
from tests.conftest import Client, backend_section, make_config
from tests.crash.invariants import check


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
            journal.enqueue(
                session, kind(operation_id=new_operation_id(), request_id="req-1", project_id="p", volume_id=volume_id)
            )
    db.dispose()
    return state


def open_operation(state: Path, kind: str) -> str:
    (line,) = (line for line in said("operation", "list", "--state-dir", state).splitlines() if kind in line)
    return line.split()[0]


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
                assert gate.wait(120)

        return told

    monkeypatch.setattr(migration, "progress_of", waiting_half_way)
    monkeypatch.setattr(runner, "PROGRESS_INTERVAL_S", 0)
    target = "blockstore@b" if home == "blockstore@a#a" else "blockstore@a"
    api("POST", f"/volumes/{volume['id']}/action", {"os-migrate_volume": {"host": target}})
    assert half_way.wait(60)
    shown, deadline = "", time.monotonic() + 60
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
    assert service.bus.wait_idle(60)
    assert "cancelled by the operator at" in said("operation", "show", found[1], "--state-dir", state)
    kept = api("GET", f"/volumes/{volume['id']}").json["volume"]
    assert (kept["status"], kept["migration_status"], kept["os-vol-host-attr:host"]) == ("available", "error", home)
    check(service.db, service.backends)
