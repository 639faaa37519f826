"""The versions of the Identity API, which clients read before they log in."""

from __future__ import annotations

from typing import Any

from blockstore.api.http.pipeline import IDENTITY
from blockstore.api.identity.endpoint import ROOT, IdentityRequest, IdentityResponse, IdentityRoutes, anybody

routes = IdentityRoutes()


def _version(call: IdentityRequest) -> dict[str, Any]:
    return {
        "id": "v3.14",
        "status": "stable",
        "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": f"{call.base}{ROOT}/"}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
    }


@routes.serves("GET", IDENTITY, to=anybody)
def index(call: IdentityRequest) -> IdentityResponse:
    """List the versions."""
    return IdentityResponse(body={"versions": {"values": [_version(call)]}}, status=300)


@routes.serves("GET", ROOT, to=anybody)
def show(call: IdentityRequest) -> dict[str, Any]:
    """Show the one version."""
    return {"version": _version(call)}
