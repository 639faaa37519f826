"""A start takes up what the last life left: every operation, oldest first, and every row that nothing would end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from blockstore.app.service import Service
from blockstore.config import ServiceConfig
from blockstore.db.models import Message, OperationRow, Volume
from blockstore.operations import catalogue as operation_ids
from blockstore.operations import states, transitions
from tests.conftest import Client, make_config
from tests.crash.invariants import check


class Life:
    """A service and its next lives, on one state directory and one database."""

    def __init__(self, state_dir: Path, database_url: str) -> None:
        self.config = make_config(state_dir, database_url, service=ServiceConfig(operation_attempts=5))
        self.service: Service | None = None

    def start(self, *, prepare: Callable[[Service], None] = lambda _service: None) -> Client:
        """Begin the next life."""
        self.end()
        self.service = Service(self.config)
        prepare(self.service)
        self.service.start()
        return Client(self.service)

    def deaf(self) -> Client:
        """Begin a life in which no component hears of any operation, as when the process dies at once."""

        def prepare(service: Service) -> None:
            service.db.enqueue = service.bus.enqueue = lambda _operation: None  # type: ignore[method-assign]

        return self.start(prepare=prepare)

    def end(self) -> None:
        """End this life."""
        if self.service is not None:
            self.service.stop()
            self.service = None


@pytest.fixture
def life(tmp_path: Path, database_url: str) -> Iterator[Life]:
    """Lives on each database."""
    life = Life(tmp_path / "state", database_url)
    yield life
    life.end()


def operations(api: Client, **where: Any) -> list[OperationRow]:
    with api.service.db.read() as session:
        return list(session.scalars(select(OperationRow).filter_by(**where).order_by(OperationRow.id)))


def judge(api: Client) -> None:
    api.wait_idle()
    check(api.service.db, api.service.backends)


def asked(api: Client) -> dict[str, str]:
    """Prepare and then ask for one of everything; return the ids."""
    return {name: api.volume(size=1)["id"] for name in ("extended", "reverted", "deleted", "cascaded", "source")}


def ask_for_everything(api: Client, ids: dict[str, str]) -> None:
    for method, path, body in (
        ("POST", "/volumes", {"volume": {"size": 1, "name": "new"}}),
        ("POST", "/volumes", {"volume": {"source_volid": ids["source"], "name": "clone"}}),
        ("POST", "/snapshots", {"snapshot": {"volume_id": ids["source"]}}),
        ("POST", f"/volumes/{ids['extended']}/action", {"os-extend": {"new_size": 3}}),
        ("POST", f"/volumes/{ids['reverted']}/action", {"revert": {"snapshot_id": ids["shot"]}}),
        ("DELETE", f"/volumes/{ids['deleted']}", None),
        ("DELETE", f"/volumes/{ids['cascaded']}?cascade=true", None),
        ("DELETE", f"/snapshots/{ids['doomed']}", None),
    ):
        assert api(method, path, body).status == 202


@pytest.fixture
def everything(life: Life) -> dict[str, str]:
    """Ask for one of everything in a life that hears nothing of it."""
    api = life.start()
    ids = asked(api)
    ids["shot"] = api.snapshot(ids["reverted"])["id"]
    ids["doomed"] = api.snapshot(ids["source"])["id"]
    for _ in range(2):
        api.snapshot(ids["cascaded"])
    api = life.deaf()
    ask_for_everything(api, ids)
    check(api.service.db, api.service.backends, idle=False)
    return ids


def test_what_was_asked_and_never_begun_is_carried_out(life: Life, everything: dict[str, str]) -> None:
    api = life.start()
    judge(api)
    volumes = {v["id"]: v for v in api.get("/volumes/detail")["volumes"]}
    assert {v["status"] for v in volumes.values()} == {"available"}
    assert {v["name"] for v in volumes.values() if v["name"]} == {"new", "clone"}
    assert volumes[everything["extended"]]["size"] == 3
    assert not {everything["deleted"], everything["cascaded"]} & set(volumes)
    snapshots = api.get("/snapshots/detail")["snapshots"]
    assert {(s["volume_id"], s["status"]) for s in snapshots} == {
        (everything["source"], "available"),
        (everything["reverted"], "available"),
    }
    assert api.get("/messages") == {"messages": []}


def test_operations_that_were_never_begun_do_not_age(life: Life, everything: dict[str, str]) -> None:
    """A crash that another operation caused, however often, is not held against those that only waited."""
    for _ in range(7):
        api = life.deaf()
        check(api.service.db, api.service.backends, idle=False)
    api = life.start()
    judge(api)
    assert {v["status"] for v in api.get("/volumes/detail")["volumes"]} == {"available"}
    assert not operations(api, state="failed")


def test_operations_begun_too_often_are_given_up_with_a_reason(life: Life, everything: dict[str, str]) -> None:
    """Each resource settles in its failure status, its owner is told, and all figures are exact."""
    assert life.service is not None
    with life.service.db.write() as session:
        session.execute(update(OperationRow).where(OperationRow.state == "open").values(attempt=5))
    api = life.start()
    judge(api)
    volumes = {v["id"]: v for v in api.get("/volumes/detail")["volumes"]}
    assert {name: volumes[volume_id]["status"] for name, volume_id in everything.items() if volume_id in volumes} == {
        "extended": "available",
        "reverted": "error",
        "deleted": "error_deleting",
        "cascaded": "error_deleting",
        "source": "available",
    }
    assert volumes[everything["extended"]]["size"] == 1
    assert sorted(s["status"] for s in api.get("/snapshots/detail")["snapshots"]) == [
        "available",
        "error",
        "error_deleting",
        "error_deleting",
        "error_deleting",
    ]
    given_up = operations(api, state="failed")
    assert len(given_up) == 10
    assert {operation.reason for operation in given_up} == {"given up: the service died 5 times while it ran"}
    with api.service.db.read() as session:
        told = {message.resource_uuid: message for message in session.scalars(select(Message))}
    assert {operation.resource_id for operation in given_up} == set(told)
    message = told[everything["deleted"]]
    assert message.operator_message == "delete volume: given up: the service died 5 times while it ran"
    assert message.user_message.startswith("delete volume: The operation failed after several attempts.")


@pytest.mark.parametrize("status", ["creating", "deleting", "extending"])
def test_rows_stranded_by_an_administrator_settle_at_the_next_start(life: Life, status: str) -> None:
    """Nothing would ever end them: there is no operation."""
    api = life.start()
    volume, snapshot = api.volume(), api.snapshot(api.volume()["id"])
    with api.service.db.write() as session:
        transitions.reset_status(session, states.VOLUME, volume["id"], status, by="somebody")
        transitions.reset_status(session, states.SNAPSHOT, snapshot["id"], "creating", by="somebody")
    api = life.start()
    expected = {"creating": "error", "deleting": "error_deleting", "extending": "error_extending"}[status]
    assert api.get(f"/volumes/{volume['id']}")["volume"]["status"] == expected
    assert api.get(f"/snapshots/{snapshot['id']}")["snapshot"]["status"] == "error"
    assert api.action(f"volumes/{volume['id']}", "os-force_delete").status == 202
    assert api("DELETE", f"/snapshots/{snapshot['id']}").status == 202
    judge(api)


def test_a_row_reset_to_another_transitional_status_than_its_operation_ends_settles_too(life: Life) -> None:
    """The operation finds that its row was taken over, so it will not end that status either."""
    api = life.start()
    volume = api.volume()
    api = life.deaf()
    assert api("POST", f"/volumes/{volume['id']}/action", {"os-extend": {"new_size": 2}}).status == 202
    assert api.action(f"volumes/{volume['id']}", "os-reset_status", {"status": "creating"}).status == 202
    api = life.start()
    api.wait_idle()
    assert api.get(f"/volumes/{volume['id']}")["volume"]["status"] == "error"
    judge(api)


def test_an_operation_that_this_version_does_not_know_keeps_nobody_from_starting(life: Life) -> None:
    api = life.start()
    volume = api.volume()
    api = life.deaf()
    assert api("POST", f"/volumes/{volume['id']}/action", {"os-extend": {"new_size": 2}}).status == 202
    with api.service.db.write() as session:
        session.execute(update(OperationRow).where(OperationRow.state == "open").values(kind="FoldVolume"))
    api = life.start()
    api.wait_idle()
    assert api.get(f"/volumes/{volume['id']}")["volume"]["status"] == "error_extending"
    (operation,) = operations(api, state="failed")
    assert "FoldVolume" in (operation.reason or "")


def test_resuming_keeps_the_order_of_filing(life: Life) -> None:
    """A snapshot and what comes after it on the same volume."""
    api = life.start()
    volume = api.volume()
    api = life.deaf()
    assert api("POST", "/snapshots", {"snapshot": {"volume_id": volume["id"]}}).status == 202
    assert api("POST", f"/volumes/{volume['id']}/action", {"os-extend": {"new_size": 2}}).status == 202
    api = life.start()
    judge(api)
    (snapshot,) = api.get("/snapshots")["snapshots"]
    assert (snapshot["status"], snapshot["size"]) == ("available", 1)
    with api.service.db.read() as session:
        assert session.get_one(Volume, volume["id"]).size == 2


def test_nothing_to_resume_is_nothing_to_do(life: Life) -> None:
    api = life.start()
    api.volume()
    before = [dataclasses.astuple(_Plain.of(operation)) for operation in operations(api)]
    api = life.start()
    assert [dataclasses.astuple(_Plain.of(operation)) for operation in operations(api)] == before


@dataclasses.dataclass
class _Plain:
    id: str
    state: str
    attempt: int
    finished_at: object

    @classmethod
    def of(cls, operation: OperationRow) -> _Plain:
        return cls(operation.id, operation.state, operation.attempt, operation.finished_at)


def test_operations_of_this_life_follow_those_of_the_last_though_the_clock_went_back(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else they would be taken up before those that they follow."""
    first = life.deaf().volume(settle=False)["id"]
    monkeypatch.setattr(operation_ids, "_newest_ns", 0)  # as in a process of its own
    monkeypatch.setattr(operation_ids.time, "time_ns", lambda: 10**9)
    api = life.deaf()
    second = api.volume(settle=False)["id"]
    with api.service.db.read() as session:
        filed = session.scalars(select(OperationRow.resource_id).order_by(OperationRow.id)).all()
    assert list(filed) == [first, second]
