"""Roles and the roles that they imply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from blockstore.api.identity.endpoint import IdentityRequest, IdentityRoutes, authenticated
from blockstore.db.models import Role
from blockstore.errors import Forbidden
from blockstore.identity import accounts
from blockstore.policy.rules import IMPLIED
from blockstore.schemas import identity as schemas

routes = IdentityRoutes()


def render(call: IdentityRequest, row: Role) -> dict[str, Any]:
    """Return a role as replies show it."""
    return {
        "id": row.id,
        "name": row.name,
        "domain_id": None,
        "description": row.description,
        "options": {},
        "links": {"self": call.link(f"/roles/{row.id}")},
    }


@routes.serves("GET", "/roles", to=authenticated)
def index(call: IdentityRequest) -> dict[str, Any]:
    """List the roles."""
    statement = select(Role).order_by(Role.name)
    if "name" in call.query:
        statement = statement.where(Role.name == call.query["name"])
    with call.db.read() as session:
        rows = [] if call.query.get("domain_id") else session.scalars(statement).all()
    return call.listed("roles", [render(call, row) for row in rows])


@routes.serves("GET", "/roles/<role_id>", to=authenticated)
def show(call: IdentityRequest, role_id: str) -> dict[str, Any]:
    """Show a role."""
    with call.db.read() as session:
        return {"role": render(call, accounts.find(session, Role, role_id))}


@routes.serves("POST", "/roles", body=schemas.CreateRoleBody, status=201)
def create(call: IdentityRequest, body: Mapping[str, Any]) -> dict[str, Any]:
    """Create a role."""
    params = body["role"]
    row = Role(id=accounts.new_account_id(), name=params["name"], description=params.get("description"))
    with call.db.write() as session:
        return {"role": render(call, accounts.add(session, row))}


@routes.serves("PATCH", "/roles/<role_id>", body=schemas.ChangeRoleBody)
def change(call: IdentityRequest, role_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Change a role."""
    with call.db.write() as session:
        row = accounts.find(session, Role, role_id)
        if body["role"].get("name", row.name) != row.name and row.name in (*IMPLIED, "reader", "service"):
            raise Forbidden(f"The role {row.name} is used by the policy rules and cannot be renamed.")
        return {"role": render(call, accounts.change(session, row, **body["role"]))}


@routes.serves("DELETE", "/roles/<role_id>", status=204)
def remove(call: IdentityRequest, role_id: str) -> None:
    """Remove a role with all its assignments."""
    with call.db.write() as session:
        accounts.remove_role(session, accounts.find(session, Role, role_id))


@routes.serves("GET", "/role_inferences")
def inferences(call: IdentityRequest) -> dict[str, Any]:
    """List the roles that each role implies."""
    with call.db.read() as session:
        rows = {role.name: render(call, role) for role in session.scalars(select(Role))}
    items = [
        {"prior_role": rows[prior], "implies": [rows[name] for name in implied]} for prior, implied in IMPLIED.items()
    ]
    return call.listed("role_inferences", items)
