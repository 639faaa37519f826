"""Migrate one volume to another pool, or all volumes of a backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from blockstore.api.admin.services import refuse_disabled, switch
from blockstore.api.http.call import Call
from blockstore.api.http.routes import Routes
from blockstore.api.volumes.volumes import ACTION, find_volume
from blockstore.db.models import Attachment, Snapshot, Volume, not_migrating
from blockstore.errors import BadRequest, InvalidInput, InvalidStatus, NotFound, StateConflict
from blockstore.operations import states, transitions
from blockstore.operations.catalogue import PlaceMigration
from blockstore.operations.states import V
from blockstore.schemas import migration as schemas
from blockstore.service_names import VOLUME_SERVICE

routes = Routes()

DRAINED = "drained: its volumes are being moved away"


@routes.action(
    ACTION,
    "os-migrate_volume",
    policy="volume_extension:volume_admin_actions:migrate_volume",
    body=schemas.MigrateBody,
    frees=True,
)
def migrate(call: Call, volume_id: str, body: Mapping[str, Any]) -> None:
    """Accept the migration of a volume to another backend or pool.

    compat: lock_volume has no effect: during a migration a volume is always in maintenance and is not written to.
    """
    volume = find_volume(call, volume_id, lock=True)
    params = body["migrate"]
    if bool(params.get("host")) == bool(params.get("cluster")):
        raise InvalidInput("os-migrate_volume", params, "Exactly one of host and cluster is needed.")
    if params.get("cluster"):
        raise BadRequest(f"There is no cluster {params['cluster']}; name a host, NODE@BACKEND or NODE@BACKEND#POOL.")
    _check_destination(call, volume, params["host"])
    begin(call, volume, params["host"])


def _check_destination(call: Call, volume: Volume, host: str) -> None:
    reports = call.core.pool_reports.of_host(host)
    if not reports:
        known = ", ".join(sorted(call.core.pool_reports.reports()))
        raise BadRequest(f"Invalid host: there is no backend or pool {host}; there are {known}.")
    if host == volume.host or [report.name for report in reports] == [volume.host]:
        raise BadRequest(f"Invalid host: volume {volume.id} is on {volume.host} already.")
    refuse_disabled(call, reports[0].backend)
    if not any(report.up for report in reports):
        raise BadRequest(f"Invalid host: {host} is down: {reports[0].reason}")
    source = call.core.pool_reports.get(volume.host or "")
    reasons = [source.other_block_size(report) if source else None for report in reports]
    if all(reasons):
        raise BadRequest(f"Invalid host: volume {volume.id} cannot be migrated to {host}: {reasons[0]}.")


def begin(call: Call, volume: Volume, destination: str) -> None:
    """Enqueue the migration of an unused volume. Raise InvalidStatus with the reason if it cannot be migrated."""
    if volume.status == V.IN_USE or _has(call, Attachment, volume):
        raise InvalidStatus(f"Invalid volume: volume {volume.id} is attached; detach it before you migrate it.")
    if _has(call, Snapshot, volume):
        raise InvalidStatus(
            f"Invalid volume: volume {volume.id} has snapshots, which would stay behind; delete them first."
        )
    operation = call.operation(PlaceMigration, volume, destination=destination)
    try:
        transitions.move(
            call.session,
            states.VOLUME,
            volume.id,
            V.MAINTENANCE,
            where=[not_migrating(), Volume.group_id.is_(None)],
            operation=operation,
            previous_status=V.AVAILABLE,
            migration_status="starting",
        )
    except StateConflict:
        raise InvalidStatus(
            f"Invalid volume: volume {volume.id} is {volume.status}; to be migrated it must be available, in no group,"
            " and not migrating already."
        ) from None


def _has(call: Call, model: type[Attachment | Snapshot], volume: Volume) -> bool:
    statement = select(model.id).where(model.volume_id == volume.id).limit(1)
    return call.session.execute(statement).first() is not None


@routes.action(
    ACTION,
    "os-migrate_volume_completion",
    policy="volume_extension:volume_admin_actions:migrate_volume_completion",
    body=schemas.MigrateCompletionBody,
    status=200,
)
def complete(call: Call, volume_id: str, body: Mapping[str, Any]) -> None:
    """Refuse the request: this service completes migrations by itself.

    In Cinder, Nova sends it after copying an attached volume. This service never asks Nova to copy a volume.
    """
    volume = find_volume(call, volume_id)
    find_volume(call, body["completion"]["new_volume"])
    raise BadRequest(
        f"The migration of volume {volume_id} has the status {volume.migration_status or 'none'} and cannot be"
        " completed by a request: migrations end by themselves."
    )


@routes.post("/os-services/drain", policy="volume_extension:services:update", body=schemas.DrainBody, status=202)
def drain(call: Call, body: Mapping[str, Any]) -> dict[str, Any]:
    """Disable a backend and migrate its volumes elsewhere, or with ``dry_run`` only return the plan. Not in Cinder."""
    host, dry_run = body["drain"]["host"], body["drain"].get("dry_run", False)
    if host not in {report.backend for report in call.core.pool_reports.reports().values()}:
        raise BadRequest(f"Invalid host: there is no backend {host}; name one as NODE@BACKEND.")
    plan = call.core.plan_drain(call.session, host)
    if not dry_run:
        switch(call, VOLUME_SERVICE, host, disabled=True, reason=DRAINED)
        for item in plan:
            if item["destination"] is not None:
                _begin_of(call, item)
    return {"drain": {"host": host, "dry_run": dry_run, "volumes": plan}}


def _begin_of(call: Call, item: dict[str, Any]) -> None:
    """Begin a planned migration. If the volume cannot be migrated any more, note the reason in the plan's item."""
    try:
        begin(call, find_volume(call, item["volume_id"], lock=True), item["destination"])
    except (InvalidStatus, NotFound) as exc:
        item |= {"destination": None, "reason": exc.message}
