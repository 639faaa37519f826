"""What happens by the clock: the job table. Each job is short, or runs on threads of its own."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable

from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import delete

from blockstore import retention
from blockstore.config import ServiceConfig
from blockstore.db.models import Message, OrderRow, now
from blockstore.db.session import Database
from blockstore.identity import tokens

log = logging.getLogger(__name__)

DAY_S = 86400
TRIM_S = 600


def jobs(config: ServiceConfig, db: Database, report: Callable[[], None]) -> BackgroundScheduler:
    """Return the clock, not yet started."""
    clock = BackgroundScheduler(timezone=datetime.UTC, daemon=True)
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=1)  # also where it runs for hours only
    every = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
    clock.add_job(report, "interval", seconds=config.report_interval_s, id="report", **every)
    clock.add_job(
        lambda: purge(db, config.order_keep_days), "interval", seconds=DAY_S, id="purge", next_run_time=soon, **every
    )
    clock.add_job(lambda: retention.trim(db), "interval", seconds=TRIM_S, id="trim", **every)
    return clock


def purge(db: Database, keep_days: int) -> None:
    """Remove orders and messages that are older than they are kept, and tokens that have expired."""
    limit = now() - datetime.timedelta(days=keep_days)
    with db.write() as session:
        orders = session.execute(delete(OrderRow).where(OrderRow.finished_at < limit)).rowcount  # type: ignore[attr-defined]
        told = session.execute(delete(Message).where(Message.expires_at < now())).rowcount  # type: ignore[attr-defined]
        tokens.purge(session)
    if orders or told:
        log.info("purged %d finished orders and %d messages", orders, told)
