"""Recovery at start: every open operation is queued again, oldest first; no row stays in a transitional status.

``app/service.py`` calls it once, before the first request is answered. It queues the returned operations when the
backends have reported.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from blockstore.db.models import OperationRow, Volume, now
from blockstore.db.session import Database
from blockstore.errors import Reason
from blockstore.operations import messages, states, transitions
from blockstore.operations.catalogue import Operation, from_stored, make_ids_after
from blockstore.operations.messages import Detail
from blockstore.operations.runner import Failure, Handler

log = logging.getLogger(__name__)


def resume(
    db: Database, handlers: Mapping[type[Operation], Handler], *, attempts: int, message_days: int
) -> list[Operation]:
    """Return the operations to enqueue again.

    An operation that was started ``attempts`` times already is given up by its handler.
    """
    again: list[Operation] = []
    given_up = 0
    with db.write() as session:
        newest = session.execute(select(func.max(OperationRow.id))).scalar()
        if newest is not None:
            with suppress(ValueError):  # not an id of ours
                make_ids_after(newest)
        rows = session.scalars(select(OperationRow).where(OperationRow.state == "open").order_by(OperationRow.id)).all()
        for row in rows:
            row.started_at = None
            try:
                operation = from_stored(
                    row.kind, row.id, row.request_id, row.project_id, row.body, attempt=row.attempt + 1
                )
            except (KeyError, TypeError):
                # Its row is failed below, with the other stranded rows.
                row.state, row.finished_at = "failed", now()
                row.reason = f"given up: this version of the service does not know {row.kind} with these fields"
                log.error("operation %s: %s", row.id, row.reason)
                continue
            if row.attempt >= attempts:
                reason = Reason(
                    f"given up: the service died {row.attempt} times while it ran",
                    "The operation failed after several attempts. Ask your administrator.",
                )
                handler = handlers[type(operation)]
                handler.give_up(session, operation, Failure(reason=reason))
                messages.tell(session, operation, handler.action, Detail.UNKNOWN_ERROR, reason, message_days)
                given_up += 1
            else:
                again.append(operation)
        stranded = _fail_stranded(session, {covered for operation in again for covered in operation.covers()})
    if again or given_up or stranded:
        log.info(
            "recovery: %d operations resumed, %d given up, %d stranded rows settled", len(again), given_up, stranded
        )
    return again


def _fail_stranded(session: Session, covered: set[tuple[str, str, str]]) -> int:
    """Fail the rows whose transitional status no operation will end; an administrator may have set it.

    Return the number of rows.
    """
    count = 0
    for kind, machine in states.MACHINES.items():
        model: Any = machine.model
        found = session.execute(select(model.id, model.status).where(model.status.in_(sorted(machine.failure)))).all()
        for row_id, status in found:
            if status == states.V.MAINTENANCE and not _was_migrating(session, row_id):
                continue  # an administrator set it, and will end it
            if (kind, row_id, status) not in covered:
                transitions.move(session, machine, row_id, machine.failure[status], only_from=(status,))
                log.warning(
                    "%s %s was %s without an open operation; now it is %s",
                    kind,
                    row_id,
                    status,
                    machine.failure[status],
                )
                count += 1
    return count


def _was_migrating(session: Session, volume_id: str) -> bool:
    status = session.execute(select(Volume.migration_status).where(Volume.id == volume_id)).scalar()
    return status in ("starting", "migrating")
