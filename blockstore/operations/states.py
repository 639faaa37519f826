"""Statuses and their transitions. No other module writes a status.

A row is in a transitional status exactly when an open operation covers it. Operations are therefore enqueued and
finished here, in the transaction that changes the status. Used by every component; never calls a backend.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Update, bindparam, delete, insert, or_, select, update
from sqlalchemy.orm import Session

from blockstore.db.models import Attachment, Base, OperationRow, Snapshot, Volume, now
from blockstore.db.session import after_commit
from blockstore.errors import Reason, StateConflict
from blockstore.operations.catalogue import Operation

log = logging.getLogger(__name__)


class V(StrEnum):
    """Statuses of a volume."""

    CREATING = "creating"
    DOWNLOADING = "downloading"
    AVAILABLE = "available"
    RESERVED = "reserved"
    ATTACHING = "attaching"
    IN_USE = "in-use"
    DETACHING = "detaching"
    MAINTENANCE = "maintenance"
    EXTENDING = "extending"
    RETYPING = "retyping"
    UPLOADING = "uploading"
    BACKING_UP = "backing-up"
    RESTORING_BACKUP = "restoring-backup"
    AWAITING_TRANSFER = "awaiting-transfer"
    MANAGING = "managing"
    UNMANAGING = "unmanaging"
    REVERTING = "reverting"
    DELETING = "deleting"
    ERROR = "error"
    ERROR_DELETING = "error_deleting"
    ERROR_EXTENDING = "error_extending"
    ERROR_RESTORING = "error_restoring"
    ERROR_BACKING_UP = "error_backing-up"
    ERROR_MANAGING = "error_managing"


class S(StrEnum):
    """Statuses of a snapshot."""

    CREATING = "creating"
    AVAILABLE = "available"
    DELETING = "deleting"
    DELETED = "deleted"
    UPDATING = "updating"
    ERROR = "error"
    ERROR_DELETING = "error_deleting"
    UNMANAGING = "unmanaging"
    BACKING_UP = "backing-up"
    RESTORING = "restoring"


class A(StrEnum):
    """Statuses of an attachment."""

    RESERVED = "reserved"
    CONNECTING = "connecting"
    """Shown as attaching: its export is being made."""
    ATTACHING = "attaching"
    ATTACHED = "attached"
    DISCONNECTING = "disconnecting"
    """Shown as detaching: its export is being ended."""
    ERROR_ATTACHING = "error_attaching"
    ERROR_DETACHING = "error_detaching"


ANY = frozenset[str]()
"""In a table of moves: the status is reachable from every status, as by a forced delete."""


@dataclass(frozen=True)
class Machine:
    """The statuses of one kind of row. Do not merge the tables of two machines: their members have equal hashes."""

    name: str
    model: type[Base]
    moves: Mapping[str, frozenset[str]]
    """For each status, the statuses from which it may be reached; ``ANY`` means all."""
    failure: Mapping[str, str]
    """For each transitional status, the status after its operation failed."""


FOLLOWS_ATTACHMENTS = frozenset(
    {
        V.AVAILABLE, V.RESERVED, V.ATTACHING, V.IN_USE, V.DETACHING, V.ERROR, V.ERROR_EXTENDING, V.ERROR_DELETING,
        V.ERROR_RESTORING,
    }
)  # fmt: skip
"""Statuses of a volume that its attachments may replace. In the other statuses, other work uses the volume."""

VOLUME = Machine(
    name="Volume",
    model=Volume,
    moves={
        V.CREATING: frozenset({V.ERROR}),
        V.AVAILABLE: frozenset(
            {
                V.CREATING,
                V.EXTENDING,
                V.REVERTING,
                V.RETYPING,
                V.DELETING,
                V.AWAITING_TRANSFER,
                V.MAINTENANCE,
                V.MANAGING,
            }
        )
        | FOLLOWS_ATTACHMENTS,
        V.AWAITING_TRANSFER: frozenset({V.AVAILABLE}),
        V.RESERVED: FOLLOWS_ATTACHMENTS | {V.DOWNLOADING},
        V.ATTACHING: FOLLOWS_ATTACHMENTS,
        V.IN_USE: FOLLOWS_ATTACHMENTS | {V.EXTENDING, V.RETYPING},
        V.DETACHING: FOLLOWS_ATTACHMENTS,
        V.EXTENDING: frozenset({V.AVAILABLE, V.IN_USE}),
        V.REVERTING: frozenset({V.AVAILABLE}),
        V.MAINTENANCE: frozenset({V.AVAILABLE}),
        V.RETYPING: frozenset({V.AVAILABLE, V.IN_USE}),
        V.DELETING: ANY,
        V.ERROR: frozenset({V.CREATING, V.REVERTING, V.DELETING}),
        V.ERROR_EXTENDING: frozenset({V.EXTENDING, V.DELETING}),
        V.ERROR_RESTORING: frozenset({V.DELETING}),
        V.ERROR_DELETING: frozenset({V.DELETING}),
        V.ERROR_MANAGING: frozenset({V.MANAGING, V.DELETING}),
    },
    failure={
        V.CREATING: V.ERROR,
        V.MANAGING: V.ERROR_MANAGING,
        V.EXTENDING: V.ERROR_EXTENDING,
        V.REVERTING: V.ERROR,
        V.RETYPING: V.AVAILABLE,
        V.MAINTENANCE: V.AVAILABLE,
        V.DELETING: V.ERROR_DELETING,
    },
)
SNAPSHOT = Machine(
    name="Snapshot",
    model=Snapshot,
    moves={
        S.AVAILABLE: frozenset({S.CREATING, S.RESTORING, S.DELETING}),
        S.RESTORING: frozenset({S.AVAILABLE}),
        S.DELETING: ANY,
        S.ERROR: frozenset({S.CREATING, S.DELETING}),
        S.ERROR_DELETING: frozenset({S.DELETING}),
    },
    failure={
        S.CREATING: S.ERROR,
        S.DELETING: S.ERROR_DELETING,
        S.RESTORING: S.AVAILABLE,
    },
)
ATTACHMENT = Machine(
    name="Attachment",
    model=Attachment,
    moves={
        A.RESERVED: frozenset({A.DISCONNECTING}),
        A.CONNECTING: frozenset({A.RESERVED, A.ATTACHING, A.ERROR_ATTACHING}),
        A.ATTACHING: frozenset({A.CONNECTING, A.DISCONNECTING}),
        A.ATTACHED: frozenset({A.RESERVED, A.ATTACHING, A.ATTACHED, A.DISCONNECTING}),
        A.DISCONNECTING: ANY,
        A.ERROR_ATTACHING: frozenset({A.CONNECTING, A.DISCONNECTING}),
        A.ERROR_DETACHING: frozenset({A.DISCONNECTING}),
    },
    failure={
        A.CONNECTING: A.ERROR_ATTACHING,
        A.DISCONNECTING: A.ERROR_DETACHING,
    },
)
MACHINES: Mapping[str, Machine] = {"volume": VOLUME, "snapshot": SNAPSHOT, "attachment": ATTACHMENT}

EXPORTED = (A.CONNECTING, A.ATTACHING, A.ATTACHED, A.DISCONNECTING, A.ERROR_DETACHING)
"""Statuses of an attachment that may have an export."""


# --- transitions -------------------------------------------------------------------------------------------


def insert_with_operation(session: Session, row: Volume | Snapshot | Attachment, operation: Operation) -> None:
    """Insert a row in an operation's transitional status, and enqueue that operation."""
    row.status = operation.status
    session.add(row)
    session.flush()
    enqueue(session, operation)


def insert_row(session: Session, attachment: Attachment, status: A) -> None:
    """Insert an attachment that needs no operation."""
    attachment.status = status
    session.add(attachment)
    session.flush()


def move(
    session: Session,
    machine: Machine,
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
        enqueue(session, operation)


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
        following = following.where(
            or_(Volume.migration_status.is_(None), Volume.migration_status.in_(("success", "error")))
        )
    session.execute(following.values(status=status))


def reset_status(session: Session, machine: Machine, row_id: str, to: str, *, by: str) -> None:
    """Set a status regardless of the present one: the administrator's os-reset_status. Ask open operations to stop."""
    model: Any = machine.model
    session.execute(update(model).where(model.id == row_id).values(status=to, updated_at=now()))
    session.execute(
        update(OperationRow)
        .where(OperationRow.resource_id == row_id, OperationRow.state == "open")
        .values(cancel_asked=True)
    )
    log.warning("status of %s %s set to %s by %s", machine.name.lower(), row_id, to, by)


def cancel_transfer(session: Session, volume_id: str) -> None:
    """Make a volume available after its transfer was cancelled. A status that was set meanwhile stays."""
    with suppress(StateConflict):
        move(session, VOLUME, volume_id, V.AVAILABLE, only_from=(V.AWAITING_TRANSFER,))


def delete_now(session: Session, operation: Operation) -> None:
    """Delete a row that needs no work, and record its operation as done to keep the history complete."""
    _write_down(session, operation)
    complete_and_delete(session, operation)


def unmanage(
    session: Session, machine: Machine, row_id: str, only_from: Sequence[str], where: Sequence[ColumnElement[bool]] = ()
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


def is_covered(session: Session, kind: type[Operation], row_id: str) -> bool:
    """Return True if an operation of a kind is open for a row."""
    statement = select(OperationRow.id).where(
        OperationRow.resource_id == row_id, OperationRow.state == "open", OperationRow.kind == kind.__name__
    )
    return session.execute(statement.limit(1)).first() is not None


# --- operations ------------------------------------------------------------------------------------------------


def enqueue(session: Session, operation: Operation) -> None:
    """Store an operation. It goes to the bus after the transaction has committed."""
    _write_down(session, operation)
    after_commit(session, operation)


def _write_down(session: Session, operation: Operation) -> None:
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


_OPERATIONS: Any = OperationRow.__table__
# Built once: building a statement takes longer than running it.
_INSERT = insert(_OPERATIONS)
_FINISH = update(_OPERATIONS).where(_OPERATIONS.c.id == bindparam("operation"))


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


def complete(session: Session, operation: Operation, to: str, **values: Any) -> bool:
    """Close an operation as done and move its row to ``to``. Return False if the status was reset meanwhile."""
    machine = MACHINES[operation.resource_type]
    try:
        move(session, machine, operation.resource_id, to, only_from=(operation.status,), **values)
    except StateConflict as conflict:
        finish(session, operation, "done", f"the status was reset meanwhile: {conflict.message}")
        return False
    finish(session, operation)
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
    finish(session, operation)


def fail(
    session: Session, operation: Operation, reason: Reason, *, state: str = "failed", to: str | None = None
) -> None:
    """Close an operation as failed. Set every row it covers to its failure status, or its own row to ``to``."""
    fail_rows(session, operation, to=to)
    finish(session, operation, state, reason.operator, reason.public)


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
