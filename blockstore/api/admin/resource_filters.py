"""The filters that lists accept from callers who are not administrators."""

from __future__ import annotations

from typing import Any

from blockstore.api import attachments, snapshots
from blockstore.api.admin import messages
from blockstore.api.admin.pools import FILTERS as POOL_FILTERS
from blockstore.api.http.call import Call
from blockstore.api.http.routes import Routes
from blockstore.api.types import types
from blockstore.api.volumes import volumes
from blockstore.microversions import RESOURCE_FILTERS

routes = Routes()

FILTERS = {
    "volume": volumes.LISTING.public - {"glance_metadata"},
    "snapshot": snapshots.LISTING.public,
    "attachment": attachments.LISTING.public,
    "message": messages.LISTING.public,
    "pool": POOL_FILTERS,
    "volume_type": types.LISTING.public,
}


@routes.get("/resource_filters", policy="none", since=RESOURCE_FILTERS)
def index(call: Call) -> dict[str, Any]:
    """List the filters of each resource, or of the requested resource."""
    wanted = call.query.get("resource")
    return {
        "resource_filters": [
            {"resource": resource, "filters": sorted(filters)}
            for resource, filters in FILTERS.items()
            if wanted in (None, "", resource)
        ]
    }
