"""Builds the data by which consumers connect to an image, in the form of os-brick's rbd connector."""

from __future__ import annotations

from collections.abc import Sequence

from blockstore_plugins.rbd.options import RbdOptions

from blockstore.backends.contract import DirectConnection

Monitors = tuple[str, Sequence[tuple[str, str]]]
"""The cluster's id, and host and port of each of its monitors."""


def of_image(settings: RbdOptions, pool: str, image: str, monitors: Monitors) -> DirectConnection:
    """Return the connection data of an image of a pool."""
    fsid, addresses = monitors
    where = f"{pool}/{settings.namespace}" if settings.namespace else pool
    return DirectConnection(
        "rbd",
        {
            "name": f"{where}/{image}",
            "hosts": [host for host, _port in addresses],
            "ports": [port for _host, port in addresses],
            "cluster_name": settings.cluster_name,
            "auth_enabled": True,
            "auth_username": settings.user,
            "secret_type": "ceph",
            "secret_uuid": settings.secret_uuid or fsid,
            "discard": True,
        },
    )
