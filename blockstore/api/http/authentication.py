"""Authentication of callers: one authenticator for each value of ``auth``; all return a ``RequestContext``.

``pipeline.py`` authenticates as the first step of a request; ``app/service.py`` chooses the authenticator.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import nullcontext

from flask import Request
from sqlalchemy.orm import Session

from blockstore.address import names_us
from blockstore.api.http.paths import ACCOUNT_ID
from blockstore.context import RequestContext
from blockstore.db.session import Database
from blockstore.errors import BadRequest, Busy, Forbidden, Unauthorized
from blockstore.identity import tokens
from blockstore.policy.rules import Policy

DEFAULT_PROJECT = "admin"
DEFAULT_USER = "admin"
ALL_ROLES = frozenset({"admin", "member", "reader"})

UNAUTHENTICATED = "The request you have made requires authentication."
SERVICE_ROLE = "service"
KEYSTONE_AWAY = "blockstore.keystone_away"
"""Key in the WSGI environment: the reason why Keystone could not check the tokens of the request."""
KEYSTONE_WAIT_S = 5

Authenticator = Callable[[Request, str | None, str, Session | None], RequestContext]
"""Takes the request, the project in its path, the request's id, and a session; without a session it opens its own.

Raises Unauthorized, BadRequest, Forbidden, Busy.
"""

Note = Callable[[str, str | None], None]
"""Called with the token of a request and the token's project; the project is None if the token is not valid."""

_REQUEST_ID = re.compile(r"req-[0-9a-fA-F\-]{1,64}")


def global_request_id_of(request: Request) -> str | None:
    """Return the id that the caller gave the request, if it is well-formed."""
    given = request.headers.get("X-OpenStack-Request-ID", "")
    return given if _REQUEST_ID.fullmatch(given) else None


def trusted_headers(policy: Policy, own_names: frozenset[str] | None) -> Authenticator:
    """Return the authenticator of ``auth = none``: it trusts every caller, so the service listens on loopback only.

    Web pages in a browser on this machine can reach loopback. They are refused by the headers that browsers send, and
    by a ``Host`` that is neither an address nor one of ``own_names``. If ``own_names`` is None, any name is accepted.

    The project comes from the header ``X-Project-Id``, else from the path, else it is ``admin``. ``X-Roles``,
    ``X-User-Id`` and ``X-Service-Roles`` are read as if keystonemiddleware had set them, so that policies can be tried
    out. Without ``X-Roles`` the caller is an administrator.
    """

    def authenticate(
        request: Request, path_project: str | None, request_id: str, _session: Session | None
    ) -> RequestContext:
        if "Origin" in request.headers or request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise Forbidden("Without authentication, requests of web pages (header Origin) are refused.")
        if own_names is not None and not names_us(request.environ, own_names):
            raise Forbidden(
                "Without authentication, the service answers only requests for its own names, and the header Host has"
                " another name. To add a name, set public_endpoint."
            )
        roles_header = request.headers.get("X-Roles")
        return _context(
            policy,
            path_project,
            request_id,
            user=request.headers.get("X-User-Id") or DEFAULT_USER,
            project=request.headers.get("X-Project-Id") or path_project or DEFAULT_PROJECT,
            roles=ALL_ROLES if roles_header is None else _words(roles_header),
            service_roles=_words(request.headers.get("X-Service-Roles", "")),
        )

    return authenticate


def by_tokens(policy: Policy, db: Database, note: Note) -> Authenticator:
    """Return the authenticator of ``auth = builtin``: it reads the service's own tokens, from ``X-Auth-Token`` only."""

    def authenticate(
        request: Request, path_project: str | None, request_id: str, session: Session | None
    ) -> RequestContext:
        words = request.headers.get("X-Auth-Token", "")
        service_words = request.headers.get("X-Service-Token", "")
        with nullcontext(session) if session is not None else db.read() as read_session:
            caller = tokens.check(read_session, words)
            service = tokens.check(read_session, service_words) if service_words else None
        if caller is None:
            note(words, None)
        if caller is None or (service_words and service is None):
            raise Unauthorized(UNAUTHENTICATED)
        if caller.project is None:
            raise Forbidden("The token has no project; use a token that is scoped to a project.")
        note(words, caller.project.id)
        return _context(
            policy,
            path_project,
            request_id,
            user=caller.user.id,
            project=caller.project.id,
            roles=caller.role_names(),
            service_roles=service.role_names() if service else (),
        )

    return authenticate


def by_middleware(policy: Policy, service_roles: frozenset[str], note: Note) -> Authenticator:
    """Return the authenticator of ``auth = keystone``.

    keystonemiddleware has checked the tokens, and has removed identity headers that the caller sent.
    """

    def authenticate(
        request: Request, path_project: str | None, request_id: str, _session: Session | None
    ) -> RequestContext:
        headers = request.headers
        if why := request.environ.get(KEYSTONE_AWAY):
            raise Busy(why, KEYSTONE_WAIT_S)
        is_valid = headers.get("X-Identity-Status") == "Confirmed"
        if not is_valid:
            note(headers.get("X-Auth-Token", ""), None)
        if not is_valid or headers.get("X-Service-Identity-Status", "Confirmed") != "Confirmed":
            raise Unauthorized(UNAUTHENTICATED)
        project = headers.get("X-Project-Id")
        if not project:
            raise Forbidden("The token has no project; use a token that is scoped to a project.")
        note(headers.get("X-Auth-Token", ""), project)
        given = _words(headers.get("X-Service-Roles", ""))
        return _context(
            policy,
            path_project,
            request_id,
            user=headers.get("X-User-Id", ""),
            project=project,
            roles=_words(headers.get("X-Roles", "")),
            service_roles={SERVICE_ROLE} if given & service_roles else (),
        )

    return authenticate


def _context(
    policy: Policy,
    path_project: str | None,
    request_id: str,
    *,
    user: str,
    project: str,
    roles: frozenset[str],
    service_roles: Iterable[str],
) -> RequestContext:
    for name, value in (("X-Project-Id", project), ("X-User-Id", user)):
        if not ACCOUNT_ID.fullmatch(value):
            raise BadRequest(f"{name} must be 1 to 64 letters, digits, - and _.")
    if path_project and path_project != project:
        raise BadRequest("Malformed request url")
    return RequestContext(
        request_id=request_id,
        user_id=user,
        project_id=project,
        roles=roles,
        is_admin=policy.is_admin(roles, user, project),
        is_service=SERVICE_ROLE in service_roles,
    )


def _words(text: str) -> frozenset[str]:
    return frozenset(word.strip().lower() for word in text.split(",") if word.strip())
