"""A status changes by compare-and-swap, together with the operation that causes the change."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select

from blockstore.db.models import OperationRow, Snapshot, Volume, new_id
from blockstore.db.session import Database
from blockstore.errors import Reason, StateConflict
from blockstore.operations import journal, transitions
from blockstore.operations.catalogue import (
    DeleteVolume,
    PlaceVolume,
    RevertVolume,
    new_operation_id,
)
from blockstore.operations.states import VOLUME, V

REASON = Reason("The pool is full.", "There is no space.")


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


def test_eight_threads_and_each_move_is_won_once(db: Database) -> None:
    """100 volumes, 8 threads that want each of them deleted: 100 winners, 100 operations."""
    volumes = [volume(db) for _ in range(100)]
    enqueued: list[Any] = []
    db.enqueue = enqueued.append
    start, lost = threading.Barrier(8), set()

    def race() -> int:
        start.wait(60)
        won = 0
        for volume_id in volumes:
            try:
                with db.write() as session:
                    transitions.move(
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
        transitions.move(session, VOLUME, volume_id, V.REVERTING, operation=operation_of(volume_id))
    with db.read() as session:
        assert not session.scalars(select(OperationRow)).all()


def test_a_move_of_nothing_says_so(db: Database) -> None:
    with pytest.raises(StateConflict, match="could not be found"), db.write() as session:
        transitions.move(session, VOLUME, new_id(), V.DELETING)


def test_only_from_cannot_widen_the_table(db: Database) -> None:
    volume_id = volume(db, "error")
    with pytest.raises(StateConflict), db.write() as session:
        transitions.move(session, VOLUME, volume_id, V.REVERTING, only_from=(V.ERROR,))
    assert status_of(db, volume_id) == "error"


def test_conditions_beyond_the_status_are_in_the_same_update(db: Database) -> None:
    volume_id = volume(db)
    with pytest.raises(StateConflict), db.write() as session:
        transitions.move(session, VOLUME, volume_id, V.DELETING, where=[Volume.size == 2])
    with db.write() as session:
        transitions.move(session, VOLUME, volume_id, V.DELETING, where=[Volume.size == 1])
    assert status_of(db, volume_id) == "deleting"


def test_row_and_operation_are_born_together_or_not_at_all(db: Database) -> None:
    enqueued: list[Any] = []
    db.enqueue = enqueued.append
    row = Volume(id=new_id(), project_id="p", size=1, volume_type_id="type")
    operation = PlaceVolume(operation_id=new_operation_id(), request_id="r", project_id="p", volume_id=row.id)

    def bear(fail: bool) -> None:
        with db.write() as session:
            transitions.insert_with_operation(session, row, operation)
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
        (lambda session, operation: transitions.complete(session, operation, V.AVAILABLE), "available", "done"),
        (lambda session, operation: transitions.fail(session, operation, REASON), "error", "failed"),
        (
            lambda session, operation: transitions.fail(session, operation, REASON, to=V.AVAILABLE),
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
        journal.enqueue(session, operation)
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
        journal.enqueue(session, operation)
        transitions.reset_status(session, VOLUME, volume_id, V.ERROR, by="somebody")
    with db.write() as session:
        assert not transitions.complete(session, operation, V.AVAILABLE)
    assert status_of(db, volume_id) == "error"
    with db.read() as session:
        stored = session.get_one(OperationRow, operation.operation_id)
        assert stored.state == "done"
        assert stored.cancel_asked
        assert "reset meanwhile" in (stored.reason or "")
