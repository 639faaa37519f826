"""The pipeline around every endpoint function of this component: the same steps in a fixed order.

authenticate → microversion → load body and query → policy → session → endpoint function → dump → commit → enqueue.
If the API wants the outcome in the reply (``Deferred``): → wait for the operations → reply. If the reply depends on
storage (``WithoutSession``): → ask storage → reply. An endpoint function takes a ``Call`` and no Flask object, contains
only the decision, and can be tested without a client.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import orjson
from flask import Response, abort, current_app, g, request
from sqlalchemy.exc import IntegrityError

from blockstore.address import check_request
from blockstore.api.http import faults, links
from blockstore.api.http.application import Application
from blockstore.api.http.authentication import global_request_id_of
from blockstore.api.http.body import JSON_TYPES, bounded_query, read_json, refuse_long_query
from blockstore.api.http.call import CORE, Call, Core, Deferred, PlainText, WithoutSession
from blockstore.api.http.routes import Endpoint, Routes, merged
from blockstore.context import new_request_id
from blockstore.db import reserve, wait_limits
from blockstore.errors import (
    BadRequest,
    Conflict,
    NotAcceptable,
    NotFound,
    shortened,
)
from blockstore.microversions import HEADER, Version, negotiate, version_text
from blockstore.operations.bus import Completion
from blockstore.schemas.base import load
from blockstore.server.logs import MAX_PATH, bounded

log = logging.getLogger("blockstore.api")

IDENTITY = "/identity"
"""Path of the Identity API, whose faults have their own form."""


def mount(app: Application, tables: tuple[Routes, ...]) -> None:
    """Route every endpoint."""
    for (method, path), target in merged(tables).items():
        app.add_resource(method, path, _view(target))


def _view(target: Endpoint | dict[str, Endpoint]) -> Callable[..., Response]:
    def view(project_id: str | None = None, **path: str) -> Response:
        g.in_controller = True
        return serve(target, project_id, path)

    return view


def serve(target: Endpoint | dict[str, Endpoint], project_id: str | None, path: Mapping[str, str]) -> Response:
    """Answer one request."""
    core: Core = current_app.extensions[CORE]
    is_reading = isinstance(target, Endpoint) and not target.writes
    with ExitStack() as waiting:
        with _explained_races(), ExitStack() as sessions:
            # For a read-only endpoint, one session reads both the caller's token and the requested rows.
            read_session = sessions.enter_context(core.db.read()) if is_reading else None
            core.policy.reload_if_changed()
            caller = core.authenticate(request, project_id, g.request_id, read_session)
            g.for_administrator = caller.is_admin
            ctx = replace(caller, microversion=asked_microversion())
            sessions.enter_context(wait_limits.acting_for(ctx.project_id))
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
                session=read_session or sessions.enter_context((core.db.write if endpoint.writes else core.db.read)()),
                query=bounded_query(),
                links=links.Links.of(request, project_id),
                core=core,
                if_match=request.headers.get("If-Match"),
            )
            result = endpoint.function(call, **arguments)
            if isinstance(result, Deferred):
                completion = waiting.enter_context(core.bus.completion_of(result.operations))
            elif not isinstance(result, WithoutSession):
                return _dump(result, endpoint.status)
        reply = (
            _reply_without_session(call, result)
            if isinstance(result, WithoutSession)
            else _reply_deferred(call, result, completion)
        )
        return _dump(reply, endpoint.status)


def _reply_without_session(call: Call, without_session: WithoutSession) -> Any:
    core = call.core
    with core.thread_reserve.waiting_place(call.ctx.project_id) as may_wait:
        return without_session.reply(core.config.service.attach_timeout_s if may_wait else 0)


def _reply_deferred(call: Call, deferred: Deferred, completion: Completion) -> Any:
    # The operations are committed and enqueued by now.
    core = call.core
    with core.thread_reserve.waiting_place(call.ctx.project_id) as may_wait:
        completion.wait(core.config.service.attach_timeout_s if may_wait else 0)
    with core.db.read() as session:
        return deferred.reply(replace(call, session=session))


@contextmanager
def _explained_races() -> Iterator[None]:
    """Turn an IntegrityError, which a concurrent request caused, into a Conflict with a sentence."""
    try:
        yield
    except IntegrityError:
        raise Conflict(
            "Another request changed the same resource at the same moment, so nothing was done. Try again."
        ) from None


def asked_microversion() -> Version:
    """Return the microversion that the request asks for. The reply names it, even if it is refused."""
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
    # compat: a refused version is echoed, except those of earlier APIs
    return None if refused in ("1.0", "2.0") else refused


def before_request() -> None:
    """Give the request its id, and refuse malformed requests."""
    g.request_id = new_request_id()
    g.started = time.perf_counter()
    g.identity = request.path.startswith(IDENTITY)
    check_request(request.environ)
    if "\0" in request.path:
        abort(404)  # no resource has such a name, and PostgreSQL refuses the query
    if request.method == "HEAD" and request.path.startswith("/v3/") and request.path != "/v3/":
        abort(404)  # compat: Cinder routes no HEAD to resources, where Flask would answer it like GET
    refuse_long_query(request.query_string)


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


def _dump(result: Any, status: int) -> Response:
    if isinstance(result, PlainText):
        return Response(result.body, status=result.status, mimetype=result.mimetype, headers=dict(result.headers))
    if result is None:
        response = Response(status=status)
        response.headers.pop("Content-Type", None)
        return response
    return Response(orjson.dumps(result), status=status, mimetype=_accepted())


def _accepted() -> str:
    accept_header = request.headers.get("Accept", "")
    return accept_header if accept_header in JSON_TYPES else "application/json"
