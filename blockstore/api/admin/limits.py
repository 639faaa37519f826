"""The limits of a project and its usage."""

from __future__ import annotations

from typing import Any

from blockstore.accounting import quotas
from blockstore.api.http.call import Call
from blockstore.api.http.routes import Routes
from blockstore.errors import Forbidden
from blockstore.microversions import LIMITS_PROJECT

routes = Routes()


@routes.get("/limits", policy="none")
def show(call: Call) -> dict[str, Any]:
    """Show limits and usage."""
    project = call.ctx.project_id
    if call.version >= LIMITS_PROJECT:
        project_id = call.query.get("project_id") or call.query.get("tenant_id")
        if project_id and project_id != project:
            if not call.ctx.is_admin:
                raise Forbidden("Only an administrator may read the limits of another project.")
            project = project_id
    limits = quotas.limits_of(call.session, call.core.config.quota, project, quotas.DEFAULT_CLASS)
    absolute: dict[str, Any] = {
        "maxTotalVolumes": limits["volumes"],
        "maxTotalSnapshots": limits["snapshots"],
        "maxTotalVolumeGigabytes": limits["gigabytes"],
        "maxTotalBackups": limits["backups"],
        "maxTotalBackupGigabytes": limits["backup_gigabytes"],
    }
    if call.may("limits_extension:used_limits"):
        used = quotas.usage(call.session, project)
        absolute |= {
            "totalVolumesUsed": used.get("volumes", 0),
            "totalSnapshotsUsed": used.get("snapshots", 0),
            "totalGigabytesUsed": used.get("gigabytes", 0),
            "totalBackupsUsed": used.get("backups", 0),
            "totalBackupGigabytesUsed": used.get("backup_gigabytes", 0),
        }
    return {"limits": {"rate": [], "absolute": absolute}}
