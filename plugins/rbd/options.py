"""The options for pools of a Ceph cluster; opens a pool by them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blockstore_plugins.rbd.cluster import Cluster, PoolAccess
from blockstore_plugins.rbd.commands import Commands
from blockstore_plugins.rbd.librbd import Librbd, bindings

from blockstore.backends.contract import BackendOptions, option
from blockstore.errors import Unreachable


@dataclass(frozen=True, kw_only=True)
class RbdOptions(BackendOptions):
    """Options for pools of a Ceph cluster."""

    pools: str = option("Ceph pools for volumes, separated by commas. Each is a pool of the scheduler.", "volumes")
    data_pool: str = option(
        "Pool for the data of new images, for example with erasure coding; by default Ceph's rbd_default_data_pool.",
        "",
    )
    namespace: str = option("Namespace in the pools. libvirt supports namespaces; os-brick does not.", "")
    ceph_conf: Path = option("Configuration file of the cluster.", Path("/etc/ceph/ceph.conf"))  # noqa: RUF009
    cluster_name: str = option("Name of the cluster for consumers.", "ceph")
    user: str = option(
        "Ceph user, without `client.`; needs the profile rbd on the monitors and on the pools.", "blockstore"
    )
    keyring: Path | None = option(  # noqa: RUF009
        "File with the user's key; by default Ceph's own search path.", None, secret_file=True
    )
    secret_uuid: str = option("Id of the libvirt secret that holds the key; by default the cluster's id.", "")
    max_clone_depth: int = option("Length of a chain of clones before one is flattened in the background.", 5)
    timeout_s: int = option("Seconds until a call to a cluster that does not answer fails.", 30)
    bindings: str = option(
        "Whether to use Ceph's Python bindings (python3-rbd), which are several times as fast as the programs of "
        "ceph-common.",
        "auto",
        choices=("auto", "yes", "no"),
    )


def pools_of(settings: RbdOptions) -> list[str]:
    """Return the names of the configured pools."""
    return [word.strip() for word in settings.pools.split(",") if word.strip()]


def open_cluster(settings: RbdOptions, pool: str) -> Cluster:
    """Return the access to a pool: by Ceph's bindings, or by its programs. Raise Unreachable if required bindings are
    missing."""
    place = PoolAccess(
        pool=pool,
        namespace=settings.namespace,
        conf=settings.ceph_conf,
        cluster_name=settings.cluster_name,
        user=settings.user,
        keyring=settings.keyring,
        timeout_s=settings.timeout_s,
        data_pool="" if settings.data_pool == pool else settings.data_pool,
    )
    modules = None if settings.bindings == "no" else bindings()
    if modules is None and settings.bindings == "yes":
        raise Unreachable(
            "Ceph's Python bindings are not installed for this Python: apt-get install python3-rbd; or set bindings ="
            " auto to use the programs of ceph-common."
        )
    return Librbd(place, modules) if modules else Commands(place)
