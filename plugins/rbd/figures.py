"""What the monitors' JSON means: capacity of a pool, addresses of the monitors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from blockstore_plugins.rbd.cluster import Figures

from blockstore.errors import Unreachable


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
