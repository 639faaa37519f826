"""What the journal stores of an operation is what was enqueued."""

from __future__ import annotations

from blockstore.db.models import OperationRow
from blockstore.db.session import Database
from blockstore.operations import journal
from blockstore.operations.catalogue import PlaceVolume, from_stored, new_operation_id


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
        journal.enqueue(session, operation)
    with db.read() as session:
        row = session.get_one(OperationRow, operation.operation_id)
    assert from_stored(row.kind, row.id, row.request_id, row.project_id, row.body) == operation
    assert "attempt" not in row.body
