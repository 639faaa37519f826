"""Limits the number of finished operations and messages of each project; ``app/periodic.py`` limits their age.

Every accepted request leaves a finished operation, and every failure a message: without a bound, one project that
creates and deletes in a loop fills the disk. The oldest are deleted in small steps, so that others can write between
them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import sleep
from typing import Any

from sqlalchemy import delete, func, select

from blockstore.db.models import Message, OperationRow
from blockstore.db.session import Database

log = logging.getLogger(__name__)

MOST_FINISHED = 10_000
"""Most finished operations of one project."""
MOST_MESSAGES = 1_000
"""Most messages of one project: one page of a list."""
STEP = 200
"""Rows that one transaction deletes."""
PAUSE_S = 0.01
MOST_STEPS = 2_000
"""Most steps for one project in one call; the next call goes on."""


def trim(db: Database, may_go_on: Callable[[], bool] = lambda: True) -> None:
    """Delete the oldest finished operations and messages of every project that has too many.

    ``may_go_on`` ends it when the service stops.
    """
    finished, messages = OperationRow.__table__.c, Message.__table__.c
    removed = _trim(
        db, OperationRow, MOST_FINISHED, [finished.finished_at.is_not(None)], [finished.id.desc()], may_go_on
    )
    trimmed = _trim(db, Message, MOST_MESSAGES, [], [messages.created_at.desc(), messages.id.desc()], may_go_on)
    if removed or trimmed:
        log.info("removed %d finished operations and %d messages of projects that have too many", removed, trimmed)


def _trim(
    db: Database, model: Any, most: int, where: list[Any], newest_first: list[Any], may_go_on: Callable[[], bool]
) -> int:
    crowded = select(model.project_id).where(*where).group_by(model.project_id).having(func.count() > most)
    with db.read(in_turn=False) as session:
        projects = session.scalars(crowded).all()
    removed = 0
    for project in projects:
        mine = select(model.id).where(model.project_id == project, *where)
        with db.read(in_turn=False) as session:
            ids = session.scalars(mine.order_by(*newest_first).offset(most).limit(STEP * MOST_STEPS)).all()
        for start in range(0, len(ids), STEP):
            if not may_go_on():
                return removed
            with db.write() as session:
                session.execute(delete(model).where(model.id.in_(ids[start : start + STEP])))
            removed += len(ids[start : start + STEP])
            sleep(PAUSE_S)
    return removed
