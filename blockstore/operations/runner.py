"""Around every handler: load the row, run the handler, and whatever happens inside, the row settles with a reason.

Used by the components that handle operations. A handler settles its own success. A failure is settled here, in one
transaction with the handler's undo and the message; what these are stands beside the handler, and no operation is named
here.
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

from blockstore.db import patience
from blockstore.db.models import OperationRow, now
from blockstore.db.session import Database
from blockstore.errors import (
    BackendError,
    BlockstoreError,
    DatabaseAway,
    NoBackend,
    OperationCancelled,
    OutOfFiles,
    OverQuota,
    Reason,
    TryAgain,
    Unreachable,
    is_out_of_files,
)
from blockstore.operations import messages, states
from blockstore.operations.catalogue import Kind, Operation
from blockstore.operations.messages import Action, Detail
from blockstore.operations.states import V

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 1.0

PROGRESS_WAIT_S = 1.0
"""What telling the progress may hold up the work."""


class KeepsStatus(BlockstoreError):
    """A failure that leaves the row as it was: it gets the status it had before, or ``to``."""

    def __init__(self, cause: BackendError, to: str | None = None):
        self.cause, self.to = cause, to
        super().__init__(cause.message, public=cause.public)


class HandlerContext(Protocol):
    """What a handler's component offers to this file."""

    @property
    def db(self) -> Database:
        """The database."""

    @property
    def message_days(self) -> int:
        """Days that messages are kept."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How an operation ended that did not succeed."""

    reason: Reason
    state: str = "failed"
    to: str | None = None
    """The status that its row gets; none: the one that stands for the failure."""


Undo = Callable[[Session, Any, Failure], None]
"""What a failure does beside the statuses, called before they change: mostly to give back what was charged."""


@dataclass(frozen=True, kw_only=True)
class Handler:
    """Carries out the operations of one kind; made by ``handles``."""

    kind: type[Operation]
    function: Callable[..., None]
    action: Action
    """What was being done, in the message about a failure."""
    undo: Undo | None = None
    restores: bool = False
    """Whether the row has the status that it had before the operation when that fails."""

    def __call__(self, context: HandlerContext, operation: Operation) -> None:
        """Call the function, unless the row is gone or something else has taken it over: the operation just ends."""
        row = self._begin(context, operation)
        if row is not None:
            try:
                if row is _CANCELLED:
                    raise OperationCancelled("cancelled by the operator before it began")
                self.function(context, operation, row)
            except TryAgain:
                raise  # the database or this node is the matter, not the operation: the bus tries again
            except Exception as exc:
                if is_out_of_files(exc):
                    raise OutOfFiles(f"Too many open files: {exc}") from exc
                self._fail(context, operation, exc)
        _begun.discard(operation.operation_id)

    def give_up(self, session: Session, operation: Operation, failure: Failure) -> None:
        """Close an operation that will not succeed: undo what it had charged, and settle every row it covers."""
        if self.undo is not None:
            self.undo(session, operation, failure)
        to = states.before(session, operation) if self.restores else failure.to
        states.fail(session, operation, failure.reason, state=failure.state, to=to)
        if (
            operation.resource_type == "volume"
            and to in (V.AVAILABLE, V.IN_USE)
            and _status_of(session, operation) == to
        ):
            states.sync_volume_status(session, operation.resource_id)

    def _begin(self, context: HandlerContext, operation: Operation) -> Any:
        """Return the row, or None when there is nothing left to do, or the mark of a cancelled operation."""
        with context.db.read() as session:
            row = session.execute(
                _WITH_ROW[operation.resource_type], {"operation": operation.operation_id}
            ).one_or_none()
        if row is None or row.operation_state != "open":
            return None
        if row.status == operation.status:
            if operation.attempt > row.operation_attempt:
                # Noted before it can kill the process again; what only waits in line does not age.
                with context.db.write() as session:
                    session.execute(
                        update(OperationRow)
                        .where(OperationRow.id == operation.operation_id)
                        .values(attempt=operation.attempt)
                    )
            return _CANCELLED if row.operation_cancel_asked and operation.cancellable else row
        with context.db.write() as session:
            why = "the resource is gone, or its status was changed meanwhile"
            self.give_up(session, operation, Failure(reason=Reason(why, why), state="cancelled"))
        return None

    def _fail(self, context: HandlerContext, operation: Operation, exc: Exception) -> None:
        reason, detail, state = _explain(operation, exc)
        reason = Reason(*(text.replace("\0", "") for text in reason))  # PostgreSQL takes none, and tools say anything
        with context.db.write() as session:
            to = (exc.to or states.before(session, operation)) if isinstance(exc, KeepsStatus) else None
            self.give_up(session, operation, Failure(reason=reason, state=state, to=to))
            messages.tell(session, operation, self.action, detail, reason, context.message_days)
        log.warning(
            "%s of %s %s %s: %s",
            operation.kind,
            operation.resource_type,
            operation.resource_id,
            state,
            reason.operator,
            extra={"request_id": operation.request_id},
        )


class UntilDone(Handler):
    """Carries out operations that cover no row and cannot fail; made by ``handles_until_done``."""

    def __call__(self, context: HandlerContext, operation: Operation) -> None:
        """Call the function while the operation is open; the bus tries again whatever it raises."""
        with context.db.read() as session:
            state = session.execute(
                select(OperationRow.state).where(OperationRow.id == operation.operation_id)
            ).scalar()
        if state == "open":
            self.function(context, operation)


def handles(
    kind: type[Kind],
    *,
    action: Action,
    undo: Callable[[Session, Kind, Failure], None] | None = None,
    restores: bool = False,
) -> Callable[[Callable[[Any, Kind, Any], None]], Handler]:
    """Make a handler of ``function(context, operation, row)``, with what its failure does and tells."""
    return lambda function: Handler(kind=kind, function=function, action=action, undo=undo, restores=restores)


def handles_until_done(kind: type[Kind], *, action: Action) -> Callable[[Callable[[Any, Kind], None]], Handler]:
    """Make a handler of ``function(context, operation)``, which closes the operation by itself."""
    return lambda function: UntilDone(kind=kind, function=function, action=action)


def by_kind(*handlers: Handler) -> Mapping[type[Operation], Handler]:
    """Return the handlers of a component by the operations that they carry out."""
    return {handler.kind: handler for handler in handlers}


_begun: set[str] = set()
"""Open operations whose first change may have been made in this process; the bus tries some of them again."""


@contextmanager
def first_change(operation: Operation, *, whenever: tuple[type[BackendError], ...] = ()) -> Iterator[None]:
    """Let a refusal inside give the row the status it had before the operation. Nothing may be changed before this.

    The type of an error says that it is a refusal (``BackendError.untouched``). What was begun before may be half done,
    so that a refusal proves nothing any more, save those that are raised ``whenever`` nothing is lost.
    """
    is_first = operation.attempt == 1 and operation.operation_id not in _begun
    _begun.add(operation.operation_id)
    try:
        yield
    except BackendError as exc:
        if isinstance(exc, whenever) or (exc.untouched and is_first):
            raise KeepsStatus(exc) from exc
        raise


def progress_of(context: HandlerContext, operation: Operation) -> Callable[[int], None]:
    """Return a callback that writes the percentage down, at most once a second, and stops a cancelled operation."""
    next_at = time.monotonic() + PROGRESS_INTERVAL_S

    def tell(percent: int) -> None:
        nonlocal next_at
        if time.monotonic() < next_at:
            return
        next_at = time.monotonic() + PROGRESS_INTERVAL_S
        # A database that is away for a moment must not cost the work that was done.
        with suppress(DatabaseAway), patience.limited(PROGRESS_WAIT_S), context.db.write() as session:
            session.execute(
                update(OperationRow).where(OperationRow.id == operation.operation_id).values(progress=percent)
            )
            refuse_cancelled(session, operation, f"at {percent} %")

    return tell


def refuse_cancelled(session: Session, operation: Operation, when: str = "at the end") -> None:
    """Raise OperationCancelled for an operation that was asked to stop, or whose row got another status,
    and may stop.
    """
    asked = session.execute(select(OperationRow.cancel_asked).where(OperationRow.id == operation.operation_id)).scalar()
    if asked and operation.cancellable:
        raise OperationCancelled(f"cancelled by the operator {when}")


def mark_started(db: Database, operation: Operation) -> None:
    """Note that an operation runs for long enough to be shown as running, if the database takes it."""
    with suppress(DatabaseAway), patience.limited(PROGRESS_WAIT_S), db.write() as session:
        session.execute(
            update(OperationRow)
            .where(OperationRow.id == operation.operation_id, OperationRow.state == "open")
            .values(started_at=now())
        )


_CANCELLED = object()


def _with_row(model: Any) -> Select[Any]:
    operation, row = OperationRow.__table__.c, model.__table__.c
    return (
        select(
            *row,
            operation.state.label("operation_state"),
            operation.cancel_asked.label("operation_cancel_asked"),
            operation.attempt.label("operation_attempt"),
        )
        .select_from(OperationRow.__table__.outerjoin(model.__table__, row.id == operation.resource_id))
        .where(operation.id == bindparam("operation"))
    )


# Built once, and of plain columns: handlers only read, and need no object that knows its session.
_WITH_ROW = {kind: _with_row(machine.model) for kind, machine in states.MACHINES.items()}


def _status_of(session: Session, operation: Operation) -> str | None:
    model: Any = states.MACHINES[operation.resource_type].model
    status: str | None = session.execute(select(model.status).where(model.id == operation.resource_id)).scalar()
    return status


def _explain(operation: Operation, exc: Exception) -> tuple[Reason, Detail, str]:
    if isinstance(exc, KeepsStatus):
        exc = exc.cause
    if isinstance(exc, OperationCancelled):
        return exc.reason, Detail.CANCELLED, "cancelled"
    if isinstance(exc, NoBackend):
        return exc.reason, Detail.NO_BACKEND_AVAILABLE, "failed"
    if isinstance(exc, Unreachable):
        return exc.reason, Detail.BACKEND_UNREACHABLE, "failed"
    if isinstance(exc, BackendError | OverQuota):
        return exc.reason, Detail.BACKEND_REFUSED, "failed"
    log.error("%s %s failed unexpectedly", operation.kind, operation.operation_id, exc_info=exc)
    reason = Reason(
        f"an internal error ({type(exc).__name__}) stopped it; the log has the details under {operation.request_id}",
        "An internal error stopped it. Ask your administrator.",
    )
    return reason, Detail.UNKNOWN_ERROR, "failed"
