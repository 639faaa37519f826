"""Users, and their passwords."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from blockstore.api.identity.door import Desk, Visit, anybody, oneself
from blockstore.db.models import User
from blockstore.errors import BadRequest, Unauthorized
from blockstore.identity import accounts, bootstrap
from blockstore.identity.login import REFUSED
from blockstore.schemas import identity as schemas

desk = Desk()


def shown(visit: Visit, row: User) -> dict[str, Any]:
    """Return a user as replies show it."""
    item: dict[str, Any] = {
        "id": row.id,
        "name": row.name,
        "domain_id": row.domain_id,
        "enabled": row.enabled,
        "password_expires_at": None,
        "options": {},
        "links": {"self": visit.link(f"/users/{row.id}")},
    }
    optional = {
        "default_project_id": row.default_project_id,
        "email": row.email,
        "description": row.description,
    }
    return item | {name: value for name, value in optional.items() if value is not None}


@desk.serves("GET", "/users")
def index(visit: Visit) -> dict[str, Any]:
    """List the users."""
    statement = select(User).order_by(User.name, User.id)
    for name, column in (("name", User.name), ("domain_id", User.domain_id)):
        if name in visit.query:
            statement = statement.where(column == visit.query[name])
    if (enabled := visit.asked("enabled")) is not None:
        statement = statement.where(User.enabled.is_(enabled))
    with visit.db.read() as session:
        rows = session.scalars(statement).all()
    return visit.listed("users", [shown(visit, row) for row in rows])


@desk.serves("GET", "/users/<user_id>", to=oneself)
def show(visit: Visit, user_id: str) -> dict[str, Any]:
    """Show a user."""
    with visit.db.read() as session:
        return {"user": shown(visit, accounts.find(session, User, user_id))}


@desk.serves("GET", "/users/<user_id>/groups", to=oneself)
def groups(visit: Visit, user_id: str) -> dict[str, Any]:
    """List the groups of a user: there are none."""
    with visit.db.read() as session:
        accounts.find(session, User, user_id)
    return visit.listed("groups", [], f"/users/{user_id}/groups")


@desk.serves("POST", "/users", body=schemas.CreateUser, status=201)
def create(visit: Visit, body: Mapping[str, Any]) -> dict[str, Any]:
    """Make a user."""
    asked = body["user"]
    row = User(
        id=accounts.new_account_id(),
        name=asked["name"],
        domain_id=asked.get("domain_id") or visit.caller.user_domain.id,
        description=asked.get("description"),
        email=asked.get("email"),
        enabled=asked.get("enabled", True),
        default_project_id=asked.get("default_project_id"),
        password_hash=_hashed(visit, asked.get("password")),
    )
    with visit.db.write() as session:
        return {"user": shown(visit, accounts.add(session, row))}


@desk.serves("PATCH", "/users/<user_id>", body=schemas.ChangeUser)
def change(visit: Visit, user_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Change a user; a new password ends all sessions."""
    asked = dict(body["user"])
    with visit.db.read() as session:
        row = accounts.find(session, User, user_id)
    if asked.pop("domain_id", row.domain_id) != row.domain_id:
        raise BadRequest("domain_id: a user stays in its domain.")
    password = asked.get("password")
    if "password" in asked:
        asked["password_hash"] = _hashed(visit, asked.pop("password"))
    with visit.db.write() as session:
        row = accounts.change(session, accounts.find(session, User, user_id), **asked)
    if "password_hash" in asked and user_id == accounts.ADMIN:
        bootstrap.forget_password(visit.core.config.state_dir, password or "")
    return {"user": shown(visit, row)}


@desk.serves("POST", "/users/<user_id>/password", to=anybody, body=schemas.ChangePassword, status=204)
def change_password(visit: Visit, user_id: str, body: Mapping[str, Any]) -> None:
    """Change one's own password, knowing the old one; it ends all sessions."""
    asked = body["user"]
    compared = visit.login.check_password(user_id, asked["original_password"], visit.address)
    kept = visit.hashed(asked["password"], user_id)
    with visit.db.write() as session:
        row = session.get(User, user_id)
        if row is None or not row.enabled or row.password_hash != compared:
            raise Unauthorized(REFUSED)
        accounts.change(session, row, password_hash=kept)
    if user_id == accounts.ADMIN:
        bootstrap.forget_password(visit.core.config.state_dir, asked["password"])


@desk.serves("DELETE", "/users/<user_id>", status=204)
def remove(visit: Visit, user_id: str) -> None:
    """Remove a user."""
    with visit.db.write() as session:
        accounts.remove_user(session, accounts.find(session, User, user_id))


def _hashed(visit: Visit, password: str | None) -> str | None:
    return None if password is None else visit.hashed(password, visit.caller.user.id)
