"""Turn errors into replies: the only module that knows the API's error bodies.

Called by ``pipeline.py`` and by the application's error handlers. An unexpected error is logged in full. Its reply has
a fixed sentence and the request id in a header, and nothing else about the error.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

import orjson
from flask import Response, current_app, g, request
from werkzeug.exceptions import HTTPException

from blockstore.address import base_url
from blockstore.db.outages import FULL, NO_FILES, SOON_S, outage
from blockstore.errors import BlockstoreError, Busy, DatabaseAway, TooManyRequests, Unauthorized, is_out_of_files
from blockstore.log_limiter import LogLimiter

log = logging.getLogger(__name__)
log_limiter = LogLimiter(log)

UNEXPECTED = "The server has either erred or is incapable of performing the requested operation."
NO_SUCH_RESOURCE = "The resource could not be found."


def reply(error: Exception) -> Response:
    """Return the reply for any error that a request ended with."""
    error = outage(error) or error  # translates database errors raised outside of a session
    if isinstance(error, Unauthorized):
        return unauthorized(error.message)
    if isinstance(error, BlockstoreError) and error.status != 500:
        response = fault(error.status, error.fault, _sentence(error))
        if isinstance(error, TooManyRequests | Busy | DatabaseAway):
            response.headers["Retry-After"] = str(error.wait_s)
        if isinstance(error, DatabaseAway):
            log_limiter.log(logging.ERROR, error.message, "a request was answered 503: %s", error.detail)
        return response
    if isinstance(error, HTTPException) and error.code is not None and error.code < 500:
        return from_router(error)
    if is_out_of_files(error):
        log_limiter.log(logging.ERROR, NO_FILES, "a request was answered 503: %s", error)
        response = fault(503, "serviceUnavailable", NO_FILES)
        response.headers["Retry-After"] = str(SOON_S)
        return response
    log_limiter.log(
        logging.ERROR, f"{type(error).__name__} {request.endpoint}", "request failed unexpectedly", exc_info=error
    )
    return fault(500, "computeFault", UNEXPECTED)


def _sentence(error: BlockstoreError) -> str:
    """Return the message for the caller: the operator's text for administrators, the public text for all others."""
    if isinstance(error, DatabaseAway) and error.message == FULL and g.get("for_administrator"):
        return f"{FULL} ({error.detail})"
    if error.message != error.public:
        log.info("%s", error.message, extra={"request_id": g.get("request_id")})
    return error.message if g.get("for_administrator") else error.public


def fault(status: int, name: str, message: str) -> Response:
    """Return an error body of the API."""
    if g.get("identity"):
        return identity_fault(status, message)
    if status == 412:
        return Response(status=412)  # compat: an empty body
    inner: dict[str, Any] = {"code": status, "message": message}
    response = Response(status=status, mimetype="application/json")
    if status == 413:
        inner["retryAfter"] = "0"
        response.headers["Retry-After"] = "0"
    response.set_data(orjson.dumps({name: inner}))
    return response


def identity_fault(status: int, message: str) -> Response:
    """Return an error body in Keystone's form."""
    body = {"error": {"code": status, "message": message, "title": HTTPStatus(status).phrase}}
    return Response(orjson.dumps(body), status=status, mimetype="application/json")


def unauthorized(message: str) -> Response:
    """Return the 401 reply in the form of keystonemiddleware, for every path.

    With ``auth = keystone``, keystonemiddleware adds the address of the identity service.
    """
    response = identity_fault(401, message)
    if "identity" in current_app.blueprints:
        response.headers["WWW-Authenticate"] = f'Keystone uri="{base_url(request.environ)}/identity"'
    return response


def from_router(error: HTTPException) -> Response:
    """Return the reply to a routing error: in plain text where Cinder's router answers before any controller."""
    code = error.code or 500
    if g.get("identity"):
        return identity_fault(code, NO_SUCH_RESOURCE if code == 404 else error.description or error.name)
    # compat: in Cinder an unknown method on a known URL is 404
    if code in (404, 405):
        return Response("404 Not Found\n\nThe resource could not be found.\n", status=404, mimetype="text/plain")
    if code == 413:
        return Response(
            "413 Request Entity Too Large\n\nThe body of a request may have at most 114688 bytes.\n",
            status=413,
            mimetype="text/plain",
        )
    if code in (301, 302, 308):
        return error.get_response()  # type: ignore[return-value]
    return fault(code, "badRequest" if code == 400 else "computeFault", error.description or NO_SUCH_RESOURCE)


def set_common_headers(response: Response) -> Response:
    """Add the headers with the request id and the microversion to a reply."""
    request_id = g.get("request_id", "")
    response.headers["x-openstack-request-id"] = request_id
    if g.get("in_controller"):
        response.headers["x-compute-request-id"] = request_id
    version = g.get("version_text")
    if version:
        response.headers["OpenStack-API-Version"] = f"volume {version}"
        response.headers["Vary"] = "OpenStack-API-Version"
    return response
