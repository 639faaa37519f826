"""The scheduler's view of one pool at the time of a decision, and the space left on it.

Built by placement.py from the last report and the reservations made since; read by the filters and the weighers.
It never changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from blockstore.service_names import backend_of

# compat: drivers spell these differently; each line is one protocol, and the API shows its first spelling.
PROTOCOLS = (
    ("iSCSI", "iscsi"),
    ("FC", "fibre_channel", "fc"),
    ("NFS", "nfs"),
    ("NVMe-oF", "NVMeOF", "nvmeof"),
)

AUTO_RATIO_OF_AN_EMPTY_POOL = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One pool, with our own figures in GiB and the capabilities as reported on the API.

    The safe defaults of this project differ from Cinder: ``max_over_subscription_ratio`` 1.5 instead of 20 and
    ``reserved_percentage`` 10 instead of 0. They arrive here from the configuration.
    """

    name: str  # node@backend#pool
    availability_zone: str
    total_gib: float | None  # None: unknown; math.inf: infinite. The same for free_gib
    free_gib: float | None
    provisioned_gib: float  # sum of virtual sizes on the pool
    allocated_gib: float  # sum of the sizes of our volumes
    volumes: int
    reserved_percentage: int
    max_over_subscription_ratio: float | Literal["auto"]
    thin: bool
    thick: bool
    fill_limit_percentage: int = 85  # physical fill of a thin pool above which nothing new is placed; not in Cinder
    capabilities: Mapping[str, Any]

    @property
    def backend(self) -> str:
        """Return the name without the pool: node@backend."""
        return backend_of(self.name)

    @property
    def is_free_reported(self) -> bool:
        """Return True if free capacity is reported, even as "unknown" (compat: unknown passes, no report fails)."""
        return self.free_gib is not None or self.capabilities.get("free_capacity_gb") is not None

    @property
    def is_measured(self) -> bool:
        """Return True if total and free space are both known and finite."""
        return is_finite(self.total_gib) and is_finite(self.free_gib)

    @property
    def filled_percentage(self) -> float | None:
        """Return how full the pool physically is, or None if it is unknown."""
        if not (is_finite(self.total_gib) and is_finite(self.free_gib)) or self.total_gib <= 0:
            return None
        return 100 * (self.total_gib - self.free_gib) / self.total_gib

    @property
    def over_subscription(self) -> float:
        """Return the ratio in force, calculated if it is "auto"."""
        if not self.thin or not is_finite(self.total_gib) or not is_finite(self.free_gib):
            return 1.0
        if self.max_over_subscription_ratio != "auto":
            return float(self.max_over_subscription_ratio)
        if self.provisioned_gib == 0:
            return AUTO_RATIO_OF_AN_EMPTY_POOL
        used_gib = max(0.0, self.total_gib - self.free_gib)
        return 1 + self.provisioned_gib / (used_gib + 1)

    def is_over_subscribed(self, wants_thick: bool) -> bool:
        """Return True if more than the physical capacity may be promised: for a thin volume on a thin pool."""
        return self.thin and not wants_thick

    def virtual_free(self, wants_thick: bool) -> float:
        """Return the GiB that may still be promised; math.inf if the pool sets no bound, negative if overdrawn."""
        if not is_finite(self.free_gib):
            return math.inf
        if not is_finite(self.total_gib):
            # compat: a share of an unknown total cannot be reserved, so a pool with a reserve has nothing left.
            return math.inf if self.reserved_percentage == 0 else 0.0
        base_gib = self.total_gib - math.floor(self.total_gib * self.reserved_percentage / 100)
        if self.is_over_subscribed(wants_thick):
            return round(base_gib * self.over_subscription - self.provisioned_gib, 2)
        return round(min(self.free_gib, base_gib - self.provisioned_gib), 2)


def is_finite(figure: float | None) -> TypeGuard[float]:
    """Return True if a number is known and finite."""
    return figure is not None and math.isfinite(figure)


def gib(figure: float) -> str:
    """Return a number with at most two decimals, without trailing zeros."""
    return f"{figure:.2f}".rstrip("0").rstrip(".")


def protocol_spellings(reported: Any) -> tuple[Any, ...]:
    """Return every spelling of the reported protocol (or list of protocols), the reported ones first."""
    reported_spellings = tuple(reported) if isinstance(reported, list | tuple) else (reported,)
    sets = [spellings for spellings in PROTOCOLS if any(one in spellings for one in reported_spellings)]
    return reported_spellings + tuple(
        spelling for spellings in sets for spelling in spellings if spelling not in reported_spellings
    )
