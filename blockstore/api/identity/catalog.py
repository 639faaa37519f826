"""The catalogue: only the services of this process, under the names with which DevStack registers them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from blockstore.api import images
from blockstore.api.http.pipeline import IDENTITY
from blockstore.api.identity.endpoint import IdentityRequest, IdentityRoutes, authenticated
from blockstore.errors import NotFound

routes = IdentityRoutes()

SERVICES = (
    ("block-storage", "cinder", "/v3"),
    ("volumev3", "cinderv3", "/v3/{project_id}"),
    ("identity", "keystone", IDENTITY),
    ("image", "glance", images.ROOT),
)
"""Type, name and path of each service."""
INTERFACES = ("public", "internal", "admin")


def catalog(call: IdentityRequest, project_id: str | None) -> list[dict[str, Any]]:
    """Return the catalogue for a token, with the address that the request used."""
    region = call.core.config.identity.region
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
                    "url": call.base + path.format(project_id=project_id),
                }
                for interface in INTERFACES
            ],
        }
        for kind, name, path in SERVICES
        if project_id is not None or "{" not in path
    ]


def _id(*words: str) -> str:
    return uuid.uuid5(uuid.NAMESPACE_OID, " ".join(words)).hex


@routes.serves("GET", "/auth/catalog", to=authenticated)
def show(call: IdentityRequest) -> dict[str, Any]:
    """Show the catalogue of the caller's token."""
    project = call.caller.project
    return call.listed("catalog", catalog(call, project.id if project else None), "/auth/catalog")


# --- the catalogue as lists for administrators -------------------------------------------------------------


def _services(call: IdentityRequest) -> Iterator[dict[str, Any]]:
    for kind, name, _ in SERVICES:
        yield {
            "id": _id(kind),
            "type": kind,
            "name": name,
            "description": "",
            "enabled": True,
            "links": {"self": call.link(f"/services/{_id(kind)}")},
        }


def _endpoints(call: IdentityRequest) -> Iterator[dict[str, Any]]:
    region = call.core.config.identity.region
    for kind, _, path in SERVICES:
        for interface in INTERFACES:
            yield {
                "id": _id(kind, interface),
                "service_id": _id(kind),
                "interface": interface,
                "region": region,
                "region_id": region,
                "url": call.base + path.format(project_id="$(project_id)s"),
                "enabled": True,
                "links": {"self": call.link(f"/endpoints/{_id(kind, interface)}")},
            }


def _regions(call: IdentityRequest) -> Iterator[dict[str, Any]]:
    region = call.core.config.identity.region
    link = call.link(f"/regions/{region}")
    yield {"id": region, "description": "", "parent_region_id": None, "links": {"self": link}}


def _fitting(call: IdentityRequest, items: Iterator[dict[str, Any]], *filters: str) -> list[dict[str, Any]]:
    wanted = {name: call.query[name] for name in filters if name in call.query}
    return [item for item in items if all(item[name] == value for name, value in wanted.items())]


def _one(items: Iterator[dict[str, Any]], noun: str, ref: str) -> dict[str, Any]:
    for item in items:
        if item["id"] == ref:
            return {noun: item}
    raise NotFound(f"Could not find {noun}: {ref}.")


@routes.serves("GET", "/services")
def list_services(call: IdentityRequest) -> dict[str, Any]:
    """List the services."""
    return call.listed("services", _fitting(call, _services(call), "type", "name"))


@routes.serves("GET", "/services/<service_id>")
def show_service(call: IdentityRequest, service_id: str) -> dict[str, Any]:
    """Show one service."""
    return _one(_services(call), "service", service_id)


@routes.serves("GET", "/endpoints")
def list_endpoints(call: IdentityRequest) -> dict[str, Any]:
    """List the endpoints."""
    return call.listed("endpoints", _fitting(call, _endpoints(call), "service_id", "interface", "region", "region_id"))


@routes.serves("GET", "/endpoints/<endpoint_id>")
def show_endpoint(call: IdentityRequest, endpoint_id: str) -> dict[str, Any]:
    """Show one endpoint."""
    return _one(_endpoints(call), "endpoint", endpoint_id)


@routes.serves("GET", "/regions", to=authenticated)
def list_regions(call: IdentityRequest) -> dict[str, Any]:
    """List the one region."""
    return call.listed("regions", list(_regions(call)))


@routes.serves("GET", "/regions/<region_id>", to=authenticated)
def show_region(call: IdentityRequest, region_id: str) -> dict[str, Any]:
    """Show the region."""
    return _one(_regions(call), "region", region_id)
