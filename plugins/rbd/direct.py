"""What a consumer needs to reach an image on the cluster itself: the words of os-brick's connector for rbd."""

from __future__ import annotations

from collections.abc import Sequence

from blockstore_plugins.rbd.options import RbdOptions

from blockstore.backends.contract import Direct

Monitors = tuple[str, Sequence[tuple[str, str]]]
"""The cluster's id, and host and port of each of its monitors."""


def of_image(settings: RbdOptions, pool: str, image: str, monitors: Monitors) -> Direct:
    """Return how consumers reach an image of a pool."""
    fsid, addresses = monitors
    where = f"{pool}/{settings.namespace}" if settings.namespace else pool
    return Direct(
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
