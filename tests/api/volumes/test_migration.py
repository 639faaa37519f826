"""Volumes that move to another backend: every byte arrives, and nothing is left behind."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blockstore_plugins.directory import DirectoryBackend
from sqlalchemy import select

from blockstore.accounting import reservations
from blockstore.api.volumes import migration
from blockstore.app.service import HANDLERS, Service
from blockstore.backends.contract import GIB
from blockstore.config import ServiceConfig
from blockstore.db.models import OperationRow, PoolUsage, Volume
from blockstore.errors import InvalidStatus, NotFound, Unreachable
from blockstore.manager import copying
from blockstore.manager.context import volume_name
from blockstore.operations import journal, states
from blockstore.operations.catalogue import MigrateVolume, new_operation_id
from blockstore.operations.recovery import resume
from tests.conftest import Client, backend_section, make_config
from tests.crash.invariants import check

A, B = "blockstore@a", "blockstore@b"
PLACES = {0: b"start", 70_000: b"odd", GIB // 2 + 5: b"middle", GIB - 3: b"end"}


@pytest.fixture
def api(start_service: Callable[..., Service], database_url: str) -> Client:
    sections = (backend_section("a", "directory"), backend_section("b", "directory"))
    return Client(start_service(database_url=database_url, backends=sections))


def idle(api: Client) -> None:
    assert api.service.bus.wait_idle(600)


def volume(api: Client, backend: str = "a", size: int = 1) -> dict[str, Any]:
    """A volume on one of the backends, which nothing but chance has put there."""
    other = {"binary": "cinder-volume", "host": A if backend == "b" else B}
    api("PUT", "/os-services/disable", other)
    made = api("POST", "/volumes", {"volume": {"size": size}}).json["volume"]
    idle(api)
    api("PUT", "/os-services/enable", other)
    return shown(api, made["id"])


def bound(api: Client, backend: str) -> str:
    """A type whose volumes are on one backend."""
    body = {"volume_type": {"name": f"only {backend}", "extra_specs": {"volume_backend_name": backend}}}
    assert api("POST", "/types", body).status == 200
    return f"only {backend}"


def shown(api: Client, volume_id: str) -> dict[str, Any]:
    found: dict[str, Any] = api("GET", f"/volumes/{volume_id}").json["volume"]
    return found


def row(api: Client, volume_id: str) -> Volume:
    with api.service.db.read() as session:
        return session.get_one(Volume, volume_id)


def fill(api: Client, volume_id: str) -> None:
    found = row(api, volume_id)
    with api.service.backends[str(found.host)].open_volume(volume_name(found), "r+b") as file:
        for place, text in PLACES.items():
            file.seek(place)
            file.write(text)


def holds(api: Client, volume_id: str) -> bool:
    found = row(api, volume_id)
    with api.service.backends[str(found.host)].open_volume(volume_name(found), "rb") as file:
        assert file.seek(0, os.SEEK_END) == found.size * GIB
        for place, text in PLACES.items():
            file.seek(place)
            if file.read(len(text)) != text:
                return False
    return True


def move(api: Client, volume_id: str, host: str = B, **more: Any) -> Any:
    return api("POST", f"/volumes/{volume_id}/action", {"os-migrate_volume": {"host": host, **more}})


def whole(api: Client, *, explained: bool = True) -> None:
    check(api.service.db, api.service.backends, explained=explained)


def test_a_volume_moves_with_its_bytes(api: Client) -> None:
    made = volume(api, size=2)
    fill(api, made["id"])
    assert move(api, made["id"]).status == 202
    idle(api)
    found = shown(api, made["id"])
    assert (found["status"], found["migration_status"]) == ("available", "success")
    assert found["os-vol-host-attr:host"] == f"{B}#b"
    assert found["os-vol-mig-status-attr:name_id"] not in (None, made["id"])
    assert holds(api, made["id"])
    whole(api)
    spent = api.service.backends[f"{B}#b"].locate(volume_name(row(api, made["id"])))
    assert spent is not None
    assert spent.path.stat().st_blocks * 512 < 2**20


def test_a_moved_volume_is_a_volume_like_any_other(api: Client) -> None:
    made = volume(api)
    fill(api, made["id"])
    move(api, made["id"])
    idle(api)
    shot = api("POST", "/snapshots", {"snapshot": {"volume_id": made["id"]}}).json["snapshot"]
    idle(api)
    clone = api("POST", "/volumes", {"volume": {"size": 1, "snapshot_id": shot["id"]}}).json["volume"]
    copy = api("POST", "/volumes", {"volume": {"size": 2, "source_volid": made["id"]}}).json["volume"]
    idle(api)
    assert holds(api, clone["id"])
    assert holds(api, copy["id"])
    assert api("POST", f"/volumes/{made['id']}/action", {"revert": {"snapshot_id": shot["id"]}}).status == 202
    idle(api)
    assert "has snapshots" in move(api, made["id"], A).message
    assert api("DELETE", f"/snapshots/{shot['id']}").status == 202
    idle(api)
    assert api("POST", f"/volumes/{made['id']}/action", {"os-extend": {"new_size": 2}}).status == 202
    idle(api)
    assert move(api, made["id"], A).status == 202
    idle(api)
    assert shown(api, made["id"])["os-vol-host-attr:host"] == f"{A}#a"
    assert holds(api, made["id"])
    whole(api)
    assert api("DELETE", f"/volumes/{made['id']}").status == 202
    idle(api)
    whole(api)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "Exactly one of host and cluster"),
        ({"host": B, "cluster": "c"}, "Exactly one of host and cluster"),
        ({"cluster": "c"}, "There is no cluster c"),
        ({"host": "nowhere"}, "there is no backend or pool nowhere"),
        ({"host": A}, "is on blockstore@a#a already"),
        ({"host": f"{A}#a"}, "is on blockstore@a#a already"),
        ({"host": B, "lock_volume": "perhaps"}, "lock_volume"),
    ],
)
def test_a_bad_request_changes_nothing(api: Client, body: dict[str, Any], words: str) -> None:
    made = volume(api)
    answer = api("POST", f"/volumes/{made['id']}/action", {"os-migrate_volume": body})
    assert answer.status == 400
    assert words in answer.message
    found = shown(api, made["id"])
    assert (found["status"], found["migration_status"]) == ("available", None)


def test_what_is_attached_or_elsewhere_is_not_moved(api: Client) -> None:
    made = volume(api)
    assert move(api.as_("other"), made["id"]).status == 403
    api("POST", "/attachments", {"attachment": {"volume_uuid": made["id"]}})
    assert "is attached; detach it before you migrate it" in move(api, made["id"]).message
    assert move(api, "00000000-0000-4000-8000-000000000000").status == 404
    other = volume(api)
    api("PUT", "/os-services/disable", {"binary": "cinder-volume", "host": B})
    assert "is disabled" in move(api, other["id"]).message


def test_completion_is_refused(api: Client) -> None:
    made = volume(api)
    body = {"os-migrate_volume_completion": {"new_volume": made["id"], "error": False}}
    answer = api("POST", f"/volumes/{made['id']}/action", body)
    assert answer.status == 400
    assert "cannot be completed by a request" in answer.message


def test_a_copy_that_reads_otherwise_is_given_up(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    made = volume(api)
    fill(api, made["id"])
    write = copying._Side.write

    def spoil(side: Any, offset: int, data: bytes, runs: Any) -> None:
        write(side, offset, bytes([data[0] ^ 1]) + data[1:], runs)

    monkeypatch.setattr(copying._Side, "write", spoil)
    move(api, made["id"])
    idle(api)
    found = shown(api, made["id"])
    assert (found["status"], found["migration_status"]) == ("available", "error")
    assert found["os-vol-host-attr:host"] == f"{A}#a"
    assert holds(api, made["id"])
    (said,) = api("GET", "/messages").json["messages"]
    assert "does not return the bytes that were written" in said["user_message"]
    whole(api)


def test_a_move_can_be_cancelled(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    made = volume(api)
    fill(api, made["id"])
    monkeypatch.setattr("blockstore.operations.runner.PROGRESS_INTERVAL_S", 0)

    def ask_to_stop(*_args: Any) -> bytes:
        with api.service.db.write() as session:
            session.execute(OperationRow.__table__.update().values(cancel_asked=True))
        return b""

    monkeypatch.setattr(copying, "_digest", ask_to_stop)
    move(api, made["id"])
    idle(api)
    found = shown(api, made["id"])
    assert (found["status"], found["migration_status"]) == ("available", "error")
    assert holds(api, made["id"])
    whole(api)


def test_a_status_set_meanwhile_stops_the_switch(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    made = volume(api)
    fill(api, made["id"])
    prove = copying._prove

    def reset(*args: Any) -> None:
        prove(*args)
        body = {"os-reset_status": {"status": "available", "migration_status": "none"}}
        assert api("POST", f"/volumes/{made['id']}/action", body).status == 202

    monkeypatch.setattr(copying, "_prove", reset)
    move(api, made["id"])
    idle(api)
    assert shown(api, made["id"])["os-vol-host-attr:host"] == f"{A}#a"
    assert holds(api, made["id"])
    whole(api)


def test_what_a_move_leaves_is_removed_when_its_pool_lets_it(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    made = volume(api)
    fill(api, made["id"])
    backend = api.service.backends[f"{A}#a"]
    assert isinstance(backend, DirectoryBackend)
    delete, failures = backend.delete_volume, [Unreachable("The cable is out.")] * 2

    def fail_twice(*args: Any, **kw: Any) -> None:
        if failures:
            raise failures.pop()
        delete(*args, **kw)

    monkeypatch.setattr(backend, "delete_volume", fail_twice)
    monkeypatch.setattr("blockstore.operations.bus.RETRY_DELAYS_S", (0.01, 0.01))
    move(api, made["id"])
    idle(api)
    assert not failures
    assert holds(api, made["id"])
    whole(api)


def retype(api: Client, volume_id: str, kind: str, policy: str | None) -> Any:
    body = {"new_type": kind} | ({"migration_policy": policy} if policy else {})
    return api("POST", f"/volumes/{volume_id}/action", {"os-retype": body})


@pytest.mark.parametrize("policy", [None, "never"])
def test_a_type_that_means_a_move_needs_leave_to_move(api: Client, policy: str | None) -> None:
    made = volume(api)
    assert retype(api, made["id"], bound(api, "b"), policy).status == 202
    idle(api)
    found = shown(api, made["id"])
    kept = (found["status"], found["volume_type"], found["os-vol-host-attr:host"])
    assert kept == ("available", "__DEFAULT__", f"{A}#a")
    (said,) = api("GET", "/messages").json["messages"]
    assert "migration_policy is not on-demand" in said["user_message"]
    whole(api)


def test_a_volume_moves_for_its_new_type(api: Client) -> None:
    made = volume(api)
    fill(api, made["id"])
    assert retype(api, made["id"], bound(api, "b"), "on-demand").status == 202
    idle(api)
    found = shown(api, made["id"])
    new = (found["status"], found["volume_type"], found["os-vol-host-attr:host"])
    assert new == ("available", "only b", f"{B}#b")
    assert holds(api, made["id"])
    whole(api)


def test_drain_shows_its_plan_then_moves_everything(api: Client) -> None:
    moved = [volume(api)["id"] for _ in range(3)]
    kept = volume(api)["id"]
    api("POST", "/snapshots", {"snapshot": {"volume_id": kept}})
    idle(api)
    for one in moved:
        fill(api, one)
    plan = api("POST", "/os-services/drain", {"drain": {"host": A, "dry_run": True}}).json["drain"]["volumes"]
    told = {item["volume_id"]: (item["destination"], item["reason"]) for item in plan}
    assert told == {**dict.fromkeys(moved, (f"{B}#b", None)), kept: (None, "it has snapshots")}
    assert shown(api, moved[0])["os-vol-host-attr:host"] == f"{A}#a"
    assert api("POST", "/os-services/drain", {"drain": {"host": A}}).status == 202
    idle(api)
    assert {shown(api, one)["os-vol-host-attr:host"] for one in moved} == {f"{B}#b"}
    assert all(holds(api, one) for one in moved)
    assert shown(api, kept)["os-vol-host-attr:host"] == f"{A}#a"
    service = next(s for s in api("GET", "/os-services").json["services"] if s["host"] == A)
    assert (service["status"], service["disabled_reason"][:7]) == ("disabled", "drained")
    whole(api)
    assert api("POST", "/os-services/drain", {"drain": {"host": "nowhere"}}).status == 400
    assert api.as_("other")("POST", "/os-services/drain", {"drain": {"host": A}}).status == 403


def test_explain_tells_each_pool_and_number(api: Client) -> None:
    query = f"/scheduler-stats/explain?size=3&volume_type={bound(api, 'b').replace(' ', '%20')}"
    told = api("GET", query).json["explanation"]
    assert told["winner"] == f"{B}#b"
    first, second = told["pools"]
    assert (first["name"], first["rank"]) == (f"{B}#b", 1)
    assert first["weights"][0]["weigher"] == "CapacityWeigher"
    assert first["free_gib"] > 0
    assert (second["name"], second["rank"], second["filter"]) == (f"{A}#a", None, "CapabilitiesFilter")
    api("PUT", "/os-services/disable", {"binary": "cinder-volume", "host": B})
    told = api("GET", query).json["explanation"]
    assert told["winner"] is None
    assert "is disabled" in told["pools"][-1]["reason"]
    for bad in ("", "size=0", "size=x", "size=-1"):
        answer = api("GET", f"/scheduler-stats/explain?{bad}")
        assert answer.status == 400
        assert "whole number of GiB" in answer.message
    assert api("GET", "/scheduler-stats/explain?size=1&volume_type=none").status == 404
    assert api.as_("other")("GET", "/scheduler-stats/explain?size=1").status == 403


def test_maintenance_set_by_an_administrator_outlives_a_restart(api: Client) -> None:
    made = volume(api)
    api("POST", f"/volumes/{made['id']}/action", {"os-reset_status": {"status": "maintenance"}})
    assert resume(api.service.db, HANDLERS, attempts=5, message_days=30) == []
    assert shown(api, made["id"])["status"] == "maintenance"
    with api.service.db.write() as session:
        session.execute(Volume.__table__.update().values(migration_status="migrating"))
    resume(api.service.db, HANDLERS, attempts=5, message_days=30)
    assert shown(api, made["id"])["status"] == "available"
    with api.service.db.read() as session:
        assert session.scalars(select(OperationRow.state).where(OperationRow.state == "open")).all() == []
    assert states.VOLUME.failure[states.V.MAINTENANCE] == "available"


@pytest.fixture
def half_way(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """What has something done once, when the next move has copied all and proved nothing."""
    prove, todo = copying._prove, []

    def interrupted(*args: Any) -> None:
        if todo:
            todo.pop()()
        prove(*args)

    monkeypatch.setattr(copying, "_prove", interrupted)
    return todo.append


def test_what_is_written_after_a_reset_is_not_lost(api: Client, half_way: Callable[[Callable[[], None]], None]) -> None:
    """The move is stopped, though its volume is in its status again, by another move, when it would switch."""
    made = volume(api)
    fill(api, made["id"])

    def use_and_move_again() -> None:
        body = {"os-reset_status": {"status": "available", "migration_status": "none"}}
        assert api("POST", f"/volumes/{made['id']}/action", body).status == 202
        with api.service.backends[f"{A}#a"].open_volume(f"volume-{made['id']}", "r+b") as file:
            file.write(b"since")
        assert move(api, made["id"]).status == 202

    half_way(use_and_move_again)
    move(api, made["id"])
    idle(api)
    found = row(api, made["id"])
    assert found.status == "available"
    with api.service.backends[str(found.host)].open_volume(volume_name(found), "rb") as file:
        assert file.read(5) == b"since"
    with api.service.db.read() as session:
        (reason,) = session.scalars(select(OperationRow.reason).where(OperationRow.kind == "MigrateVolume"))
    assert reason == "cancelled by the operator at the end"
    whole(api, explained=False)


def test_nothing_else_is_done_with_a_volume_that_moves(
    api: Client, half_way: Callable[[Callable[[], None]], None]
) -> None:
    made = volume(api)
    fill(api, made["id"])
    connector = {"host": "here", "ip": "127.0.0.1", "initiator": "iqn.2000-01.org.example:one"}
    asked: dict[str, tuple[str, str, Any]] = {
        name: ("POST", f"/volumes/{made['id']}/action", {name: body})
        for name, body in {
            "os-extend": {"new_size": 2}, "os-migrate_volume": {"host": B}, "os-unmanage": {}, "os-reserve": {},
            "os-retype": {"new_type": bound(api, "b")}, "os-initialize_connection": {"connector": connector},
            "os-attach": {"mountpoint": "/dev/vdb", "host_name": "here"}, "os-update_readonly_flag": {"readonly": True},
        }.items()
    }  # fmt: skip
    reserve = {"attachment": {"volume_uuid": made["id"]}}
    connect = {"attachment": {"volume_uuid": made["id"], "connector": connector}}
    asked |= {
        "delete": ("DELETE", f"/volumes/{made['id']}", None),
        "cascade": ("DELETE", f"/volumes/{made['id']}?cascade=true", None),
        "snapshot": ("POST", "/snapshots", {"snapshot": {"volume_id": made["id"]}}),
        "reserve": ("POST", "/attachments", reserve),
        "connect": ("POST", "/attachments", connect),
        "clone": ("POST", "/volumes", {"volume": {"source_volid": made["id"]}}),
        "transfer": ("POST", "/volume-transfers", {"transfer": {"volume_id": made["id"]}}),
        "rename": ("PUT", f"/volumes/{made['id']}", {"volume": {"name": "other"}}),
    }
    answers: dict[str, Any] = {}

    def ask_all() -> None:
        answers.update({name: api(*request) for name, request in asked.items()})

    half_way(ask_all)
    move(api, made["id"])
    idle(api)
    assert {name: answer.status for name, answer in answers.items()} == dict.fromkeys(asked, 400)
    for name, answer in answers.items():
        assert "maintenance" in answer.message or "is being migrated (migrating)" in answer.message, (name, answer.body)
    assert shown(api, made["id"])["os-vol-host-attr:host"] == f"{B}#b"
    assert holds(api, made["id"])
    whole(api)


def test_what_is_connected_is_not_moved_for_its_type(api: Client) -> None:
    """os-initialize_connection leaves the volume available, and somebody writes to it."""
    made = volume(api)
    connector = {"host": socket.gethostname(), "ip": "127.0.0.1"}
    body = {"os-initialize_connection": {"connector": connector}}
    assert api("POST", f"/volumes/{made['id']}/action", body).status == 200
    assert shown(api, made["id"])["status"] == "available"
    assert retype(api, made["id"], bound(api, "b"), "on-demand").status == 202
    idle(api)
    found = shown(api, made["id"])
    kept = (found["status"], found["volume_type"], found["os-vol-host-attr:host"])
    assert kept == ("available", "__DEFAULT__", f"{A}#a")
    (said,) = api("GET", "/messages").json["messages"]
    assert "It cannot be migrated either: it is attached, or connected." in said["user_message"]
    whole(api)


@pytest.mark.parametrize("missing", ["b", "a"])
def test_a_pool_that_left_the_configuration_while_a_volume_moved(
    start_service: Callable[..., Service], tmp_path: Path, missing: str
) -> None:
    """The volume stays where it is; what was copied goes, or is told of when nobody can reach it."""
    sections = {name: backend_section(name, "directory") for name in "ab"}
    service = start_service(make_config(tmp_path / "state", backends=tuple(sections.values())))
    api = Client(service)
    made = volume(api)
    service.backends[f"{B}#b"].create_volume("volume-copy", 1)
    operation = MigrateVolume(
        operation_id=new_operation_id(), request_id="req-1", project_id="admin", volume_id=made["id"],
        destination=f"{B}#b",
        name_id="copy", volume_gib=1,
    )  # fmt: skip
    service.bus.drain(1)  # the operation is left to the next start
    with service.db.write() as session:
        session.execute(Volume.__table__.update().values(status="maintenance", migration_status="migrating"))
        reservations.reserve(session, f"{B}#b", volumes=1, volume_gib=1)
        journal.enqueue(session, operation)
    service.stop()
    kept = tuple(section for name, section in sections.items() if name != missing)
    api = Client(start_service(make_config(tmp_path / "state", backends=kept)))
    idle(api)
    found = shown(api, made["id"])
    assert (found["status"], found["migration_status"]) == ("available", "error")
    assert found["os-vol-host-attr:host"] == f"{A}#a"
    with api.service.db.read() as session:
        state, reason = session.execute(
            select(OperationRow.state, OperationRow.reason).where(OperationRow.kind == "RemoveCopy")
        ).one()
        held = {usage.pool: usage.volumes for usage in session.scalars(select(PoolUsage))}
    assert held == {f"{A}#a": 1, f"{B}#b": 0}
    if missing == "b":
        assert (state, "volume-copy may remain there" in reason) == ("failed", True)
        whole(api)
    else:
        assert (state, reason) == ("done", None)
        assert dict(api.service.backends[f"{B}#b"].list_volumes()) == {}


def test_a_new_type_brings_its_limits(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that keeps volumes within limits learns of the new ones, and of their end."""
    made, backend, told = volume(api), api.service.backends[f"{A}#a"], []
    monkeypatch.setattr(backend, "capabilities", lambda: replace(DirectoryBackend.capabilities(backend), qos=True))
    monkeypatch.setattr(backend, "limit_volume", lambda name, limits: told.append((name, dict(limits))))
    api.service.report()
    specs = {"qos_specs": {"name": "slow", "consumer": "back-end", "total_iops_sec": "100"}}
    qos = api("POST", "/qos-specs", specs).json["qos_specs"]["id"]
    kinds = [api("POST", "/types", {"volume_type": {"name": name}}).json["volume_type"]["id"] for name in ("s", "f")]
    assert api("GET", f"/qos-specs/{qos}/associate?vol_type_id={kinds[0]}").status == 202
    for kind in kinds:
        assert retype(api, made["id"], kind, None).status == 202
        idle(api)
    name = f"volume-{made['id']}"
    assert told == [(name, {"total_iops_sec": 100}), (name, {})]
    assert shown(api, made["id"])["volume_type"] == "f"
    monkeypatch.setattr(backend, "limit_volume", lambda _name, _limits: told[9])  # an internal error
    retype(api, made["id"], kinds[0], None)
    idle(api)
    found = shown(api, made["id"])
    assert (found["status"], found["volume_type"]) == ("available", "f")
    whole(api)


def test_a_copy_that_is_being_made_cannot_be_taken_over(
    api: Client, half_way: Callable[[Callable[[], None]], None]
) -> None:
    """Nor what a move has left; but what has any other name can."""
    made = volume(api)
    fill(api, made["id"])
    api.service.backends[f"{B}#b"].create_volume("name", 1)
    listed: list[dict[str, Any]] = []

    def look() -> None:
        listed.extend(api("GET", f"/manageable_volumes/detail?host={B}&sort=reference:asc").json["manageable-volumes"])

    half_way(look)
    move(api, made["id"])
    idle(api)
    theirs, copy = listed
    assert (theirs["reference"], theirs["safe_to_manage"]) == ({"source-name": "name.raw"}, True)
    assert (copy["cinder_id"], copy["reason_not_safe"]) == (None, "an unfinished operation uses it")


def test_nothing_waits_for_moves(
    start_service: Callable[..., Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More volumes move than may at once, and others are made meanwhile."""
    sections = (backend_section("a", "directory"), backend_section("b", "directory"))
    config = make_config(tmp_path / "state", backends=sections, service=ServiceConfig(workers=1, migration_workers=1))
    api, gate, prove = Client(start_service(config)), threading.Event(), copying._prove

    def wait(*args: Any) -> None:
        assert gate.wait(120)
        prove(*args)

    monkeypatch.setattr(copying, "_prove", wait)
    under_way = [volume(api)["id"] for _ in range(3)]
    for one in under_way:
        assert move(api, one).status == 202
    made = api("POST", "/volumes", {"volume": {"size": 1}}).json["volume"]["id"]
    while shown(api, made)["status"] != "available":
        time.sleep(0.01)
    assert {shown(api, one)["status"] for one in under_way} == {"maintenance"}
    gate.set()
    idle(api)
    assert {shown(api, one)["os-vol-host-attr:host"] for one in under_way} == {f"{B}#b"}
    whole(api)


def test_drain_leaves_what_somebody_took_meanwhile(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the plan and the move of each volume; the others move."""
    first, second, third = (volume(api)["id"] for _ in range(3))
    begin = migration.begin

    def begin_late(call: Any, found: Volume, destination: str) -> None:
        if found.id == first:
            raise InvalidStatus("It is reserved.")
        if found.id == second:
            raise NotFound("It is gone.")
        begin(call, found, destination)

    monkeypatch.setattr(migration, "begin", begin_late)
    plan = api("POST", "/os-services/drain", {"drain": {"host": A}}).json["drain"]["volumes"]
    assert {item["volume_id"]: (item["destination"], item["reason"]) for item in plan} == {
        first: (None, "It is reserved."), second: (None, "It is gone."), third: (f"{B}#b", None),
    }  # fmt: skip
    idle(api)
    assert [shown(api, one)["os-vol-host-attr:host"][-1] for one in (first, second, third)] == ["a", "a", "b"]
    whole(api)


def test_a_volume_stays_on_blocks_of_its_size(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition table counts in blocks: where they are larger, its consumer would find nothing."""
    there = api.service.backends[f"{B}#b"]
    own = there.capabilities
    made = volume(api)
    fill(api, made["id"])
    kind = bound(api, "b")
    monkeypatch.setattr(there, "capabilities", lambda: replace(own(), block_size=4096))
    api.service.report()
    refused = move(api, made["id"])
    assert refused.status == 400
    assert "its block size is 4096 bytes and the volume's is 512; the consumer would no longer find" in refused.message
    asked = {"os-retype": {"new_type": kind, "migration_policy": "on-demand"}}
    assert api("POST", f"/volumes/{made['id']}/action", asked).status == 202
    idle(api)
    found = shown(api, made["id"])
    assert (found["status"], found["os-vol-host-attr:host"]) == ("available", f"{A}#a")
    assert found["volume_type"] != kind
    (message,) = api("GET", "/messages").json["messages"]
    assert "BlockSizeFilter" in message["user_message"]
    drain = {"drain": {"host": A, "dry_run": True}}
    (plan,) = api("POST", "/os-services/drain", drain).json["drain"]["volumes"]
    assert "its block size is 4096 bytes" in plan["reason"]
    pools = {pool["name"]: pool["capabilities"] for pool in api.get("/scheduler-stats/get_pools?detail=true")["pools"]}
    assert [pools[f"{A}#a"]["logical_block_size"], pools[f"{B}#b"]["logical_block_size"]] == [512, 4096]
    whole(api)


def test_blocks_that_grew_since_a_move_was_placed_stop_it(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    made = volume(api)
    fill(api, made["id"])
    real = journal.complete_and_continue

    def complete_and_continue(session: Any, operation: Any, following: Any, **more: Any) -> None:
        report = api.service.pool_reports.reports()[f"{B}#b"]
        api.service.pool_reports.update(replace(report, capabilities=replace(report.capabilities, block_size=4096)))
        real(session, operation, following, **more)

    monkeypatch.setattr(journal, "complete_and_continue", complete_and_continue)
    assert move(api, made["id"]).status == 202
    idle(api)
    found = shown(api, made["id"])
    assert (found["status"], found["os-vol-host-attr:host"]) == ("available", f"{A}#a")
    assert holds(api, made["id"])
    whole(api)
