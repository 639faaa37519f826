"""Runs handlers: load the row, call the handler, and complete every failure with a reason.

Used by the components that handle operations. A handler completes its own success. A failure is completed here, in one
transaction with the handler's undo and the message. Undo and message are defined beside the handler; this module names
no operation.
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

from blockstore.db import wait_limits
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
from blockstore.operations import messages, states, transitions
from blockstore.operations.catalogue import Kind, Operation
from blockstore.operations.messages import Action, Detail
from blockstore.operations.states import V

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 1.0

PROGRESS_WAIT_S = 1.0
"""Longest delay of the work by storing its progress."""


class KeepsStatus(BlockstoreError):
    """A failure that left the resource unchanged: the row gets its former status, or ``to``."""

    def __init__(self, cause: BackendError, to: str | None = None):
        self.cause, self.to = cause, to
        super().__init__(cause.message, public=cause.public)


class HandlerContext(Protocol):
    """The part of a component's context that this module uses."""

    @property
    def db(self) -> Database:
        """The database."""

    @property
    def message_days(self) -> int:
        """Days that messages are kept."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The outcome of an operation that did not succeed."""

    reason: Reason
    state: str = "failed"
    to: str | None = None
    """The new status of its row; None: the failure status."""


Undo = Callable[[Session, Any, Failure], None]
"""Called when an operation fails, before the statuses change; mostly to refund charges and release capacity."""


@dataclass(frozen=True, kw_only=True)
class Handler:
    """Carries out the operations of one kind; made by ``handles``."""

    kind: type[Operation]
    function: Callable[..., None]
    action: Action
    """The action in the message about a failure."""
    undo: Undo | None = None
    restores: bool = False
    """Whether a failure restores the status that the row had before the operation."""

    def __call__(self, context: HandlerContext, operation: Operation) -> None:
        """Call the function. If the row is gone or has another status, give the operation up instead."""
        row = self._begin(context, operation)
        if row is not None:
            try:
                if row is _CANCELLED:
                    raise OperationCancelled("cancelled by the operator before it began")
                self.function(context, operation, row)
            except TryAgain:
                raise  # the database or this node failed, not the operation: the bus tries again
            except Exception as exc:
                if is_out_of_files(exc):
                    raise OutOfFiles(f"Too many open files: {exc}") from exc
                self._fail(context, operation, exc)
        _begun.discard(operation.operation_id)

    def give_up(self, session: Session, operation: Operation, failure: Failure) -> None:
        """Close an operation that will not succeed: call its undo and set the status of every row it covers."""
        if self.undo is not None:
            self.undo(session, operation, failure)
        to = transitions.before(session, operation) if self.restores else failure.to
        transitions.fail(session, operation, failure.reason, state=failure.state, to=to)
        if (
            operation.resource_type == "volume"
            and to in (V.AVAILABLE, V.IN_USE)
            and _status_of(session, operation) == to
        ):
            transitions.sync_volume_status(session, operation.resource_id)

    def _begin(self, context: HandlerContext, operation: Operation) -> Any:
        """Return the row, None if nothing is left to do, or ``_CANCELLED`` for a cancelled operation."""
        with context.db.read() as session:
            row = session.execute(
                _WITH_ROW[operation.resource_type], {"operation": operation.operation_id}
            ).one_or_none()
        if row is None or row.operation_state != "open":
            return None
        if row.status == operation.status:
            if operation.attempt > row.operation_attempt:
                # Stored before the operation can kill the process again. Waiting in the queue is no start.
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
        reason = Reason(*(text.replace("\0", "") for text in reason))  # PostgreSQL refuses NUL, and tools may print it
        with context.db.write() as session:
            to = (exc.to or transitions.before(session, operation)) if isinstance(exc, KeepsStatus) else None
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
        """Call the function if the operation is open. The bus tries again after any error."""
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
    """Make a handler of ``function(context, operation, row)``, with the undo and the message of its failure."""
    return lambda function: Handler(kind=kind, function=function, action=action, undo=undo, restores=restores)


def handles_until_done(kind: type[Kind], *, action: Action) -> Callable[[Callable[[Any, Kind], None]], Handler]:
    """Make a handler of ``function(context, operation)``, which closes the operation by itself."""
    return lambda function: UntilDone(kind=kind, function=function, action=action)


def by_kind(*handlers: Handler) -> Mapping[type[Operation], Handler]:
    """Return the handlers of a component by the kind of operation."""
    return {handler.kind: handler for handler in handlers}


_begun: set[str] = set()
"""Open operations whose first change may have been made in this process; the bus tries some of them again."""


@contextmanager
def first_change(operation: Operation, *, whenever: tuple[type[BackendError], ...] = ()) -> Iterator[None]:
    """Restore the row's former status if the backend refuses inside. Nothing may be changed before this.

    The type of an error says that it is a refusal (``BackendError.untouched``). An operation that was started before
    may be half done, so a refusal proves nothing then. The types in ``whenever`` always prove that nothing is lost.
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
    """Return a callback that stores the percentage at most once a second and stops a cancelled operation."""
    next_at = time.monotonic() + PROGRESS_INTERVAL_S

    def tell(percent: int) -> None:
        nonlocal next_at
        if time.monotonic() < next_at:
            return
        next_at = time.monotonic() + PROGRESS_INTERVAL_S
        # A short outage of the database must not cost the work done so far.
        with suppress(DatabaseAway), wait_limits.limited(PROGRESS_WAIT_S), context.db.write() as session:
            session.execute(
                update(OperationRow).where(OperationRow.id == operation.operation_id).values(progress=percent)
            )
            refuse_cancelled(session, operation, f"at {percent} %")

    return tell


def refuse_cancelled(session: Session, operation: Operation, when: str = "at the end") -> None:
    """Raise OperationCancelled if an operation was asked to stop and may be cancelled.

    Resetting the status of its row also asks it to stop.
    """
    is_cancelled = session.execute(
        select(OperationRow.cancel_asked).where(OperationRow.id == operation.operation_id)
    ).scalar()
    if is_cancelled and operation.cancellable:
        raise OperationCancelled(f"cancelled by the operator {when}")


def mark_started(db: Database, operation: Operation) -> None:
    """Record that a long operation is running, so that it is shown as such; do nothing if the database is away."""
    with suppress(DatabaseAway), wait_limits.limited(PROGRESS_WAIT_S), db.write() as session:
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


# Built once, and from plain columns: handlers only read, and need no object bound to a session.
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
        f"an internal error ({type(exc).__name__}) stopped the operation; the log has the details under"
        f" {operation.request_id}",
        "An internal error stopped the operation. Ask your administrator.",
    )
    return reason, Detail.UNKNOWN_ERROR, "failed"
