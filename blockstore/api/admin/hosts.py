"""Hosts, backends, clusters and workers, as administrators see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select

from blockstore import __version__
from blockstore.api.admin.services import service_items, switch
from blockstore.api.http.call import Call
from blockstore.api.http.routes import Routes
from blockstore.db.models import Snapshot, Volume, is_on_backend
from blockstore.errors import BadRequest, NotFound, listed
from blockstore.microversions import SERVICES_CLUSTER, WORKERS_CLEANUP
from blockstore.schemas import hosts as schemas
from blockstore.service_names import VOLUME_SERVICE, pool_name

routes = Routes()


# --- hosts -------------------------------------------------------------------------------------------------


@routes.get("/os-hosts", policy="volume_extension:hosts")
def index(call: Call) -> dict[str, Any]:
    """List the hosts, one for each service."""
    return {
        "hosts": [
            {
                "host_name": item["host"],
                "service": item["binary"],
                "zone": item["zone"],
                "service-status": "available" if item["state"] == "up" else "unavailable",
                "service-state": item["status"],
                "last-update": item["updated_at"],
            }
            for item in service_items(call)
            if call.query.get("zone", item["zone"]) == item["zone"]
        ]
    }


@routes.get("/os-hosts/<host_name>", policy="volume_extension:hosts")
def show(call: Call, host_name: str) -> dict[str, Any]:
    """Show the number and size of volumes and snapshots on a host, in total and by project."""
    _find(call, host_name)
    volumes = _sums(call, Volume.project_id, Volume.size, Volume.host, host_name)
    snapshots = _sums(call, Snapshot.project_id, Snapshot.volume_size, Snapshot.host, host_name)
    total = tuple(sum(pair[i] for pair in volumes.values()) for i in (0, 1))
    total += tuple(sum(pair[i] for pair in snapshots.values()) for i in (0, 1))
    rows = [("(total)", *total)]
    for project in sorted({*volumes, *snapshots}):
        rows.append((project, *volumes.get(project, (0, 0)), *snapshots.get(project, (0, 0))))
    names = ("project", "volume_count", "total_volume_gb", "snapshot_count", "total_snapshot_gb")
    return {
        "host": [
            {"resource": {"host": host_name, **{name: str(value) for name, value in zip(names, row, strict=True)}}}
            for row in rows
        ]
    }


@routes.put("/os-hosts/<host_name>", policy="volume_extension:hosts", body=schemas.SwitchHostBody)
def change(call: Call, host_name: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Let the scheduler use a host, or keep new volumes away from it."""
    disabled = body["status"] == "disable"
    switch(call, VOLUME_SERVICE, host_name, disabled=disabled)
    return {"host": host_name, "status": "disabled" if disabled else "enabled"}


def _find(call: Call, host_name: str) -> dict[str, Any]:
    for item in service_items(call):
        if item["host"] == host_name and item["binary"] == VOLUME_SERVICE:
            return item
    raise NotFound(f"Host {host_name} could not be found.")


def _sums(call: Call, project: Any, size: Any, host: Any, host_name: str) -> dict[str, tuple[int, int]]:
    statement = (
        select(project, func.count(), func.coalesce(func.sum(size), 0))
        .where(is_on_backend(host, host_name))
        .group_by(project)
    )
    return {row[0]: (row[1], int(row[2])) for row in call.session.execute(statement)}


# --- backends ----------------------------------------------------------------------------------------------


@routes.get("/capabilities/<host_name>", policy="volume_extension:capabilities")
def capabilities(call: Call, host_name: str) -> dict[str, Any]:
    """Show the capabilities of a backend, named by NODE@BACKEND or by its pool."""
    report = next(iter(call.core.pool_reports.of_host(host_name)), None)
    if report is None:
        raise NotFound(f"The backend {host_name} could not be found.")
    return {
        "namespace": f"OS::Storage::Capabilities::{host_name}",
        "vendor_name": report.capabilities.vendor_name,
        "volume_backend_name": report.volume_backend_name,
        "pool_name": pool_name(report.name),
        "driver_version": report.capabilities.version,
        "storage_protocol": report.capabilities.storage_protocol,
        "display_name": f"Capabilities of the plugin {report.config.plugin} of blockstore {__version__}",
        "description": None,
        "visibility": None,
        "replication_targets": [],
        "properties": {
            "thin_provisioning": {
                "title": "Thin Provisioning",
                "description": "Takes space from the pool only for written data.",
                "type": "boolean",
                "default": report.capabilities.thin,
            },
            "multiattach": {
                "title": "Multiattach",
                "description": "Lets several servers use one volume.",
                "type": "boolean",
                "default": report.capabilities.multiattach,
            },
        },
    }


# --- clusters: there are none ------------------------------------------------------------------------------

FILTERS = frozenset(
    {
        "name", "binary", "is_up", "disabled", "num_hosts", "num_down_hosts", "replication_status", "frozen",
        "active_backend_id",
    }
)  # fmt: skip


@routes.get("/clusters", policy="clusters:get_all", since=SERVICES_CLUSTER)
def list_clusters(call: Call) -> dict[str, Any]:
    """List the clusters: none, since one process does everything."""
    return _no_clusters(call)


@routes.get("/clusters/detail", policy="clusters:get_all", since=SERVICES_CLUSTER)
def list_clusters_in_detail(call: Call) -> dict[str, Any]:
    """List the clusters with every field: none."""
    return _no_clusters(call)


@routes.get("/clusters/<cluster_name>", policy="clusters:get", since=SERVICES_CLUSTER)
def show_cluster(call: Call, cluster_name: str) -> None:
    """Show a cluster."""
    raise NotFound(f"Cluster {cluster_name} could not be found.")


@routes.put("/clusters/enable", policy="clusters:update", body=schemas.ClusterBody, since=SERVICES_CLUSTER)
def enable_cluster(call: Call, body: Mapping[str, Any]) -> None:
    """Let the scheduler use a cluster."""
    show_cluster(call, body["name"])


@routes.put("/clusters/disable", policy="clusters:update", body=schemas.DisableClusterBody, since=SERVICES_CLUSTER)
def disable_cluster(call: Call, body: Mapping[str, Any]) -> None:
    """Keep new volumes away from a cluster."""
    show_cluster(call, body["name"])


def _no_clusters(call: Call) -> dict[str, Any]:
    unknown = sorted(set(call.query) - FILTERS)
    if unknown:
        raise BadRequest(f"Invalid filters {listed(unknown)} are found in query options.")
    return {"clusters": []}


@routes.post("/workers/cleanup", policy="workers:cleanup", body=schemas.CleanupBody, since=WORKERS_CLEANUP)
def clean_up(call: Call, body: Mapping[str, Any]) -> dict[str, Any]:
    """Clean up after services that died: never any, because each start resumes unfinished operations."""
    return {"cleaning": [], "unavailable": []}
