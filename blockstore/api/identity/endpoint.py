"""The pipeline around every function of the Identity API: caller → permission → body → function → reply.

A function takes an ``IdentityRequest`` and opens its own sessions, because hashing a password must not hold the
database.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson
from flask import Response, current_app, request

from blockstore.address import base_url
from blockstore.api.http.authentication import UNAUTHENTICATED
from blockstore.api.http.body import read_json
from blockstore.api.http.call import CORE, Core
from blockstore.api.http.pipeline import IDENTITY
from blockstore.db import reserve
from blockstore.db.session import Database
from blockstore.errors import BodyTooLarge, Forbidden, Unauthorized
from blockstore.identity import tokens
from blockstore.identity.login import Login
from blockstore.microversions import MINIMUM
from blockstore.schemas.base import FALSE, TRUE, Schema, load

ROOT = f"{IDENTITY}/v3"
MAX_BODY_BYTES = 16384
LOGIN = "blockstore identity"
"""Key of the ``Login`` in ``app.extensions``."""


@dataclass(frozen=True, kw_only=True)
class IdentityRequest:
    """One request of the Identity API."""

    core: Core
    login: Login
    query: Mapping[str, str]
    base: str
    """The start of all URLs, without a slash at the end."""
    address: str
    who: tokens.Caller | None
    subject: str
    """The token that the request is about, from ``X-Subject-Token``."""

    @property
    def db(self) -> Database:
        """Return the database."""
        return self.core.db

    @property
    def caller(self) -> tokens.Caller:
        """Return the caller; only for functions whose rule requires a token."""
        assert self.who is not None
        return self.who

    def hashed(self, password: str, user_id: str) -> str:
        """Return the hash of a password or a secret; ``user_id`` is the user who asks for it. Raises Busy."""
        return self.login.hashed(password, self.address, user_id)

    def link(self, path: str) -> str:
        """Return the URL of a path of the Identity API."""
        return f"{self.base}{ROOT}{path}"

    def listed(self, collection: str, items: list[Any], path: str = "") -> dict[str, Any]:
        """Return the reply of a list."""
        link = self.link(path or f"/{collection}")
        return {collection: items, "links": {"self": link, "next": None, "previous": None}}

    def query_flag(self, name: str) -> bool | None:
        """Return a boolean query parameter: True if it has no value, None if it is missing."""
        value = self.query.get(name)
        if value is None:
            return None
        return value == "" or value in TRUE or value not in FALSE


@dataclass(frozen=True, kw_only=True)
class IdentityResponse:
    """A reply with its own status and headers."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Rule(Protocol):
    """The condition under which a caller may call a function."""

    def __call__(self, call: IdentityRequest, path: Mapping[str, str]) -> bool:
        """Return True if this caller may call the function, for this path."""


def anybody(call: IdentityRequest, path: Mapping[str, str]) -> bool:
    """Allow every caller, with or without a token."""
    return True


def authenticated(call: IdentityRequest, path: Mapping[str, str]) -> bool:
    """Allow every caller with a token."""
    return call.who is not None


def admin(call: IdentityRequest, path: Mapping[str, str]) -> bool:
    """Allow administrators."""
    return call.caller.is_admin


def owner_or_admin(call: IdentityRequest, path: Mapping[str, str]) -> bool:
    """Allow the user in the path, and administrators."""
    return call.caller.is_admin or call.caller.user.id == path["user_id"]


@dataclass(frozen=True, kw_only=True)
class IdentityCore:
    """One method on one path."""

    function: Callable[..., Any]
    rule: Rule
    body: type[Schema] | None
    status: int


class IdentityRoutes:
    """Collects the functions of one module."""

    def __init__(self) -> None:
        self.services: dict[tuple[str, str], IdentityCore] = {}

    def serves(
        self, method: str, path: str, *, to: Rule = admin, body: type[Schema] | None = None, status: int = 200
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Declare a function; ``path`` is below /identity/v3 unless it begins with /identity."""
        full = path if path.startswith(IDENTITY) else ROOT + path

        def declare(function: Callable[..., Any]) -> Callable[..., Any]:
            assert (method, full) not in self.services, f"{method} {full} is declared twice"
            self.services[(method, full)] = IdentityCore(function=function, rule=to, body=body, status=status)
            return function

        return declare


def answer(service: IdentityCore) -> Callable[..., Response]:
    """Return the view that answers requests with a function."""

    def view(**path: str) -> Response:
        core: Core = current_app.extensions[CORE]
        with core.db.read() as session:
            words = request.headers.get("X-Auth-Token", "")
            who = tokens.check(session, words)
        if words and (who is None or who.project is not None):
            core.note_token(words, who.project.id if who is not None and who.project is not None else None)
        call = IdentityRequest(
            core=core,
            login=current_app.extensions[LOGIN],
            query={key: values[-1].replace("\0", "") for key, values in request.args.lists()},
            base=base_url(request.environ),
            address=request.remote_addr or "",
            who=who,
            subject=request.headers.get("X-Subject-Token", ""),
        )
        if service.rule is not anybody and who is None:
            raise Unauthorized(UNAUTHENTICATED)
        if not service.rule(call, path):
            raise Forbidden("You are not authorized to perform the requested action.")
        arguments: dict[str, Any] = dict(path)
        if service.body is not None:
            if (request.content_length or 0) > MAX_BODY_BYTES or len(request.get_data()) > MAX_BODY_BYTES:
                raise BodyTooLarge(f"The body of a request to the Identity API has at most {MAX_BODY_BYTES} bytes.")
            arguments["body"] = load(service.body, read_json(), MINIMUM)
        with reserve.usable(by=request.method == "DELETE"):
            result = service.function(call, **arguments)
        if not isinstance(result, IdentityResponse):
            result = IdentityResponse(body=result, status=service.status)
        response = Response(status=result.status, headers=dict(result.headers))
        if result.body is not None:
            response = Response(
                orjson.dumps(result.body),
                status=result.status,
                mimetype="application/json",
                headers=dict(result.headers),
            )
        response.headers["Vary"] = "X-Auth-Token"
        return response

    return view
