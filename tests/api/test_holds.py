"""A volume changes hands only while nothing holds it: no connection of its former owner, no copy that is being made."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import text, update

from blockstore.db.models import Attachment, OperationRow, Snapshot, Volume, now
from blockstore.operations import states, transitions
from blockstore.operations.catalogue import new_operation_id
from tests.api.conftest import POOL, SharedService, at_once
from tests.api.test_attachments import CONNECTOR, connect, remove, reserve
from tests.api.volumes.test_attach_actions import ask, attach, initialize, terminate
from tests.api.volumes.test_transfers import NEW, accept, offer
from tests.conftest import Answer, Client

ATTACHMENT_STATUSES = tuple(map(str, states.A))


def offered(client: Client, volume: str, **more: Any) -> Answer:
    return client("POST", NEW, {"transfer": {"volume_id": volume, **more}})


def set_status(shared_service: SharedService, volume: str, status: str) -> None:
    """As an administrator does."""
    answer = shared_service.admin()("POST", f"/volumes/{volume}/action", {"os-reset_status": {"status": status}})
    assert answer.status == 202


# --- connections -------------------------------------------------------------------------------------------


def test_what_os_initialize_connection_made_keeps_a_volume_from_being_offered(attach_service: SharedService) -> None:
    """The volume is available all the while, and no list shows why not; the refusal does."""
    donor, receiver = attach_service.member(), attach_service.member()
    volume = attach_service.volume(donor)
    assert initialize(donor, volume).status == 200
    assert attach_service.statuses(volume) == ("available", "detached")
    before = attach_service.facts(volume)
    for where in ("/volume-transfers", "/os-volume-transfer"):
        refused = donor("POST", where, {"transfer": {"volume_id": volume}})
        assert (refused.status, refused.message) == (
            400,
            f"Invalid volume: volume {volume} cannot be offered: it has a connection made by os-initialize_connection;"
            " end it with os-terminate_connection first.",
        )
    assert attach_service.facts(volume) == before
    assert terminate(donor, volume).status == 202
    transfer = offer(donor, volume)
    assert accept(receiver, transfer["id"], transfer["auth_key"]).status == 202
    assert not attach_service.target.exports


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("status", ATTACHMENT_STATUSES)
def test_an_attachment_in_any_status_holds_a_volume(sqlite_service: SharedService, status: str, legacy: bool) -> None:
    """Neither offered nor accepted: also when an administrator has set the status that would allow it."""
    donor, receiver = sqlite_service.member(), sqlite_service.member()
    volume = sqlite_service.volume(donor)
    transfer = offer(donor, volume)
    set_status(sqlite_service, volume, "available")
    row = sqlite_service.attachment(donor, volume, status=status, legacy=legacy)
    assert offered(donor, volume).status == 400
    set_status(sqlite_service, volume, "awaiting-transfer")
    refused = accept(receiver, transfer["id"], transfer["auth_key"])
    held = "it has a connection" if legacy else "it has an attachment; delete the attachment first"
    assert (refused.status, f"{volume} cannot be accepted: {held}" in refused.message) == (400, True), refused.message
    with sqlite_service.db.write() as session:
        assert session.get_one(Volume, volume).project_id == donor.headers["X-Project-Id"]
        session.delete(session.get_one(Attachment, row))
    assert accept(receiver, transfer["id"], transfer["auth_key"]).status == 202


def test_what_awaits_a_transfer_is_connected_to_nobody(attach_service: SharedService) -> None:
    donor = attach_service.member()
    volume = attach_service.volume(donor)
    offer(donor, volume)
    before = attach_service.facts(volume)
    for answer in (
        initialize(donor, volume),
        ask(donor, volume, "os-reserve"),
        attach(donor, volume),
        reserve(donor, volume),
        reserve(donor, volume, connector=CONNECTOR),
    ):
        assert (answer.status, "awaiting-transfer" in answer.message) == (400, True), answer.body
    assert attach_service.facts(volume) == before
    left = attach_service.attachment(donor, volume, status="error_attaching")
    answer = connect(donor, left)
    assert (answer.status, "awaiting-transfer" in answer.message) == (409, True)
    assert not attach_service.target.exports


def test_of_an_offer_and_a_connection_at_once_one_is_refused(attach_service: SharedService) -> None:
    donor = attach_service.member()
    another = attach_service.member(donor.headers["X-Project-Id"])
    for _ in range(10):
        volume = attach_service.volume(donor)
        answers = at_once(
            2,
            lambda n: initialize(another, volume) if n else offered(donor, volume),  # noqa: B023
        )
        donor.wait_idle()
        assert sorted(answer.status for answer in answers) in ([200, 400], [202, 400])
        status = "awaiting-transfer" if answers[0].status == 202 else "available"
        assert attach_service.statuses(volume) == (status, "detached")
        assert bool(attach_service.target.exports) == (answers[1].status == 200)
        terminate(donor, volume)


def test_a_volume_with_a_connection_is_not_reverted(attach_service: SharedService) -> None:
    """Its initiator would go on with bytes that are the volume's no more."""
    client = attach_service.member()
    volume = attach_service.volume(client)
    snapshot = attach_service.snapshot(client, volume)
    initialize(client, volume)
    before = attach_service.facts(volume)
    refused = ask(client, volume, "revert", {"snapshot_id": snapshot})
    assert (refused.status, refused.message) == (
        409,
        f"Volume {volume} cannot be reverted: it has a connection made by os-initialize_connection;"
        " end it with os-terminate_connection first.",
    )
    assert attach_service.facts(volume) == before
    assert client.get(f"/snapshots/{snapshot}")["snapshot"]["status"] == "available"


@pytest.mark.parametrize("name", ["os-migrate_volume", "os-unmanage"])
def test_a_volume_with_a_connection_is_neither_moved_nor_let_go(attach_service: SharedService, name: str) -> None:
    admin = attach_service.admin()
    volume = attach_service.volume(admin)
    initialize(admin, volume)
    before = attach_service.facts(volume)
    refused = ask(admin, volume, name, {"host": "nowhere@else"} if name == "os-migrate_volume" else {})
    assert refused.status == 400
    assert attach_service.facts(volume) == before


@pytest.mark.parametrize("how", ["os-force_delete", "DELETE"])
def test_with_a_volume_go_its_exports(attach_service: SharedService, how: str) -> None:
    admin = attach_service.admin()
    volume = admin.volume()["id"]
    initialize(admin, volume)
    assert len(attach_service.target.exports) == 1
    answer = admin("DELETE", f"/volumes/{volume}") if how == "DELETE" else ask(admin, volume, how)
    assert answer.status == 202
    admin.wait_idle()
    assert admin("GET", f"/volumes/{volume}").status == 404
    assert not attach_service.target.exports


def test_what_is_reset_while_it_is_exported_stays_with_its_project(attach_service: SharedService) -> None:
    """An administrator's reset takes no export away unless it says detached; so the export holds the volume."""
    client, admin = attach_service.member(), attach_service.admin()
    volume = attach_service.volume(client)
    made = reserve(client, volume, connector=CONNECTOR).json["attachment"]["id"]
    set_status(attach_service, volume, "available")
    assert set(attach_service.target.exports) == {made}
    assert offered(client, volume).status == 400
    assert ask(admin, volume, "os-unmanage").status == 400
    ask(admin, volume, "os-reset_status", {"status": "available", "attach_status": "detached"})
    admin.wait_idle()
    assert not attach_service.target.exports
    assert offered(client, volume).status == 202


# --- operations --------------------------------------------------------------------------------------------


@contextmanager
def stuck(shared_service: SharedService, monkeypatch: pytest.MonkeyPatch, method: str) -> Iterator[threading.Event]:
    """Let the backend begin something and not end it; yields what is set when it has begun."""
    backend = shared_service.service.backends[POOL]
    real, begun, goes_on = getattr(backend, method), threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert goes_on.wait(120)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(backend, method, slow)
        yield begun
        goes_on.set()
        shared_service.admin().wait_idle()


@pytest.mark.parametrize("no_snapshots", [False, True])
@pytest.mark.parametrize(
    ("method", "path", "noun", "source"),
    [
        ("clone_volume", "/volumes", "volume", "source_volid"),
        ("create_snapshot", "/snapshots", "snapshot", "volume_id"),
    ],
)
def test_a_copy_that_is_being_made_holds_a_volume(
    sqlite_service: SharedService,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    noun: str,
    source: str,
    no_snapshots: bool,
) -> None:
    """Else the former owner's copy would have what the next one writes."""
    donor = sqlite_service.member()
    volume = donor.volume()["id"]
    with stuck(sqlite_service, monkeypatch, method) as begun:
        assert donor("POST", path, {noun: {source: volume}}).status == 202
        assert begun.wait(60)
        refused = offered(donor, volume, no_snapshots=no_snapshots)
        assert refused.status == 400
        assert "is not finished" in refused.message or "must be available" in refused.message, refused.message
    assert offered(donor, volume, no_snapshots=True).status == 202


def test_an_operation_holds_a_volume_whose_status_was_reset(sqlite_service: SharedService) -> None:
    """Its quota would be given back to the wrong project; what a migration has left elsewhere does no harm."""
    donor, receiver = sqlite_service.member(), sqlite_service.member()
    volume = sqlite_service.volume(donor)
    transfer = offer(donor, volume)
    facts = {"resource_type": "volume", "resource_id": volume, "project_id": "p", "request_id": "r", "body": {}}
    operation = sqlite_service.add(OperationRow, id=new_operation_id(), kind="ExtendVolume", **facts)
    try:
        refused = accept(receiver, transfer["id"], transfer["auth_key"])
        assert (refused.status, "is not finished" in refused.message) == (400, True)
        with sqlite_service.db.write() as session:
            session.execute(update(OperationRow).where(OperationRow.id == operation).values(kind="RemoveCopy"))
        assert accept(receiver, transfer["id"], transfer["auth_key"]).status == 202
    finally:
        with sqlite_service.db.write() as session:
            session.delete(session.get_one(OperationRow, operation))


# --- what was decided before it changed hands --------------------------------------------------------------


def change(method: str, path: str, body: Any = None) -> Callable[[Client, str, str], Answer]:
    return lambda client, volume, snapshot: client(method, path.format(v=volume, s=snapshot), body)


CHANGES = {
    "extend": change("POST", "/volumes/{v}/action", {"os-extend": {"new_size": 2}}),
    "rename": change("PUT", "/volumes/{v}", {"volume": {"name": "mine"}}),
    "bootable": change("POST", "/volumes/{v}/action", {"os-set_bootable": {"bootable": True}}),
    "add metadata": change("POST", "/volumes/{v}/metadata", {"metadata": {"whose": "mine"}}),
    "remove metadata": change("DELETE", "/volumes/{v}/metadata/k"),
    "clone": lambda client, volume, _: client("POST", "/volumes", {"volume": {"source_volid": volume}}),
    "snapshot": lambda client, volume, _: client("POST", "/snapshots", {"snapshot": {"volume_id": volume}}),
    "delete": change("DELETE", "/volumes/{v}"),
    "connect": lambda client, volume, _: initialize(client, volume),
    "reserve": lambda client, volume, _: reserve(client, volume),
    "offer": lambda client, volume, _: offered(client, volume),
    "revert": lambda client, volume, snapshot: ask(client, volume, "revert", {"snapshot_id": snapshot}),
    "delete a snapshot": change("DELETE", "/snapshots/{s}"),
    "rename a snapshot": change("PUT", "/snapshots/{s}", {"snapshot": {"name": "mine"}}),
    "add metadata to a snapshot": change("POST", "/snapshots/{s}/metadata", {"metadata": {"whose": "mine"}}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_who_asks_while_it_changes_hands_is_told_that_there_is_none(attach_service: SharedService, name: str) -> None:
    """The former owner's request has been let in, and waits for the transaction of the one who accepts.

    On PostgreSQL for the lock on the volume, on SQLite for the one writer.
    """
    donor, receiver = attach_service.member(), attach_service.member()
    volume = attach_service.volume(donor)
    snapshot = attach_service.snapshot(donor, volume, number=1)
    with ThreadPoolExecutor(1) as thread:
        with attach_service.db.write() as session:
            transitions.lock(session, volume)
            asked = thread.submit(CHANGES[name], donor, volume, snapshot)
            _wait_until_blocked(attach_service, asked)
            for model, row in ((Volume, volume), (Snapshot, snapshot)):
                session.execute(
                    update(model).where(model.id == row).values(project_id=receiver.headers["X-Project-Id"])
                )
        answer = asked.result(60)
    assert answer.status == 404, answer.body
    donor.wait_idle()
    with attach_service.db.read() as session:
        row, shot = session.get_one(Volume, volume), session.get_one(Snapshot, snapshot)
    assert (row.status, row.size, row.name, row.bootable, shot.status, shot.name) == (
        "available", 1, None, False, "available", None,
    )  # fmt: skip


def _wait_until_blocked(shared_service: SharedService, asked: Any) -> None:
    """Return when a request waits for the lock; SQLite does not tell, and lets nobody pass."""
    if shared_service.db.is_sqlite:
        return
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type='Lock'"
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not asked.done():
        with shared_service.db.read() as session:
            if session.execute(waiting).scalar():
                return
        time.sleep(0.01)
    raise AssertionError("nothing waits for the lock")


# --- what is left of former versions -----------------------------------------------------------------------


def test_a_connection_of_a_former_owner_is_ended_at_the_next_look(attach_service: SharedService) -> None:
    """Versions before 0008 let it live on."""
    donor, receiver = attach_service.member(), attach_service.member()
    volume = attach_service.volume(donor)
    initialize(donor, volume)
    kept = attach_service.volume(receiver)
    initialize(receiver, kept)
    with attach_service.db.write() as session:
        owner = receiver.headers["X-Project-Id"]
        session.execute(update(Volume).where(Volume.id == volume).values(project_id=owner, updated_at=now()))
    attach_service.service.exports.reconcile(attach_service.service.backends)
    receiver.wait_idle()
    (export,) = attach_service.target.exports.values()
    assert export.volume == f"volume-{kept}"
    assert attach_service.facts(volume)[1] == []
    assert attach_service.statuses(volume) == ("available", "detached")


def test_administrators_end_what_no_list_shows(attach_service: SharedService) -> None:
    member, admin = attach_service.member(), attach_service.admin()
    volume = attach_service.volume(member)
    initialize(member, volume)
    (row,) = attach_service.facts(volume)[1]
    assert member("GET", f"/attachments/{row.id}").status == remove(member, row.id).status == 404
    assert connect(admin, row.id).status == 404
    shown = admin.get(f"/attachments/{row.id}")["attachment"]
    assert (shown["volume_id"], shown["status"]) == (volume, "attaching")
    assert admin.get("/attachments?all_tenants=1")["attachments"] == []
    removed = remove(admin, row.id)
    assert (removed.status, removed.json) == (200, {"attachments": []})
    assert not attach_service.target.exports
    assert attach_service.statuses(volume) == ("available", "detached")
