"""Whatever happens inside a handler, the row settles with a reason, and every figure stays exact."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from blockstore.app.service import Service
from blockstore.backends.memory import MemoryBackend
from blockstore.db.models import OperationRow, PoolUsage
from blockstore.errors import (
    BackendError,
    InUse,
    NoSpace,
    NotSupported,
    OutOfFiles,
    SessionAlive,
    ToolTimeout,
    Unreachable,
)
from blockstore.operations import bus, runner, transitions
from tests.conftest import Client, backend_section, make_config
from tests.crash.invariants import check
from tests.scripted_target import ScriptedTarget, attaching_service, target_of

POOL = "blockstore@memory#memory"


@pytest.fixture
def backend(service: Service) -> MemoryBackend:
    """The memory backend of ``service``."""
    found = service.backends[POOL]
    assert isinstance(found, MemoryBackend)
    return found


def judge(api: Client) -> None:
    api.wait_idle()
    check(api.service.db, api.service.backends)


def messages(api: Client) -> list[str]:
    return [message["user_message"] for message in api.get("/messages")["messages"]]


def operations(api: Client, **where: Any) -> list[OperationRow]:
    with api.service.db.read() as session:
        return list(session.scalars(select(OperationRow).filter_by(**where).order_by(OperationRow.id)))


class Gate:
    """Holds a method of a backend up until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, backend: Any, method: str) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        real = getattr(backend, method)

        def held(*args: Any, **kw: Any) -> Any:
            self.begun.set()
            assert self.go.wait(120)
            return real(*args, **kw)

        monkeypatch.setattr(backend, method, held)


# --- failures ----------------------------------------------------------------------------------------------

FAILURES = {
    "create_volume": (lambda api, v, s: api("POST", "/volumes", {"volume": {"size": 1}}), "error"),
    "clone_volume": (lambda api, v, s: api("POST", "/volumes", {"volume": {"source_volid": v}}), "error"),
    "create_volume_from_snapshot": (lambda api, v, s: api("POST", "/volumes", {"volume": {"snapshot_id": s}}), "error"),
    "extend_volume": (
        lambda api, v, s: api("POST", f"/volumes/{v}/action", {"os-extend": {"new_size": 2}}),
        "error_extending",
    ),
    "create_snapshot": (lambda api, v, s: api("POST", "/snapshots", {"snapshot": {"volume_id": v}}), "error"),
    "revert_volume": (lambda api, v, s: api("POST", f"/volumes/{v}/action", {"revert": {"snapshot_id": s}}), "error"),
    "delete_snapshot": (lambda api, v, s: api("DELETE", f"/snapshots/{s}"), "error_deleting"),
    "delete_volume": (lambda api, v, s: api("DELETE", f"/volumes/{v}?cascade=true"), "error_deleting"),
}


@pytest.mark.parametrize("method", FAILURES)
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BackendError("The disk is on fire."), "The disk is on fire."),
        (Unreachable("The cable is out."), "The cable is out."),
        (
            RuntimeError("secret"),
            "an internal error (RuntimeError) stopped the operation; the log has the details under req-",
        ),
    ],
    ids=["refused", "unreachable", "bug"],
)
def test_a_failure_settles_with_a_reason(
    api: Client, backend: MemoryBackend, method: str, error: Exception, said: str
) -> None:
    """Row, operation and message tell; quota, reservations and storage agree;
    and everything can be deleted afterwards.
    """
    volume_id = api.volume()["id"]
    snapshot_id = api.snapshot(volume_id)["id"]
    ask, status = FAILURES[method]
    backend.fail[method] = error
    assert ask(api, volume_id, snapshot_id).status == 202
    judge(api)
    assert not backend.fail
    found = {v["status"] for v in api.get("/volumes/detail")["volumes"]}
    found |= {s["status"] for s in api.get("/snapshots/detail")["snapshots"]}
    assert found - {"available"} == {status}
    assert all(said in (operation.reason or "") for operation in operations(api, state="failed")[:1])
    assert any(said in message for message in messages(api))
    assert "secret" not in str(messages(api))
    for volume in api.get("/volumes")["volumes"]:
        assert api("DELETE", f"/volumes/{volume['id']}?cascade=true&force=true").status == 202
    judge(api)
    assert api.get("/volumes") == {"volumes": []}


@pytest.mark.parametrize("noun", ["volumes", "snapshots"])
def test_what_is_busy_is_available_again_with_a_message(api: Client, backend: MemoryBackend, noun: str) -> None:
    volume = api.volume()
    thing = volume if noun == "volumes" else api.snapshot(volume["id"])
    backend.fail["delete_volume" if noun == "volumes" else "delete_snapshot"] = InUse("Somebody holds it.")
    assert api("DELETE", f"/{noun}/{thing['id']}").status == 202
    judge(api)
    assert api.get(f"/{noun}/{thing['id']}")[noun[:-1]]["status"] == "available"
    assert messages(api) == [f"delete {noun[:-1]}: Somebody holds it."]


# --- refusals ----------------------------------------------------------------------------------------------

REFUSED = {
    "extend_volume": InUse("It is open."),
    "revert_volume": InUse("It is open."),
    "delete_snapshot": InUse("Something is made from it."),
    "delete_volume": NotSupported("It is not offered."),
}


@pytest.mark.parametrize("method", REFUSED)
def test_a_refusal_before_the_first_change_leaves_the_status(api: Client, backend: MemoryBackend, method: str) -> None:
    """The volume and its snapshot are what they were; a message says why, and nothing stays charged."""
    volume_id = api.volume()["id"]
    snapshot_id = api.snapshot(volume_id)["id"]
    before = (api.get(f"/volumes/{volume_id}")["volume"], api.get("/limits"))
    if method == "delete_volume":
        api("DELETE", f"/snapshots/{snapshot_id}")
        judge(api)
        before = (before[0], api.get("/limits"))
    backend.fail[method] = REFUSED[method]
    assert FAILURES[method][0](api, volume_id, snapshot_id).status == 202
    judge(api)
    assert not backend.fail
    after = api.get(f"/volumes/{volume_id}")["volume"]
    assert {**after, "updated_at": ""} == {**before[0], "updated_at": ""}
    assert {s["status"] for s in api.get("/snapshots/detail")["snapshots"]} <= {"available"}
    assert api.get("/limits") == before[1]
    assert len(messages(api)) == 1
    assert str(REFUSED[method]) in messages(api)[0]


@pytest.mark.parametrize("status", ["available", "error"])
def test_a_pool_that_is_down_leaves_the_status(api: Client, backend: MemoryBackend, status: str) -> None:
    """Nobody asked the storage, so a deletion that was accepted ends where it began."""
    volume_id = api.volume()["id"]
    snapshot_id = api.snapshot(volume_id)["id"]
    for path, noun in ((f"/volumes/{volume_id}", "volume"), (f"/snapshots/{snapshot_id}", "snapshot")):
        api("POST", f"{path}/action", {"os-reset_status": {"status": status}})
        pool_reports = api.service.pool_reports
        pool_reports.update(dataclasses.replace(pool_reports.reports()[POOL], up=False, reason="The cable is out."))
        assert api("DELETE", f"{path}?cascade=true" if noun == "volume" else path).status == 202
        api.wait_idle()
        pool_reports.update(dataclasses.replace(pool_reports.reports()[POOL], up=True, reason=None))
        assert api.get(path)[noun]["status"] == status
    assert any("The cable is out." in message for message in messages(api))
    assert [name for name, _ in backend.calls if name.startswith("delete")] == []


def test_what_was_begun_before_is_not_taken_for_untouched(api: Client, backend: MemoryBackend) -> None:
    """A revert that ran out of files half-way, and is refused when it is tried again, may have changed bytes."""
    volume_id = api.volume()["id"]
    snapshot_id = api.snapshot(volume_id)["id"]
    errors = iter([OutOfFiles("too many"), InUse("It is open.")])
    real = backend.revert_volume

    def revert(*args: Any, **kw: Any) -> None:
        if (error := next(errors, None)) is not None:
            raise error
        real(*args, **kw)

    backend.revert_volume = revert  # type: ignore[method-assign]
    assert FAILURES["revert_volume"][0](api, volume_id, snapshot_id).status == 202
    api.wait_idle()
    assert api.get(f"/volumes/{volume_id}")["volume"]["status"] == "error"
    assert runner._begun == set()


def test_a_database_that_is_away_is_not_the_operations_fault(
    api: Client, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler is tried again and succeeds; nothing tells of it."""
    monkeypatch.setattr(bus, "RETRY_DELAYS_S", (0.01, 0.01, 0.01))
    times = iter(range(2))
    real = transitions.complete

    def complete(*args: Any, **kw: Any) -> bool:
        if next(times, None) is not None:
            raise OperationalError("UPDATE", {}, Exception("server closed the connection"))
        return real(*args, **kw)

    monkeypatch.setattr(transitions, "complete", complete)
    assert api.volume()["status"] == "available"
    judge(api)
    assert messages(api) == []
    assert [name for name, _ in backend.calls] == ["create_volume"] * 3


# --- attachments -------------------------------------------------------------------------------------------


@pytest.fixture
def attaching(tmp_path: Path, database_url: str) -> Iterator[Client]:
    """An administrator's client of a service whose target a test may tell to fail."""
    service = attaching_service(make_config(tmp_path / "state", database_url), ScriptedTarget())
    service.start()
    yield Client(service)
    target_of(service).calm()
    service.stop()


def attachment(api: Client) -> tuple[str, str]:
    """Return a volume and its attachment, exported and in use."""
    volume = api.volume()["id"]
    connector = {"initiator": "iqn.2026-01.test:a"}
    made = api("POST", "/attachments", {"attachment": {"volume_uuid": volume, "connector": connector}})
    assert made.status == 200, made.body
    found = str(made.json["attachment"]["id"])
    assert api("POST", f"/attachments/{found}/action", {"os-complete": {}}).status == 204
    return volume, found


def both(api: Client, volume: str) -> tuple[Any, ...]:
    shown = api.get(f"/volumes/{volume}")["volume"]
    return (shown["status"], *(a["status"] for a in api.get(f"/attachments?volume_id={volume}")["attachments"]))


def test_a_disconnection_that_fails_keeps_the_volume_in_use_whatever_its_status_was(attaching: Client) -> None:
    volume, found = attachment(attaching)
    assert attaching.action(f"volumes/{volume}", "os-begin_detaching").status == 202
    target_of(attaching.service).fail["withdraw"] = SessionAlive("It does not end.")
    assert attaching("DELETE", f"/attachments/{found}").status == 503
    assert both(attaching, volume) == ("in-use", "error_detaching")
    (operation,) = operations(attaching, kind="DisconnectAttachment")
    assert (operation.state, operation.reason) == ("failed", "It does not end.")
    assert messages(attaching) == ["detach volume: It does not end."]
    judge(attaching)


def test_a_connection_that_fails_leaves_the_volume_as_it_was(attaching: Client) -> None:
    volume = attaching.volume()["id"]
    made = attaching("POST", "/attachments", {"attachment": {"volume_uuid": volume}}).json["attachment"]["id"]
    target_of(attaching.service).fail["export"] = Unreachable("The cable is out.")
    body = {"attachment": {"connector": {"initiator": "iqn.2026-01.test:a"}}}
    assert attaching("PUT", f"/attachments/{made}", body).status == 503
    assert both(attaching, volume) == ("reserved", "error_attaching")
    (operation,) = operations(attaching, kind="ConnectAttachment")
    assert (operation.state, operation.reason) == ("failed", "The cable is out.")
    assert messages(attaching) == ["attach volume: The cable is out."]
    judge(attaching)


def test_an_extension_that_is_refused_late_leaves_an_attached_volume_in_use(attaching: Client) -> None:
    volume, found = attachment(attaching)
    with attaching.service.db.write() as session:  # the pool says no after the API has said yes
        session.execute(update(PoolUsage).values(volume_gib=10**8))
    before = attaching.get("/limits")["limits"]["absolute"]["totalGigabytesUsed"]
    assert attaching.action(f"volumes/{volume}", "os-extend", {"new_size": 2}).status == 202
    assert both(attaching, volume) == ("in-use", "attached")
    assert attaching.get("/limits")["limits"]["absolute"]["totalGigabytesUsed"] == before
    assert attaching("DELETE", f"/attachments/{found}").status == 200
    assert both(attaching, volume) == ("available",)


def test_an_extension_that_fails_and_a_detach_free_the_volume_again(attaching: Client) -> None:
    volume, found = attachment(attaching)
    memory = attaching.service.backends[POOL]
    assert isinstance(memory, MemoryBackend)
    memory.fail["extend_volume"] = BackendError("The disk is on fire.")
    assert attaching.action(f"volumes/{volume}", "os-extend", {"new_size": 2}).status == 202
    assert both(attaching, volume) == ("error_extending", "attached")
    assert attaching("DELETE", f"/attachments/{found}").status == 200
    assert both(attaching, volume) == ("available",)
    judge(attaching)


def test_an_administrator_s_word_is_kept_while_all_is_torn_down(
    attaching: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, _ = attachment(attaching)
    body = {"status": "error", "attach_status": "detached"}
    assert attaching.action(f"volumes/{volume}", "os-reset_status", body).status == 202
    assert both(attaching, volume) == ("error",)
    assert attaching("DELETE", f"/volumes/{volume}").status == 202
    judge(attaching)


# --- the next pool -----------------------------------------------------------------------------------------


def pools(start_service: Callable[..., Service], count: int) -> Client:
    sections = tuple(
        backend_section(name, "memory", {"max_over_subscription_ratio": str(1000 - n)})
        for n, name in enumerate(["first", "second", "third", "fourth"][:count])
    )
    return Client(start_service(backends=sections))


def named(api: Client, name: str) -> MemoryBackend:
    found = api.service.backends[f"blockstore@{name}#{name}"]
    assert isinstance(found, MemoryBackend)
    return found


def test_a_failed_create_goes_to_the_next_pool(start_service: Callable[..., Service]) -> None:
    api = pools(start_service, 2)
    named(api, "first").fail["create_volume"] = NoSpace("full")
    volume = api.volume()
    assert (volume["status"], volume["os-vol-host-attr:host"]) == ("available", "blockstore@second#second")
    judge(api)
    assert messages(api) == []


def test_after_three_pools_it_is_given_up(start_service: Callable[..., Service]) -> None:
    api = pools(start_service, 4)
    for name in ("first", "second", "third", "fourth"):
        named(api, name).fail["create_volume"] = NoSpace(f"{name} is full.")
    assert api.volume()["status"] == "error"
    judge(api)
    assert messages(api) == ["create volume from backend storage: third is full."]
    assert [o.reason for o in operations(api, state="failed")] == [
        "first is full.",
        "second is full.",
        "third is full.",
    ]
    assert "create_volume" in named(api, "fourth").fail


@pytest.mark.parametrize("can_be_removed", [True, False])
def test_a_pool_that_made_it_after_all_keeps_nothing_that_no_row_names(
    start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, can_be_removed: bool
) -> None:
    """A tool that ran out of time may have done its work: it is undone, or the row stays where the bytes may be."""
    api = pools(start_service, 2)
    first = named(api, "first")
    real = first.create_volume

    def late(name: str, size_gib: int) -> None:
        real(name, size_gib)
        raise ToolTimeout("lvcreate did not end within 60 s and was stopped.")

    monkeypatch.setattr(first, "create_volume", late)
    if not can_be_removed:
        first.fail["delete_volume"] = ToolTimeout("lvremove neither.")
    volume = api.volume()
    judge(api)
    expected = ("available", "second") if can_be_removed else ("error", "first")
    assert (volume["status"], volume["os-vol-host-attr:host"].partition("#")[2]) == expected
    assert api("DELETE", f"/volumes/{volume['id']}").status == 202
    judge(api)
    assert dict(first.list_volumes()) == {}


def test_a_pool_that_a_former_life_asked_and_that_is_down_now_keeps_its_row(
    start_service: Callable[..., Service], tmp_path: Any
) -> None:
    """The volume may be there; to make it elsewhere would leave bytes that nobody knows of."""
    api = pools(start_service, 2)
    service = api.service
    real = transitions.complete
    # The first life: made on the pool, and never noted.
    service.db.enqueue = lambda _operation: None
    volume = api.volume(settle=False)
    (placing,) = operations(api, state="open")
    service.bus._components["scheduler"].handlers[type(_operation_of(placing))](_operation_of(placing))
    (creating,) = operations(api, state="open")
    named(api, "first").create_volume(f"volume-{volume['id']}", 1)
    # The second: the pool is down.
    report = service.pool_reports.reports()["blockstore@first#first"]
    service.pool_reports.update(dataclasses.replace(report, up=False, reason="The cable is out."))
    service.db.enqueue = service.bus.enqueue
    service.bus.enqueue(_operation_of(creating, attempt=2))
    judge(api)
    volume = api.get(f"/volumes/{volume['id']}")["volume"]
    assert (volume["status"], volume["os-vol-host-attr:host"]) == ("error", "blockstore@first#first")
    assert "The cable is out." in messages(api)[0]
    assert real is transitions.complete


def _operation_of(row: OperationRow, attempt: int = 1) -> Any:
    from blockstore.operations.catalogue import from_stored

    return from_stored(row.kind, row.id, row.request_id, row.project_id, row.body, attempt=attempt)


# --- what an administrator does meanwhile ------------------------------------------------------------------


def test_a_volume_reset_while_it_is_made_stays_as_it_was_set(
    api: Client, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, backend, "create_volume")
    volume = api.volume(settle=False)
    assert gate.begun.wait(60)
    reset = api("POST", f"/volumes/{volume['id']}/action", {"os-reset_status": {"status": "available"}})
    assert reset.status == 202
    gate.go.set()
    judge(api)
    assert api.get(f"/volumes/{volume['id']}")["volume"]["status"] == "available"
    assert "reset meanwhile" in (operations(api, kind="CreateVolume")[0].reason or "")


def test_an_extension_whose_volume_was_reset_is_a_fact_all_the_same(
    api: Client, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = api.volume()
    gate = Gate(monkeypatch, backend, "extend_volume")
    assert api("POST", f"/volumes/{volume['id']}/action", {"os-extend": {"new_size": 3}}).status == 202
    assert gate.begun.wait(60)
    assert api("POST", f"/volumes/{volume['id']}/action", {"os-reset_status": {"status": "error"}}).status == 202
    gate.go.set()
    api.wait_idle()
    found = api.get(f"/volumes/{volume['id']}")["volume"]
    assert (found["status"], found["size"]) == ("error", 3)
    judge(api)


def test_a_revert_whose_snapshot_was_reset_succeeds(
    api: Client, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = api.volume()
    snapshot = api.snapshot(volume["id"])
    gate = Gate(monkeypatch, backend, "revert_volume")
    revert = api("POST", f"/volumes/{volume['id']}/action", {"revert": {"snapshot_id": snapshot["id"]}})
    assert revert.status == 202
    assert gate.begun.wait(60)
    assert api("POST", f"/snapshots/{snapshot['id']}/action", {"os-reset_status": {"status": "error"}}).status == 202
    gate.go.set()
    api.wait_idle()
    assert api.get(f"/volumes/{volume['id']}")["volume"]["status"] == "available"
    assert api.get(f"/snapshots/{snapshot['id']}")["snapshot"]["status"] == "error"
    assert messages(api) == []


@pytest.mark.parametrize("method", ["create_volume", "extend_volume", "create_snapshot"])
def test_a_forced_delete_of_what_is_being_made_leaves_nothing(
    api: Client, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """It waits its turn, then removes all there is."""
    volume = api.volume() if method != "create_volume" else None
    gate = Gate(monkeypatch, backend, method)
    if volume is None:
        volume = api.volume(settle=False)
    elif method == "extend_volume":
        assert api("POST", f"/volumes/{volume['id']}/action", {"os-extend": {"new_size": 3}}).status == 202
    else:
        assert api("POST", "/snapshots", {"snapshot": {"volume_id": volume["id"]}}).status == 202
    assert gate.begun.wait(60)
    answer = api("DELETE", f"/volumes/{volume['id']}?cascade=true&force=true")
    assert answer.status == 202, answer.body
    gate.go.set()
    judge(api)
    assert api.get("/volumes") == {"volumes": []}
    assert dict(backend.list_volumes()) == {}


# --- cancelling --------------------------------------------------------------------------------------------


def cancel(api: Client, operation: OperationRow) -> None:
    with api.service.db.write() as session:
        session.execute(update(OperationRow).where(OperationRow.id == operation.id).values(cancel_asked=True))


def test_an_operation_cancelled_before_it_began(
    api: Client, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that waits for its busy source."""
    source = api.volume()
    gate = Gate(monkeypatch, backend, "create_snapshot")
    assert api("POST", "/snapshots", {"snapshot": {"volume_id": source["id"]}}).status == 202
    assert gate.begun.wait(60)
    copy = api.volume(settle=False, source_volid=source["id"])
    while not (waiting := operations(api, kind="PlaceVolume", resource_id=copy["id"], state="open")):
        time.sleep(0.005)
    cancel(api, waiting[0])
    gate.go.set()
    judge(api)
    assert api.get(f"/volumes/{copy['id']}")["volume"]["status"] == "error"
    assert messages(api) == ["schedule allocate volume: cancelled by the operator before it began"]
    assert operations(api, state="cancelled")[0].id == waiting[0].id


def test_an_operation_cancelled_while_it_runs_stops_at_its_next_progress(
    api: Client, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The percentage is written down, and is in the reason."""
    monkeypatch.setattr(runner, "PROGRESS_INTERVAL_S", 0.0)
    source = api.volume()
    at_half, go = threading.Event(), threading.Event()

    def clone(_name: str, _size: int, _source: str, progress: Callable[[int], None]) -> None:
        progress(50)
        at_half.set()
        assert go.wait(120)
        progress(60)
        raise AssertionError("it went on")

    monkeypatch.setattr(backend, "clone_volume", clone)
    copy = api.volume(settle=False, source_volid=source["id"])
    assert at_half.wait(60)
    (running,) = operations(api, kind="CreateVolume", resource_id=copy["id"])
    assert running.progress == 50
    cancel(api, running)
    go.set()
    judge(api)
    assert messages(api) == ["create volume from backend storage: cancelled by the operator at 60 %"]


def test_what_half_destroys_is_not_stopped(
    api: Client, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to stop all the same, it goes on to its end."""
    monkeypatch.setattr(runner, "PROGRESS_INTERVAL_S", 0.0)
    volume = api.volume()
    gate = Gate(monkeypatch, backend, "delete_volume")
    assert api("DELETE", f"/volumes/{volume['id']}").status == 202
    assert gate.begun.wait(60)
    cancel(api, operations(api, kind="DeleteVolume")[0])
    gate.go.set()
    judge(api)
    assert api.get("/volumes") == {"volumes": []}


def test_progress_is_written_at_most_once_a_second(service: Service) -> None:
    writes: list[int] = []
    operation: Any = type("Told", (), {"operation_id": "x", "cancellable": False})

    class Component:
        class db:
            @staticmethod
            def write() -> Any:
                writes.append(1)
                return service.db.write()

    tell = runner.progress_of(Component, operation)  # type: ignore[arg-type]
    for percent in range(100):
        tell(percent)
    assert not writes
