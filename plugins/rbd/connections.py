"""Connections to Ceph clusters through librados: one per cluster and user, shared by all pools of the process.

librbd works on in its own threads after an image is closed, and crashes the process if the connection has ended
meanwhile. So a connection stays for the life of the process. A stuck connection is not used again, and is ended when it
is idle.
"""

from __future__ import annotations

import atexit
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_QUIET_S = 120.0
"""Seconds from the last use of an abandoned connection until it is ended. After closing an image librbd releases a lock
and stops watching; it gives up each step after ``PoolAccess.timeout_s``."""
_EXIT_S = 5.0


class ClusterConnection:
    """A connected ``rados.Rados``, and its pools."""

    def __init__(self, cluster: Any):
        self.cluster = cluster
        self._pools: dict[tuple[str, str], Any] = {}
        self.users = 0
        self.is_left = False

    def pool(self, name: str, namespace: str) -> Any:
        """Return the ``rados.Ioctx`` of a pool; it stays bound to the pool that had the name when it was opened."""
        found = self._pools.get((name, namespace))
        if found is None:
            found = self.cluster.open_ioctx(name)
            found.set_namespace(namespace)
            # Then a full pool allows removals and refuses writes; otherwise both block until their timeout.
            found.set_osdmap_full_try()
            self._pools[name, namespace] = found
        return found

    def keep_pool(self, name: str, pool_id: int) -> None:
        """Forget open pools of this name with another id; operations that use them keep them until they end."""
        self._pools = {
            key: pool for key, pool in self._pools.items() if key[0] != name or pool.get_pool_id() == pool_id
        }

    def end(self) -> None:
        """End the connection; may block if the cluster does not answer."""
        with suppress(Exception):
            for pool in self._pools.values():
                pool.close()
            self.cluster.shutdown()


class ClusterConnections:
    """All connections of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connecting: defaultdict[Hashable, threading.Lock] = defaultdict(threading.Lock)
        """A lock for each key, so that a cluster that does not answer does not block the others."""
        self._made: dict[Hashable, ClusterConnection] = {}

    @contextmanager
    def use(self, key: Hashable, connect: Callable[[], Any]) -> Iterator[ClusterConnection]:
        """Give the connection of a key; ``connect`` makes a missing one."""
        with self._lock:
            connecting = self._connecting[key]
        with connecting:
            connection = self._made.get(key) or ClusterConnection(connect())
            with self._lock:
                self._made[key] = connection
                connection.users += 1
        try:
            yield connection
        finally:
            with self._lock:
                connection.users -= 1
                is_last = connection.is_left and not connection.users
            if is_last:
                self._end_later(connection)

    def leave(self, connection: ClusterConnection) -> None:
        """Abandon a connection: it is not used again, and is ended later. Call this while the connection is in use."""
        with self._lock:
            connection.is_left = True
            self._made = {key: entry for key, entry in self._made.items() if entry is not connection}

    def _end_later(self, connection: ClusterConnection) -> None:
        timer = threading.Timer(_QUIET_S, connection.end)
        timer.daemon = True
        timer.start()

    def end(self) -> None:
        """End unused connections, before the interpreter ends them in arbitrary order."""
        with self._lock:
            idle = [entry for entry in self._made.values() if not entry.users]
        threads = [threading.Thread(target=entry.end, daemon=True) for entry in idle]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_EXIT_S)


connections = ClusterConnections()
atexit.register(connections.end)
