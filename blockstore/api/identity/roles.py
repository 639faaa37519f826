"""Roles, and which come with which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from blockstore.api.identity.door import Desk, Visit, known
from blockstore.db.models import Role
from blockstore.errors import Forbidden
from blockstore.identity import accounts
from blockstore.policies import IMPLIED
from blockstore.schemas import identity as schemas

desk = Desk()


def shown(visit: Visit, row: Role) -> dict[str, Any]:
    """Return a role as replies show it."""
    return {
        "id": row.id,
        "name": row.name,
        "domain_id": None,
        "description": row.description,
        "options": {},
        "links": {"self": visit.link(f"/roles/{row.id}")},
    }


@desk.serves("GET", "/roles", to=known)
def index(visit: Visit) -> dict[str, Any]:
    """List the roles."""
    statement = select(Role).order_by(Role.name)
    if "name" in visit.query:
        statement = statement.where(Role.name == visit.query["name"])
    with visit.db.read() as session:
        rows = [] if visit.query.get("domain_id") else session.scalars(statement).all()
    return visit.listed("roles", [shown(visit, row) for row in rows])


@desk.serves("GET", "/roles/<role_id>", to=known)
def show(visit: Visit, role_id: str) -> dict[str, Any]:
    """Show a role."""
    with visit.db.read() as session:
        return {"role": shown(visit, accounts.find(session, Role, role_id))}


@desk.serves("POST", "/roles", body=schemas.CreateRole, status=201)
def create(visit: Visit, body: Mapping[str, Any]) -> dict[str, Any]:
    """Make a role."""
    asked = body["role"]
    row = Role(id=accounts.new_account_id(), name=asked["name"], description=asked.get("description"))
    with visit.db.write() as session:
        return {"role": shown(visit, accounts.add(session, row))}


@desk.serves("PATCH", "/roles/<role_id>", body=schemas.ChangeRole)
def change(visit: Visit, role_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Change a role."""
    with visit.db.write() as session:
        row = accounts.find(session, Role, role_id)
        if body["role"].get("name", row.name) != row.name and row.name in (*IMPLIED, "reader", "service"):
            raise Forbidden(f"The role {row.name} stands in the policies and keeps its name.")
        return {"role": shown(visit, accounts.change(session, row, **body["role"]))}


@desk.serves("DELETE", "/roles/<role_id>", status=204)
def remove(visit: Visit, role_id: str) -> None:
    """Remove a role from everybody."""
    with visit.db.write() as session:
        accounts.remove_role(session, accounts.find(session, Role, role_id))


@desk.serves("GET", "/role_inferences")
def inferences(visit: Visit) -> dict[str, Any]:
    """List which roles come with which."""
    with visit.db.read() as session:
        rows = {role.name: shown(visit, role) for role in session.scalars(select(Role))}
    items = [
        {"prior_role": rows[prior], "implies": [rows[name] for name in implied]} for prior, implied in IMPLIED.items()
    ]
    return visit.listed("role_inferences", items)
