"""Domains, in which the names of users and projects are unique."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from blockstore.api.identity.endpoint import IdentityRequest, IdentityRoutes, authenticated
from blockstore.db.models import Domain
from blockstore.identity import accounts
from blockstore.schemas import identity as schemas

routes = IdentityRoutes()


def render(call: IdentityRequest, row: Domain) -> dict[str, Any]:
    """Return a domain as replies show it."""
    return {
        "id": row.id,
        "name": row.name,
        "description": row.description,
        "enabled": row.enabled,
        "tags": [],
        "options": {},
        "links": {"self": call.link(f"/domains/{row.id}")},
    }


@routes.serves("GET", "/domains")
def index(call: IdentityRequest) -> dict[str, Any]:
    """List the domains."""
    statement = select(Domain).order_by(Domain.name)
    if "name" in call.query:
        statement = statement.where(Domain.name == call.query["name"])
    if (enabled := call.query_flag("enabled")) is not None:
        statement = statement.where(Domain.enabled.is_(enabled))
    with call.db.read() as session:
        rows = session.scalars(statement).all()
    return call.listed("domains", [render(call, row) for row in rows])


@routes.serves("GET", "/domains/<domain_id>", to=authenticated)
def show(call: IdentityRequest, domain_id: str) -> dict[str, Any]:
    """Show a domain."""
    visible = call.caller.is_admin or domain_id in (
        call.caller.user_domain.id,
        getattr(call.caller.domain, "id", ""),
    )
    with call.db.read() as session:
        return {"domain": render(call, accounts.find(session, Domain, domain_id if visible else ""))}


@routes.serves("GET", "/auth/domains", to=authenticated)
def of_caller(call: IdentityRequest) -> dict[str, Any]:
    """List the domains that the caller can get a token for."""
    with call.db.read() as session:
        rows = accounts.domains_of(session, call.caller.user.id)
    return call.listed("domains", [render(call, row) for row in rows], "/auth/domains")


@routes.serves("POST", "/domains", body=schemas.CreateDomainBody, status=201)
def create(call: IdentityRequest, body: Mapping[str, Any]) -> dict[str, Any]:
    """Create a domain."""
    params = body["domain"]
    row = Domain(
        id=accounts.new_account_id(),
        name=params["name"],
        description=params.get("description") or "",
        enabled=params.get("enabled", True),
    )
    with call.db.write() as session:
        return {"domain": render(call, accounts.add(session, row))}


@routes.serves("PATCH", "/domains/<domain_id>", body=schemas.ChangeDomainBody)
def change(call: IdentityRequest, domain_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Change a domain."""
    params = dict(body["domain"])
    if "description" in params:
        params["description"] = params["description"] or ""
    with call.db.write() as session:
        return {"domain": render(call, accounts.change(session, accounts.find(session, Domain, domain_id), **params))}


@routes.serves("DELETE", "/domains/<domain_id>", status=204)
def remove(call: IdentityRequest, domain_id: str) -> None:
    """Remove a disabled domain with its users and projects."""
    with call.db.write() as session:
        accounts.remove_domain(session, accounts.find(session, Domain, domain_id))
