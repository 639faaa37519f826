"""The HTTP server: waitress, and cheroot where the service itself speaks TLS, behind one small face."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any, Protocol

from blockstore.errors import ConfigError

MAX_REQUEST_BYTES = 1 << 20
"""What the server reads of a body at all; the API allows less, with a sentence."""

IDLE_S = 60
"""Seconds after which a connection without requests is closed."""


class Server(Protocol):
    """What ``service.py`` needs of a server."""

    address: tuple[str, int]

    def run(self) -> None:
        """Serve until a signal."""

    def set_thread_count(self, count: int, /) -> None:
        """Have so many threads answer."""


def plain(application: Any, host: str, port: int, threads: int) -> Server:
    """Return a server of HTTP that listens already. Raises OSError."""
    return _Waitress(application, bound_socket(host, port), threads)


def over_tls(application: Any, host: str, port: int, threads: int, certificate: Path, key: Path) -> Server:
    """Return a server of HTTPS that listens already. Raises OSError, ConfigError."""
    return _Cheroot(application, host, port, threads, certificate, key)


class _Waitress:
    def __init__(self, application: Any, listener: socket.socket, threads: int) -> None:
        from waitress.server import create_server

        self._server = create_server(
            application,
            sockets=[listener],
            threads=threads,
            ident=None,
            max_request_body_size=MAX_REQUEST_BYTES,
            channel_timeout=IDLE_S,
            cleanup_interval=10,
            connection_limit=1000,
            asyncore_use_poll=True,
        )
        self.address: tuple[str, int] = self._server.socket.getsockname()[:2]

    def set_thread_count(self, count: int) -> None:
        self._server.task_dispatcher.set_thread_count(count)

    def run(self) -> None:
        self._server.run()


class _Cheroot:
    def __init__(self, application: Any, host: str, port: int, threads: int, certificate: Path, key: Path) -> None:
        try:
            from cheroot.ssl.builtin import BuiltinSSLAdapter
            from cheroot.wsgi import Server as CherootServer
        except ImportError as exc:
            raise ConfigError("tls_certificate needs cheroot: pip install 'blockstore[tls]'") from exc
        try:
            adapter = BuiltinSSLAdapter(str(certificate), str(key))
        except (OSError, ssl.SSLError) as exc:
            raise ConfigError(
                f"tls_certificate {certificate} and tls_key {key} cannot be used: {exc.strerror or exc}."
            ) from exc
        adapter.context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Its pool is only ever grown: a thread that has nothing to do costs nothing, and shrinking would wait for it.
        self._server = CherootServer((host, port), application, numthreads=threads, timeout=IDLE_S)
        self._server.ssl_adapter = adapter
        self._server.max_request_body_size = MAX_REQUEST_BYTES
        self._server.prepare()
        self._threads = threads
        self.address: tuple[str, int] = self._server.bind_addr[:2]

    def set_thread_count(self, count: int) -> None:
        if count > self._threads:
            self._server.requests.grow(count - self._threads)
            self._threads = count

    def run(self) -> None:
        try:
            self._server.serve()
        except SystemExit:  # from the signal, as waitress takes it
            pass
        finally:
            self._server.stop()


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener
