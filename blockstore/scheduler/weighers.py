"""The weighers: each gives one pool a number; choosing.py spreads the numbers over 0..1, multiplies and sums.

Found by their entry points (`blockstore.scheduler.weighers` in setup.cfg) under Cinder's names.
A site's own weigher may be a plain function; its multiplier is then 1.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from blockstore.scheduler.choosing import PlacementRequest, Weigh
from blockstore.scheduler.expressions import ExpressionError, Value, evaluate_for_pool
from blockstore.scheduler.pools import Pool

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Declared:
    """A weighing function that knows its default multiplier and the option that changes it."""

    weigh: Weigh
    option: str | None = None
    multiplier: float = 1.0

    def __call__(self, request: PlacementRequest, pool: Pool) -> float:
        """Return the raw number of the pool."""
        return self.weigh(request, pool)


def weigher(option: str | None = None, *, multiplier: float = 1.0) -> Callable[[Weigh], Declared]:
    """Declare a function a weigher, with its default multiplier and the option that changes it, if any."""
    return lambda weigh: Declared(weigh, option, multiplier)


@weigher("capacity_weight_multiplier", multiplier=1.0)
def capacity(request: PlacementRequest, pool: Pool) -> float:
    """Return the GiB that may still be promised, by the same arithmetic as CapacityFilter."""
    return pool.virtual_free(request.wants_thick) if pool.is_measured else math.inf


@weigher("allocated_capacity_weight_multiplier", multiplier=-1.0)
def allocated_capacity(_request: PlacementRequest, pool: Pool) -> float:
    """Return the GiB of our volumes on the pool."""
    return pool.allocated_gib


@weigher("volume_number_multiplier", multiplier=-1.0)
def volume_number(_request: PlacementRequest, pool: Pool) -> float:
    """Return the number of volumes on the pool."""
    return pool.volumes


@weigher("goodness_weight_multiplier")
def goodness(request: PlacementRequest, pool: Pool) -> float:
    """Return the value of the pool's own goodness_function, 0 to 100; 0 if it is missing or of no use."""
    function = pool.capabilities.get("goodness_function")
    if not function:
        return 0.0
    try:
        return max(_as_goodness(outcome.value) for outcome in evaluate_for_pool(function, request, pool))
    except ExpressionError as exc:
        log.warning("goodness_function of %s counts as 0: %s", pool.name, exc)
        return 0.0


@weigher("chance_weight_multiplier")
def chance(_request: PlacementRequest, _pool: Pool) -> float:
    """Return a random number."""
    return random.random()  # noqa: S311 - spreads load, keeps no secret


def _as_goodness(value: Value) -> float:
    if isinstance(value, bool):
        return 100.0 if value else 0.0
    if isinstance(value, int | float) and 0 <= value <= 100:
        return float(value)
    return 0.0
