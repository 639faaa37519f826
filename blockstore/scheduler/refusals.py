"""Why no pool was found, for users: how much and what, without the names of pools, filters and extra specs.

The operator's text, with the figures of each pool, is ``explain`` of choosing.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from blockstore.scheduler.choosing import Refusal, Wish
from blockstore.scheduler.pools import gib

_ABSENT = "it is not available at the moment"
_OTHER = "a rule of this installation keeps it away"


def _capacity(wish: Wish) -> str:
    return f"{gib(wish.size_gib)} GiB are not free on it"


def _capabilities(wish: Wish) -> str:
    if wish.extends_attached:
        return "it cannot extend a volume that is attached, or does not offer what the volume type asks for"
    return "it does not offer what the volume type asks for"


_BY_FILTER: Mapping[str, Callable[[Wish], str]] = {
    "AvailabilityZoneFilter": lambda wish: f"it is not in the availability zone {' or '.join(wish.availability_zones)}",
    "CapacityFilter": _capacity,
    "CapabilitiesFilter": _capabilities,
    "SameBackendFilter": lambda _: "the volumes of the hint same_host are not there",
    "DifferentBackendFilter": lambda _: "volumes of the hint different_host are there",
    "BlockSizeFilter": lambda wish: (
        f"its blocks have another size than the {wish.block_size} bytes of the volume's, whose partitions would not be"
        " found any more"
    ),
    "RetryFilter": lambda _: "it failed to create the volume",
}
_ELSEWHERE = frozenset({"MigrationFilter", "SourcePoolFilter"})
"""Their refusals say only that another pool was meant."""


def public_reason(wish: Wish, refusals: Mapping[str, Refusal], absent: Collection[str]) -> str:
    """Return what a user is told: the reasons that are left of all pools, and what to do."""
    found = {refusal.filter for refusal in refusals.values()} - _ELSEWHERE
    reasons = {_BY_FILTER[name](wish) if name in _BY_FILTER else _OTHER for name in found}
    is_absent = bool(absent) if wish.only_pool is None else wish.only_pool in absent
    if is_absent or not found:
        reasons.add(_ABSENT)
    if found == {"CapacityFilter"} and not is_absent:
        lacks = "No storage has" if wish.only_pool is None else "The storage where it has to be does not have"
        return f"{lacks} {gib(wish.size_gib)} GiB free for this volume type. {_advice(found)}"
    refuses = "No storage can" if wish.only_pool is None else "The storage where it has to be cannot"
    return f"{refuses} take it: {'; or '.join(sorted(reasons))}. {_advice(found)}"


def _advice(found: Collection[str]) -> str:
    if "CapacityFilter" in found:
        return "Ask for less, or ask your administrator."
    return "Ask your administrator." if found else "Try again later, or ask your administrator."
