"""Projects: what volumes belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from blockstore.api.identity.door import Desk, Visit, known, oneself
from blockstore.db.models import Project, User
from blockstore.errors import Forbidden
from blockstore.identity import accounts
from blockstore.schemas import identity as schemas

desk = Desk()


def shown(visit: Visit, row: Project) -> dict[str, Any]:
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
        "links": {"self": visit.link(f"/projects/{row.id}")},
    }


@desk.serves("GET", "/projects")
def index(visit: Visit) -> dict[str, Any]:
    """List the projects."""
    statement = select(Project).order_by(Project.name, Project.id)
    for name, column in (("name", Project.name), ("domain_id", Project.domain_id), ("parent_id", Project.domain_id)):
        if name in visit.query:
            statement = statement.where(column == visit.query[name])
    if (enabled := visit.asked("enabled")) is not None:
        statement = statement.where(Project.enabled.is_(enabled))
    with visit.db.read() as session:
        rows = [] if visit.asked("is_domain") else session.scalars(statement).all()
    return visit.listed("projects", [shown(visit, row) for row in rows])


@desk.serves("GET", "/projects/<project_id>", to=known)
def show(visit: Visit, project_id: str) -> dict[str, Any]:
    """Show a project, to those who are in it."""
    with visit.db.read() as session:
        if not visit.caller.is_admin and not accounts.roles_on(
            session, visit.caller.user.id, accounts.PROJECT, project_id
        ):
            raise Forbidden("You are not authorized to perform the requested action.")
        return {"project": shown(visit, accounts.find(session, Project, project_id))}


@desk.serves("GET", "/users/<user_id>/projects", to=oneself)
def of_user(visit: Visit, user_id: str) -> dict[str, Any]:
    """List the projects of a user."""
    with visit.db.read() as session:
        accounts.find(session, User, user_id)
        rows = accounts.projects_of(session, user_id)
    return visit.listed("projects", [shown(visit, row) for row in rows], f"/users/{user_id}/projects")


@desk.serves("GET", "/auth/projects", to=known)
def of_caller(visit: Visit) -> dict[str, Any]:
    """List the projects that the caller could have a token for."""
    with visit.db.read() as session:
        rows = accounts.projects_of(session, visit.caller.user.id)
    return visit.listed("projects", [shown(visit, row) for row in rows], "/auth/projects")


@desk.serves("POST", "/projects", body=schemas.CreateProject, status=201)
def create(visit: Visit, body: Mapping[str, Any]) -> dict[str, Any]:
    """Make a project."""
    asked = body["project"]
    row = Project(
        id=accounts.new_account_id(),
        name=asked["name"],
        domain_id=asked.get("domain_id") or asked.get("parent_id") or visit.caller.user_domain.id,
        description=asked.get("description") or "",
        enabled=asked.get("enabled", True),
    )
    with visit.db.write() as session:
        return {"project": shown(visit, accounts.add(session, row))}


@desk.serves("PATCH", "/projects/<project_id>", body=schemas.ChangeProject)
def change(visit: Visit, project_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Change a project."""
    asked = dict(body["project"])
    if "description" in asked:
        asked["description"] = asked["description"] or ""
    with visit.db.write() as session:
        row = accounts.change(session, accounts.find(session, Project, project_id), **asked)
        return {"project": shown(visit, row)}


@desk.serves("DELETE", "/projects/<project_id>", status=204)
def remove(visit: Visit, project_id: str) -> None:
    """Remove a project that has no volumes."""
    with visit.db.write() as session:
        accounts.remove_project(session, accounts.find(session, Project, project_id))
