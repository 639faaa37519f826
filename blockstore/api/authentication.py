"""Who the caller is. With ``auth = none`` everybody is believed, which is why the service then keeps to loopback.

Called by ``endpoint.py`` as the first step of a request.
"""

from __future__ import annotations

import re

from flask import Request

from blockstore.context import RequestContext
from blockstore.errors import BadRequest

DEFAULT_PROJECT = "admin"
DEFAULT_USER = "admin"
ALL_ROLES = frozenset({"admin", "member", "reader"})

_ID = re.compile(r"[0-9A-Za-z_\-]{1,64}")
_REQUEST_ID = re.compile(r"req-[0-9a-fA-F\-]{1,64}")


def global_request_id_of(request: Request) -> str | None:
    """Return the id that the caller gave the request, if it is well-formed."""
    given = request.headers.get("X-OpenStack-Request-ID", "")
    return given if _REQUEST_ID.fullmatch(given) else None


def authenticate(request: Request, path_project: str | None, request_id: str) -> RequestContext:
    """Return the caller: project from the path, the header ``X-Project-Id``, or ``admin``.

    ``X-Roles``, ``X-User-Id`` and ``X-Service-Roles`` are taken as keystonemiddleware would set them, so that policies
    can be tried out; without them the caller is an administrator. Raises BadRequest for an id that cannot be one, or on
    a mismatch.
    """
    header_project = request.headers.get("X-Project-Id")
    project = path_project or header_project or DEFAULT_PROJECT
    user = request.headers.get("X-User-Id") or DEFAULT_USER
    for name, value in (("X-Project-Id", project), ("X-User-Id", user)):
        if not _ID.fullmatch(value):
            raise BadRequest(f"{name} must be 1 to 64 letters, digits, - and _.")
    if path_project and header_project and path_project != header_project:
        raise BadRequest("Malformed request url")
    said = request.headers.get("X-Roles")
    roles = ALL_ROLES if said is None else frozenset(role.strip().lower() for role in said.split(",") if role.strip())
    service_roles = {role.strip().lower() for role in request.headers.get("X-Service-Roles", "").split(",")}
    return RequestContext(
        request_id=request_id,
        user_id=user,
        project_id=project,
        roles=roles,
        is_admin="admin" in roles,
        is_service="service" in service_roles,
    )
