"""Connecting and disconnecting as their handlers do it: again after a kill, with another target, when all fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from blockstore.app.service import Service
from blockstore.app.wiring import local_connector
from blockstore.backends.contract import VolumeLocation
from blockstore.config import TargetSection
from blockstore.db.models import Attachment, OperationRow, Volume
from blockstore.errors import BackendError, InUse, Reason, SessionAlive, Unreachable, VolumeMissing
from blockstore.manager import HANDLERS
from blockstore.operations.catalogue import Operation, from_stored
from blockstore.operations.runner import Failure
from tests.api.test_attachments import CONNECTOR, complete, connect, remove, reserve
from tests.conftest import Client, backend_section, make_config
from tests.crash.invariants import check
from tests.scripted_target import ScriptedTarget, attaching_service, target_of

POOL = "blockstore@memory#memory"


@pytest.fixture
def api(tmp_path: Path, database_url: str) -> Iterator[Client]:
    """An administrator's client of a service with a scripted target, on each database."""
    service = attaching_service(make_config(tmp_path / "state", database_url), ScriptedTarget())
    service.start()
    yield Client(service)
    target_of(service).calm()
    service.stop()


def rows(api: Client, model: Any = Attachment, **where: Any) -> list[Any]:
    with api.service.db.read() as session:
        return list(session.scalars(select(model).filter_by(**where)))


def operation_of(row: OperationRow) -> Operation:
    return from_stored(row.kind, row.id, row.request_id, row.project_id, row.body, attempt=2)


def run_again(api: Client, kind: str) -> None:
    """Handle the newest operation of a kind once more, as if its end had not been written down."""
    with api.service.db.write() as session:
        row = session.scalars(select(OperationRow).filter_by(kind=kind).order_by(OperationRow.id.desc())).first()
        assert row is not None
        row.state, row.finished_at = "open", None
    operation = operation_of(row)
    HANDLERS[type(operation)](api.service.context, operation)


def judge(api: Client) -> None:
    api.wait_idle()
    check(api.service.db, api.service.backends, targets=api.service.exports.targets)


# --- again -------------------------------------------------------------------------------------------------


def test_connecting_again_after_a_kill_gives_the_same(api: Client) -> None:
    """The export was made, and the process died before it was written down."""
    made = reserve(api, api.volume()["id"], connector=CONNECTOR).json["attachment"]
    with api.service.db.write() as session:
        session.get_one(Attachment, made["id"]).status = "connecting"
    run_again(api, "ConnectAttachment")
    assert api.get(f"/attachments/{made['id']}")["attachment"] == made
    assert target_of(api.service).asked.count(("export", made["id"])) == 2
    judge(api)


def test_disconnecting_again_after_a_kill_succeeds(api: Client) -> None:
    """The export was ended, and the process died before the row went."""
    volume = api.volume()["id"]
    made = reserve(api, volume, connector=CONNECTOR).json["attachment"]["id"]
    target_of(api.service).exports.clear()
    assert remove(api, made).status == 200
    judge(api)
    assert api.get(f"/volumes/{volume}")["volume"]["status"] == "available"


def test_an_operation_that_has_ended_is_not_carried_out_again(api: Client) -> None:
    volume = api.volume()["id"]
    made = reserve(api, volume, connector=CONNECTOR).json["attachment"]["id"]
    (row,) = rows(api, OperationRow, kind="ConnectAttachment")
    remove(api, made)
    asked = list(target_of(api.service).asked)
    operation = operation_of(row)
    HANDLERS[type(operation)](api.service.context, operation)
    assert target_of(api.service).asked == asked
    judge(api)


@pytest.mark.parametrize("kind", ["ConnectAttachment", "DisconnectAttachment"])
def test_an_operation_begun_too_often_is_given_up_with_a_reason(api: Client, kind: str) -> None:
    volume = api.volume()["id"]
    made = reserve(api, volume, connector=CONNECTOR).json["attachment"]["id"]
    complete(api, made)
    if kind == "DisconnectAttachment":
        target_of(api.service).fail["withdraw"] = SessionAlive("no")
        assert remove(api, made).status == 503
    status = "connecting" if kind == "ConnectAttachment" else "disconnecting"
    with api.service.db.write() as session:
        session.get_one(Attachment, made).status = status
        (stored,) = session.scalars(select(OperationRow).filter_by(kind=kind))
        stored.state, stored.finished_at = "open", None
        why = "given up: the service died 5 times while it ran"
        operation = operation_of(stored)
        HANDLERS[type(operation)].give_up(session, operation, Failure(reason=Reason(why, why)))
    (row,) = rows(api)
    assert row.status == f"error_{'attaching' if kind == 'ConnectAttachment' else 'detaching'}"
    assert row.reason == why
    if kind == "DisconnectAttachment":
        assert api.get(f"/volumes/{volume}")["volume"]["status"] == "in-use"


# --- failures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["export", "withdraw"])
@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (BackendError("The disk is on fire."), "The disk is on fire."),
        (Unreachable("The cable is out."), "The cable is out."),
        (SessionAlive("It does not end."), "It does not end."),
        (
            RuntimeError("s3cret"),
            "an internal error (RuntimeError) stopped the operation; the log has the details under req-",
        ),
    ],
    ids=["refused", "unreachable", "alive", "bug"],
)
def test_a_failure_settles_with_a_reason(api: Client, method: str, failure: Exception, said: str) -> None:
    volume = api.volume()["id"]
    target_of(api.service).fail[method] = failure
    made = reserve(api, volume, connector=CONNECTOR)
    attachment = api.get("/attachments")["attachments"][0]["id"]
    if method == "withdraw":
        assert made.status == 200
        made = remove(api, attachment)
    assert made.status == 503
    judge(api)
    (row,) = rows(api)
    assert row.status == ("error_attaching" if method == "export" else "error_detaching")
    assert said in row.reason
    assert b"s3cret" not in made.body
    assert said in api.get("/messages")["messages"][0]["user_message"]
    target_of(api.service).fail.clear()
    if method == "export":
        assert connect(api, attachment).status == 200
        assert rows(api)[0].reason is None
    assert remove(api, attachment).status == 200
    judge(api)
    assert rows(api) == []


@pytest.mark.parametrize("status", ["reserved", "attaching", "attached", "error_detaching"])
def test_what_is_held_goes_back_to_what_it_was(api: Client, status: str) -> None:
    volume = api.volume()["id"]
    connector = None if status == "reserved" else CONNECTOR
    made = reserve(api, volume, connector=connector).json["attachment"]["id"]
    if status in ("attached", "error_detaching"):
        complete(api, made)
    with api.service.db.write() as session:
        row = session.get_one(Attachment, made)
        row.status, row.target = status, "local"
        before = session.get_one(Volume, volume).status
    target_of(api.service).fail["withdraw"] = InUse("qemu (7) holds it.")
    answer = remove(api, made)
    # What is in error stays so; to the caller that is no conflict which he could solve, but a failure.
    assert answer.status == (503 if status == "error_detaching" else 409)
    assert "qemu (7) holds it." in answer.message
    assert [row.status for row in rows(api)] == [status]
    assert api.get(f"/volumes/{volume}")["volume"]["status"] == before


def test_a_pool_that_is_down_is_told(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = api.volume()["id"]
    backend = api.service.backends[POOL]

    def down() -> None:
        raise Unreachable("The volume group is gone.")

    monkeypatch.setattr(backend, "check", down)
    api.service.report()
    answer = reserve(api, volume, connector=CONNECTOR)
    assert (answer.status, "is down: The volume group is gone." in answer.message) == (503, True)
    # What is exported can be ended all the same.
    assert remove(api, rows(api)[0].id).status == 200


def test_a_volume_that_is_gone_from_its_pool_is_told(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = api.volume()["id"]

    def locate(name: str) -> VolumeLocation:
        raise VolumeMissing(f"{name} is not there.")

    monkeypatch.setattr(api.service.backends[POOL], "locate", locate)
    answer = reserve(api, volume, connector=CONNECTOR)
    assert (answer.status, f"volume-{volume} is not there." in answer.message) == (503, True)
    assert target_of(api.service).exports == {}


def test_a_format_that_the_target_does_not_know_names_one_that_does(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.service.backends[POOL], "locate", lambda _: VolumeLocation(Path("/dev/null"), "qcow2"))
    answer = reserve(api, api.volume()["id"], connector=CONNECTOR)
    assert answer.status == 503
    assert answer.message.endswith(
        "The target local exports raw, and this volume is qcow2; the target nbd can export it."
    )


def test_a_backend_without_a_path_says_so(start_service: Callable[..., Service]) -> None:
    api = Client(start_service())
    answer = reserve(api, api.volume()["id"], connector={"host": local_connector()["host"]})
    assert answer.status == 503
    assert answer.message.endswith("Backend memory has no file or device on this node that could be exported.")


# --- two targets -------------------------------------------------------------------------------------------


def test_this_node_gets_the_path_whatever_the_target_of_the_pool_is(
    tmp_path: Path, start_service: Callable[..., Service]
) -> None:
    """And when another initiator connects the same attachment, the first export is ended before."""
    import dataclasses

    config = make_config(
        tmp_path / "state",
        backends=(backend_section("disk", "directory", {"target": "other"}, path=str(tmp_path / "volumes")),),
        targets=(TargetSection(name="other", plugin="local", plugin_options={}, source="test"),),
    )
    service = Service(config)
    other = ScriptedTarget()
    targets: Any = service.exports.targets
    targets["other"] = other
    service.start()
    try:
        api = Client(service)
        assert (
            api.get("/scheduler-stats/get_pools?detail=true")["pools"][0]["capabilities"]["storage_protocol"] == "iSCSI"
        )
        volume = api.volume()["id"]
        made = reserve(api, volume).json["attachment"]["id"]
        here = connect(api, made, local_connector()).json["attachment"]["connection_info"]
        assert Path(here["device_path"]).parent == tmp_path / "volumes"
        assert here["attached_here"] == local_connector()["host"]
        assert service.exports.targets["local"].list_exports() == {made}
        there = connect(api, made).json["attachment"]["connection_info"]
        assert there["driver_volume_type"] == "iscsi"
        assert "device_path" not in there
        assert service.exports.targets["local"].list_exports() == frozenset()
        assert set(other.exports) == {made}
        check(service.db, service.backends, targets=service.exports.targets)
        assert remove(api, made).status == 200
        assert not other.exports
        assert dataclasses.asdict(service.config)["targets"]
    finally:
        service.stop()


def test_a_target_that_left_the_configuration_is_asked_for(api: Client) -> None:
    made = reserve(api, api.volume()["id"], connector=CONNECTOR).json["attachment"]["id"]
    with api.service.db.write() as session:
        session.get_one(Attachment, made).target = "former"
    answer = remove(api, made)
    assert answer.status == 503
    assert "The target former, which exported the volume, is no longer in the configuration." in answer.message
    assert [row.status for row in rows(api)] == ["error_detaching"]
