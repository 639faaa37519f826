"""What clients look for before they log in: the versions of the Identity API."""

from __future__ import annotations

from typing import Any

from blockstore.api.http.pipeline import IDENTITY
from blockstore.api.identity.door import ROOT, Answer, Desk, Visit, anybody

desk = Desk()


def _version(visit: Visit) -> dict[str, Any]:
    return {
        "id": "v3.14",
        "status": "stable",
        "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": f"{visit.base}{ROOT}/"}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
    }


@desk.serves("GET", IDENTITY, to=anybody)
def index(visit: Visit) -> Answer:
    """List the versions."""
    return Answer(body={"versions": {"values": [_version(visit)]}}, status=300)


@desk.serves("GET", ROOT, to=anybody)
def show(visit: Visit) -> dict[str, Any]:
    """Show the one version."""
    return {"version": _version(visit)}
