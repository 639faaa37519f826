"""Checks the head of a request before the application is called, and makes the WSGI environment from it."""

from __future__ import annotations

import sys
from typing import Any
from urllib.parse import quote

from granian.rsgi import Scope

from blockstore.server.bodies import BufferedBody, StreamedBody
from blockstore.server.refusals import RequestRefused

MAX_PATH_BYTES = 8 << 10
"""Bytes of a path."""
MAX_HEAD_BYTES = 32 << 10
"""Bytes of a request line and its headers together."""
MAX_TYPE_BYTES = 255
"""Bytes of Content-Type. Werkzeug needs many milliseconds to parse the parameters of a long one."""


def checked(scope: Scope) -> dict[str, str]:
    """Return the headers of a request by lower-case name. Raise RequestRefused if the head is ambiguous or too long.

    A header with an underscore in its name is left out: in a WSGI environment it would equal the one with a hyphen.
    The values of a repeated header are joined by a comma, as in RFC 9110.
    """
    headers: dict[str, str] = {}
    readable = set()
    size = len(scope.path) + len(scope.query_string)
    for name, value in scope.headers.items():
        size += len(name) + len(value) + 4
        readable.add(name)
        if "_" in name:
            continue
        if name in headers:
            if name in ("host", "x-auth-token", "x-service-token", "x-subject-token"):
                raise RequestRefused(400, f"The header {name} appears twice in the request.")
            headers[name] += f",{value}"
        else:
            headers[name] = value
    if len(readable) < len(scope.headers.keys()):  # granian leaves out headers with other values
        raise RequestRefused(400, "The value of a header may hold visible ASCII characters only.")
    if not scope.method.isupper():
        raise RequestRefused(400, "The method of a request must be in capital letters.")
    if size > MAX_HEAD_BYTES:
        raise RequestRefused(431, f"The request line and the headers may have at most {MAX_HEAD_BYTES} bytes.")
    if len(headers.get("content-type", "")) > MAX_TYPE_BYTES:
        raise RequestRefused(415, f"The header Content-Type may have at most {MAX_TYPE_BYTES} bytes.")
    if len(scope.path) > MAX_PATH_BYTES:
        raise RequestRefused(414, f"The path may have at most {MAX_PATH_BYTES} bytes.")
    if "transfer-encoding" in headers and "content-length" in headers:
        raise RequestRefused(400, "A request has either a Content-Length or a Transfer-Encoding.")
    return headers


def environ_of(scope: Scope, headers: dict[str, str], body: BufferedBody | StreamedBody) -> dict[str, Any]:
    """Return the WSGI environment (PEP 3333) of a request."""
    address, _, port = scope.client.rpartition(":")
    server, _, server_port = scope.server.rpartition(":")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": _bytes_as_text(scope.path),
        "QUERY_STRING": _bytes_as_text(scope.query_string),
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "SERVER_NAME": server.strip("[]"),
        "SERVER_PORT": server_port,
        "REMOTE_ADDR": address.strip("[]"),
        "REMOTE_PORT": port,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.scheme,
        "wsgi.input": body.file(),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in headers.items():
        environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
    environ.pop("HTTP_CONTENT_LENGTH", None)
    if isinstance(body, BufferedBody) and (body.length or "content-length" in headers):
        environ["CONTENT_LENGTH"] = str(body.length)
    elif "content-length" in headers:
        environ["CONTENT_LENGTH"] = headers["content-length"]
    if (content_type := environ.pop("HTTP_CONTENT_TYPE", None)) is not None:
        environ["CONTENT_TYPE"] = content_type
    if scope.authority:
        environ["HTTP_HOST"] = quote(scope.authority, safe=":[]@")  # RFC 9112: the request line overrides Host
    return environ


def _bytes_as_text(text: str) -> str:
    return text if text.isascii() else text.encode().decode("latin-1")
