"""The doors through which a status changes: compare-and-swap, and no status that nothing leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from blockstore import manager, scheduler
from blockstore.db import migrations
from blockstore.db.models import OperationRow, Snapshot, Volume, VolumeType, new_id
from blockstore.db.session import Database
from blockstore.errors import Reason, StateConflict
from blockstore.operations import catalogue, states
from blockstore.operations.catalogue import (
    KINDS,
    DeleteVolume,
    PlaceVolume,
    RevertVolume,
    from_stored,
    new_operation_id,
)
from blockstore.operations.states import ATTACHMENT, SNAPSHOT, VOLUME, A, Machine, S, V

MACHINES = [VOLUME, SNAPSHOT, ATTACHMENT]
REASON = Reason("The pool is full.", "There is no space.")


@pytest.fixture
def db(tmp_path: Path, database_url: str) -> Iterator[Database]:
    """An empty database of each kind, with a volume type."""
    db = Database(database_url or f"sqlite:///{tmp_path / 'blockstore.db'}")
    migrations.upgrade(db)
    with db.write() as session:
        session.add(VolumeType(id="type", name="type"))
    yield db
    db.dispose()


def volume(db: Database, status: str = "available", **fields: Any) -> str:
    with db.write() as session:
        row = Volume(id=new_id(), project_id="p", size=1, status=status, volume_type_id="type", **fields)
        session.add(row)
    return row.id


def operation_of(volume_id: str) -> DeleteVolume:
    return DeleteVolume(operation_id=new_operation_id(), request_id="r", project_id="p", volume_id=volume_id)


def status_of(db: Database, volume_id: str) -> str:
    with db.read() as session:
        return session.get_one(Volume, volume_id).status


# --- the tables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
def test_every_transitional_status_has_a_failure_and_a_way_out(machine: Machine) -> None:
    for status, failure in machine.failure.items():
        assert failure not in machine.failure, f"{failure} is transitional too"
        assert status in machine.moves[failure], f"{status} may not become {failure}"
        ways_out = {to for to, come_from in machine.moves.items() if status in come_from}
        removed = status in ("deleting", "disconnecting")
        assert removed or failure == "available" or ways_out - {failure}, f"{status} can only fail"


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
def test_every_status_of_an_operation_is_transitional_and_the_reverse(machine: Machine) -> None:
    """A status without an operation, or an operation without a failure status, would be a stuck state."""
    ended: set[str] = set()
    for kind in KINDS.values():
        ids = {
            name: "x"
            for name in (
                "volume_id",
                "snapshot_id",
                "attachment_id",
                "came_from",
                "destination",
                "name_id",
                "name",
                "reference",
            )
            if name in kind.__dataclass_fields__
        }
        extra = {
            name: 1
            for name in ("new_size_gib", "growth_gib", "pool", "type_id", "counted", "size_gib", "volume_gib")
            if name in kind.__dataclass_fields__
        }
        for noun, _id, status in kind(operation_id="o", request_id="r", project_id="p", **ids, **extra).covers():
            if states.MACHINES[noun] is machine:
                ended.add(status)
    assert ended == set(machine.failure)


def test_every_operation_has_exactly_one_handler() -> None:
    handlers = [*scheduler.HANDLERS, *manager.HANDLERS, *manager.MIGRATION_HANDLERS]
    assert sorted(kind.__name__ for kind in handlers) == sorted(KINDS)
    for name, component in (("scheduler", scheduler), ("manager", manager)):
        assert {kind.component for kind in component.HANDLERS} == {name}


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
def test_every_status_in_the_tables_is_one_of_the_machine(machine: Machine) -> None:
    known = {str(status) for status in {VOLUME.name: V, SNAPSHOT.name: S, ATTACHMENT.name: A}[machine.name]}
    used = {
        *machine.moves,
        *machine.failure,
        *machine.failure.values(),
        *(s for f in machine.moves.values() for s in f),
    }
    assert {str(status) for status in used} <= known


# --- the doors ---------------------------------------------------------------------------------------------


def test_eight_threads_and_each_move_is_won_once(db: Database) -> None:
    """100 volumes, 8 threads that want each of them deleted: 100 winners, 100 operations."""
    volumes = [volume(db) for _ in range(100)]
    enqueued: list[Any] = []
    db.enqueue = enqueued.append
    start, lost = threading.Barrier(8), set()

    def race() -> int:
        start.wait(10)
        won = 0
        for volume_id in volumes:
            try:
                with db.write() as session:
                    states.move(
                        session,
                        VOLUME,
                        volume_id,
                        V.DELETING,
                        only_from=(V.AVAILABLE,),
                        operation=operation_of(volume_id),
                    )
                won += 1
            except StateConflict as conflict:
                lost.add(conflict.present)
        return won

    with ThreadPoolExecutor(8) as threads:
        wins = [threads.submit(race) for _ in range(8)]
    assert sum(win.result() for win in wins) == 100
    assert lost == {V.DELETING}
    assert sorted(operation.volume_id for operation in enqueued) == sorted(volumes)
    with db.read() as session:
        assert sorted(session.scalars(select(OperationRow.resource_id))) == sorted(volumes)


def test_a_move_that_is_not_in_the_table_is_refused_and_names_the_present_status(db: Database) -> None:
    volume_id = volume(db, "deleting")
    with (
        pytest.raises(StateConflict, match="is deleting, which does not allow it to become reverting"),
        db.write() as session,
    ):
        states.move(session, VOLUME, volume_id, V.REVERTING, operation=operation_of(volume_id))
    with db.read() as session:
        assert not session.scalars(select(OperationRow)).all()


def test_a_move_of_nothing_says_so(db: Database) -> None:
    with pytest.raises(StateConflict, match="could not be found"), db.write() as session:
        states.move(session, VOLUME, new_id(), V.DELETING)


def test_only_from_cannot_widen_the_table(db: Database) -> None:
    volume_id = volume(db, "error")
    with pytest.raises(StateConflict), db.write() as session:
        states.move(session, VOLUME, volume_id, V.REVERTING, only_from=(V.ERROR,))
    assert status_of(db, volume_id) == "error"


def test_conditions_beyond_the_status_are_in_the_same_update(db: Database) -> None:
    volume_id = volume(db)
    with pytest.raises(StateConflict), db.write() as session:
        states.move(session, VOLUME, volume_id, V.DELETING, where=[Volume.size == 2])
    with db.write() as session:
        states.move(session, VOLUME, volume_id, V.DELETING, where=[Volume.size == 1])
    assert status_of(db, volume_id) == "deleting"


def test_row_and_operation_are_born_together_or_not_at_all(db: Database) -> None:
    enqueued: list[Any] = []
    db.enqueue = enqueued.append
    row = Volume(id=new_id(), project_id="p", size=1, volume_type_id="type")
    operation = PlaceVolume(operation_id=new_operation_id(), request_id="r", project_id="p", volume_id=row.id)

    def bear(fail: bool) -> None:
        with db.write() as session:
            states.insert_with_operation(session, row, operation)
            assert not enqueued
            if fail:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        bear(True)
    with db.read() as session:
        assert not session.scalars(select(OperationRow)).all()
        assert session.get(Volume, row.id) is None


@pytest.mark.parametrize(
    ("settle", "status", "state"),
    [
        (lambda session, operation: states.complete(session, operation, V.AVAILABLE), "available", "done"),
        (lambda session, operation: states.fail(session, operation, REASON), "error", "failed"),
        (
            lambda session, operation: states.fail(session, operation, REASON, to=V.AVAILABLE),
            "available",
            "failed",
        ),
    ],
)
def test_settling_closes_the_operation_with_its_row(
    db: Database, settle: Callable[[Any, Any], Any], status: str, state: str
) -> None:
    volume_id = volume(db, "reverting")
    with db.write() as session:
        snapshot = Snapshot(id=new_id(), project_id="p", volume_id=volume_id, volume_size=1, status="restoring")
        session.add(snapshot)
    operation = RevertVolume(
        operation_id=new_operation_id(), request_id="r", project_id="p", volume_id=volume_id, snapshot_id=snapshot.id
    )
    with db.write() as session:
        states.enqueue(session, operation)
    with db.write() as session:
        settle(session, operation)
    assert status_of(db, volume_id) == status
    with db.read() as session:
        stored = session.get_one(OperationRow, operation.operation_id)
        assert (stored.state, stored.finished_at is not None) == (state, True)
        if state == "failed":
            assert session.get_one(Snapshot, snapshot.id).status == "available"
            assert (stored.reason, stored.public_reason) == REASON


def test_settling_a_row_that_was_reset_leaves_it_and_says_so(db: Database) -> None:
    volume_id = volume(db, "deleting")
    operation = operation_of(volume_id)
    with db.write() as session:
        states.enqueue(session, operation)
        states.reset_status(session, VOLUME, volume_id, V.ERROR, by="somebody")
    with db.write() as session:
        assert not states.complete(session, operation, V.AVAILABLE)
    assert status_of(db, volume_id) == "error"
    with db.read() as session:
        stored = session.get_one(OperationRow, operation.operation_id)
        assert stored.state == "done"
        assert stored.cancel_asked
        assert "reset meanwhile" in (stored.reason or "")


def test_operations_survive_their_journey_through_json(db: Database) -> None:
    """What is stored is what was enqueued, and the attempt is not part of it."""
    operation = PlaceVolume(
        operation_id=new_operation_id(),
        request_id="r",
        project_id="p",
        volume_id="v",
        hints={"same_host": ["a"]},
        tried=("x", "y"),
    )
    with db.write() as session:
        states.enqueue(session, operation)
    with db.read() as session:
        row = session.get_one(OperationRow, operation.operation_id)
    assert from_stored(row.kind, row.id, row.request_id, row.project_id, row.body) == operation
    assert "attempt" not in row.body


def test_operation_ids_sort_by_the_order_of_making_though_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also behind those of a former life, when the clock was ahead."""
    first = new_operation_id()
    monkeypatch.setattr(catalogue.time, "time_ns", lambda: 1)
    second = new_operation_id()
    former = f"{int(second[:16], 16) + 10**6:016x}-00000000.01"
    catalogue.make_ids_after(former)
    assert first < second < former < new_operation_id() < new_operation_id()


def test_operation_ids_sort_by_the_time_of_making() -> None:
    ids = [new_operation_id() for _ in range(5000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 5000
