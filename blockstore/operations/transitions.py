"""The transitions of statuses. No other module writes a status.

A row is in a transitional status exactly when an open operation covers it. Operations are therefore enqueued and
finished in the transaction that changes the status. Used by every component; never calls a backend.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import ColumnElement, Update, bindparam, delete, select, update
from sqlalchemy.orm import Session

from blockstore.db.models import MIGRATION_ENDED, Attachment, Snapshot, Volume, not_migrating, now
from blockstore.errors import Reason, StateConflict
from blockstore.operations import journal
from blockstore.operations.catalogue import Operation
from blockstore.operations.states import FOLLOWS_ATTACHMENTS, MACHINES, VOLUME, A, S, StateMachine, V

log = logging.getLogger(__name__)


# --- by a request ------------------------------------------------------------------------------------------


def insert_with_operation(session: Session, row: Volume | Snapshot | Attachment, operation: Operation) -> None:
    """Insert a row in an operation's transitional status, and enqueue that operation."""
    row.status = operation.status
    session.add(row)
    session.flush()
    journal.enqueue(session, operation)


def insert_row(session: Session, attachment: Attachment, status: A) -> None:
    """Insert an attachment that needs no operation."""
    attachment.status = status
    session.add(attachment)
    session.flush()


def move(
    session: Session,
    machine: StateMachine,
    row_id: str,
    to: str,
    *,
    only_from: Sequence[str] = (),
    where: Sequence[ColumnElement[bool]] = (),
    operation: Operation | None = None,
    **values: Any,
) -> None:
    """Change a status by compare-and-swap, and enqueue the operation that will end the new status, if there is one.

    ``only_from`` narrows the statuses from which it may change; ``where`` adds conditions beyond the status. A volume
    for which an operation is enqueued keeps its former status in its row (``before``).
    Raise StateConflict with the present status if the move is not allowed; nothing is changed then.
    """
    model: Any = machine.model
    statement = _moving(machine.name, to, tuple(only_from), remembers=machine is VOLUME and operation is not None)
    if where:
        statement = statement.where(*where)
    if values:
        statement = statement.values(values)
    changed = session.execute(statement, {"row": row_id, "status": to, "updated_at": now()})
    if changed.rowcount != 1:  # type: ignore[attr-defined]
        present = session.execute(select(model.status).where(model.id == row_id)).scalar()
        raise StateConflict(machine.name, row_id, present, to)
    log.debug("%s %s -> %s", machine.name, row_id, to)
    if operation is not None:
        journal.enqueue(session, operation)


@functools.cache
def _moving(machine: str, to: str, only_from: tuple[str, ...], *, remembers: bool) -> Update:
    """Return the compare-and-swap statement; cached, because building it takes longer than running it."""
    found = MACHINES[machine.lower()]
    table: Any = found.model.__table__
    statement = update(table).where(table.c.id == bindparam("row"))
    if remembers:
        statement = statement.values(previous_status=table.c.status)
    for allowed in (found.moves[to], only_from):
        if allowed:
            statement = statement.where(table.c.status.in_(sorted(allowed)))
    return statement


def reset_status(session: Session, machine: StateMachine, row_id: str, to: str, *, by: str) -> None:
    """Set a status regardless of the present one: the administrator's os-reset_status. Ask open operations to stop."""
    model: Any = machine.model
    session.execute(update(model).where(model.id == row_id).values(status=to, updated_at=now()))
    journal.request_cancel(session, row_id)
    log.warning("status of %s %s set to %s by %s", machine.name.lower(), row_id, to, by)


def cancel_transfer(session: Session, volume_id: str) -> None:
    """Make a volume available after its transfer was cancelled. A status that was set meanwhile stays."""
    with suppress(StateConflict):
        move(session, VOLUME, volume_id, V.AVAILABLE, only_from=(V.AWAITING_TRANSFER,))


def delete_now(session: Session, operation: Operation) -> None:
    """Delete a row that needs no work, and record its operation as done to keep the history complete."""
    journal.record(session, operation)
    complete_and_delete(session, operation)


def unmanage(
    session: Session,
    machine: StateMachine,
    row_id: str,
    only_from: Sequence[str],
    where: Sequence[ColumnElement[bool]] = (),
) -> None:
    """Delete the row of a volume or snapshot that stays on its backend.

    Raise StateConflict if its status or a condition does not allow it; nothing is changed then.
    """
    model: Any = machine.model
    gone = session.execute(delete(model).where(model.id == row_id, model.status.in_(sorted(only_from)), *where))
    if gone.rowcount != 1:  # type: ignore[attr-defined]
        present = session.execute(select(model.status).where(model.id == row_id)).scalar()
        raise StateConflict(machine.name, row_id, present, "unmanaging")
    log.info("%s %s is no longer managed", machine.name.lower(), row_id)


# --- after attachments -------------------------------------------------------------------------------------

_SHOWN_BY = {
    A.ATTACHED: "attached",
    A.ERROR_DETACHING: "attached",  # the initiator may still read and write
    A.CONNECTING: "attaching",
    A.ATTACHING: "attaching",
    A.DISCONNECTING: "detaching",
    A.RESERVED: "reserved",
}


def lock(session: Session, volume_id: str) -> None:
    """Lock a volume and its attachments until the transaction ends.

    Call it before changing an attachment, because the volume's status changes after it. With this order, two
    transactions cannot deadlock. SQLite has one writer at a time and needs no lock.
    """
    session.execute(select(Volume.id).where(Volume.id == volume_id).with_for_update())


def sync_volume_status(session: Session, volume_id: str) -> None:
    """Derive a volume's status and attach status from its attachments, in the transaction that changed them.

    compat: Cinder uses the alphabetically first attach status and ignores error_attaching.
    A volume that other work uses (not in FOLLOWS_ATTACHMENTS) keeps its status. A volume that is being migrated does
    not become available.
    """
    rows = session.scalars(
        select(Attachment.status).where(Attachment.volume_id == volume_id, Attachment.legacy.is_(False))
    )
    attach_status = min((_SHOWN_BY[A(row)] for row in rows if row in _SHOWN_BY), default="detached")
    status = {"attached": V.IN_USE, "detached": V.AVAILABLE}.get(attach_status, attach_status)
    volume = update(Volume).where(Volume.id == volume_id)
    session.execute(volume.values(attach_status=attach_status, updated_at=now()))
    following = volume.where(Volume.status.in_(sorted(FOLLOWS_ATTACHMENTS)))
    if status == V.AVAILABLE:
        following = following.where(not_migrating(MIGRATION_ENDED))  # compat: Cinder leaves out `deleting`
    session.execute(following.values(status=status))


# --- at the end of an operation ----------------------------------------------------------------------------


def complete(session: Session, operation: Operation, to: str, **values: Any) -> bool:
    """Close an operation as done and move its row to ``to``. Return False if the status was reset meanwhile."""
    machine = MACHINES[operation.resource_type]
    try:
        move(session, machine, operation.resource_id, to, only_from=(operation.status,), **values)
    except StateConflict as conflict:
        journal.finish(session, operation, "done", f"the status was reset meanwhile: {conflict.message}")
        return False
    journal.finish(session, operation)
    return True


def before(session: Session, operation: Operation) -> str:
    """Return the stable status that an operation's row had before it, or available if that is unknown."""
    machine = MACHINES[operation.resource_type]
    status = getattr(operation, "came_from", "")
    if operation.resource_type == "volume":
        status = session.execute(select(Volume.previous_status).where(Volume.id == operation.resource_id)).scalar()
    status = machine.failure.get(status or "", status)  # a forced delete takes over from other operations
    if status in machine.moves and operation.status in machine.moves[status]:
        return str(status)
    return V.AVAILABLE if machine is VOLUME else S.AVAILABLE


def complete_and_delete(session: Session, operation: Operation) -> None:
    """Close an operation as done and delete its row."""
    model: Any = MACHINES[operation.resource_type].model
    session.execute(delete(model).where(model.id == operation.resource_id))
    journal.finish(session, operation)


def fail(
    session: Session, operation: Operation, reason: Reason, *, state: str = "failed", to: str | None = None
) -> None:
    """Close an operation as failed. Set every row it covers to its failure status, or its own row to ``to``."""
    fail_rows(session, operation, to=to)
    journal.finish(session, operation, state, reason.operator, reason.public)


def fail_rows(session: Session, operation: Operation, *, to: str | None = None) -> None:
    """Set every row that an operation covers to its failure status. A row in another status is left alone.

    ``to`` is another status for the operation's own row, for failures that left it unchanged.
    """
    for resource_type, row_id, status in operation.covers():
        machine = MACHINES[resource_type]
        model: Any = machine.model
        present = session.execute(select(model.status).where(model.id == row_id)).scalar()
        if present == status:
            own = row_id == operation.resource_id
            move(session, machine, row_id, to if own and to else machine.failure[status], only_from=(status,))
