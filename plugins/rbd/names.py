"""This process's cache of the names in a pool: no two volumes or snapshots get the same name.

It is read from the cluster on first use; every volume and snapshot made or removed by this process updates it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from blockstore_plugins.rbd.cluster import Cluster
from blockstore_plugins.rbd.trash import GONE

from blockstore.errors import BackendError, NameTaken

HELPER = "clone-"
"""Prefix of the names of snapshots that are made only to clone a volume."""


class Names:
    """Volumes and snapshots of one pool."""

    def __init__(self, cluster: Callable[[], Cluster]):
        self._cluster = cluster
        self._lock = threading.Lock()
        self._known: dict[str, str] | None = None
        """By name: the volume of a snapshot; empty for a volume."""

    def load(self) -> None:
        """Read the names, unless they are cached."""
        self._all()

    def owner(self, name: str) -> str | None:
        """Return the volume whose snapshot has the name; empty if a volume has the name, None if the name is free."""
        return self._all().get(name)

    def note(self, name: str, volume: str = "") -> None:
        """Add a new volume, or a new snapshot of a volume."""
        self._all()[name] = volume

    def forget(self, name: str) -> None:
        """Remove a name that is free again."""
        self._all().pop(name, None)

    def refuse_for_volume(self, name: str) -> None:
        """Raise NameTaken if a snapshot has the name; BackendError if the name is reserved."""
        if name.startswith(GONE):
            raise BackendError(f"Names of volumes do not begin with {GONE}.")
        if volume := self.owner(name):
            raise NameTaken(f"{name} is a snapshot of volume {volume}.")

    def refuse_for_snapshot(self, name: str, volume: str) -> None:
        """Raise NameTaken if a volume, or another volume's snapshot, has the name; BackendError if the name is
        reserved."""
        if name.startswith(HELPER):
            raise BackendError(f"Names of snapshots do not begin with {HELPER}.")
        owner = self.owner(name)
        if owner == "":
            raise NameTaken(f"{name} is the name of a volume.")
        if owner not in (None, volume):
            raise NameTaken(f"{name} is a snapshot of volume {owner}.")

    def _all(self) -> dict[str, str]:
        with self._lock:
            known = self._known
        if known is None:
            known = dict.fromkeys(self._cluster().names(), "")
            known |= {name: image for image, name, _size in self._cluster().all_snapshots()}
            with self._lock:  # another thread may have loaded the names first, and noted changes since
                self._known = known if self._known is None else self._known
                return self._known
        return known
