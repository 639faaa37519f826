"""Projects, which own the volumes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from blockstore.api.identity.endpoint import IdentityRequest, IdentityRoutes, authenticated, owner_or_admin
from blockstore.db.models import Project, User
from blockstore.errors import Forbidden
from blockstore.identity import accounts
from blockstore.schemas import identity as schemas

routes = IdentityRoutes()


def render(call: IdentityRequest, row: Project) -> dict[str, Any]:
    """Return a project as replies show it."""
    return {
        "id": row.id,
        "name": row.name,
        "domain_id": row.domain_id,
        "parent_id": row.domain_id,
        "description": row.description,
        "enabled": row.enabled,
        "is_domain": False,
        "tags": [],
        "options": {},
        "links": {"self": call.link(f"/projects/{row.id}")},
    }


@routes.serves("GET", "/projects")
def index(call: IdentityRequest) -> dict[str, Any]:
    """List the projects."""
    statement = select(Project).order_by(Project.name, Project.id)
    for name, column in (("name", Project.name), ("domain_id", Project.domain_id), ("parent_id", Project.domain_id)):
        if name in call.query:
            statement = statement.where(column == call.query[name])
    if (enabled := call.query_flag("enabled")) is not None:
        statement = statement.where(Project.enabled.is_(enabled))
    with call.db.read() as session:
        rows = [] if call.query_flag("is_domain") else session.scalars(statement).all()
    return call.listed("projects", [render(call, row) for row in rows])


@routes.serves("GET", "/projects/<project_id>", to=authenticated)
def show(call: IdentityRequest, project_id: str) -> dict[str, Any]:
    """Show a project, to administrators and to users with a role on it."""
    with call.db.read() as session:
        if not call.caller.is_admin and not accounts.roles_on(
            session, call.caller.user.id, accounts.PROJECT, project_id
        ):
            raise Forbidden("You are not authorized to perform the requested action.")
        return {"project": render(call, accounts.find(session, Project, project_id))}


@routes.serves("GET", "/users/<user_id>/projects", to=owner_or_admin)
def of_user(call: IdentityRequest, user_id: str) -> dict[str, Any]:
    """List the projects of a user."""
    with call.db.read() as session:
        accounts.find(session, User, user_id)
        rows = accounts.projects_of(session, user_id)
    return call.listed("projects", [render(call, row) for row in rows], f"/users/{user_id}/projects")


@routes.serves("GET", "/auth/projects", to=authenticated)
def of_caller(call: IdentityRequest) -> dict[str, Any]:
    """List the projects that the caller can get a token for."""
    with call.db.read() as session:
        rows = accounts.projects_of(session, call.caller.user.id)
    return call.listed("projects", [render(call, row) for row in rows], "/auth/projects")


@routes.serves("POST", "/projects", body=schemas.CreateProjectBody, status=201)
def create(call: IdentityRequest, body: Mapping[str, Any]) -> dict[str, Any]:
    """Create a project."""
    params = body["project"]
    row = Project(
        id=accounts.new_account_id(),
        name=params["name"],
        domain_id=params.get("domain_id") or params.get("parent_id") or call.caller.user_domain.id,
        description=params.get("description") or "",
        enabled=params.get("enabled", True),
    )
    with call.db.write() as session:
        return {"project": render(call, accounts.add(session, row))}


@routes.serves("PATCH", "/projects/<project_id>", body=schemas.ChangeProjectBody)
def change(call: IdentityRequest, project_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Change a project."""
    params = dict(body["project"])
    if "description" in params:
        params["description"] = params["description"] or ""
    with call.db.write() as session:
        row = accounts.change(session, accounts.find(session, Project, project_id), **params)
        return {"project": render(call, row)}


@routes.serves("DELETE", "/projects/<project_id>", status=204)
def remove(call: IdentityRequest, project_id: str) -> None:
    """Remove a project that has no volumes and no snapshots."""
    with call.db.write() as session:
        accounts.remove_project(session, accounts.find(session, Project, project_id))
