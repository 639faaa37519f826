"""Who uses an image: this process, or a client that watches it; and how long to wait for one that lets go soon."""

from __future__ import annotations

import time
from collections.abc import Callable

from blockstore_plugins.rbd.cluster import Cluster, HasSnapshots

from blockstore.backends.openers import Openers
from blockstore.errors import InUse

_LINGERS_S = 35.0
"""How long the cluster may take a client for alive that was killed."""
_LETS_GO_S = 3.0


class Users:
    """The users of the images of one pool."""

    def __init__(self, cluster: Callable[[], Cluster]):
        self._cluster = cluster
        self._born = time.monotonic()
        self.openers = Openers()
        """What this process has open: the cluster does not know of readers."""

    def refuse_open(self, name: str) -> None:
        """Raise InUse if this process has an image open."""
        if self.openers.is_open(name):
            raise InUse(f"Volume {name} is open in this process.")

    def refuse_watched(self, name: str) -> None:
        """Raise InUse if an image is open for writing, anywhere."""

        def look() -> None:
            if who := self._cluster().watchers(name):
                raise InUse(f"Volume {name} is open at {', '.join(who)}.")

        self.patiently(look)

    def patiently(self, ask: Callable[[], None]) -> None:
        """Ask; ask again for a moment while an image is in use: a clone that is made independent in the background lets
        go of its parent, and has that open. Soon after our start longer: the cluster takes a client that was killed,
        which may be ourselves in a former life, for alive for half a minute."""
        until = max(self._born + _LINGERS_S, time.monotonic() + _LETS_GO_S)
        while True:
            try:
                return ask()
            except HasSnapshots:
                raise
            except InUse:
                if time.monotonic() > until:
                    raise
                time.sleep(0.25)
