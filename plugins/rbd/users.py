"""Checks if an image is open in this process or watched by a client; waits for users that close it soon."""

from __future__ import annotations

import time
from collections.abc import Callable

from blockstore_plugins.rbd.cluster import Cluster, HasSnapshots

from blockstore.backends.openers import Openers
from blockstore.errors import InUse

_LINGERS_S = 35.0
"""How long the cluster may count a killed client as alive, in seconds."""
_LETS_GO_S = 3.0


class Users:
    """The users of the images of one pool."""

    def __init__(self, cluster: Callable[[], Cluster]):
        self._cluster = cluster
        self._born = time.monotonic()
        self.openers = Openers()
        """Images that this process has open: the cluster does not know of readers."""

    def refuse_open(self, name: str) -> None:
        """Raise InUse if this process has an image open."""
        if self.openers.is_open(name):
            raise InUse(f"Volume {name} is open in this process.")

    def refuse_watched(self, name: str) -> None:
        """Raise InUse if any client has an image open for writing."""

        def look() -> None:
            if who := self._cluster().watchers(name):
                raise InUse(f"Volume {name} is open at {', '.join(who)}.")

        self.patiently(look)

    def patiently(self, ask: Callable[[], None]) -> None:
        """Call ``ask``; repeat the call for a few seconds while it raises InUse.

        A background flatten keeps the parent of its clone open, and closes it soon. Shortly after the start of this
        process the wait is longer: the cluster counts a killed client as alive for half a minute, and that client may
        be this service's previous process.
        """
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
