"""The catalogue: what this process serves, under the names by which DevStack registers them; and nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from blockstore.api import images
from blockstore.api.http.pipeline import IDENTITY
from blockstore.api.identity.door import Desk, Visit, known
from blockstore.errors import NotFound

desk = Desk()

SERVICES = (
    ("block-storage", "cinder", "/v3"),
    ("volumev3", "cinderv3", "/v3/{project_id}"),
    ("identity", "keystone", IDENTITY),
    ("image", "glance", images.ROOT),
)
"""Type, name and path of each."""
INTERFACES = ("public", "internal", "admin")


def catalog(visit: Visit, project_id: str | None) -> list[dict[str, Any]]:
    """Return the catalogue for a token, with the address that the request used."""
    region = visit.core.config.identity.region
    return [
        {
            "id": _id(kind),
            "type": kind,
            "name": name,
            "endpoints": [
                {
                    "id": _id(kind, interface),
                    "interface": interface,
                    "region": region,
                    "region_id": region,
                    "url": visit.base + path.format(project_id=project_id),
                }
                for interface in INTERFACES
            ],
        }
        for kind, name, path in SERVICES
        if project_id is not None or "{" not in path
    ]


def _id(*words: str) -> str:
    return uuid.uuid5(uuid.NAMESPACE_OID, " ".join(words)).hex


@desk.serves("GET", "/auth/catalog", to=known)
def show(visit: Visit) -> dict[str, Any]:
    """Show the catalogue of the caller's token."""
    project = visit.caller.project
    return visit.listed("catalog", catalog(visit, project.id if project else None), "/auth/catalog")


# --- the same, as administrators list it -------------------------------------------------------------------


def _services(visit: Visit) -> Iterator[dict[str, Any]]:
    for kind, name, _ in SERVICES:
        yield {
            "id": _id(kind),
            "type": kind,
            "name": name,
            "description": "",
            "enabled": True,
            "links": {"self": visit.link(f"/services/{_id(kind)}")},
        }


def _endpoints(visit: Visit) -> Iterator[dict[str, Any]]:
    region = visit.core.config.identity.region
    for kind, _, path in SERVICES:
        for interface in INTERFACES:
            yield {
                "id": _id(kind, interface),
                "service_id": _id(kind),
                "interface": interface,
                "region": region,
                "region_id": region,
                "url": visit.base + path.format(project_id="$(project_id)s"),
                "enabled": True,
                "links": {"self": visit.link(f"/endpoints/{_id(kind, interface)}")},
            }


def _regions(visit: Visit) -> Iterator[dict[str, Any]]:
    region = visit.core.config.identity.region
    link = visit.link(f"/regions/{region}")
    yield {"id": region, "description": "", "parent_region_id": None, "links": {"self": link}}


def _fitting(visit: Visit, items: Iterator[dict[str, Any]], *filters: str) -> list[dict[str, Any]]:
    wanted = {name: visit.query[name] for name in filters if name in visit.query}
    return [item for item in items if all(item[name] == value for name, value in wanted.items())]


def _one(items: Iterator[dict[str, Any]], noun: str, ref: str) -> dict[str, Any]:
    for item in items:
        if item["id"] == ref:
            return {noun: item}
    raise NotFound(f"Could not find {noun}: {ref}.")


@desk.serves("GET", "/services")
def list_services(visit: Visit) -> dict[str, Any]:
    """List the services."""
    return visit.listed("services", _fitting(visit, _services(visit), "type", "name"))


@desk.serves("GET", "/services/<service_id>")
def show_service(visit: Visit, service_id: str) -> dict[str, Any]:
    """Show one service."""
    return _one(_services(visit), "service", service_id)


@desk.serves("GET", "/endpoints")
def list_endpoints(visit: Visit) -> dict[str, Any]:
    """List the endpoints."""
    return visit.listed(
        "endpoints", _fitting(visit, _endpoints(visit), "service_id", "interface", "region", "region_id")
    )


@desk.serves("GET", "/endpoints/<endpoint_id>")
def show_endpoint(visit: Visit, endpoint_id: str) -> dict[str, Any]:
    """Show one endpoint."""
    return _one(_endpoints(visit), "endpoint", endpoint_id)


@desk.serves("GET", "/regions", to=known)
def list_regions(visit: Visit) -> dict[str, Any]:
    """List the one region."""
    return visit.listed("regions", list(_regions(visit)))


@desk.serves("GET", "/regions/<region_id>", to=known)
def show_region(visit: Visit, region_id: str) -> dict[str, Any]:
    """Show the region."""
    return _one(_regions(visit), "region", region_id)
