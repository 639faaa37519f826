"""Why no pool was found, for users: sizes and reasons, without the names of pools, filters and extra specs.

The operator's text, with the figures of each pool, is ``explain`` of choosing.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from blockstore.scheduler.choosing import PlacementRequest, Refusal
from blockstore.scheduler.pools import gib

_ABSENT = "it is not available at the moment"
_OTHER = "a filter of this installation excludes it"


def _capacity(request: PlacementRequest) -> str:
    return f"it does not have {gib(request.size_gib)} GiB free"


def _capabilities(request: PlacementRequest) -> str:
    if request.extends_attached:
        return "it cannot extend attached volumes, or does not have the capabilities that the volume type requires"
    return "it does not have the capabilities that the volume type requires"


_BY_FILTER: Mapping[str, Callable[[PlacementRequest], str]] = {
    "AvailabilityZoneFilter": lambda request: (
        f"it is not in the availability zone {' or '.join(request.availability_zones)}"
    ),
    "CapacityFilter": _capacity,
    "CapabilitiesFilter": _capabilities,
    "SameBackendFilter": lambda _: "the volumes of the hint same_host are not on it",
    "DifferentBackendFilter": lambda _: "volumes of the hint different_host are on it",
    "BlockSizeFilter": lambda request: (
        f"its block size differs from the {request.block_size} bytes of the volume, so the partitions would no longer"
        " be found"
    ),
    "RetryFilter": lambda _: "it failed to create the volume",
}
_ELSEWHERE = frozenset({"MigrationFilter", "SourcePoolFilter"})
"""Filters that refuse a pool only because another pool was meant."""


def public_reason(request: PlacementRequest, refusals: Mapping[str, Refusal], absent: Collection[str]) -> str:
    """Return the text for users: the combined reasons of all pools, and what to do."""
    found = {refusal.filter for refusal in refusals.values()} - _ELSEWHERE
    reasons = {_BY_FILTER[name](request) if name in _BY_FILTER else _OTHER for name in found}
    is_absent = bool(absent) if request.required_pool is None else request.required_pool in absent
    if is_absent or not found:
        reasons.add(_ABSENT)
    if found == {"CapacityFilter"} and not is_absent:
        lacks = "No storage has" if request.required_pool is None else "The only possible storage does not have"
        return f"{lacks} {gib(request.size_gib)} GiB free for this volume type. {_advice(found)}"
    refuses = "No storage can" if request.required_pool is None else "The only possible storage cannot"
    return f"{refuses} take the volume: {'; or '.join(sorted(reasons))}. {_advice(found)}"


def _advice(found: Collection[str]) -> str:
    if "CapacityFilter" in found:
        return "Ask for less, or ask your administrator."
    return "Ask your administrator." if found else "Try again later, or ask your administrator."
