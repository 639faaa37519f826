"""Lists the images and snapshots of a pool that can be managed, and explains why others cannot."""

from __future__ import annotations

import re
from collections.abc import Sequence

from blockstore_plugins.rbd.cluster import Cluster
from blockstore_plugins.rbd.names import HELPER
from blockstore_plugins.rbd.trash import GONE

from blockstore.backends.contract import Manageable

_HELPER_OF_CINDER = re.compile(r"volume-[0-9a-f-]{36}\.clone_snap")
_FOREIGN = re.compile(r"[^-/@\0][^/@\0]{0,127}")


def volumes(cluster: Cluster) -> Sequence[Manageable]:
    """Return every image that is a volume or could become one."""
    return [
        Manageable(reference=name, size_bytes=size, reason=why_not(name))
        for name, size in cluster.sizes().items()
        if not name.startswith(GONE)
    ]


def snapshots(cluster: Cluster) -> Sequence[Manageable]:
    """Return every snapshot of these images."""
    return [
        Manageable(reference=name, size_bytes=size, volume=image, reason=why_not(name))
        for image, name, size in cluster.all_snapshots()
        if not name.startswith(HELPER) and not image.startswith(GONE)
    ]


def is_helper(snapshot: str) -> bool:
    """Return True if blockstore or Cinder made a snapshot only to clone a volume."""
    return snapshot.startswith(HELPER) or bool(_HELPER_OF_CINDER.fullmatch(snapshot))


def why_not(reference: str) -> str | None:
    """Return why an image or snapshot of this name cannot be managed; None if it can."""
    if not _FOREIGN.fullmatch(reference):
        return f"The name {reference!r} cannot be used: it must not hold '/' or '@', nor begin with '-'."
    if reference.startswith((GONE, HELPER)):
        return f"{reference} is a snapshot that blockstore needs for clones."
    return None
