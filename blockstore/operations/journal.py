"""The journal of operations: the table ``operations``, which says what is open and how the rest ended.

``operations/bus.py`` runs what is enqueued here, and ``operations/recovery.py`` reads what is open after a crash.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.orm import Session

from blockstore.db.models import OperationRow, now
from blockstore.db.session import after_commit
from blockstore.operations.catalogue import Operation

_OPERATIONS: Any = OperationRow.__table__
# Built once: building a statement takes longer than running it.
_INSERT = insert(_OPERATIONS)
_FINISH = update(_OPERATIONS).where(_OPERATIONS.c.id == bindparam("operation"))


def enqueue(session: Session, operation: Operation) -> None:
    """Store an operation. It goes to the bus after the transaction has committed."""
    record(session, operation)
    after_commit(session, operation)


def record(session: Session, operation: Operation) -> None:
    """Store an operation as open, without giving it to the bus."""
    row = {
        "id": operation.operation_id,
        "kind": operation.kind,
        "body": operation.body(),
        "resource_type": operation.resource_type,
        "resource_id": operation.resource_id,
        "project_id": operation.project_id,
        "request_id": operation.request_id,
    }
    session.execute(_INSERT, row)


def complete_and_continue(
    session: Session, operation: Operation, following: Operation, *, failure: str | None = None
) -> None:
    """Finish an operation and enqueue the one that continues its work. ``failure``: why another attempt is made."""
    finish(session, operation, "failed" if failure else "done", failure)
    enqueue(session, following)


def finish(
    session: Session,
    operation: Operation,
    state: str = "done",
    reason: str | None = None,
    public_reason: str | None = None,
) -> None:
    """Close an operation; ``reason`` is the operator's text."""
    values = {
        "operation": operation.operation_id,
        "state": state,
        "reason": reason,
        "public_reason": public_reason,
        "finished_at": now(),
    }
    session.execute(_FINISH, values)


def request_cancel(session: Session, row_id: str) -> None:
    """Ask the open operations of a row to stop."""
    session.execute(
        update(OperationRow)
        .where(OperationRow.resource_id == row_id, OperationRow.state == "open")
        .values(cancel_asked=True)
    )


def is_covered(session: Session, kind: type[Operation], row_id: str) -> bool:
    """Return True if an operation of a kind is open for a row."""
    statement = select(OperationRow.id).where(
        OperationRow.resource_id == row_id, OperationRow.state == "open", OperationRow.kind == kind.__name__
    )
    return session.execute(statement.limit(1)).first() is not None
