"""Chooses pools: one function per operation. Loads, chooses, reserves and continues, or fails with the reason.

The decision and its reservation are one transaction, and the component has one worker: a decision sees every
reservation before it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from blockstore.accounting import quotas, reservations
from blockstore.accounting.pool_reports import NO_USAGE, PoolReport, PoolReports
from blockstore.config import SchedulerConfig
from blockstore.db.models import Attachment, ExtraSpec, PoolUsage, ServiceRow, Snapshot, Volume, VolumeType, new_id
from blockstore.db.session import Database
from blockstore.errors import NoBackend
from blockstore.operations import journal
from blockstore.operations.catalogue import (
    ChangeType,
    CreateSnapshot,
    CreateVolume,
    ExtendVolume,
    ManageVolume,
    MigrateToType,
    MigrateVolume,
    PlaceExtension,
    PlaceManaged,
    PlaceMigration,
    PlaceSnapshot,
    PlaceVolume,
    RetypeVolume,
)
from blockstore.operations.messages import Action
from blockstore.operations.runner import Failure, handles
from blockstore.operations.states import V
from blockstore.scheduler.choosing import Filter, PlacementRequest, Weigher, choose, explain, explain_ranking
from blockstore.scheduler.pools import Pool
from blockstore.scheduler.refusals import public_reason
from blockstore.service_names import VOLUME_SERVICE
from blockstore.zones import zones_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SchedulerContext:
    """The context of the scheduler's handlers."""

    db: Database
    pool_reports: PoolReports
    config: SchedulerConfig
    filters: Sequence[Filter]
    weighers: Sequence[Weigher]
    message_days: int


@handles(PlaceVolume, action=Action.SCHEDULE)
def place_volume(context: SchedulerContext, operation: PlaceVolume, volume: Volume) -> None:
    """Choose a pool, reserve it, write it to the row, and hand over to the manager."""
    with context.db.write() as session:
        request = _request(session, volume, operation)
        pool = _choose(context, session, request, operation.request_id, before=operation.failure)
        reservations.reserve(session, pool.name, volumes=1, volume_gib=volume.size)
        place = {
            "volume": volume.id,
            "host": pool.name,
            "availability_zone": pool.availability_zone,
            "backend": pool.backend,
        }
        session.execute(_PLACE, place)
        following = operation.then(
            CreateVolume,
            snapshot_id=operation.snapshot_id,
            source_volume_id=operation.source_volume_id,
            hints=operation.hints,
            tried=operation.tried,
            pool=pool.name,
        )
        journal.complete_and_continue(session, operation, following)


@handles(PlaceSnapshot, action=Action.SNAPSHOT_CREATE)
def place_snapshot(context: SchedulerContext, operation: PlaceSnapshot, snapshot: Snapshot) -> None:
    """Check that the volume's pool can take the snapshot, reserve it and hand over."""
    with context.db.read() as session:
        volume = session.get_one(Volume, operation.volume_id)
        request = PlacementRequest(
            size_gib=snapshot.volume_size, required_pool=volume.host, **facts_of(session, volume)
        )
    with context.db.write() as session:
        pool = _choose(context, session, request, operation.request_id)
        reservations.reserve(session, pool.name, snapshot_gib=snapshot.volume_size)
        session.execute(update(Snapshot).where(Snapshot.id == snapshot.id).values(host=pool.name))
        following = operation.then(CreateSnapshot, volume_id=operation.volume_id, reference=operation.reference)
        journal.complete_and_continue(session, operation, following)


@handles(PlaceManaged, action=Action.MANAGE)
def place_managed(context: SchedulerContext, operation: PlaceManaged, volume: Volume) -> None:
    """Check that the pool serves the volume's type, and hand over. The manager finds the volume's size."""
    with context.db.write() as session:
        request = PlacementRequest(size_gib=0, required_pool=operation.pool, **confined_facts(session, volume))
        _choose(context, session, request, operation.request_id)
        following = operation.then(ManageVolume, pool=operation.pool, reference=operation.reference)
        journal.complete_and_continue(session, operation, following)


def _refund_growth(session: Session, operation: PlaceExtension, _failure: Failure) -> None:
    quotas.refund_growth(session, operation.project_id, operation.volume_id, operation.growth_gib)


@handles(PlaceExtension, action=Action.EXTEND, undo=_refund_growth, restores=True)
def place_extension(context: SchedulerContext, operation: PlaceExtension, volume: Volume) -> None:
    """Check that the volume's pool can take the growth, reserve it and hand over. A refusal changes nothing."""
    with context.db.read() as session:
        request = PlacementRequest(
            size_gib=operation.growth_gib,
            required_pool=volume.host,
            extends_attached=volume.attach_status != "detached",
            **facts_of(session, volume),
        )
    with context.db.write() as session:
        pool = _choose(context, session, request, operation.request_id)
        reservations.reserve(session, pool.name, volume_gib=operation.growth_gib)
        following = operation.then(
            ExtendVolume, new_size_gib=operation.new_size_gib, growth_gib=operation.growth_gib, pool=pool.name
        )
        journal.complete_and_continue(session, operation, following)


def _refund_type(session: Session, operation: RetypeVolume, _failure: Failure) -> None:
    quotas.refund_type(
        session, operation.project_id, operation.type_id, volumes=operation.counted, gigabytes=operation.size_gib
    )


@handles(RetypeVolume, action=Action.RETYPE, undo=_refund_type, restores=True)
def retype_volume(context: SchedulerContext, operation: RetypeVolume, volume: Volume) -> None:
    """Keep the volume on its pool if that serves the new type; otherwise migrate it if allowed. Hand over.

    A refusal changes nothing.
    """
    with context.db.write() as session:
        volume_type = session.get(VolumeType, operation.type_id)
        if volume_type is None:
            raise NoBackend.for_everybody(f"The volume type {operation.type_id} is gone.")
        facts = confined_facts(session, volume, extra_specs=volume_type.extra_specs)
        try:
            # The capacity of the volume is reserved already.
            _choose(
                context, session, PlacementRequest(size_gib=0, required_pool=volume.host, **facts), operation.request_id
            )
        except NoBackend as refused:
            _retype_by_migration(context, session, operation, volume, facts, refused)
            return
        following = operation.then(
            ChangeType, type_id=operation.type_id, counted=operation.counted, size_gib=operation.size_gib
        )
        journal.complete_and_continue(session, operation, following)


def _retype_by_migration(
    context: SchedulerContext,
    session: Session,
    operation: RetypeVolume,
    volume: Volume,
    facts: Mapping[str, Any],
    refused: NoBackend,
) -> None:
    if not operation.may_move:
        raise _with(refused, "It is not migrated, because migration_policy is not on-demand.")
    if volume.previous_status != V.AVAILABLE:
        raise _with(refused, f"A volume that is {volume.previous_status} is not migrated; detach it first.")
    kept = migration_blocker(session, volume)
    if kept is not None:
        raise _with(refused, f"It cannot be migrated either: {kept}.")
    request = PlacementRequest(size_gib=volume.size, **excluding_source(context.pool_reports, volume), **facts)
    pool = _choose(context, session, request, operation.request_id)
    reservations.reserve(session, pool.name, volumes=1, volume_gib=volume.size)
    session.execute(update(Volume).where(Volume.id == volume.id).values(migration_status="migrating"))
    following = operation.then(
        MigrateToType,
        destination=pool.name,
        name_id=new_id(),
        volume_gib=volume.size,
        type_id=operation.type_id,
        counted=operation.counted,
        size_gib=operation.size_gib,
    )
    journal.complete_and_continue(session, operation, following)


def excluding_source(pool_reports: PoolReports, volume: Volume) -> dict[str, Any]:
    """Return the facts for a request about the pool that a volume leaves: its name and its block size."""
    report = pool_reports.get(volume.host or "")
    return {"exclude_pool": volume.host, "block_size": report.capabilities.block_size if report else None}


def _with(refused: NoBackend, why: str) -> NoBackend:
    return NoBackend(f"{refused.message} {why}", public=f"{refused.public} {why}")


def migration_blocker(session: Session, volume: Volume) -> str | None:
    """Return why an available volume cannot be migrated, or None."""
    if volume.group_id is not None:
        return "it is in a group"
    # A volume that os-initialize_connection has exported is still available.
    for model, words in ((Attachment, "it is attached, or connected"), (Snapshot, "it has snapshots")):
        if session.execute(select(model.id).where(model.volume_id == volume.id).limit(1)).first() is not None:
            return words
    return None


def _note_failed_migration(session: Session, operation: PlaceMigration, _failure: Failure) -> None:
    session.execute(update(Volume).where(Volume.id == operation.volume_id).values(migration_status="error"))


@handles(PlaceMigration, action=Action.MIGRATE, undo=_note_failed_migration)
def place_migration(context: SchedulerContext, operation: PlaceMigration, volume: Volume) -> None:
    """Choose among the pools of the destination, reserve one and hand over. A refusal changes nothing."""
    with context.db.write() as session:
        facts = confined_facts(session, volume)
        exclude_pool = excluding_source(context.pool_reports, volume)
        request = PlacementRequest(size_gib=volume.size, destination=operation.destination, **exclude_pool, **facts)
        pool = _choose(context, session, request, operation.request_id)
        reservations.reserve(session, pool.name, volumes=1, volume_gib=volume.size)
        session.execute(update(Volume).where(Volume.id == volume.id).values(migration_status="migrating"))
        following = operation.then(MigrateVolume, destination=pool.name, name_id=new_id(), volume_gib=volume.size)
        journal.complete_and_continue(session, operation, following)


# --- inputs of a decision ------------------------------------------------------------------------------------


def candidates(pool_reports: PoolReports, session: Session) -> tuple[list[Pool], dict[str, str]]:
    """Return the pools that are up, enabled and not frozen, and for each other pool the reason."""
    usages = reservations.usage_by_pool(session)
    services = {row.host: row for row in session.execute(_SERVICES)}
    pools, absent = [], {}
    for name, report in pool_reports.reports().items():
        service = services.get(report.backend)
        if not report.up:
            absent[name] = f"is down: {report.reason}"
        elif service is not None and service.disabled:
            absent[name] = f"is disabled: {service.disabled_reason or 'no reason given'}"
        elif service is not None and service.frozen:
            absent[name] = "is frozen"
        else:
            pools.append(pool_of(report, usages.get(name, NO_USAGE)))
    return pools, absent


def pool_of(report: PoolReport, usage: PoolUsage) -> Pool:
    """Return the present state of a pool: its report and its reservations."""
    caps, config = report.capabilities, report.config
    return Pool(
        name=report.name,
        availability_zone=report.availability_zone,
        total_gib=report.capacity.total_gib,
        free_gib=report.free_gib(usage),
        provisioned_gib=report.provisioned_gib(usage),
        allocated_gib=usage.volume_gib,
        volumes=usage.volumes,
        reserved_percentage=config.reserved_percentage,
        max_over_subscription_ratio=config.over_subscription,
        thin=caps.thin,
        thick=caps.thick,
        fill_limit_percentage=config.fill_limit_percentage,
        capabilities=report.api_capabilities(usage),
    )


def _choose(
    context: SchedulerContext, session: Session, request: PlacementRequest, request_id: str, *, before: str = ""
) -> Pool:
    pools, absent = candidates(context.pool_reports, session)
    choice = choose(request, pools, context.filters, context.weighers)
    if choice.winner is None:
        reasons = [explain(choice)] if choice.refusals else []
        reasons += [f"{name} {why}" for name, why in sorted(absent.items())]
        text = (
            (f"{before} No other" if before else "No")
            + " pool can take the volume. "
            + ("; ".join(reasons) or "No backend is configured.")
        )
        log.warning("%s", text, extra={"request_id": request_id})
        raise NoBackend(text, public=public_reason(request, choice.refusals, absent))
    log.debug("%s", explain_ranking(choice), extra={"request_id": request_id})
    return choice.winner


def facts_of(session: Session, volume: Volume) -> dict[str, Any]:
    """Return the facts about a volume for filters and expressions."""
    return {
        "extra_specs": dict(session.execute(_SPECS, {"type": volume.volume_type_id}).all()),
        "volume": {
            "id": volume.id,
            "size": volume.size,
            "project_id": volume.project_id,
            "name": volume.name or "",
            "volume_type_id": volume.volume_type_id,
        },
    }


def confined_facts(session: Session, volume: Volume, **changed: Any) -> dict[str, Any]:
    """Return the facts about a volume, and the zones to which its type confines it."""
    facts = facts_of(session, volume) | changed
    return {**facts, "availability_zones": zones_of(facts["extra_specs"])}


def _request(session: Session, volume: Volume, operation: PlaceVolume) -> PlacementRequest:
    facts = facts_of(session, volume)
    specs: Mapping[str, str | None] = facts["extra_specs"]
    zones = (volume.availability_zone,) if volume.availability_zone else zones_of(specs)
    return PlacementRequest(
        size_gib=volume.size,
        availability_zones=zones,
        same_pools=_pools_of(session, operation.hints.get("same_host"), volume.project_id),
        different_pools=_pools_of(session, operation.hints.get("different_host"), volume.project_id),
        required_pool=_source_pool(session, volume),
        tried=operation.tried,
        **facts,
    )


def _pools_of(session: Session, hint: Any, project_id: str) -> frozenset[str] | None:
    """Return the pools of the volumes that a hint names, in the same project only. The schema has checked its form."""
    if hint is None:
        return None
    ids = [hint] if isinstance(hint, str) else list(hint)
    known = (Volume.id.in_(ids), Volume.project_id == project_id, Volume.host.is_not(None))
    hosts = session.scalars(select(Volume.host).where(*known))
    return frozenset(host for host in hosts if host)


def _source_pool(session: Session, volume: Volume) -> str | None:
    """Return the pool on which a copy must be made: its source's pool. Raise NoBackend if the source is gone."""
    if volume.snapshot_id is not None:
        source, host = f"snapshot {volume.snapshot_id}", select(Snapshot.host).where(Snapshot.id == volume.snapshot_id)
    elif volume.source_volid is not None:
        source, host = f"volume {volume.source_volid}", select(Volume.host).where(Volume.id == volume.source_volid)
    else:
        return None
    pool = session.execute(host).scalar()
    if pool is None:
        raise NoBackend.for_everybody(f"Its source, {source}, is gone.")
    return pool


_VOLUMES: Any = Volume.__table__
# Built once: building a statement takes longer than running it.
_PLACE = (
    update(_VOLUMES)
    .where(_VOLUMES.c.id == bindparam("volume"))
    .values(
        service_uuid=select(ServiceRow.uuid)
        .where(ServiceRow.binary == VOLUME_SERVICE, ServiceRow.host == bindparam("backend"))
        .scalar_subquery()
    )
)
_SERVICES: Any = select(ServiceRow.__table__).where(ServiceRow.binary == VOLUME_SERVICE)
_SPECS = select(ExtraSpec.key, ExtraSpec.value).where(ExtraSpec.volume_type_id == bindparam("type"))
