"""Users and their passwords."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from blockstore.api.identity.endpoint import IdentityRequest, IdentityRoutes, anybody, owner_or_admin
from blockstore.db.models import User
from blockstore.errors import BadRequest, Unauthorized
from blockstore.identity import accounts, bootstrap
from blockstore.identity.login import REFUSED
from blockstore.schemas import identity as schemas

routes = IdentityRoutes()


def render(call: IdentityRequest, row: User) -> dict[str, Any]:
    """Return a user as replies show it."""
    item: dict[str, Any] = {
        "id": row.id,
        "name": row.name,
        "domain_id": row.domain_id,
        "enabled": row.enabled,
        "password_expires_at": None,
        "options": {},
        "links": {"self": call.link(f"/users/{row.id}")},
    }
    optional = {
        "default_project_id": row.default_project_id,
        "email": row.email,
        "description": row.description,
    }
    return item | {name: value for name, value in optional.items() if value is not None}


@routes.serves("GET", "/users")
def index(call: IdentityRequest) -> dict[str, Any]:
    """List the users."""
    statement = select(User).order_by(User.name, User.id)
    for name, column in (("name", User.name), ("domain_id", User.domain_id)):
        if name in call.query:
            statement = statement.where(column == call.query[name])
    if (enabled := call.query_flag("enabled")) is not None:
        statement = statement.where(User.enabled.is_(enabled))
    with call.db.read() as session:
        rows = session.scalars(statement).all()
    return call.listed("users", [render(call, row) for row in rows])


@routes.serves("GET", "/users/<user_id>", to=owner_or_admin)
def show(call: IdentityRequest, user_id: str) -> dict[str, Any]:
    """Show a user."""
    with call.db.read() as session:
        return {"user": render(call, accounts.find(session, User, user_id))}


@routes.serves("GET", "/users/<user_id>/groups", to=owner_or_admin)
def groups(call: IdentityRequest, user_id: str) -> dict[str, Any]:
    """List the groups of a user: there are none."""
    with call.db.read() as session:
        accounts.find(session, User, user_id)
    return call.listed("groups", [], f"/users/{user_id}/groups")


@routes.serves("POST", "/users", body=schemas.CreateUserBody, status=201)
def create(call: IdentityRequest, body: Mapping[str, Any]) -> dict[str, Any]:
    """Create a user."""
    params = body["user"]
    row = User(
        id=accounts.new_account_id(),
        name=params["name"],
        domain_id=params.get("domain_id") or call.caller.user_domain.id,
        description=params.get("description"),
        email=params.get("email"),
        enabled=params.get("enabled", True),
        default_project_id=params.get("default_project_id"),
        password_hash=_hashed(call, params.get("password")),
    )
    with call.db.write() as session:
        return {"user": render(call, accounts.add(session, row))}


@routes.serves("PATCH", "/users/<user_id>", body=schemas.ChangeUserBody)
def change(call: IdentityRequest, user_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Change a user; a new password ends all sessions."""
    params = dict(body["user"])
    with call.db.read() as session:
        row = accounts.find(session, User, user_id)
    if params.pop("domain_id", row.domain_id) != row.domain_id:
        raise BadRequest("domain_id: a user cannot be moved to another domain.")
    password = params.get("password")
    if "password" in params:
        params["password_hash"] = _hashed(call, params.pop("password"))
    with call.db.write() as session:
        row = accounts.change(session, accounts.find(session, User, user_id), **params)
    if "password_hash" in params and user_id == accounts.ADMIN:
        bootstrap.forget_password(call.core.config.state_dir, password or "")
    return {"user": render(call, row)}


@routes.serves("POST", "/users/<user_id>/password", to=anybody, body=schemas.ChangePasswordBody, status=204)
def change_password(call: IdentityRequest, user_id: str, body: Mapping[str, Any]) -> None:
    """Change a user's own password, given the old one; this ends all sessions."""
    params = body["user"]
    compared = call.login.check_password(user_id, params["original_password"], call.address)
    kept = call.hashed(params["password"], user_id)
    with call.db.write() as session:
        row = session.get(User, user_id)
        if row is None or not row.enabled or row.password_hash != compared:
            raise Unauthorized(REFUSED)
        accounts.change(session, row, password_hash=kept)
    if user_id == accounts.ADMIN:
        bootstrap.forget_password(call.core.config.state_dir, params["password"])


@routes.serves("DELETE", "/users/<user_id>", status=204)
def remove(call: IdentityRequest, user_id: str) -> None:
    """Remove a user."""
    with call.db.write() as session:
        accounts.remove_user(session, accounts.find(session, User, user_id))


def _hashed(call: IdentityRequest, password: str | None) -> str | None:
    return None if password is None else call.hashed(password, call.caller.user.id)
