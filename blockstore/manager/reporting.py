"""Checks the health and capacity of each backend and updates the pool reports.

Called at start and by ``app/periodic.py``. The report of a backend that is down has the reason; the others go on.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

from blockstore.accounting import reservations
from blockstore.accounting.pool_reports import NO_USAGE, PoolReport
from blockstore.backends.contract import Backend, Capabilities, Capacity
from blockstore.config import BackendSection
from blockstore.db.models import now
from blockstore.errors import BackendError, DatabaseAway, is_out_of_files
from blockstore.log_limiter import LogLimiter
from blockstore.manager.context import ManagerContext, UsableBackends
from blockstore.manager.recognition import prove
from blockstore.zones import zone_of

log = logging.getLogger(__name__)
log_limiter = LogLimiter(log)

EXPORTS = "exports"
"""The key of the targets' health check, beside the names of the pools."""


class Reporter:
    """Checks all backends and targets at once, each on its own thread: one that hangs does not delay the others."""

    def __init__(self, context: ManagerContext) -> None:
        self._context = context
        self._threads = ThreadPoolExecutor(max_workers=len(context.backends) + 1, thread_name_prefix="report")
        self._checks: dict[str, Future[None]] = {}
        self._former: dict[str, PoolReport | None] = {}
        """The report of each pool before its last health check began."""

    def check_all(self, *, wait_s: float) -> None:
        """Check every backend, and reconcile exports with attachments.

        Return when all have answered or ``wait_s`` has passed. A backend that has not answered the previous health
        check is down until it answers, and is not asked twice.
        """
        for pool in self._context.backends:
            before = self._checks.get(pool)
            if before is not None and not before.done():
                self._note_silence(pool)
            else:
                self._former[pool] = self._context.pool_reports.get(pool)
                self._checks[pool] = self._threads.submit(report, self._context, pool)
        exports = self._checks.get(EXPORTS)
        if exports is None or exports.done():
            self._checks[EXPORTS] = self._threads.submit(self._context.exports.reconcile, UsableBackends(self._context))
        done, _ = wait(self._checks.values(), timeout=wait_s)
        for check in done:
            if isinstance(exc := check.exception(), DatabaseAway):
                log_limiter.log(logging.WARNING, exc.message, "a backend was not checked: %s", exc.detail)
            elif is_out_of_files(exc):
                log_limiter.log(logging.ERROR, "files", "the exports were not checked: %s", exc)
            elif exc is not None:
                log.error("a backend's report could not be stored", exc_info=exc)

    def stop(self) -> bool:
        """Start no more health checks; return True if every one has ended."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        return all(check.done() for check in self._checks.values())

    def _note_silence(self, pool: str) -> None:
        former = self._former[pool]
        if former is not None and former.up:
            reason = "It has not answered since the last health check."
            silent = replace(former, up=False, reason=reason, at=now())
            if self._context.pool_reports.exchange(former, silent):  # else it has just answered
                log.error("backend %s is down: %s", pool, reason)


def report(context: ManagerContext, pool: str) -> None:
    """Check one backend and update its pool report."""
    backend = context.backends[pool]
    section = _section(context, backend)
    before = context.pool_reports.get(pool)
    with context.db.read() as session:
        usage = reservations.usage_by_pool(session).get(pool, NO_USAGE)
    ours = usage.volume_gib + usage.snapshot_gib
    reason = None
    capabilities = before.capabilities if before else Capabilities()
    capacity = before.capacity if before else Capacity(total_gib=0, free_gib=0)
    try:
        if context.installation:
            prove(context.db, pool, backend, context.installation)
        else:
            backend.check()
        capabilities, capacity = _with_target(context, pool, backend.capabilities()), backend.capacity()
    except Exception as exc:
        if is_out_of_files(exc) and before is not None:
            # The storage has not changed. If its pool were marked down, operations would fail.
            log_limiter.log(logging.ERROR, "files", "backend %s was not checked: too many open files", pool)
            return
        if isinstance(exc, DatabaseAway):
            raise
        reason = _reason(pool, exc)
    context.pool_reports.update(
        PoolReport(
            name=pool,
            config=section.pool,
            availability_zone=zone_of(section.pool, context.config),
            up=reason is None,
            reason=reason,
            capabilities=capabilities,
            capacity=capacity,
            background_tasks=backend.background_tasks(),
            ours_gib=ours,
            at=now(),
        )
    )
    if reason is not None and (before is None or before.up or before.reason != reason):
        log.error("backend %s is down: %s", pool, reason)
    elif reason is None and before is not None and not before.up:
        log.info("backend %s is up again", pool)
    if capacity.closed_because and (before is None or before.capacity.closed_because != capacity.closed_because):
        log.warning("backend %s accepts no new volumes: %s", pool, capacity.closed_because)


def _reason(pool: str, exc: Exception) -> str:
    if isinstance(exc, BackendError):
        return exc.message
    log.error("backend %s could not be checked", pool, exc_info=exc)
    return f"The plugin failed with an internal error ({type(exc).__name__}); the log has the details."


def _with_target(context: ManagerContext, pool: str, capabilities: Capabilities) -> Capabilities:
    """Return the capabilities for consumers: those that both the backend and its target have."""
    serving = context.exports.target_of(pool)
    if serving is None:
        return capabilities
    target = serving.capabilities()
    return replace(
        capabilities,
        multiattach=capabilities.multiattach and target.multiattach,
        online_extend=capabilities.online_extend and target.online_extend,
        block_size=target.block_size or capabilities.block_size,
        storage_protocol=capabilities.storage_protocol if target.protocol == "local" else target.protocol,
    )


def _section(context: ManagerContext, backend: Backend) -> BackendSection:
    return next(section for section in context.config.backends if section.name == backend.name)
