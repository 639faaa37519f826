"""Pools as the scheduler sees them, and the zones they are in."""

from __future__ import annotations

from typing import Any

from blockstore.accounting import reservations
from blockstore.accounting.pool_reports import NO_USAGE
from blockstore.api.http.call import Call
from blockstore.api.http.routes import Routes
from blockstore.api.types.types import default_type, find_type
from blockstore.db.models import ServiceRow
from blockstore.errors import BadRequest, InvalidInput, listed
from blockstore.microversions import FILTERS_CHECKED, POOL_FILTERS, POOL_VOLUME_TYPE
from blockstore.schemas.base import MAX_SIZE_GIB, query_flag
from blockstore.service_names import VOLUME_SERVICE
from blockstore.zones import zone_of_new, zones_by_backend

routes = Routes()

FILTERS = frozenset({"name", "volume_type"})


@routes.get("/scheduler-stats/get_pools", policy="scheduler_extension:scheduler_stats:get_pools")
def get_pools(call: Call) -> dict[str, Any]:
    """List the pools, with their capabilities on request."""
    detail = query_flag(call.query, "detail")
    given = {name: value for name, value in call.query.items() if name != "detail"}
    if call.version < POOL_FILTERS:
        given = {}
    refused = sorted(set(given) - FILTERS)
    if refused and call.version >= FILTERS_CHECKED:
        raise BadRequest(f"Invalid filters {listed(refused)} are found in query options.")
    wanted_backend = None
    if "volume_type" in given and call.version >= POOL_VOLUME_TYPE:
        wanted_backend = find_type(call, given["volume_type"]).extra_specs.get("volume_backend_name")
    usages = reservations.usage_by_pool(call.session)
    pools = []
    for name, report in sorted(call.core.pool_reports.reports().items()):
        capabilities = report.api_capabilities(usages.get(name, NO_USAGE))
        if given.get("name", name) != name:
            continue
        if wanted_backend is not None and capabilities["volume_backend_name"] != wanted_backend:
            continue
        pools.append({"name": name, "capabilities": capabilities} if detail else {"name": name})
    return {"pools": pools}


@routes.get("/scheduler-stats/explain", policy="scheduler_extension:scheduler_stats:get_pools")
def explain(call: Call) -> dict[str, Any]:
    """Explain how the scheduler would place a new volume: by pool, filter and weigher. Not in Cinder."""
    given = call.query.get("size", "")
    if not (given.isascii() and given.isdigit() and 0 < int(given) <= MAX_SIZE_GIB):
        raise InvalidInput("size", given, "It must be a whole number of GiB, from 1.")
    wanted = call.query.get("volume_type")
    volume_type = find_type(call, wanted) if wanted else default_type(call)
    requested = call.query.get("availability_zone") or None
    zone = zone_of_new(call.core.config, volume_type.extra_specs, requested=requested) or ""
    return {"explanation": call.core.explain_new(call.session, size_gib=int(given), type_id=volume_type.id, zone=zone)}


@routes.get("/os-availability-zone", policy="none")
def availability_zones(call: Call) -> dict[str, Any]:
    """List the zones. A zone is available if one of its backends accepts volumes."""
    available: dict[str, bool] = {}
    for backend, zone in zones_by_backend(call.core.config).items():
        row = call.session.get(ServiceRow, (VOLUME_SERVICE, backend))
        enabled = not (row and row.disabled)
        available[zone] = available.get(zone, False) or enabled
    return {
        "availabilityZoneInfo": [
            {"zoneName": zone, "zoneState": {"available": state}} for zone, state in sorted(available.items())
        ]
    }
