"""Tokens: create, show, check, revoke."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from blockstore.api.identity.catalog import catalog
from blockstore.api.identity.endpoint import IdentityRequest, IdentityResponse, IdentityRoutes, anybody, authenticated
from blockstore.errors import Forbidden, NotFound, Unauthorized
from blockstore.identity import accounts, tokens
from blockstore.schemas import identity as schemas

routes = IdentityRoutes()


@routes.serves("POST", "/auth/tokens", to=anybody, body=schemas.AskTokenBody)
def create(call: IdentityRequest, body: Mapping[str, Any]) -> IdentityResponse:
    """Log in."""
    words = call.login.token(body["auth"], call.address)
    with call.db.read() as session:
        caller = tokens.check(session, words)
    if caller is None:  # its user, project or role was changed at this moment
        raise Unauthorized(
            "The new token was revoked at once, because its user, project or role has just been changed."
        )
    if caller.project is not None:
        call.core.note_token(words, caller.project.id)
    return IdentityResponse(body={"token": render(call, caller)}, status=201, headers={"X-Subject-Token": words})


@routes.serves("GET", "/auth/tokens", to=authenticated)
def show(call: IdentityRequest) -> IdentityResponse:
    """Show a token."""
    caller = _subject(call)
    return IdentityResponse(body={"token": render(call, caller)}, headers={"X-Subject-Token": call.subject})


@routes.serves("HEAD", "/auth/tokens", to=authenticated)
def check_token(call: IdentityRequest) -> IdentityResponse:
    """Check that a token is valid; 404 if it is not."""
    _subject(call)
    return IdentityResponse(body=None, headers={"X-Subject-Token": call.subject})


@routes.serves("DELETE", "/auth/tokens", to=authenticated, status=204)
def remove(call: IdentityRequest) -> None:
    """Revoke a token."""
    caller = _subject(call)
    with call.db.write() as session:
        tokens.revoke(session, caller.token_id)


def _subject(call: IdentityRequest) -> tokens.Caller:
    with call.db.read() as session:
        subject = tokens.check(session, call.subject)
    if subject is None:
        raise NotFound("Could not find the token of X-Subject-Token: it is not valid, or is no longer valid.")
    caller = call.caller
    if subject.user.id != caller.user.id and not caller.role_names() & {"admin", "service"}:
        raise Forbidden("You are not authorized to perform the requested action.")
    return subject


def render(call: IdentityRequest, caller: tokens.Caller) -> dict[str, Any]:
    """Return a token as replies show it."""
    token: dict[str, Any] = {
        "methods": list(caller.methods),
        "user": {
            "id": caller.user.id,
            "name": caller.user.name,
            "domain": id_and_name(caller.user_domain),
            "password_expires_at": None,
        },
        "audit_ids": [caller.audit_id],
        "issued_at": moment(caller.issued_at),
        "expires_at": moment(caller.expires_at),
    }
    if caller.scope == accounts.PROJECT:
        token["project"] = {**id_and_name(caller.project), "domain": id_and_name(caller.domain)}
        token["is_domain"] = False
    elif caller.scope == accounts.DOMAIN:
        token["domain"] = id_and_name(caller.domain)
    elif caller.scope == accounts.SYSTEM:
        token["system"] = {"all": True}
    if caller.scope != accounts.NO_SCOPE:
        token["roles"] = [id_and_name(role) for role in caller.roles]
        if call.query_flag("nocatalog") is None:
            token["catalog"] = catalog(call, caller.project.id if caller.project else None)
    if caller.credential is not None:
        token["application_credential"] = {**id_and_name(caller.credential), "restricted": caller.restricted}
    return token


def id_and_name(row: tokens.NamedRow | None) -> dict[str, str]:
    """Return an id and a name."""
    return {} if row is None else {"id": row.id, "name": row.name}


def moment(at: datetime.datetime | None) -> str | None:
    """Return a time as the Identity API writes it."""
    return None if at is None else at.isoformat(timespec="microseconds") + "Z"
