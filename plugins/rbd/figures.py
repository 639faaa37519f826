"""What the cluster's JSON means: capacity of a pool, where its images have their data, addresses of the monitors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from blockstore_plugins.rbd.cluster import Figures

from blockstore.errors import Unreachable

_DATA_POOL = "rbd_default_data_pool"


def data_pool_of(pool: str, options: Iterable[Mapping[str, Any]]) -> str:
    """Return in which other pool new images have their data, by the options of a pool; empty for none."""
    found = next((str(option["value"]) for option in options if option["name"] == _DATA_POOL), "")
    return "" if found == pool else found


def figures_with(
    pool: str, data_pool: str, df: Mapping[str, Any], quota: Callable[[str], Mapping[str, Any]]
) -> Figures:
    """Return what a pool has whose images may have their data in another one: what that has, as long as the pool
    itself takes their headers."""
    own = figures_of(pool, df, quota(pool))
    if not data_pool:
        return own
    data = figures_of(data_pool, df, quota(data_pool))
    return Figures(data.total, data.free, data_pool) if own.free else Figures(data.total, 0)


def figures_of(pool: str, df: Mapping[str, Any], quota: Mapping[str, Any]) -> Figures:
    """Return what a pool has.

    compat: free is max_avail, which Ceph has divided by the copies and cut to the fullest disk; used is what clients
    stored, not what the copies take; the pool's quota is a total.
    """
    for row in df["pools"]:
        if row["name"] == pool:
            used, free = int(row["stats"]["stored"]), int(row["stats"]["max_avail"])
            limit, most_objects = (int(quota.get(f"quota_max_{what}") or 0) for what in ("bytes", "objects"))
            if most_objects and int(row["stats"]["objects"]) >= most_objects:
                free = 0
            if limit:
                return Figures(total=limit, free=max(0, min(limit - used, free)))
            return Figures(total=used + free, free=free)
    raise Unreachable(f"The cluster tells nothing of the pool {pool}.")


def monitors_of(dump: Mapping[str, Any]) -> tuple[str, Sequence[tuple[str, str]]]:
    """Return the cluster's id, and host and port of each monitor: its v1 address, where it has one, for every client
    speaks that."""
    found = []
    for monitor in dump["mons"]:
        vector = {one["type"]: str(one["addr"]) for one in monitor.get("public_addrs", {}).get("addrvec", ())}
        address = vector.get("v1") or vector.get("v2") or str(monitor["addr"]).partition("/")[0]
        host, _, port = address.rpartition(":")
        found.append((host.strip("[]"), port))
    return str(dump["fsid"]), found
