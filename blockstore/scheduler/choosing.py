"""Choose a pool for a request, or return the reason for each pool that cannot take it.

Called by placement.py with the data it has read and with the configured filters and weighers. Pure: it reads no clock,
no database and no configuration, so a decision can be repeated from its inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from blockstore.accounting.pool_reports import other_block_size
from blockstore.scheduler.pools import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRequest:
    """A request for a pool, with all its facts looked up."""

    size_gib: float  # for an extend the growth; 0 for a volume that is on its pool already
    extra_specs: Mapping[str, str | None] = field(default_factory=dict)
    availability_zones: tuple[str, ...] = ()  # of the request, or of the type's RESKEY:availability_zones; empty: any
    volume: Mapping[str, Any] = field(default_factory=dict)  # volume.* in expressions
    same_pools: frozenset[str] | None = None  # pools of the volumes named by the hint same_host; None: no hint
    different_pools: frozenset[str] | None = None  # the same for different_host
    required_pool: str | None = None  # the pool of the source or of the volume itself, if no other will do
    tried: tuple[str, ...] = ()  # pools that failed already
    exclude_pool: str | None = None  # the pool that the volume leaves in a migration
    block_size: int | None = None  # the logical block size of the volume to migrate, in bytes; None: not known
    destination: str | None = None  # the pool or the backend to which the volume is migrated
    extends_attached: bool = False

    @property
    def wants_thick(self) -> bool:
        """Return True if the type rules out over-subscription."""
        return self.extra_specs.get("provisioning:type") == "thick"


Check = Callable[[PlacementRequest, Pool], str | None]
"""Return why the pool cannot take the request, or None if it can."""

Weigh = Callable[[PlacementRequest, Pool], float]
"""Return a number, or math.inf if the pool has no figure."""


class Filter(NamedTuple):
    """A configured filter."""

    name: str
    check: Check


class Weigher(NamedTuple):
    """A configured weigher. A negative multiplier prefers small numbers."""

    name: str
    weigh: Weigh
    multiplier: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a pool was refused."""

    filter: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """The result of one weigher for one pool."""

    weigher: str
    raw: float
    normalised: float  # 0..1 among the candidates
    multiplier: float

    @property
    def weighted(self) -> float:
        """Return the weight's share of the total."""
        return self.normalised * self.multiplier


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A pool that passed, with its weights."""

    pool: Pool
    weights: tuple[Weight, ...]

    @property
    def total(self) -> float:
        """Return the sum by which it is ranked."""
        return math.fsum(weight.weighted for weight in self.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The outcome: the winner or None, the pools that passed from best to worst, and the refusals of the others."""

    ranking: tuple[Ranked, ...]
    refusals: Mapping[str, Refusal]

    @property
    def winner(self) -> Pool | None:
        """Return the best pool, or None when no pool passed."""
        return self.ranking[0].pool if self.ranking else None


def choose(
    request: PlacementRequest, pools: Sequence[Pool], filters: Sequence[Filter], weighers: Sequence[Weigher]
) -> Choice:
    """Return the pools that can take the request from best to worst, and the reason for each other pool."""
    passed: list[Pool] = []
    refusals: dict[str, Refusal] = {}
    names = frozenset(pool.name for pool in pools)
    for pool in sorted(pools, key=lambda pool: pool.name):
        refusal = _refuse_by_history(request, pool, names) or _refuse_by_filters(request, pool, filters)
        if refusal is None:
            passed.append(pool)
        else:
            refusals[pool.name] = refusal
    # Sorting is stable and the pools are sorted by name, so a tie goes to the first name.
    ranking = sorted(_weigh(request, passed, weighers), key=lambda ranked: ranked.total, reverse=True)
    return Choice(ranking=tuple(ranking), refusals=refusals)


def explain(choice: Choice) -> str:
    """Return every refusal on one line: pool, filter and numbers of each."""
    lines = [f"{name}: {refusal.filter}: {refusal.reason}" for name, refusal in sorted(choice.refusals.items())]
    return "; ".join(lines) or "No pool was refused."


def explain_ranking(choice: Choice) -> str:
    """Return the pools that passed on one line, best first, with the numbers behind each total."""
    lines = []
    for ranked in choice.ranking:
        weights = [f"{w.weigher} {w.raw:g} is {w.normalised:.3g} x {w.multiplier:g}" for w in ranked.weights]
        lines.append(f"{ranked.pool.name}: {ranked.total:.3g} ({', '.join(weights) or 'not weighed'})")
    return "; ".join(lines) or "No pool passed."


def _refuse_by_history(request: PlacementRequest, pool: Pool, names: frozenset[str]) -> Refusal | None:
    """Refuse pools that failed already or that the request rules out. The configuration cannot change this."""
    if pool.name in request.tried:
        return Refusal("RetryFilter", "tried already")
    if pool.name == request.exclude_pool:
        return Refusal("MigrationFilter", "the volume is already there")
    if request.destination not in (None, pool.name, pool.backend):
        return Refusal("MigrationFilter", f"the destination is {request.destination}")
    block_size = pool.capabilities.get("logical_block_size")
    if request.block_size and block_size and (reason := other_block_size(request.block_size, block_size)):
        return Refusal("BlockSizeFilter", reason)
    if request.required_pool is not None and pool.name != request.required_pool:
        absent = "" if request.required_pool in names else ", which is down, disabled or has not reported"
        return Refusal("SourcePoolFilter", f"the source is on {request.required_pool}{absent}")
    return None


def _refuse_by_filters(request: PlacementRequest, pool: Pool, filters: Sequence[Filter]) -> Refusal | None:
    for name, check in filters:
        reason = check(request, pool)
        if reason is not None:
            return Refusal(name, reason)
    return None


def _weigh(request: PlacementRequest, pools: Sequence[Pool], weighers: Sequence[Weigher]) -> list[Ranked]:
    columns: list[list[Weight]] = []
    for name, weigh, multiplier in weighers:
        raws = [float(weigh(request, pool)) for pool in pools]
        columns.append(
            [
                Weight(weigher=name, raw=raw, normalised=normalised, multiplier=multiplier)
                for raw, normalised in zip(raws, normalise(raws, multiplier), strict=True)
            ]
        )
    return [Ranked(pool=pool, weights=tuple(column[i] for column in columns)) for i, pool in enumerate(pools)]


def normalise(raws: Sequence[float], multiplier: float) -> list[float]:
    """Return the numbers spread over 0..1; equal numbers give 0."""
    # compat: a pool without a figure always comes last. It counts as -1 if large numbers are good, and as more than the
    # largest number if small numbers are good.
    known = [raw for raw in raws if _is_figure(raw)]
    if multiplier >= 0 or not known:
        stand_in = -1.0
    else:
        stand_in = max(known) + max(1.0, abs(max(known)), max(known) - min(known))
    counted = [raw if _is_figure(raw) else stand_in for raw in raws]
    low, high = min(counted, default=0.0), max(counted, default=0.0)
    return [(raw - low) / (high - low) if high > low else 0.0 for raw in counted]


def _is_figure(raw: float) -> bool:
    """Return True if calculating with a number is safe: it is not infinite, not NaN, and too small to overflow."""
    return abs(raw) < 1e300
