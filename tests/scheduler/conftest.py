"""Factories of pools and requests; session-wide, so that property tests can use them too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from blockstore.scheduler.choosing import PlacementRequest
from blockstore.scheduler.pools import Pool


@pytest.fixture(scope="session")
def make_pool() -> Callable[..., Pool]:
    """Make a thin pool of 100 GiB, all free, with the changes given."""

    def make(name: str = "lab@lvm#lvm", **changes: Any) -> Pool:
        values: dict[str, Any] = {
            "name": name,
            "availability_zone": "nova",
            "total_gib": 100.0,
            "free_gib": 100.0,
            "provisioned_gib": 0.0,
            "allocated_gib": 0.0,
            "volumes": 0,
            "reserved_percentage": 10,
            "max_over_subscription_ratio": 1.5,
            "thin": True,
            "thick": True,
            "capabilities": {"storage_protocol": "iSCSI"},
        }
        return Pool(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def make_placement_request() -> Callable[..., PlacementRequest]:
    """Make a request for 1 GiB, with the changes given."""

    def make(size_gib: float = 1, **changes: Any) -> PlacementRequest:
        return PlacementRequest(size_gib=size_gib, **changes)

    return make
