"""The HTTP client of commands, for the service that serves from a state directory on this node.

It connects to the address on which the service listens, and checks the certificate for the name in the endpoint file.
So commands need neither a name service nor a proxy.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from blockstore import address
from blockstore.errors import BlockstoreError
from blockstore.microversions import HEADER, MAXIMUM

PROBE_S = 2.0
"""Seconds within which a service on this node accepts a connection."""


class LocalClient:
    """Sends requests to the service. A refusal is raised with the service's own text."""

    def __init__(self, url: str, listen: str, *, ca: Path | None, token: str | None, timeout_s: float) -> None:
        """Take the base URL of the service, and the host that its configuration listens on."""
        self._url, self._token, self._timeout_s = url, token, timeout_s
        self._hosts = _hosts(url, listen)
        self._ca = ca

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request below /v3, and return the body of the reply. Raises BlockstoreError."""
        headers = {"Content-Type": "application/json", HEADER: f"volume {MAXIMUM}"}
        if self._token:
            headers["X-Auth-Token"] = self._token
        data = None if body is None else json.dumps(body).encode()
        try:
            with contextlib.closing(self._connection()) as connection:
                connection.request(method, f"/v3{path}", data, headers)
                response = connection.getresponse()
                content = response.read()
        except ssl.SSLCertVerificationError as exc:
            raise BlockstoreError(
                f"The certificate of {self._url} is not accepted: {exc.verify_message}. If your own CA issued it, set"
                " [service] tls_ca, and give this command the same --config as the service."
            ) from None
        except OSError as exc:
            raise BlockstoreError(f"Nothing answers at {self._url}; is `blockstore serve` running? ({exc})") from None
        except http.client.HTTPException as exc:
            raise BlockstoreError(f"The server at {self._url} is not blockstore: {exc!r}.") from None
        try:
            reply: Any = json.loads(content) if content else None
            if response.status < 400:
                return reply
            (fault,) = reply.values()
            message = str(fault["message"])
        except (ValueError, TypeError, KeyError, AttributeError):
            raise BlockstoreError(
                f"The server at {self._url} is not blockstore, or is another version. It answered {response.status}"
                f" {response.reason} to {method} /v3{path.partition('?')[0]}."
            ) from None
        raise BlockstoreError(message)

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self._url)
        port = parts.port or address.DEFAULT_PORTS[parts.scheme]
        plain = _connect(self._hosts, port, self._timeout_s)
        connection = http.client.HTTPConnection(parts.hostname or "", port, timeout=self._timeout_s)
        connection.sock = plain
        if parts.scheme == "https":
            try:
                context = ssl.create_default_context(cafile=self._ca)
                connection.sock = context.wrap_socket(plain, server_hostname=parts.hostname)
            except BaseException:
                plain.close()
                raise
        return connection


def is_answering(url: str, listen: str) -> bool:
    """Return True if the address where the service last served accepts connections."""
    parts = urlsplit(url)
    try:
        _connect(_hosts(url, listen), parts.port or address.DEFAULT_PORTS[parts.scheme], PROBE_S).close()
    except OSError:
        return False
    return True


def _hosts(url: str, listen: str) -> list[str]:
    """Return where the service may listen: as configured, or at the noted address if `serve --listen` was used."""
    noted = urlsplit(url).hostname or ""
    near = ("::1" if ":" in listen else "127.0.0.1") if address.is_unspecified(listen) else listen
    return [near] if near == noted or not address.is_literal(noted) else [near, noted]


def _connect(hosts: list[str], port: int, timeout_s: float) -> socket.socket:
    """Return a connection to the first host that accepts it. Raise the OSError of the last host if none does."""
    for host in hosts[:-1]:
        with contextlib.suppress(OSError):
            return socket.create_connection((host, port), timeout_s)
    return socket.create_connection((hosts[-1], port), timeout_s)
