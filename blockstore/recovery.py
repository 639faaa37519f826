"""At start: every open order is queued again, oldest first; nothing stays in a transitional status.

Called once by ``service.py``, after the backends have reported and before the first request is answered.
"""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import select, update

from blockstore import settling, states
from blockstore.db.models import OrderRow
from blockstore.db.session import Database
from blockstore.orders import Order, from_stored

log = logging.getLogger(__name__)


def resume(db: Database, *, attempts: int) -> list[Order]:
    """Return the orders to cast again. Gives up those that were started ``attempts`` times already."""
    again: list[Order] = []
    given_up = 0
    with db.write() as session:
        rows = session.scalars(select(OrderRow).where(OrderRow.state == "open").order_by(OrderRow.id)).all()
        for row in rows:
            order = from_stored(row.kind, row.id, row.request_id, row.project_id, row.body)
            if row.attempt >= attempts:
                settling.give_up(session, order, f"given up: the service died {row.attempt} times while it ran")
                given_up += 1
            else:
                again.append(order)
        session.execute(
            update(OrderRow)
            .where(OrderRow.state == "open")
            .values(attempt=OrderRow.attempt + 1, started_at=None)
            .execution_options(synchronize_session=False)
        )
        stranded = _settle_stranded(session, {(kind, row_id) for order in again for kind, row_id, _ in order.covers()})
    if again or given_up or stranded:
        log.info("recovery: %d orders resumed, %d given up, %d stranded rows settled", len(again), given_up, stranded)
    return again


def _settle_stranded(session: Any, covered: set[tuple[str, str]]) -> int:
    """Settle rows that are in a transitional status which no order will end, as an administrator may have set."""
    count = 0
    for kind, machine in states.MACHINES.items():
        model: Any = machine.model
        found = session.execute(select(model.id, model.status).where(model.status.in_(sorted(machine.failure)))).all()
        for row_id, status in found:
            if (kind, row_id) not in covered:
                states.move(session, machine, row_id, machine.failure[status], only_from=(status,))
                log.warning(
                    "%s %s was %s with nothing to end it; now %s", kind, row_id, status, machine.failure[status]
                )
                count += 1
    return count
