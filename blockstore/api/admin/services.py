"""Services, as administrators see them: one scheduler and one volume service for each backend; and log levels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import select

from blockstore.accounting.pool_reports import PoolReport
from blockstore.api.http.call import Call
from blockstore.api.http.routes import Routes
from blockstore.db.models import ServiceRow, now
from blockstore.errors import BadRequest, NotFound
from blockstore.microversions import BACKEND_STATE, LOG_LEVELS, SERVICES_CLUSTER
from blockstore.schemas import services as schemas
from blockstore.schemas.base import timestamp
from blockstore.service_names import API_SERVICE, SCHEDULER_SERVICE, VOLUME_SERVICE, backend_of

routes = Routes()
log = logging.getLogger(__name__)

INTERVALS = 3
"""A service is down when its last health check is older than this many intervals between health checks."""
LEAST_AGE_S = 60.0
"""The least such age, as Cinder's ``service_down_time``: a process that was briefly stopped is not shown as down."""


@routes.get("/os-services", policy="volume_extension:services:index")
def index(call: Call) -> dict[str, Any]:
    """List the services."""
    binary, host = call.query.get("binary"), call.query.get("host")
    return {
        "services": [
            item
            for item in service_items(call)
            if binary in (None, item["binary"])
            # compat: a node's name means all its services
            and (host in (None, item["host"]) or item["host"].startswith(f"{host}@"))
        ]
    }


def service_items(call: Call) -> list[dict[str, Any]]:
    """Return the state of each service, as replies show it."""
    settings = {(row.binary, row.host): row for row in call.session.scalars(select(ServiceRow))}
    items = []
    for binary, host, zone, reports in _services(call):
        row = settings.get((binary, host))
        disabled = bool(row and row.disabled)
        item: dict[str, Any] = {
            "binary": binary,
            "host": host,
            "zone": zone,
            "status": "disabled" if disabled else "enabled",
            "state": "down" if reports and _are_old(call, reports) else "up",
            "updated_at": timestamp(max((r.at for r in reports), default=now())),
            "disabled_reason": row.disabled_reason if row and disabled else None,
        }
        if call.version >= SERVICES_CLUSTER:
            item["cluster"] = None
        if binary == VOLUME_SERVICE:
            item |= {"replication_status": "disabled", "active_backend_id": None, "frozen": bool(row and row.frozen)}
            if call.version >= BACKEND_STATE:
                # compat: Cinder asks the scheduler, which forgets the backends of disabled services.
                item["backend_state"] = None if disabled else _backend_state(reports)
        items.append(item)
    return items


@routes.put("/os-services/enable", policy="volume_extension:services:update", body=schemas.SwitchBody)
def enable(call: Call, body: Mapping[str, Any]) -> dict[str, Any]:
    """Let the scheduler use a service again."""
    switch(call, body.get("binary") or body["service"], body["host"], disabled=False)
    return {**_named(body), "status": "enabled", "disabled": False}


@routes.put("/os-services/disable", policy="volume_extension:services:update", body=schemas.SwitchBody)
def disable(call: Call, body: Mapping[str, Any]) -> dict[str, Any]:
    """Keep new volumes away from a service."""
    switch(call, body.get("binary") or body["service"], body["host"], disabled=True)
    return {**_named(body), "status": "disabled", "disabled": True}


@routes.put("/os-services/disable-log-reason", policy="volume_extension:services:update", body=schemas.SwitchOffBody)
def disable_with_reason(call: Call, body: Mapping[str, Any]) -> dict[str, Any]:
    """Keep new volumes away from a service, with a reason."""
    reason = body["disabled_reason"]
    switch(call, body.get("binary") or body["service"], body["host"], disabled=True, reason=reason)
    return {**_named(body), "status": "disabled", "disabled": True, "disabled_reason": reason}


@routes.put("/os-services/freeze", policy="volume_extension:services:update", body=schemas.FreezeBody)
def freeze(call: Call, body: Mapping[str, Any]) -> None:
    """Freeze a backend: no new volumes, no snapshots, no deletions."""
    call.enforce("volume:freeze_host")
    _set_frozen(call, body["host"], frozen=True)


@routes.put("/os-services/thaw", policy="volume_extension:services:update", body=schemas.FreezeBody)
def thaw(call: Call, body: Mapping[str, Any]) -> None:
    """End the freeze of a backend."""
    call.enforce("volume:thaw_host")
    _set_frozen(call, body["host"], frozen=False)


def _set_frozen(call: Call, host: str, *, frozen: bool) -> None:
    if not any((binary, name) == (VOLUME_SERVICE, host) for binary, name, _, _ in _services(call)):
        raise BadRequest(f"Invalid input received: there is no backend {host}; name one as NODE@BACKEND.")
    row = _row(call, VOLUME_SERVICE, host)
    if row.frozen == frozen:
        raise BadRequest(f"Invalid input received: the backend {host} is {'' if frozen else 'not '}frozen already.")
    row.frozen, row.updated_at = frozen, now()


def refuse_disabled(call: Call, backend: str) -> None:
    """Raise BadRequest if a backend is disabled."""
    row = call.session.get(ServiceRow, (VOLUME_SERVICE, backend))
    if row is not None and row.disabled:
        raise BadRequest(f"Invalid host: {backend} is disabled: {row.disabled_reason or 'no reason given'}.")


def refuse_frozen(call: Call, pool: str | None, done: str) -> None:
    """Raise BadRequest if the backend of a pool is frozen."""
    row = call.session.get(ServiceRow, (VOLUME_SERVICE, backend_of(pool))) if pool else None
    if row is not None and row.frozen:
        raise BadRequest(
            f"The backend {row.host} is frozen; nothing on it can be {done} until an administrator thaws it.",
            public=f"Its storage is frozen; nothing there can be {done} until an administrator thaws it.",
        )


@routes.put(
    "/os-services/get-log",
    policy="volume_extension:services:update",
    body=schemas.LogBody,
    since=LOG_LEVELS,
    writes=False,
)
def get_log(call: Call, body: Mapping[str, Any]) -> dict[str, Any]:
    """Show the log levels; all services share one process, and so one log."""
    prefix = body.get("prefix") or ""
    names = sorted(n for n in ["", *logging.root.manager.loggerDict] if n.startswith("blockstore") or n == "")
    levels = {
        n or "root": logging.getLevelName(logging.getLogger(n).getEffectiveLevel())
        for n in names
        if (n or "root").startswith(prefix)
    }
    return {
        "log_levels": [
            {"host": host, "binary": binary, "levels": levels} for binary, host, _, _ in _addressed(call, body)
        ]
    }


@routes.put(
    "/os-services/set-log", policy="volume_extension:services:update", body=schemas.SetLogBody, status=202,
    since=LOG_LEVELS, writes=False,
)  # fmt: skip
def set_log(call: Call, body: Mapping[str, Any]) -> None:
    """Change the level of the log, or of the loggers below ``prefix``, while the service runs."""
    level = {"warn": "warning"}.get(body["level"], body["level"]).upper()
    if not list(_addressed(call, body)):
        return
    logging.getLogger(body.get("prefix") or None).setLevel(level)
    log.warning("log level of %s set to %s by %s", body.get("prefix") or "everything", level, call.ctx.user_id)


def _are_old(call: Call, reports: Sequence[PoolReport]) -> bool:
    """Return True if no pool of a service had a health check for several intervals. This process itself is up."""
    age_s = max(LEAST_AGE_S, INTERVALS * call.core.config.service.report_interval_s)
    return all(report.is_older_than(age_s) for report in reports)


def _backend_state(reports: Sequence[PoolReport]) -> str:
    return "up" if reports and all(report.up for report in reports) else "down"


def _services(call: Call) -> Iterator[tuple[str, str, str, list[PoolReport]]]:
    config = call.core.config
    yield SCHEDULER_SERVICE, config.service.node, config.service.availability_zone, []
    by_backend: dict[str, list[PoolReport]] = {}
    for report in call.core.pool_reports.reports().values():
        by_backend.setdefault(report.backend, []).append(report)
    for backend, reports in sorted(by_backend.items()):
        yield VOLUME_SERVICE, backend, reports[0].availability_zone, reports


def _addressed(call: Call, body: Mapping[str, Any]) -> Iterator[tuple[str, str, str, list[PoolReport]]]:
    binary, server = body.get("binary") or "*", body.get("server")
    for service in [(API_SERVICE, call.core.config.service.node, "", []), *_services(call)]:
        if binary in ("*", service[0]) and (not server or server == service[1]):
            yield service


def _row(call: Call, binary: str, host: str) -> ServiceRow:
    row = call.session.get(ServiceRow, (binary, host))
    if row is None:
        row = ServiceRow(binary=binary, host=host, disabled=False, frozen=False)
        call.session.add(row)
    return row


def _named(body: Mapping[str, Any]) -> dict[str, Any]:
    return {"host": body["host"], "service": body.get("service", ""), "binary": body.get("binary", "")}


def switch(call: Call, binary: str, host: str, *, disabled: bool, reason: str | None = None) -> None:
    """Enable or disable a service for the scheduler. Raises NotFound."""
    if not any((b, h) == (binary, host) for b, h, _, _ in _services(call)):
        raise NotFound(f"Service {binary} on host {host} could not be found.")
    row = _row(call, binary, host)
    row.disabled, row.disabled_reason, row.updated_at = disabled, reason, now()
