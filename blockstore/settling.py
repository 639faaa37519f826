"""Around every handler: load the row, run the handler, and whatever happens inside, the row settles with a reason.

Used by the rooms that handle orders. A handler settles its own success. A failure is settled here, in one transaction
with the handler's undo and the message; what these are stands beside the handler, and no order is named here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Select, bindparam, select, update
from sqlalchemy.orm import Session

from blockstore import messages, states
from blockstore.db import patience
from blockstore.db.models import OrderRow, now
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
from blockstore.messages import Action, Detail
from blockstore.orders import Kind, Order
from blockstore.states import V

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


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How an order ended that did not succeed."""

    reason: Reason
    state: str = "failed"
    to: str | None = None
    """The status that its row gets; none: the one that stands for the failure."""


Undo = Callable[[Session, Any, Failure], None]
"""What a failure does beside the statuses, called before they change: mostly to give back what was charged."""


@dataclass(frozen=True, kw_only=True)
class Handler:
    """Carries out the orders of one kind; made by ``handles``."""

    kind: type[Order]
    function: Callable[..., None]
    action: Action
    """What was being done, in the message about a failure."""
    undo: Undo | None = None
    restores: bool = False
    """Whether the row has the status that it had before the order when that fails."""

    def __call__(self, room: Room, order: Order) -> None:
        """Call the function, unless the row is gone or something else has taken it over: the order just ends."""
        row = self._begin(room, order)
        if row is not None:
            try:
                if row is _CANCELLED:
                    raise OrderCancelled("cancelled by the operator before it began")
                self.function(room, order, row)
            except TryAgain:
                raise  # the database or this node is the matter, not the order: the bus tries again
            except Exception as exc:
                if is_out_of_files(exc):
                    raise OutOfFiles(f"Too many open files: {exc}") from exc
                self._fail(room, order, exc)
        _begun.discard(order.order_id)

    def give_up(self, session: Session, order: Order, failure: Failure) -> None:
        """Close an order that will not succeed: undo what it had charged, and settle every row it covers."""
        if self.undo is not None:
            self.undo(session, order, failure)
        to = states.before(session, order) if self.restores else failure.to
        states.settle_failed(session, order, failure.reason, state=failure.state, to=to)
        if order.resource_type == "volume" and to in (V.AVAILABLE, V.IN_USE) and _status_of(session, order) == to:
            states.reckon(session, order.resource_id)

    def _begin(self, room: Room, order: Order) -> Any:
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
            self.give_up(session, order, Failure(reason=Reason(why, why), state="cancelled"))
        return None

    def _fail(self, room: Room, order: Order, exc: Exception) -> None:
        reason, detail, state = _explain(order, exc)
        reason = Reason(*(text.replace("\0", "") for text in reason))  # PostgreSQL takes none, and tools say anything
        with room.db.write() as session:
            to = (exc.to or states.before(session, order)) if isinstance(exc, KeepsStatus) else None
            self.give_up(session, order, Failure(reason=reason, state=state, to=to))
            messages.tell(session, order, self.action, detail, reason, room.message_days)
        log.warning(
            "%s of %s %s %s: %s",
            order.kind,
            order.resource_type,
            order.resource_id,
            state,
            reason.operator,
            extra={"request_id": order.request_id},
        )


class UntilDone(Handler):
    """Carries out orders that cover no row and cannot fail; made by ``handles_until_done``."""

    def __call__(self, room: Room, order: Order) -> None:
        """Call the function while the order is open; the bus tries again whatever it raises."""
        with room.db.read() as session:
            state = session.execute(select(OrderRow.state).where(OrderRow.id == order.order_id)).scalar()
        if state == "open":
            self.function(room, order)


def handles(
    kind: type[Kind],
    *,
    action: Action,
    undo: Callable[[Session, Kind, Failure], None] | None = None,
    restores: bool = False,
) -> Callable[[Callable[[Any, Kind, Any], None]], Handler]:
    """Make a handler of ``function(room, order, row)``, with what its failure does and tells."""
    return lambda function: Handler(kind=kind, function=function, action=action, undo=undo, restores=restores)


def handles_until_done(kind: type[Kind], *, action: Action) -> Callable[[Callable[[Any, Kind], None]], Handler]:
    """Make a handler of ``function(room, order)``, which closes the order by itself."""
    return lambda function: UntilDone(kind=kind, function=function, action=action)


def by_kind(*handlers: Handler) -> Mapping[type[Order], Handler]:
    """Return the handlers of a room by the orders that they carry out."""
    return {handler.kind: handler for handler in handlers}


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


def _status_of(session: Session, order: Order) -> str | None:
    model: Any = states.MACHINES[order.resource_type].model
    status: str | None = session.execute(select(model.status).where(model.id == order.resource_id)).scalar()
    return status


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
