"""The list of extensions, a historical part of the API.

Clients read from it which features a service offers, so it lists only those that this service offers.
"""

from __future__ import annotations

from typing import Any

from blockstore.api.http.call import Call
from blockstore.api.http.routes import Routes
from blockstore.errors import NotFound

routes = Routes()

_OFFERED = (
    # alias, name, updated, description: the API's own words
    ("os-vol-tenant-attr", "VolumeTenantAttribute", "2011-11-03T00:00:00+00:00",
        "Expose the internal project_id as an attribute of a volume."),
    ("os-availability-zone", "AvailabilityZones", "2013-06-27T00:00:00+00:00", "Describe Availability Zones."),
    ("os-snapshot-actions", "SnapshotActions", "2013-07-16T00:00:00+00:00", "Enable snapshot manager actions."),
    ("os-volume-actions", "VolumeActions", "2012-05-31T00:00:00+00:00", "Enable volume actions."),
    ("os-vol-host-attr", "VolumeHostAttribute", "2011-11-03T00:00:00+00:00",
        "Expose host as an attribute of a volume."),
    ("os-types-manage", "TypesManage", "2011-08-24T00:00:00+00:00", "Types manage support."),
    ("os-types-extra-specs", "TypesExtraSpecs", "2011-08-24T00:00:00+00:00", "Type extra specs support."),
    ("os-used-limits", "UsedLimits", "2013-10-03T00:00:00+00:00",
        "Provide data on limited resources that are being used."),
    ("os-vol-mig-status-attr", "VolumeMigStatusAttribute", "2013-08-08T00:00:00+00:00",
        "Expose migration_status as an attribute of a volume."),
    ("os-volume-type-access", "VolumeTypeAccess", "2014-06-26T00:00:00Z", "Volume type access support."),
    ("os-extended-services", "ExtendedServices", "2014-01-10T00:00:00-00:00", "Extended services support."),
    ("os-extended-snapshot-attributes", "ExtendedSnapshotAttributes", "2012-06-19T00:00:00+00:00",
        "Extended SnapshotAttributes support."),
    ("os-admin-actions", "AdminActions", "2012-08-25T00:00:00+00:00", "Enable admin actions."),
    ("os-services", "Services", "2012-10-28T00:00:00-00:00", "Services support."),
    ("scheduler-stats", "Scheduler_stats", "2014-09-07T00:00:00+00:00", "Scheduler stats support."),
    ("os-hosts", "Hosts", "2011-06-29T00:00:00+00:00", "Admin-only host administration."),
    ("os-quota-sets", "Quotas", "2011-08-08T00:00:00+00:00", "Quota management support."),
    ("os-quota-class-sets", "QuotaClasses", "2012-03-12T00:00:00+00:00", "Quota classes management support."),
    ("qos-specs", "Qos_specs_manage", "2013-08-02T00:00:00+00:00", "QoS specs support."),
    ("encryption", "VolumeTypeEncryption", "2013-07-01T00:00:00+00:00", "Encryption support for volume types."),
    ("os-volume-encryption-metadata", "VolumeEncryptionMetadata", "2013-07-10T00:00:00+00:00",
        "Volume encryption metadata retrieval support."),
    ("capabilities", "Capabilities", "2015-08-31T00:00:00+00:00", "Capabilities support."),
    ("os-volume-transfer", "VolumeTransfer", "2013-05-29T00:00:00+00:00", "Volume transfer management support."),
    ("os-vol-image-meta", "VolumeImageMetadata", "2012-12-07T00:00:00+00:00",
        "Show image metadata associated with the volume."),
    ("os-volume-manage", "VolumeManage", "2014-02-10T00:00:00+00:00",
        "Allows existing backend storage to be 'managed' by Cinder."),
    ("os-volume-unmanage", "VolumeUnmanage", "2012-05-31T00:00:00+00:00",
        "Enable volume unmanage operation."),
    ("os-snapshot-manage", "SnapshotManage", "2014-12-31T00:00:00+00:00",
        "Allows existing backend storage to be 'managed' by Cinder."),
    ("os-snapshot-unmanage", "SnapshotUnmanage", "2014-12-31T00:00:00+00:00",
        "Enable volume unmanage operation."),
    ("OS-SCH-HNT", "SchedulerHints", "2013-04-18T00:00:00+00:00", "Pass arbitrary key/value pairs to the scheduler."),
)  # fmt: skip

EXTENSIONS = {
    alias: {
        "alias": alias,
        "name": name,
        "description": description,
        "updated": updated,
        "links": [],
    }
    for alias, name, updated, description in _OFFERED
}


@routes.get("/extensions", policy="none")
def index(call: Call) -> dict[str, Any]:
    """List the extensions."""
    return {"extensions": list(EXTENSIONS.values())}


@routes.get("/extensions/<alias>", policy="none")
def show(call: Call, alias: str) -> dict[str, Any]:
    """Show one extension."""
    if alias not in EXTENSIONS:
        raise NotFound("The resource could not be found.")
    return {"extension": EXTENSIONS[alias]}
