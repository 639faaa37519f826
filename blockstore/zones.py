"""Availability zones: those that a volume type allows, and that of a new volume, chosen before it is accepted.

compat: the order of the decisions is Cinder's, and each refusal begins with Cinder's sentence. Cinder takes the default
zone even if no backend is in it; the create then fails later.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from blockstore.config import Config, PoolConfig
from blockstore.errors import BadRequest
from blockstore.service_names import backend_host

log = logging.getLogger(__name__)

SPEC = "RESKEY:availability_zones"


def zones_of(extra_specs: Mapping[str, str | None]) -> tuple[str, ...]:
    """Return the zones to which a type confines its volumes; empty means any."""
    return tuple(zone.strip() for zone in (extra_specs.get(SPEC) or "").split(",") if zone.strip())


def zones_by_backend(config: Config) -> dict[str, str]:
    """Return the zone of each backend by NODE@BACKEND, including backends that are down now."""
    return {
        backend_host(config.service.node, section.name): zone_of(section.pool, config) for section in config.backends
    }


def zone_of(pool: PoolConfig, config: Config) -> str:
    """Return the zone of a pool: its own, else the service's."""
    return pool.availability_zone or config.service.availability_zone


def warn_of_empty_default(config: Config) -> None:
    """Log a warning if the default zone has no backend."""
    default, known = config.service.availability_zone, set(zones_by_backend(config).values())
    if default not in known:
        log.warning(
            "[service] availability_zone is %s, and no backend is in that zone: volumes created without a zone are"
            " refused. The zones of the backends are %s.",
            default,
            _listed(known) or "none",
        )


def zone_of_new(
    config: Config,
    extra_specs: Mapping[str, str | None],
    *,
    requested: str | None,
    of_source: str | None = None,
    source: str = "",
) -> str | None:
    """Return the zone of a new volume, or None if the scheduler chooses among those of its type.

    ``source`` is the kind of its source: ``snapshot`` or ``source volume``. Raise BadRequest if no zone is allowed.
    """
    known = set(zones_by_backend(config).values())
    of_type = zones_of(extra_specs)
    allowed = known & set(of_type) if of_type else known
    if not allowed:
        raise BadRequest(
            f"Volume type is only supported in these availability zones: {', '.join(of_type)}. None of these zones has"
            f" a backend; zones with backends are {_listed(known)}."
            if of_type
            else "No backend is configured, so there is no availability zone for the volume."
        )
    zone = requested or of_source
    if zone is None and not of_type:
        zone = config.service.availability_zone
    if zone is not None and zone not in allowed:
        raise BadRequest(f"Availability zone '{zone}' is invalid.{_hint(known, of_type)}")
    if of_source and zone != of_source:
        raise BadRequest(
            f"Invalid input received: Volume must be in the same availability zone as the {source}, {of_source}."
        )
    if zone is None and len(allowed) == 1:
        (zone,) = allowed
    return zone


def _hint(known: set[str], of_type: tuple[str, ...]) -> str:
    if of_type:
        return f" Volume type is only supported in these availability zones: {', '.join(of_type)}."
    return f" Name one of {_listed(known)}."


def _listed(zones: set[str]) -> str:
    return ", ".join(sorted(zones))
