"""What the monitors' JSON means, in forms that the small cluster of tests/ceph has not."""

from __future__ import annotations

from typing import Any

import pytest
from blockstore_plugins.rbd.cluster import PoolStats
from blockstore_plugins.rbd.pool_stats import data_pool_of, monitors_of, stats_of, stats_with

from blockstore.errors import Unreachable

GIB = 2**30


def address(kind: str, host_and_port: str) -> dict[str, Any]:
    return {"type": kind, "addr": host_and_port, "nonce": 0}


def df(stored: int, max_avail: int, objects: int = 10) -> dict[str, Any]:
    stats = {"stored": stored, "bytes_used": stored * 3, "max_avail": max_avail, "objects": objects}
    return {"stats": {"total_bytes": 999 * GIB}, "pools": [{"name": "other"}, {"name": "volumes", "stats": stats}]}


@pytest.mark.parametrize(
    ("stored", "max_avail", "quota", "total", "free"),
    [
        (10, 90, {}, 100, 90),  # of three copies only one is counted
        (10, 90, {"quota_max_bytes": 0}, 100, 90),
        (10, 90, {"quota_max_bytes": 50 * GIB}, 50, 40),
        (10, 20, {"quota_max_bytes": 50 * GIB}, 50, 20),  # the disks are fuller than the quota
        (60, 90, {"quota_max_bytes": 50 * GIB}, 50, 0),  # noticed late
        (0, 0, {}, 0, 0),
        (10, 90, {"quota_max_objects": 11}, 100, 90),
        (10, 90, {"quota_max_objects": 10}, 10, 0),
        (10, 90, {"quota_max_objects": 10, "quota_max_bytes": 50 * GIB}, 50, 0),
    ],
)
def test_capacity(stored: int, max_avail: int, quota: dict[str, int], total: int, free: int) -> None:
    assert stats_of("volumes", df(stored * GIB, max_avail * GIB), quota) == PoolStats(total * GIB, free * GIB)


def test_capacity_is_that_of_the_pool_for_data() -> None:
    stats = {"stored": 10 * GIB, "max_avail": 200 * GIB, "objects": 5}
    told = df(1 * GIB, 90 * GIB)
    told["pools"].append({"name": "coded", "stats": stats})
    quotas: dict[str, dict[str, int]] = {"volumes": {}, "coded": {"quota_max_bytes": 50 * GIB}}
    assert stats_with("volumes", "coded", told, quotas.__getitem__) == PoolStats(50 * GIB, 40 * GIB)
    quotas["volumes"] = {"quota_max_objects": 10}  # no header of a new image fits
    assert stats_with("volumes", "coded", told, quotas.__getitem__) == PoolStats(50 * GIB, 0)
    assert stats_with("volumes", "", told, lambda _pool: {}) == PoolStats(91 * GIB, 90 * GIB)


@pytest.mark.parametrize(("value", "expected"), [("", ""), ("coded", "coded"), ("volumes", "")])
def test_the_pool_for_data(value: str, expected: str) -> None:
    options = [{"name": "rbd_cache", "value": "true"}, {"name": "rbd_default_data_pool", "value": value}]
    assert data_pool_of("volumes", options) == expected


def test_a_pool_that_the_cluster_does_not_tell_of() -> None:
    with pytest.raises(Unreachable, match="nothing of the pool volumes"):
        stats_of("volumes", {"pools": []}, {})


@pytest.mark.parametrize(
    ("monitor", "expected"),
    [
        (
            {"addr": "10.0.0.1:6789/0", "public_addrs": {"addrvec": [
                address("v2", "10.0.0.1:3300"), address("v1", "10.0.0.1:6789"),
            ]}},
            ("10.0.0.1", "6789"),
        ),
        (
            {"addr": "[fd00::1]:6789/0", "public_addrs": {"addrvec": [
                address("v2", "[fd00::1]:3300"), address("v1", "[fd00::1]:6789"),
            ]}},
            ("fd00::1", "6789"),
        ),
        (
            {"addr": "-", "public_addrs": {"addrvec": [address("v2", "10.0.0.1:3300")]}},
            ("10.0.0.1", "3300"),
        ),
        ({"addr": "[fd00::1]:6789/0"}, ("fd00::1", "6789")),
        ({"addr": "10.0.0.1:6789/0"}, ("10.0.0.1", "6789")),
    ],
    ids=["both versions", "IPv6", "version 2 only", "old, IPv6", "old"],
)  # fmt: skip
def test_monitors(monitor: dict[str, Any], expected: tuple[str, str]) -> None:
    assert monitors_of({"fsid": "f", "mons": [monitor, monitor]}) == ("f", [expected, expected])
