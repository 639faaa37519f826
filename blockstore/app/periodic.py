"""The periodic jobs, by the monotonic clock. Each job is short or runs on threads of its own."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import InstrumentedAttribute

from blockstore.app import retention
from blockstore.app.steady_scheduler import MonotonicInterval, SteadyScheduler
from blockstore.config import ServiceConfig
from blockstore.db.models import Message, OperationRow, Token, now
from blockstore.db.session import Database
from blockstore.errors import DatabaseAway
from blockstore.identity import bootstrap

log = logging.getLogger(__name__)

DAY_S = 86400
TRIM_S = 600
ROWS_AT_ONCE = 200
"""Rows that one transaction of the purge deletes; other writers to SQLite wait some milliseconds for it."""
PAUSE_S = 0.01


def jobs(config: ServiceConfig, state_dir: Path, db: Database, report: Callable[[], None]) -> SteadyScheduler:
    """Return the scheduler with its jobs, not yet started."""
    clock = SteadyScheduler(timezone=datetime.UTC, daemon=True)
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=1)  # also if it runs only for hours
    facts = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
    clock.add_job(
        lambda: unless_away(report), MonotonicInterval(seconds=config.report_interval_s), id="report", **facts
    )
    clock.add_job(
        lambda: unless_away(lambda: tidy(db, config, state_dir, lambda: clock.running)),
        MonotonicInterval(seconds=DAY_S),
        id="purge",
        next_run_time=soon,
        **facts,
    )
    clock.add_job(
        lambda: unless_away(lambda: retention.trim(db, lambda: clock.running)),
        MonotonicInterval(seconds=TRIM_S),
        id="trim",
        **facts,
    )
    return clock


def unless_away(job: Callable[[], None]) -> None:
    """Run a job that may wait until its next time. An outage of the database is one line in the log."""
    try:
        job()
    except DatabaseAway as exc:
        log.warning("skipped until the next run: %s", exc.detail)


def tidy(db: Database, config: ServiceConfig, state_dir: Path, may_go_on: Callable[[], bool]) -> None:
    """Delete expired rows, and the file of an administrator's password that is no longer in use."""
    purge(db, config.operation_keep_days, may_go_on)
    if config.auth == "builtin":
        bootstrap.forget_former_password(db, state_dir)


def purge(db: Database, keep_days: int, may_go_on: Callable[[], bool] = lambda: True) -> None:
    """Delete operations and messages past their retention time, and expired tokens.

    It uses small transactions with pauses between them, so that others need not wait. ``may_go_on`` ends it when the
    service stops.
    """
    kept_since = now() - datetime.timedelta(days=keep_days)
    operations = _purge(db, OperationRow.id, OperationRow.finished_at, kept_since, may_go_on)
    messages = _purge(db, Message.id, Message.expires_at, now(), may_go_on)
    expired = _purge(db, Token.id, Token.expires_at, now(), may_go_on)
    if operations or messages or expired:
        log.info("purged %d finished operations, %d messages and %d expired tokens", operations, messages, expired)


def _purge(
    db: Database,
    key: InstrumentedAttribute[str],
    ended_at: InstrumentedAttribute[Any],
    before: datetime.datetime,
    may_go_on: Callable[[], bool],
) -> int:
    """Delete the rows that ended before a time. Return their number."""
    found = select(key).where(ended_at <= before).order_by(ended_at).limit(ROWS_AT_ONCE)
    removed = 0
    while may_go_on():
        with db.read(in_turn=False) as session:
            ids = session.scalars(found).all()
        if not ids:
            break
        with db.write() as session:
            session.execute(delete(key.class_).where(key.in_(ids)))
        removed += len(ids)
        if len(ids) < ROWS_AT_ONCE:
            break
        sleep(PAUSE_S)
    return removed
