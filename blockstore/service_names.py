"""The names of services, backends and pools, as the API, the tables and Cinder's tools write them.

The host of a backend is NODE@BACKEND, and that of a pool NODE@BACKEND#POOL.
"""

from __future__ import annotations

# compat: tools look for these names of Cinder's services
API_SERVICE, SCHEDULER_SERVICE, VOLUME_SERVICE = "cinder-api", "cinder-scheduler", "cinder-volume"
BACKUP_SERVICE = "cinder-backup"


def backend_host(node: str, backend: str) -> str:
    """Return NODE@BACKEND."""
    return f"{node}@{backend}"


def pool_host(node: str, backend: str, pool: str) -> str:
    """Return NODE@BACKEND#POOL."""
    return f"{backend_host(node, backend)}#{pool}"


def has_node(host: str) -> bool:
    """Return True if a name begins with a node, as NODE@BACKEND does."""
    return "@" in host


def backend_of(host: str) -> str:
    """Return NODE@BACKEND of a pool."""
    return host.partition("#")[0]


def backend_name(host: str) -> str:
    """Return BACKEND, the name of the configuration's section, of a backend or pool."""
    return backend_of(host).partition("@")[2]


def pool_name(host: str) -> str:
    """Return POOL of a pool."""
    return host.partition("#")[2]
