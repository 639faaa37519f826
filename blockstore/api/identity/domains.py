"""Domains: where the names of users and projects are unique."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from blockstore.api.identity.door import Desk, Visit, known
from blockstore.db.models import Domain
from blockstore.identity import accounts
from blockstore.schemas import identity as schemas

desk = Desk()


def shown(visit: Visit, row: Domain) -> dict[str, Any]:
    """Return a domain as replies show it."""
    return {
        "id": row.id,
        "name": row.name,
        "description": row.description,
        "enabled": row.enabled,
        "tags": [],
        "options": {},
        "links": {"self": visit.link(f"/domains/{row.id}")},
    }


@desk.serves("GET", "/domains")
def index(visit: Visit) -> dict[str, Any]:
    """List the domains."""
    statement = select(Domain).order_by(Domain.name)
    if "name" in visit.query:
        statement = statement.where(Domain.name == visit.query["name"])
    if (enabled := visit.asked("enabled")) is not None:
        statement = statement.where(Domain.enabled.is_(enabled))
    with visit.db.read() as session:
        rows = session.scalars(statement).all()
    return visit.listed("domains", [shown(visit, row) for row in rows])


@desk.serves("GET", "/domains/<domain_id>", to=known)
def show(visit: Visit, domain_id: str) -> dict[str, Any]:
    """Show a domain."""
    visible = visit.caller.is_admin or domain_id in (
        visit.caller.user_domain.id,
        getattr(visit.caller.domain, "id", ""),
    )
    with visit.db.read() as session:
        return {"domain": shown(visit, accounts.find(session, Domain, domain_id if visible else ""))}


@desk.serves("GET", "/auth/domains", to=known)
def of_caller(visit: Visit) -> dict[str, Any]:
    """List the domains that the caller could have a token for."""
    with visit.db.read() as session:
        rows = accounts.domains_of(session, visit.caller.user.id)
    return visit.listed("domains", [shown(visit, row) for row in rows], "/auth/domains")


@desk.serves("POST", "/domains", body=schemas.CreateDomain, status=201)
def create(visit: Visit, body: Mapping[str, Any]) -> dict[str, Any]:
    """Make a domain."""
    asked = body["domain"]
    row = Domain(
        id=accounts.new_account_id(),
        name=asked["name"],
        description=asked.get("description") or "",
        enabled=asked.get("enabled", True),
    )
    with visit.db.write() as session:
        return {"domain": shown(visit, accounts.add(session, row))}


@desk.serves("PATCH", "/domains/<domain_id>", body=schemas.ChangeDomain)
def change(visit: Visit, domain_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Change a domain."""
    asked = dict(body["domain"])
    if "description" in asked:
        asked["description"] = asked["description"] or ""
    with visit.db.write() as session:
        return {"domain": shown(visit, accounts.change(session, accounts.find(session, Domain, domain_id), **asked))}


@desk.serves("DELETE", "/domains/<domain_id>", status=204)
def remove(visit: Visit, domain_id: str) -> None:
    """Remove a disabled domain with all that is in it."""
    with visit.db.write() as session:
        accounts.remove_domain(session, accounts.find(session, Domain, domain_id))
