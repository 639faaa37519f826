"""Looks at each backend's health and figures and pins them on the board.

Called at start and by ``periodic.py``. A backend that is down says why; the others go on.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor, wait

from blockstore import claims
from blockstore.backends.contract import Backend, Capabilities, Capacity
from blockstore.board import NO_USAGE, PoolReport
from blockstore.config import BackendSection
from blockstore.db.models import now
from blockstore.errors import BackendError
from blockstore.manager.desk import Desk

log = logging.getLogger(__name__)


def report_all(desk: Desk, *, wait_s: float) -> None:
    """Look at every backend at once, and return when all have answered or ``wait_s`` has passed."""
    threads = ThreadPoolExecutor(max_workers=max(1, len(desk.backends)), thread_name_prefix="report")
    looks = [threads.submit(report, desk, pool) for pool in desk.backends]
    wait(looks, timeout=wait_s)
    threads.shutdown(wait=False)


def report(desk: Desk, pool: str) -> None:
    """Look at one backend and pin what it says."""
    backend = desk.backends[pool]
    section = _section(desk, backend)
    before = desk.board.get(pool)
    with desk.db.read() as session:
        usage = claims.ledger(session).get(pool, NO_USAGE)
    ours = usage.volume_gib + usage.snapshot_gib
    reason = None
    capabilities = before.capabilities if before else Capabilities()
    capacity = before.capacity if before else Capacity(total_gib=0, free_gib=0)
    try:
        backend.check()
        capabilities, capacity = backend.capabilities(), backend.capacity()
    except BackendError as exc:
        reason = exc.message
    except Exception as exc:
        log.exception("backend %s could not be looked at", pool)
        reason = f"The plugin failed with an internal error ({type(exc).__name__}); the log has the details."
    desk.board.pin(
        PoolReport(
            name=pool,
            config=section.pool,
            availability_zone=section.pool.availability_zone or desk.config.service.availability_zone,
            up=reason is None,
            reason=reason,
            capabilities=capabilities,
            capacity=capacity,
            ours_gib=ours,
            at=now(),
        )
    )
    if reason is not None and (before is None or before.up or before.reason != reason):
        log.error("backend %s is down: %s", pool, reason)
    elif reason is None and before is not None and not before.up:
        log.info("backend %s is up again", pool)


def _section(desk: Desk, backend: Backend) -> BackendSection:
    return next(section for section in desk.config.backends if section.name == backend.name)
