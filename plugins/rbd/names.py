"""The names in a pool, as this process knows them: no name is given twice, to a volume or to a snapshot.

Read from the cluster once, at the first question; kept up to date by what this process makes and removes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from blockstore_plugins.rbd.cluster import Cluster
from blockstore_plugins.rbd.trash import GONE

from blockstore.errors import BackendError, NameTaken

HELPER = "clone-"
"""How the name of a snapshot begins that is nobody's, and made only to clone a volume."""


class Names:
    """Volumes and snapshots of one pool."""

    def __init__(self, cluster: Callable[[], Cluster]):
        self._cluster = cluster
        self._lock = threading.Lock()
        self._known: dict[str, str] | None = None
        """Volumes (to nothing) and snapshots (to their volume)."""

    def load(self) -> None:
        """Read the names, unless they are known."""
        self._all()

    def owner(self, name: str) -> str | None:
        """Return the volume whose snapshot has the name; nothing if a volume has it, None if it is free."""
        return self._all().get(name)

    def note(self, name: str, volume: str = "") -> None:
        """Remember a new volume, or a new snapshot of a volume."""
        self._all()[name] = volume

    def forget(self, name: str) -> None:
        """Remember that a name is free again."""
        self._all().pop(name, None)

    def refuse_for_volume(self, name: str) -> None:
        """Raise NameTaken if a snapshot has the name; BackendError if no volume may have it."""
        if name.startswith(GONE):
            raise BackendError(f"Names of volumes do not begin with {GONE}.")
        if volume := self.owner(name):
            raise NameTaken(f"{name} is a snapshot of volume {volume}.")

    def refuse_for_snapshot(self, name: str, volume: str) -> None:
        """Raise NameTaken if a volume, or another volume's snapshot, has the name."""
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
            with self._lock:  # another thread may have been quicker, and have noted something since
                self._known = known if self._known is None else self._known
                return self._known
        return known
