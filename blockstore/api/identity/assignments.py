"""Role assignments of users on projects, on domains and on the system."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from blockstore.api.identity import roles
from blockstore.api.identity.endpoint import IdentityRequest, IdentityRoutes, authenticated
from blockstore.db.models import Domain, Grant, Project, Role, User
from blockstore.errors import NotFound
from blockstore.identity import accounts
from blockstore.policy.rules import IMPLIED

routes = IdentityRoutes()

PLACES = (
    (accounts.PROJECT, "/projects/<scope_id>/users/<user_id>/roles"),
    (accounts.DOMAIN, "/domains/<scope_id>/users/<user_id>/roles"),
    (accounts.SYSTEM, "/system/users/<user_id>/roles"),
)


def _declare(scope: str, place: str) -> None:
    """Declare the five services of one kind of scope."""

    def serves(method: str, path: str, status: int = 204) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return routes.serves(method, path, status=status)

    @serves("GET", place, 200)
    def index(call: IdentityRequest, user_id: str, scope_id: str = accounts.ALL) -> dict[str, Any]:
        """List the roles of a user on the scope."""
        with call.db.read() as session:
            _check(session, scope, scope_id, user_id)
            rows = accounts.roles_on(session, user_id, scope, scope_id)
        path = place.replace("<scope_id>", scope_id).replace("<user_id>", user_id)
        return call.listed("roles", [roles.render(call, row) for row in rows], path)

    @serves("PUT", f"{place}/<role_id>")
    def grant_role(call: IdentityRequest, user_id: str, role_id: str, scope_id: str = accounts.ALL) -> None:
        """Grant a role."""
        with call.db.write() as session:
            _check(session, scope, scope_id, user_id, role_id)
            accounts.grant(session, user_id, scope, scope_id, role_id)

    @serves("HEAD", f"{place}/<role_id>")
    @serves("GET", f"{place}/<role_id>")
    def check_role(call: IdentityRequest, user_id: str, role_id: str, scope_id: str = accounts.ALL) -> None:
        """Check that a role was granted; 404 if it was not."""
        with call.db.read() as session:
            _check(session, scope, scope_id, user_id, role_id)
            if session.get(Grant, (user_id, scope, scope_id, role_id)) is None:
                raise NotFound(f"The user {user_id} has no role {role_id} there.")

    @serves("DELETE", f"{place}/<role_id>")
    def revoke_role(call: IdentityRequest, user_id: str, role_id: str, scope_id: str = accounts.ALL) -> None:
        """Revoke a role."""
        with call.db.write() as session:
            _check(session, scope, scope_id, user_id, role_id)
            accounts.revoke(session, user_id, scope, scope_id, role_id)


def _check(session: Session, scope: str, scope_id: str, user_id: str, role_id: str | None = None) -> None:
    accounts.find(session, User, user_id)
    if scope == accounts.PROJECT:
        accounts.find(session, Project, scope_id)
    elif scope == accounts.DOMAIN:
        accounts.find(session, Domain, scope_id)
    if role_id is not None:
        accounts.find(session, Role, role_id)


for _scope, _place in PLACES:
    _declare(_scope, _place)


@routes.serves("GET", "/auth/system", to=authenticated)
def system(call: IdentityRequest) -> dict[str, Any]:
    """List the system scope if the caller can get a token for it."""
    with call.db.read() as session:
        given = accounts.roles_on(session, call.caller.user.id, accounts.SYSTEM, accounts.ALL)
    return call.listed("system", [{"all": True}] if given else [], "/auth/system")


@routes.serves("GET", "/role_assignments")
def index(call: IdentityRequest) -> dict[str, Any]:
    """List the role assignments; ``effective`` adds the implied roles."""
    query = call.query
    statement = select(Grant).order_by(Grant.user_id, Grant.scope, Grant.scope_id, Grant.role_id)
    if "user.id" in query:
        statement = statement.where(Grant.user_id == query["user.id"])
    for name, scope in (("scope.project.id", accounts.PROJECT), ("scope.domain.id", accounts.DOMAIN)):
        if name in query:
            statement = statement.where(Grant.scope == scope, Grant.scope_id == query[name])
    if "scope.system" in query:
        statement = statement.where(Grant.scope == accounts.SYSTEM)
    with call.db.read() as session:
        names = _Names(session) if call.query_flag("include_names") else None
        by_id = {role.id: role.name for role in session.scalars(select(Role))}
        items = []
        for row in [] if "group.id" in query else session.scalars(statement):
            given = [row.role_id]
            if call.query_flag("effective"):
                given += [implied for implied in IMPLIED.get(by_id[row.role_id], ()) if implied in by_id]
            for role_id in given:
                if query.get("role.id", role_id) == role_id:
                    items.append(_render(call, row, role_id, names))
    return call.listed("role_assignments", items)


class _Names:
    """The names that ``include_names`` adds to assignments."""

    def __init__(self, session: Session) -> None:
        domains = {row.id: {"id": row.id, "name": row.name} for row in session.scalars(select(Domain))}
        self.domain = domains
        self.role = {row.id: {"id": row.id, "name": row.name} for row in session.scalars(select(Role))}
        self.user = {
            row.id: {"id": row.id, "name": row.name, "domain": domains[row.domain_id]}
            for row in session.scalars(select(User))
        }
        self.project = {
            row.id: {"id": row.id, "name": row.name, "domain": domains[row.domain_id]}
            for row in session.scalars(select(Project))
        }


def _render(call: IdentityRequest, row: Grant, role_id: str, names: _Names | None) -> dict[str, Any]:
    def called(kind: str, ref: str) -> Any:
        return {"id": ref} if names is None else getattr(names, kind).get(ref, {"id": ref})

    scope: Any = {"all": True} if row.scope == accounts.SYSTEM else called(row.scope, row.scope_id)
    where = "system" if row.scope == accounts.SYSTEM else f"{row.scope}s/{row.scope_id}"
    return {
        "role": called("role", role_id),
        "user": called("user", row.user_id),
        "scope": {row.scope: scope},
        "links": {"assignment": call.link(f"/{where}/users/{row.user_id}/roles/{role_id}")},
    }
