"""The one decorator: what happens around every function of this room, in a fixed order.

authenticate → microversion → load body and query → policy → session → your function → dump → commit → cast; and where
the wire wants the outcome in the reply (``Later``), → wait for the orders → reply; or what storage says (``Aside``).
A decorated function takes a ``Call`` and no Flask object, contains only the decision, and is testable without a client.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from flask import Response, abort, current_app, g, request
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from blockstore.address import check_request
from blockstore.api import faults, links
from blockstore.api.application import Application
from blockstore.api.authentication import Authenticator, global_request_id_of
from blockstore.api.waiting import WaitingRoom
from blockstore.board import Board
from blockstore.bus import Bus, Expectation
from blockstore.config import Config
from blockstore.context import RequestContext, new_request_id
from blockstore.db import patience, reserve
from blockstore.db.session import Database
from blockstore.errors import (
    BadRequest,
    Conflict,
    InvalidInput,
    NotAcceptable,
    NotFound,
    QueryTooLong,
    UnsupportedMediaType,
    shortened,
)
from blockstore.logs import MAX_PATH, bounded
from blockstore.microversions import HEADER, MINIMUM, Version, negotiate, version_text
from blockstore.orders import Kind
from blockstore.policies import Policy
from blockstore.schemas.base import Schema, load
from blockstore.throttle import Throttle

log = logging.getLogger("blockstore.api")

MAX_BODY_BYTES = 114688
MAX_ELEMENTS = 5000
TOO_MANY = f"Malformed request body: it has more than {MAX_ELEMENTS} keys and items in all."
MAX_QUERY_BYTES, MAX_QUERY_KEYS = 8192, 64
MAX_DEPTH = 32
TOO_DEEP = f"Malformed request body: it is nested more than {MAX_DEPTH} levels deep."
JSON_TYPES = frozenset({"application/json", "application/vnd.openstack.volume+json"})
IDENTITY = "/identity"
"""Where the Identity API is; its faults have a form of their own."""
CORE = "blockstore"
"""Where the application keeps its ``Core``."""


@dataclass(frozen=True, kw_only=True)
class Core:
    """What endpoints work with, beside the request."""

    config: Config
    db: Database
    board: Board
    bus: Bus
    waiting_room: WaitingRoom
    authenticate: Authenticator
    policy: Policy
    guesses: Throttle
    """Of the keys of transfers."""
    secret_of: Callable[[str], str]
    """The secret of an attachment, for the reply that tells it."""
    check_connector: Callable[[str, Mapping[str, Any]], None]
    """Raises InvalidConnector when the target of a pool cannot use a connector."""
    explain_new: Callable[..., dict[str, Any]]
    """What the scheduler would do with a new volume."""
    plan_drain: Callable[[Session, str], list[dict[str, Any]]]
    """Where the volumes of a backend would go."""
    note_token: Callable[[str, str | None], None]
    """Called with a new token and its project, whose requests have a line of their own from the first one on."""
    manageable: Callable[[str, str, float], list[Any]]
    """What is on a pool, ``volumes`` or ``snapshots``, if it says so in time. Raises BackendError, TimeoutError."""


@dataclass(slots=True, kw_only=True)
class Call:
    """One request, for an endpoint function."""

    ctx: RequestContext
    session: Session
    query: Mapping[str, str]
    """The query string; of a key that stands there twice, the last."""
    links: links.Links
    core: Core
    if_match: str | None = None

    @property
    def version(self) -> Version:
        """Return the microversion in force."""
        return self.ctx.microversion

    def operation(self, kind: type[Kind], row: Any, **fields: Any) -> Kind:
        """Return a new operation of this request on a row; whoever changes the row's status files it."""
        return kind.of(row, self.ctx.request_id, **fields)

    def may(self, rule: str) -> bool:
        """Say whether the caller satisfies a policy rule."""
        return self.core.policy.allowed(self.ctx, rule)

    def enforce(self, rule: str) -> None:
        """Raise Forbidden unless the caller satisfies a policy rule."""
        self.core.policy.enforce(self.ctx, rule)


@dataclass(frozen=True, kw_only=True)
class Text:
    """A reply that is not plain JSON: exact bytes with headers."""

    body: bytes
    mimetype: str
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200


@dataclass(frozen=True, kw_only=True)
class Later:
    """A reply that is made when the orders filed for it have ended; the caller waits for it."""

    orders: Sequence[str]
    reply: Callable[[Call], Any]
    """Called with a new session; finds out by itself how the orders ended."""


@dataclass(frozen=True, kw_only=True)
class Aside:
    """A reply for which storage is asked: made when the session has ended, while another thread answers."""

    reply: Callable[[float], Any]
    """Called with the seconds that it may take."""


Function = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One method on one path, or one action of it."""

    function: Function
    policy: str
    body: type[Schema] | None
    since: Version
    status: int
    writes: bool
    frees: bool = False
    """It is accepted also when the disk of the database is full, for storage or rows become fewer."""


class Room:
    """Collects the endpoints of one module; ``api/__init__.py`` lists the modules."""

    def __init__(self) -> None:
        self.routes: dict[tuple[str, str], Endpoint | dict[str, Endpoint]] = {}

    def get(
        self, path: str, *, policy: str, since: Version = MINIMUM, status: int = 200, writes: bool = False
    ) -> Callable[[Function], Function]:
        """Declare an endpoint that only looks; some of the wire's do more."""
        return self._declare("GET", path, policy=policy, body=None, since=since, status=status, writes=writes)

    def post(
        self, path: str, *, policy: str, body: type[Schema], status: int = 202, since: Version = MINIMUM
    ) -> Callable[[Function], Function]:
        """Declare an endpoint that makes something."""
        return self._declare("POST", path, policy=policy, body=body, since=since, status=status, writes=True)

    def put(
        self,
        path: str,
        *,
        policy: str,
        body: type[Schema],
        status: int = 200,
        since: Version = MINIMUM,
        writes: bool = True,
    ) -> Callable[[Function], Function]:
        """Declare an endpoint that changes something."""
        return self._declare("PUT", path, policy=policy, body=body, since=since, status=status, writes=writes)

    def delete(
        self, path: str, *, policy: str, status: int = 202, since: Version = MINIMUM
    ) -> Callable[[Function], Function]:
        """Declare an endpoint that removes something."""
        return self._declare(
            "DELETE", path, policy=policy, body=None, since=since, status=status, writes=True, frees=True
        )

    def action(
        self,
        path: str,
        name: str,
        *,
        policy: str,
        body: type[Schema],
        status: int = 202,
        since: Version = MINIMUM,
        frees: bool = False,
    ) -> Callable[[Function], Function]:
        """Declare an action: POST with a body whose one key is the action's name."""

        def declare(function: Function) -> Function:
            actions = self.routes.setdefault(("POST", path), {})
            assert isinstance(actions, dict)
            actions[name] = Endpoint(
                function=function, policy=policy, body=body, since=since, status=status, writes=True, frees=frees
            )
            return function

        return declare

    def _declare(self, method: str, path: str, **facts: Any) -> Callable[[Function], Function]:
        def declare(function: Function) -> Function:
            assert (method, path) not in self.routes, f"{method} {path} is declared twice"
            self.routes[(method, path)] = Endpoint(function=function, **facts)
            return function

        return declare


def mount(app: Application, rooms: tuple[Room, ...]) -> None:
    """Route every endpoint."""
    for (method, path), target in _together(rooms).items():
        app.add_resource(method, path, _view(target))


def _together(rooms: tuple[Room, ...]) -> dict[tuple[str, str], Endpoint | dict[str, Endpoint]]:
    """Return all routes; the actions on one path may come from several modules."""
    routes: dict[tuple[str, str], Endpoint | dict[str, Endpoint]] = {}
    for room in rooms:
        for place, target in room.routes.items():
            present = routes.get(place)
            if isinstance(present, dict) and isinstance(target, dict):
                assert not present.keys() & target.keys(), f"{place}: an action is declared twice"
                target = {**present, **target}
            else:
                assert present is None, f"{place} is declared twice"
            routes[place] = target
    return routes


def _view(target: Endpoint | dict[str, Endpoint]) -> Callable[..., Response]:
    def view(project_id: str | None = None, **path: str) -> Response:
        g.in_controller = True
        return serve(target, project_id, path)

    return view


def serve(target: Endpoint | dict[str, Endpoint], project_id: str | None, path: Mapping[str, str]) -> Response:
    """Answer one request."""
    core: Core = current_app.extensions[CORE]
    only_looks = isinstance(target, Endpoint) and not target.writes
    with ExitStack() as waiting:
        with _told_of_races(), ExitStack() as sessions:
            # Where an endpoint only looks, one session reads who asks and what is asked for.
            look = sessions.enter_context(core.db.read()) if only_looks else None
            core.policy.look()
            caller = core.authenticate(request, project_id, g.request_id, look)
            g.for_administrator = caller.is_admin
            ctx = replace(caller, microversion=asked_microversion())
            sessions.enter_context(patience.acting_for(ctx.project_id))
            data, endpoint = _body_and_endpoint(target)
            if endpoint.frees:
                waiting.enter_context(reserve.usable())
            if ctx.microversion < endpoint.since:
                raise NotFound(faults.NO_SUCH_RESOURCE)
            arguments: dict[str, Any] = dict(path)
            if endpoint.body is not None:
                arguments["body"] = load(endpoint.body, data, ctx.microversion)
            core.policy.enforce(ctx, endpoint.policy)
            call = Call(
                ctx=ctx,
                session=look or sessions.enter_context((core.db.write if endpoint.writes else core.db.read)()),
                query=_query(),
                links=links.Links.of(request, project_id),
                core=core,
                if_match=request.headers.get("If-Match"),
            )
            result = endpoint.function(call, **arguments)
            if isinstance(result, Later):
                expecting = waiting.enter_context(core.bus.expecting(result.orders))
            elif not isinstance(result, Aside):
                return _dump(result, endpoint.status)
        reply = _made_aside(call, result) if isinstance(result, Aside) else _replied_later(call, result, expecting)
        return _dump(reply, endpoint.status)


def _made_aside(call: Call, aside: Aside) -> Any:
    core = call.core
    with core.waiting_room.entered(call.ctx.project_id) as may_wait:
        return aside.reply(core.config.service.attach_timeout_s if may_wait else 0)


def _replied_later(call: Call, later: Later, expecting: Expectation) -> Any:
    # The orders are committed and cast by now.
    core = call.core
    with core.waiting_room.entered(call.ctx.project_id) as may_wait:
        expecting.wait(core.config.service.attach_timeout_s if may_wait else 0)
    with core.db.read() as session:
        return later.reply(replace(call, session=session))


@contextmanager
def _told_of_races() -> Iterator[None]:
    """Turn what the database refuses because of a request at the same moment into a sentence."""
    try:
        yield
    except IntegrityError:
        raise Conflict(
            "Another request changed the same thing at the same moment; nothing was done. Try again."
        ) from None


def asked_microversion() -> Version:
    """Return the microversion that the request asks for; the reply names it, even one that is refused."""
    header = request.headers.get(HEADER)
    try:
        version = negotiate(header)
    except NotAcceptable:
        g.version_text = _refused_version(header or "")
        raise
    g.version_text = str(version)
    return version


def _refused_version(header: str) -> str | None:
    refused = version_text(header)
    # compat: a refused version is echoed, but not that of an API before this one
    return None if refused in ("1.0", "2.0") else refused


def before_request() -> None:
    """Give the request its id."""
    g.request_id = new_request_id()
    g.started = time.perf_counter()
    g.identity = request.path.startswith(IDENTITY)
    check_request(request.environ)
    if "\0" in request.path:
        abort(404)  # nothing has such a name, and PostgreSQL refuses to look for it
    if request.method == "HEAD" and request.path.startswith("/v3/") and request.path != "/v3/":
        abort(404)  # compat: Cinder routes no HEAD to resources, where Flask would answer it like GET
    refuse_long_query(request.query_string)


def refuse_long_query(query: bytes) -> None:
    """Refuse a query string that takes long to look at, before it is looked at. Raises BadRequest, QueryTooLong."""
    if len(query) > MAX_QUERY_BYTES:
        raise QueryTooLong(f"The query string has {len(query)} bytes; at most {MAX_QUERY_BYTES} are allowed.")
    keys = query.count(b"&") + 1
    if keys > MAX_QUERY_KEYS:
        raise BadRequest(f"The query string has {keys} keys; at most {MAX_QUERY_KEYS} are allowed.")


def after_request(response: Response) -> Response:
    """Complete the headers and log one line."""
    faults.set_common_headers(response)
    level = logging.INFO if request.method != "GET" or response.status_code >= 400 else logging.DEBUG
    if log.isEnabledFor(level):
        log.log(
            level,
            "%s %s %d in %.1f ms",
            bounded(request.method, 20),
            bounded(request.path, MAX_PATH),
            response.status_code,
            (time.perf_counter() - g.get("started", time.perf_counter())) * 1000,
            extra={"request_id": g.get("request_id"), "global_request_id": global_request_id_of(request)},
        )
    return response


def _body_and_endpoint(target: Endpoint | dict[str, Endpoint]) -> tuple[Any, Endpoint]:
    if isinstance(target, Endpoint):
        return (read_json() if target.body is not None else None), target
    data = read_json()
    if not isinstance(data, dict) or len(data) != 1:
        raise BadRequest("Malformed request body")
    name = next(iter(data))
    if name not in target:
        hint = "Verify the request body and Content-Type header and try again."
        raise BadRequest(f"There is no such action: {shortened(name)}. {hint}")
    return data, target[name]


def read_json() -> Any:
    """Return the body. Raises BadRequest when it is not JSON of a bounded depth, UnsupportedMediaType for others."""
    raw = request.get_data(cache=False)
    if not raw:
        raise BadRequest("Malformed request body: a JSON object is needed.")
    if request.mimetype and request.mimetype not in JSON_TYPES:
        raise UnsupportedMediaType("Unsupported Content-Type")
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        if "depth limit" in str(exc):
            raise BadRequest(TOO_DEEP) from None
        raise BadRequest("Malformed request body: it is not valid JSON.") from None
    if not isinstance(data, dict):
        raise BadRequest("Malformed request body: it must be a JSON object.")
    _check_extent(data)
    json.loads(raw, object_pairs_hook=_refuse_twice, parse_int=str, parse_float=str)
    return data


def _refuse_twice(pairs: list[tuple[str, Any]]) -> None:
    """Refuse an object in which a key stands twice: two readers could see two bodies."""
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise BadRequest(f"Malformed request body: the key {shortened(key)} stands twice in one object.")
        seen.add(key)


def _check_extent(data: Any) -> None:
    """Raise BadRequest for what is nested too deeply or has too many elements, before any of them is looked at."""
    level: list[Any] = [data]
    count = 0
    for _ in range(MAX_DEPTH):
        count += sum(map(len, level))
        if count > MAX_ELEMENTS:
            raise BadRequest(TOO_MANY)
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise BadRequest(TOO_DEEP)


def _query() -> dict[str, str]:
    query = {key: values[-1] for key, values in request.args.lists()}
    for key, value in query.items():
        if "\0" in key or "\0" in value:
            raise InvalidInput(key.replace("\0", ""), value, "It must not hold the character NUL.")
    return query


def _dump(result: Any, status: int) -> Response:
    if isinstance(result, Text):
        return Response(result.body, status=result.status, mimetype=result.mimetype, headers=dict(result.headers))
    if result is None:
        response = Response(status=status)
        response.headers.pop("Content-Type", None)
        return response
    return Response(orjson.dumps(result), status=status, mimetype=_accepted())


def _accepted() -> str:
    asked = request.headers.get("Accept", "")
    return asked if asked in JSON_TYPES else "application/json"
