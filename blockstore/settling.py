"""Around every handler: load the row, run the handler, and whatever happens inside, the row settles with a reason.

Used by the rooms that handle orders. A handler settles its own success; every failure is settled here, in one place.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from sqlalchemy import Select, bindparam, delete, select, update
from sqlalchemy.orm import Session

from blockstore import claims, messages, quotas, states
from blockstore.db import patience
from blockstore.db.models import Attachment, OrderRow, Volume, now
from blockstore.db.session import Database
from blockstore.errors import (
    BackendError,
    BlockstoreError,
    DatabaseAway,
    NoBackend,
    OrderCancelled,
    OutOfFiles,
    OverQuota,
    Reason,
    TryAgain,
    Unreachable,
    is_out_of_files,
)
from blockstore.messages import Detail
from blockstore.orders import (
    ChangeType,
    ConnectAttachment,
    DisconnectAttachment,
    ExtendVolume,
    ManageVolume,
    MoveToType,
    MoveVolume,
    Order,
    PlaceExtension,
    PlaceMigration,
    RemoveCopy,
    RetypeVolume,
)
from blockstore.states import A, V

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 1.0

PROGRESS_WAIT_S = 1.0
"""What telling the progress may hold up the work."""


class KeepsStatus(BlockstoreError):
    """A failure that leaves the row as it was: it gets the status it had before, or ``to``."""

    def __init__(self, cause: BackendError, to: str | None = None):
        self.cause, self.to = cause, to
        super().__init__(cause.message, public=cause.public)


class Room(Protocol):
    """What a handler's room offers to this file."""

    @property
    def db(self) -> Database:
        """The database."""

    @property
    def message_days(self) -> int:
        """Days that messages are kept."""


def settles(function: Callable[[Any, Any, Any], None]) -> Callable[[Any, Any], None]:
    """Make a handler of ``function(room, order, row)``.

    The function is not called when the row is gone or something else has taken it over: the order just ends.
    """

    @functools.wraps(function)
    def handler(room: Room, order: Order) -> None:
        row = _begin(room, order)
        if row is not None:
            try:
                if row is _CANCELLED:
                    raise OrderCancelled("cancelled by the operator before it began")
                function(room, order, row)
            except TryAgain:
                raise  # the database or this node is the matter, not the order: the bus tries again
            except Exception as exc:
                if is_out_of_files(exc):
                    raise OutOfFiles(f"Too many open files: {exc}") from exc
                _fail(room, order, exc)
        _begun.discard(order.order_id)

    return handler


_begun: set[str] = set()
"""Open orders whose first change may have been made in this process; the bus tries some of them again."""


@contextmanager
def first_change(order: Order, *, whenever: tuple[type[BackendError], ...] = ()) -> Iterator[None]:
    """Let a refusal inside give the row the status it had before the order. Nothing may be changed before this.

    The type of an error says that it is a refusal (``BackendError.untouched``). What was begun before may be half done,
    so that a refusal proves nothing any more, save those that are raised ``whenever`` nothing is lost.
    """
    is_first = order.attempt == 1 and order.order_id not in _begun
    _begun.add(order.order_id)
    try:
        yield
    except BackendError as exc:
        if isinstance(exc, whenever) or (exc.untouched and is_first):
            raise KeepsStatus(exc) from exc
        raise


def progress_of(room: Room, order: Order) -> Callable[[int], None]:
    """Return a callback that writes the percentage down, at most once a second, and stops a cancelled order."""
    next_at = time.monotonic() + PROGRESS_INTERVAL_S

    def tell(percent: int) -> None:
        nonlocal next_at
        if time.monotonic() < next_at:
            return
        next_at = time.monotonic() + PROGRESS_INTERVAL_S
        # A database that is away for a moment must not cost the work that was done.
        with suppress(DatabaseAway), patience.limited(PROGRESS_WAIT_S), room.db.write() as session:
            session.execute(update(OrderRow).where(OrderRow.id == order.order_id).values(progress=percent))
            refuse_cancelled(session, order, f"at {percent} %")

    return tell


def refuse_cancelled(session: Session, order: Order, when: str = "at the end") -> None:
    """Raise OrderCancelled for an order that was asked to stop, or whose row got another status, and may stop."""
    asked = session.execute(select(OrderRow.cancel_asked).where(OrderRow.id == order.order_id)).scalar()
    if asked and order.cancellable:
        raise OrderCancelled(f"cancelled by the operator {when}")


def mark_started(db: Database, order: Order) -> None:
    """Note that an order runs for long enough to be shown as running, if the database takes it."""
    with suppress(DatabaseAway), patience.limited(PROGRESS_WAIT_S), db.write() as session:
        session.execute(
            update(OrderRow).where(OrderRow.id == order.order_id, OrderRow.state == "open").values(started_at=now())
        )


_CANCELLED = object()


def _with_row(model: Any) -> Select[Any]:
    order, row = OrderRow.__table__.c, model.__table__.c
    return (
        select(
            *row,
            order.state.label("order_state"),
            order.cancel_asked.label("order_cancel_asked"),
            order.attempt.label("order_attempt"),
        )
        .select_from(OrderRow.__table__.outerjoin(model.__table__, row.id == order.resource_id))
        .where(order.id == bindparam("order"))
    )


# Built once, and of plain columns: handlers only read, and need no object that knows its session.
_WITH_ROW = {kind: _with_row(machine.model) for kind, machine in states.MACHINES.items()}


def _begin(room: Room, order: Order) -> Any:
    """Return the row, or None when there is nothing left to do, or the mark of a cancelled order."""
    with room.db.read() as session:
        row = session.execute(_WITH_ROW[order.resource_type], {"order": order.order_id}).one_or_none()
    if row is None or row.order_state != "open":
        return None
    if row.status == order.status:
        if order.attempt > row.order_attempt:
            # Noted before it can kill the process again; what only waits in line does not age.
            with room.db.write() as session:
                session.execute(update(OrderRow).where(OrderRow.id == order.order_id).values(attempt=order.attempt))
        return _CANCELLED if row.order_cancel_asked and order.cancellable else row
    with room.db.write() as session:
        why = "the resource is gone, or its status was changed meanwhile"
        give_up(session, order, Reason(why, why), state="cancelled")
    return None


def give_up(session: Session, order: Order, reason: Reason, *, state: str = "failed", to: str | None = None) -> None:
    """Close an order that will not succeed: give back what was charged for it, settle every row it covers."""
    if isinstance(order, ExtendVolume):
        claims.release(session, order.pool, volume_gib=order.growth_gib)
    if isinstance(order, PlaceExtension | ExtendVolume):
        type_id = session.execute(select(Volume.volume_type_id).where(Volume.id == order.volume_id)).scalar()
        if type_id is not None:  # else the volume is gone, and all that it was charged for was given back
            quotas.refund(session, order.project_id, type_id, gigabytes=order.growth_gib)
    if isinstance(order, PlaceMigration | MoveVolume):
        session.execute(update(Volume).where(Volume.id == order.volume_id).values(migration_status="error"))
    if isinstance(order, MoveVolume):
        states.file(session, the_other(order, order.destination, order.copy_name, order.volume_gib))
    if isinstance(order, ManageVolume):
        _take_back(session, order)
    if isinstance(order, RetypeVolume | ChangeType | MoveToType):
        quotas.refund_type(session, order.project_id, order.type_id, volumes=order.counted, gigabytes=order.size_gib)
    if isinstance(order, PlaceExtension | RetypeVolume | ChangeType):
        # Its bytes were not touched, so the volume is what it was.
        to = states.before(session, order)
    if isinstance(order, ConnectAttachment | DisconnectAttachment):
        states.lock(session, order.volume_id)
        session.execute(
            update(Attachment)
            .where(Attachment.id == order.attachment_id)
            .values(reason=None if to else reason.operator)
        )
    states.settle_failed(session, order, reason, state=state, to=to)
    if isinstance(order, ConnectAttachment):
        # No list shows what os-initialize_connection makes, so nobody could remove what is left of it.
        session.execute(
            delete(Attachment).where(
                Attachment.id == order.attachment_id, Attachment.legacy, Attachment.status == A.ERROR_ATTACHING
            )
        )
    if isinstance(order, DisconnectAttachment):
        if order.follow:
            states.reckon(session, order.volume_id)
    elif to in (V.AVAILABLE, V.IN_USE) and _status_of(session, order) == to:
        states.reckon(session, order.resource_id)


def _take_back(session: Session, order: ManageVolume) -> None:
    """Let a volume that was not taken over be nowhere again, and give back what was charged for it."""
    volume = session.execute(
        select(Volume.host, Volume.size, Volume.volume_type_id, Volume.project_id).where(
            Volume.id == order.volume_id, Volume.status == order.status
        )
    ).one_or_none()
    if volume is None or volume.host is None:
        return
    claims.release(session, volume.host, volumes=1, volume_gib=volume.size)
    quotas.refund(session, volume.project_id, volume.volume_type_id, volumes=1, gigabytes=volume.size)
    session.execute(update(Volume).where(Volume.id == order.volume_id).values(host=None, size=0, consumes_quota=False))


def the_other(order: MoveVolume, pool: str, name: str, size_gib: int) -> RemoveCopy:
    """Return the order that removes, after a move or the end of one, what is not the volume."""
    return order.beside(RemoveCopy, pool=pool, name=name, size_gib=size_gib)


def _status_of(session: Session, order: Order) -> str | None:
    model: Any = states.MACHINES[order.resource_type].model
    status: str | None = session.execute(select(model.status).where(model.id == order.resource_id)).scalar()
    return status


def _fail(room: Room, order: Order, exc: Exception) -> None:
    reason, detail, state = _explain(order, exc)
    reason = Reason(*(text.replace("\0", "") for text in reason))  # PostgreSQL takes none, and tools say anything
    with room.db.write() as session:
        to = (exc.to or states.before(session, order)) if isinstance(exc, KeepsStatus) else None
        give_up(session, order, reason, state=state, to=to)
        messages.tell(session, order, detail, reason, room.message_days)
    log.warning(
        "%s of %s %s %s: %s",
        order.kind,
        order.resource_type,
        order.resource_id,
        state,
        reason.operator,
        extra={"request_id": order.request_id},
    )


def _explain(order: Order, exc: Exception) -> tuple[Reason, Detail, str]:
    if isinstance(exc, KeepsStatus):
        exc = exc.cause
    if isinstance(exc, OrderCancelled):
        return exc.reason, Detail.CANCELLED, "cancelled"
    if isinstance(exc, NoBackend):
        return exc.reason, Detail.NO_BACKEND_AVAILABLE, "failed"
    if isinstance(exc, Unreachable):
        return exc.reason, Detail.BACKEND_UNREACHABLE, "failed"
    if isinstance(exc, BackendError | OverQuota):
        return exc.reason, Detail.BACKEND_REFUSED, "failed"
    log.error("%s %s failed unexpectedly", order.kind, order.order_id, exc_info=exc)
    reason = Reason(
        f"an internal error ({type(exc).__name__}) stopped it; the log has the details under {order.request_id}",
        "An internal error stopped it. Ask your administrator.",
    )
    return reason, Detail.UNKNOWN_ERROR, "failed"
