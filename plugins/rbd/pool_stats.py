"""Interprets the cluster's JSON: capacity of a pool, data pool of its images, addresses of the monitors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from blockstore_plugins.rbd.cluster import PoolStats

from blockstore.errors import Unreachable

_DATA_POOL = "rbd_default_data_pool"


def data_pool_of(pool: str, options: Iterable[Mapping[str, Any]]) -> str:
    """Return the data pool of new images according to the options of a pool; empty if it is the pool itself."""
    found = next((str(option["value"]) for option in options if option["name"] == _DATA_POOL), "")
    return "" if found == pool else found


def stats_with(
    pool: str, data_pool: str, df: Mapping[str, Any], quota: Callable[[str], Mapping[str, Any]]
) -> PoolStats:
    """Return the capacity of a pool, or of its data pool if it has one.

    Nothing is free in the data pool if the pool itself, which holds the headers of images, is full.
    """
    own = stats_of(pool, df, quota(pool))
    if not data_pool:
        return own
    data = stats_of(data_pool, df, quota(data_pool))
    return PoolStats(data.total, data.free, data_pool) if own.free else PoolStats(data.total, 0)


def stats_of(pool: str, df: Mapping[str, Any], quota: Mapping[str, Any]) -> PoolStats:
    """Return the capacity of a pool.

    compat: free is max_avail, which Ceph divides by the number of copies and limits by the fullest disk. Used is the
    data stored by clients, without copies. The pool's quota is a total.
    """
    for row in df["pools"]:
        if row["name"] == pool:
            used, free = int(row["stats"]["stored"]), int(row["stats"]["max_avail"])
            limit, most_objects = (int(quota.get(f"quota_max_{what}") or 0) for what in ("bytes", "objects"))
            if most_objects and int(row["stats"]["objects"]) >= most_objects:
                free = 0
            if limit:
                return PoolStats(total=limit, free=max(0, min(limit - used, free)))
            return PoolStats(total=used + free, free=free)
    raise Unreachable(f"The cluster tells nothing of the pool {pool}.")


def monitors_of(dump: Mapping[str, Any]) -> tuple[str, Sequence[tuple[str, str]]]:
    """Return the cluster's id, and host and port of each monitor.

    The address is the v1 address if there is one, because every client supports v1.
    """
    found = []
    for monitor in dump["mons"]:
        vector = {one["type"]: str(one["addr"]) for one in monitor.get("public_addrs", {}).get("addrvec", ())}
        address = vector.get("v1") or vector.get("v2") or str(monitor["addr"]).partition("/")[0]
        host, _, port = address.rpartition(":")
        found.append((host.strip("[]"), port))
    return str(dump["fsid"]), found
