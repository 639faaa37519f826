"""Starts and stops the HTTP server: granian, inside this process, on a socket that listens before the service starts.

docs/architecture.md compares the servers that were measured.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.log import LogLevels

from blockstore.errors import ConfigError
from blockstore.server.connections import HEAD_S, Connections
from blockstore.server.embedded import EmbeddedServer
from blockstore.server.threads import Threads
from blockstore.server.wsgi import Adapter

log = logging.getLogger(__name__)

BACKLOG = 1024
MOST_CONNECTIONS = 4096
RESERVED_FILES = 512
"""File descriptors that are reserved for the database, operations and tools."""
MOST_FILES = 65536
BUFFER_BYTES = 128 << 10
"""Socket buffer size in each direction (the kernel uses twice that). By default the kernel grows it to some MiB, even
for a caller that does not read."""
TRANSFERS = 8
"""Requests with streamed bodies that run at once."""
STOP_S = 5
"""Seconds that a stop waits for requests that are being answered."""
UNACKED_MS = 30_000
"""Milliseconds after which a connection is dropped if its peer acknowledges no data."""

_LOGGING = {"incremental": True, "handlers": {}, "formatters": {}, "loggers": {"_granian": {"propagate": True}}}
"""Only levels: the handlers are the service's own."""


class HttpServer:
    """An HTTP server on a listening socket, which answers requests while ``run`` runs."""

    def __init__(
        self,
        application: Any,
        listener: socket.socket,
        threads: int,
        *,
        certificate: Path | None = None,
        key: Path | None = None,
        per_address: int = 256,
        is_proxy: Callable[[str], bool] = lambda _address: False,
        is_transfer: Callable[[str, str], bool] = lambda _method, _path: False,
        client_of: Callable[[str, str], str] = lambda connected, _forwarded_for: connected,
        line_of: Callable[[Mapping[str, str]], str] = lambda _headers: "",
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Prepare to answer on ``threads`` threads, over HTTPS if ``certificate`` is given. Raises ConfigError.

        ``turn`` is held by a thread that answers a request (``interpreter.py``).
        """
        self.address: tuple[str, int] = listener.getsockname()[:2]
        self._listener = listener
        self._threads = Threads(threads, "answer")
        self._transfers = Threads(TRANSFERS, "transfer")
        limit = connection_limit()
        self._connections = Connections(listener, limit, min(per_address, limit // 2), is_proxy)
        adapter = Adapter(
            application, self._threads, self._transfers, self._connections, is_transfer, client_of, line_of, turn
        )
        try:
            self._server = EmbeddedServer(
                adapter,
                interface=Interfaces.RSGI,
                http=HTTPModes.http1,  # no client of the API asks for more, and HTTP/2 has attacks of its own
                websockets=False,
                # A TLS handshake with an RSA key takes some ms: a second thread serves other connections.
                runtime_threads=min(os.cpu_count() or 1, 2 if certificate else 1),
                backpressure=limit,
                http1_settings=HTTP1Settings(header_read_timeout=int(HEAD_S * 1000), max_buffer_size=40 << 10),
                log_dictconfig=_LOGGING,
                log_level=LogLevels.critical,
                ssl_cert=certificate,
                ssl_key=key,
                ssl_protocol_min=SSLProtocols.tls12,
            )
        except (OSError, ssl.SSLError) as exc:
            raise ConfigError(
                f"tls_certificate {certificate} and tls_key {key} cannot be used: {exc.strerror or exc}."
            ) from exc
        # A copy, because granian closes the socket that it is given.
        self._server.holder = SocketHolder(listener.dup().detach(), False, BACKLOG)  # type: ignore[call-arg]
        self._server.workers_kill_timeout = STOP_S
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopping = False

    def set_thread_count(self, count: int) -> None:
        """Set the number of threads that answer requests."""
        self._threads.set_count(count)

    def run(self) -> None:
        """Answer requests until ``stop`` is called."""
        asyncio.run(self._run())
        self._threads.close()
        self._transfers.close()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._connections.watch()
        if self._is_stopping:
            self._stop()
        try:
            await self._server.serve()
        except TimeoutError:  # a connection does not end; it ends with the process
            log.warning("connections were still open %d s after the stop", STOP_S)
        finally:
            self._connections.close()
            self._listener.close()

    def stop(self) -> None:
        """Accept no more requests. May be called on any thread, in a signal handler, and before ``run``."""
        self._is_stopping = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        self._server.stop()  # type: ignore[no-untyped-call]
        self._connections.shut_idle()  # granian would wait for each connection with a request begun


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit these.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKED_MS)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def raise_file_limit() -> None:
    """Raise the soft limit of open files as far as is useful and allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connection_limit() -> int:
    """Return how many connections may be open: the limit of open files, less a reserve for the service itself."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(16, min(MOST_CONNECTIONS, soft - RESERVED_FILES, soft // 2))
