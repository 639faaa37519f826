"""Application credentials, with which programs log in instead of using a person's password."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from blockstore.api.http.authentication import UNAUTHENTICATED
from blockstore.api.identity.endpoint import IdentityRequest, IdentityRoutes, owner_or_admin
from blockstore.api.identity.tokens import moment
from blockstore.db.models import ApplicationCredential, Role, User, now
from blockstore.errors import BadRequest, Conflict, Forbidden, NotFound, Unauthorized
from blockstore.identity import accounts, tokens
from blockstore.schemas import identity as schemas

routes = IdentityRoutes()

PLACE = "/users/<user_id>/application_credentials"
MOST = 100
"""Application credentials that one user may have."""


def render(call: IdentityRequest, row: ApplicationCredential, roles: Mapping[str, Role]) -> dict[str, Any]:
    """Return a credential as replies show it; never with its secret."""
    return {
        "id": row.id,
        "name": row.name,
        "description": row.description,
        "project_id": row.project_id,
        "user_id": row.user_id,
        "roles": [
            {"id": role.id, "name": role.name, "domain_id": None}
            for role in (roles.get(role_id) for role_id in row.role_ids)
            if role is not None
        ],
        "expires_at": None if row.expires_at is None else (moment(row.expires_at) or "").rstrip("Z"),
        "unrestricted": row.unrestricted,
        "links": {"self": call.link(f"/users/{row.user_id}/application_credentials/{row.id}")},
    }


def _roles(session: Session) -> dict[str, Role]:
    return {role.id: role for role in session.scalars(select(Role))}


@routes.serves("GET", PLACE, to=owner_or_admin)
def index(call: IdentityRequest, user_id: str) -> dict[str, Any]:
    """List a user's credentials."""
    statement = select(ApplicationCredential).where(ApplicationCredential.user_id == user_id)
    if "name" in call.query:
        statement = statement.where(ApplicationCredential.name == call.query["name"])
    with call.db.read() as session:
        roles = _roles(session)
        rows = session.scalars(statement.order_by(ApplicationCredential.name)).all()
    path = f"/users/{user_id}/application_credentials"
    return call.listed("application_credentials", [render(call, row, roles) for row in rows], path)


@routes.serves("GET", f"{PLACE}/<credential_id>", to=owner_or_admin)
def show(call: IdentityRequest, user_id: str, credential_id: str) -> dict[str, Any]:
    """Show a credential."""
    with call.db.read() as session:
        row = _find(session, user_id, credential_id)
        return {"application_credential": render(call, row, _roles(session))}


@routes.serves("POST", PLACE, to=owner_or_admin, body=schemas.CreateCredentialBody, status=201)
def create(call: IdentityRequest, user_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Create a credential of the caller on the token's project; only this reply contains its secret."""
    caller, params = call.caller, body["application_credential"]
    _refuse_restricted(call)
    if caller.user.id != user_id:
        raise Forbidden("Only the user for whom an application credential acts can create it.")
    if caller.project is None:
        raise BadRequest("An application credential needs a project; use a token that is scoped to a project.")
    if params.get("expires_at") is not None and params["expires_at"] <= now():
        raise BadRequest("application_credential.expires_at is in the past.")
    secret = params.get("secret") or secrets.token_urlsafe(32)
    kept = call.hashed(secret, user_id)
    with call.db.write() as session:
        if not tokens.is_there(session, caller.token_id):  # a role was taken away, or the project disabled, meanwhile
            raise Unauthorized(UNAUTHENTICATED)
        _refuse_beyond(session, user_id)
        owned = {role.id: role.name for role in caller.roles}
        row = ApplicationCredential(
            id=accounts.new_account_id(),
            name=params["name"],
            description=params.get("description"),
            user_id=user_id,
            project_id=caller.project.id,
            role_ids=_wanted(params.get("roles"), owned),
            secret_hash=kept,
            unrestricted=params.get("unrestricted", False),
            expires_at=params.get("expires_at"),
        )
        taken = select(ApplicationCredential.id).where(
            ApplicationCredential.user_id == user_id, ApplicationCredential.name == row.name
        )
        if session.execute(taken).first() is not None:
            raise Conflict(f"This user already has an application credential {row.name}.")
        session.add(row)
        session.flush()
        item = render(call, row, _roles(session))
    return {"application_credential": {**item, "secret": secret}}


@routes.serves("DELETE", f"{PLACE}/<credential_id>", to=owner_or_admin, status=204)
def remove(call: IdentityRequest, user_id: str, credential_id: str) -> None:
    """Remove a credential with its tokens."""
    _refuse_restricted(call)
    with call.db.write() as session:
        session.delete(_find(session, user_id, credential_id))


def _refuse_beyond(session: Session, user_id: str) -> None:
    session.get(User, user_id, with_for_update=True)  # locked, so that parallel requests are counted together
    of_user = select(func.count()).select_from(ApplicationCredential).where(ApplicationCredential.user_id == user_id)
    present = session.execute(of_user).scalar_one()
    if present >= MOST:
        raise Forbidden(  # compat: status and words of Keystone's user_limit
            f"Unable to create additional application credentials, maximum of {MOST} already exceeded for user: it has"
            f" {present}. Remove one first."
        )


def _refuse_restricted(call: IdentityRequest) -> None:
    if call.caller.restricted:
        raise Forbidden(
            "This application credential is restricted: it cannot create or delete application credentials."
        )


def _wanted(role_refs: list[Mapping[str, str]] | None, owned: Mapping[str, str]) -> list[str]:
    if not role_refs:
        return sorted(owned)
    found = []
    for ref in role_refs:
        ids = [
            role_id
            for role_id, name in owned.items()
            if ref.get("id", role_id) == role_id and ref.get("name", name) == name
        ]
        if not ids:
            raise BadRequest(f"application_credential.roles: you have no role {ref.get('name') or ref.get('id')} here.")
        found += ids
    return sorted(set(found))


def _find(session: Session, user_id: str, credential_id: str) -> ApplicationCredential:
    row = session.get(ApplicationCredential, credential_id)
    if row is None or row.user_id != user_id:
        raise NotFound(f"Could not find application credential: {credential_id}.")
    return row
