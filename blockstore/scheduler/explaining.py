"""Shows decisions of the scheduler without making them: for `blockstore schedule explain` and the plan of a drain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from blockstore.db.models import Volume, VolumeType, is_on_backend
from blockstore.scheduler.choosing import Choice, PlacementRequest, choose, explain
from blockstore.scheduler.placement import (
    SchedulerContext,
    candidates,
    confined_facts,
    excluding_source,
    migration_blocker,
)
from blockstore.scheduler.pools import Pool
from blockstore.zones import zones_of


def explain_new(
    context: SchedulerContext, session: Session, *, size_gib: int, type_id: str, zone: str = ""
) -> dict[str, Any]:
    """Return the placement of a new volume: for each pool the filter that refuses it, or its rank and weights."""
    specs = session.get_one(VolumeType, type_id).extra_specs
    request = PlacementRequest(
        size_gib=size_gib,
        extra_specs=specs,
        availability_zones=(zone,) if zone else zones_of(specs),
        volume={"size": size_gib, "volume_type_id": type_id, "name": "", "id": "", "project_id": ""},
    )
    pools, absent = candidates(context.pool_reports, session)
    return _explanation(choose(request, pools, context.filters, context.weighers), pools, absent, request)


def _explanation(
    choice: Choice, pools: Sequence[Pool], absent: Mapping[str, str], request: PlacementRequest
) -> dict[str, Any]:
    rank = {ranked.pool.name: (place, ranked) for place, ranked in enumerate(choice.ranking, 1)}
    rows: list[dict[str, Any]] = []
    for pool in sorted(pools, key=lambda pool: rank.get(pool.name, (len(pools) + 1, None))[0]):
        row: dict[str, Any] = {
            "name": pool.name,
            "total_gib": _finite(pool.total_gib),
            "free_gib": _finite(pool.free_gib),
            "provisioned_gib": round(pool.provisioned_gib, 2),
            "virtual_free_gib": _finite(pool.virtual_free(request.wants_thick)),
        }
        if pool.name in rank:
            place, ranked = rank[pool.name]
            weights = [
                {
                    "weigher": weight.weigher,
                    "raw": _finite(weight.raw),
                    "normalised": round(weight.normalised, 4),
                    "multiplier": weight.multiplier,
                }
                for weight in ranked.weights
            ]
            row |= {"rank": place, "total": round(ranked.total, 4), "weights": weights, "filter": None, "reason": None}
        else:
            refusal = choice.refusals[pool.name]
            row |= {"rank": None, "total": None, "weights": [], "filter": refusal.filter, "reason": refusal.reason}
        rows.append(row)
    rows += [
        {"name": name, "rank": None, "total": None, "weights": [], "filter": "up and enabled", "reason": why}
        for name, why in sorted(absent.items())
    ]
    return {"winner": choice.winner.name if choice.winner else None, "pools": rows}


def _finite(figure: float | None) -> float | None:
    return round(figure, 2) if figure is not None and abs(figure) < 1e300 else None


def plan_drain(context: SchedulerContext, session: Session, backend: str) -> list[dict[str, Any]]:
    """Return the destination of each volume of a backend, or why it stays. Later volumes of the plan see less space."""
    found, _absent = candidates(context.pool_reports, session)
    pools = {pool.name: pool for pool in found if pool.backend != backend}
    volumes = session.scalars(
        select(Volume).where(is_on_backend(Volume.host, backend)).order_by(Volume.size.desc(), Volume.id)
    ).all()
    plan = []
    for volume in volumes:
        destination, reason = None, why_it_stays(session, volume)
        if reason is None:
            request = PlacementRequest(
                size_gib=volume.size,
                **excluding_source(context.pool_reports, volume),
                **confined_facts(session, volume),
            )
            choice = choose(request, list(pools.values()), context.filters, context.weighers)
            if choice.winner is None:
                reason = explain(choice)
            else:
                destination = choice.winner.name
                pools[destination] = _with(choice.winner, volume.size)
        plan.append(
            {
                "volume_id": volume.id,
                "name": volume.name,
                "size": volume.size,
                "source": volume.host,
                "destination": destination,
                "reason": reason,
            }
        )
    return plan


def why_it_stays(session: Session, volume: Volume) -> str | None:
    """Return why a volume cannot be migrated now, or None."""
    if volume.status != "available":
        return f"it is {volume.status}; only an available volume is migrated"
    return migration_blocker(session, volume)


def _with(pool: Pool, size_gib: int) -> Pool:
    free = pool.free_gib if pool.free_gib is None or pool.thin else pool.free_gib - size_gib
    return replace(
        pool,
        free_gib=free,
        provisioned_gib=pool.provisioned_gib + size_gib,
        allocated_gib=pool.allocated_gib + size_gib,
        volumes=pool.volumes + 1,
    )
