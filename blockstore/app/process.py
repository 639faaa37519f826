"""The serving process: its lock, its signals, its greeting, and its refusal of unsafe configurations.

Beside ``app/service.py`` and not in ``server/``, because it combines a service and an HTTP server.
"""

from __future__ import annotations

import fcntl
import functools
import gc
import ipaddress
import logging
import os
import shlex
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from blockstore import __version__, address, certificate, plugins, private_files
from blockstore.app.service import Service
from blockstore.config import Config, default_state_dir, load, parse_listen
from blockstore.errors import ConfigError
from blockstore.interpreter import REQUESTS
from blockstore.keys import exposed_secrets
from blockstore.server import logs
from blockstore.service_names import backend_name

if TYPE_CHECKING:
    from blockstore.server.http import HttpServer

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S, BUSY_SWITCH_INTERVAL_S = 0.0005, 0.00005
"""Seconds after which a working thread gives Python's lock to a waiting one. The interpreter's 5 ms would delay
answers. An operation gives the lock up at each statement, and waits for it behind the answering threads. So the lock
changes hands sooner while operations run. (If it always did, 64 clients would get a third fewer answers.)"""


def serve(config: Config, *, new_database: bool = False) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status.

    ``new_database`` allows an empty database although the state directory has served before.
    """
    from blockstore.server.http import raise_file_limit  # commands that do not serve need not import it

    os.umask(0o077)  # also for files made by plugins and their programs
    logs.configure(config.log)
    _shorten_thread_switches(False)
    host, port = parse_listen(config.service.listen, "--listen")
    refuse_open_door(config, host)
    raise_file_limit()
    for warning in (plugins.foreign_code(), *exposed_secrets.warnings(config), _costly_handshakes(config)):
        if warning:
            log.warning("%s", warning)
    with StateLock(config.state_dir):
        with private_files.explained(config.state_dir):
            service = Service(config)
        try:
            server = _server(config, service, host, port)
        except OSError as exc:
            raise ConfigError(f"Cannot listen on {config.service.listen}: {exc.strerror}.") from exc
        service.thread_reserve.set_thread_count = server.set_thread_count
        service.bus.on_busy = _shorten_thread_switches
        with private_files.explained(config.state_dir):
            service.start(new_database=new_database)
        gc.freeze()  # the present objects stay; checking them at each collection would only take time
        gc.set_threshold(10_000, 10, 10)
        return _run(service, server)


def _shorten_thread_switches(is_busy: bool) -> None:
    sys.setswitchinterval(BUSY_SWITCH_INTERVAL_S if is_busy else SWITCH_INTERVAL_S)


def _costly_handshakes(config: Config) -> str:
    section = config.service
    with suppress(OSError):  # an unreadable file is reported when it is used
        if section.tls_certificate and section.tls_key:
            return certificate.handshake_warning(section.tls_certificate, section.tls_key)
    return ""


def _server(config: Config, service: Service, host: str, port: int) -> HttpServer:
    from blockstore.server.http import HttpServer, listening_socket

    section = config.service
    proxies = address.parse_networks(section.trusted_proxies)
    return HttpServer(
        service.application,
        listening_socket(host, port),
        service.api_threads,
        certificate=section.tls_certificate,
        key=section.tls_key,
        per_address=section.connections_per_address,
        is_proxy=functools.partial(address.is_trusted, proxies),
        line_of=service.token_projects.of,
        turn=functools.partial(service.db.interpreter.held, REQUESTS),
        client_of=lambda connected, forwarded_for: address.client_of(proxies, connected, forwarded_for)[0],
    )


class StateLock:
    """Held while a process serves from a state directory: two processes would run each other's operations."""

    def __init__(self, state_dir: Path) -> None:
        self._path = private_files.prepare_state_dir(state_dir) / "lock"
        self._fd = -1

    def __enter__(self) -> StateLock:
        with private_files.explained(self._path.parent):
            self._fd = private_files.open_file(self._path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise ConfigError(
                f"Another blockstore uses {self._path.parent}. Stop it, or choose another state directory with"
                " --state-dir."
            ) from None
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self._fd)


def refuse_open_door(config: Config, host: str) -> None:
    """Raise ConfigError if other hosts can reach a service without authentication. Warn of plain HTTP."""
    if config.service.auth == "none" and not config.service.insecure and not _is_loopback(host):
        raise ConfigError(
            f"Other hosts can reach {host}, and without authentication everybody is an administrator. Listen on"
            " 127.0.0.1, or use --insecure if nobody else is on the network."
        )
    if config.service.tls_certificate is None and not _is_loopback(host):
        log.warning(
            "other hosts can reach %s, and without TLS they can read passwords, tokens and secrets of attachments on"
            " the network: set tls_certificate and tls_key, or use a proxy with HTTPS",
            host,
        )


def _is_loopback(host: str) -> bool:
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError as exc:
        raise ConfigError(f"Cannot listen on {host}: it is not an address of this machine.") from exc
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


def _run(service: Service, server: HttpServer) -> int:
    section = service.config.service
    host, _ = parse_listen(section.listen, "--listen")
    url = address.own_url(host, server.address[1], section.tls_certificate, section.tls_key)
    try:
        address.note(service.state_dir, url)
    except ConfigError:
        service.stop()
        raise
    _print_summary(service, f"{section.public_endpoint.rstrip('/') or url}/v3")
    for stopping in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stopping, functools.partial(_stop, server, service))
    signal.signal(signal.SIGHUP, functools.partial(_reread_log_level, service.config))
    server.run()  # until a signal; then it has stopped taking requests
    log.info(
        "stopping: no new requests are accepted; running operations have %g s to finish",
        service.config.service.drain_timeout_s,
    )
    clean = service.stop()
    log.info("stopped; %s", "nothing was cut off" if clean else "interrupted operations are resumed at the next start")
    if not clean:
        # Otherwise the interpreter waits for the threads, which would work on after the state lock was released.
        logging.shutdown()
        os._exit(0)
    return 0


def _stop(server: HttpServer, service: Service, _signal: int, _frame: object) -> None:
    for again in (signal.SIGTERM, signal.SIGINT):  # a second signal must not cut off the stop
        signal.signal(again, signal.SIG_IGN)
    service.refuse_waiting_logins()
    server.stop()


def _reread_log_level(config: Config, _signal: int, _frame: object) -> None:
    try:
        logs.configure(load(None if config.source == Config.source else Path(config.source)).log)
        log.warning("log level read again")
    except ConfigError as exc:
        log.error("log level not changed: %s", exc)


def _print_summary(service: Service, url: str) -> None:
    known = {
        "none": "no authentication: everybody who can reach it is an administrator",
        "builtin": "users and projects of its own",
        "keystone": f"users of {service.config.keystone.auth_url}",
    }
    lines = [f"blockstore {__version__} serves {url} ({known[service.config.service.auth]})"]
    for name, report in sorted(service.pool_reports.reports().items()):
        state = f"up, {report.capacity.free_gib:.1f} GiB free" if report.up else f"DOWN: {report.reason}"
        lines.append(f"  backend {backend_name(name)}: {state}")
    lines.append(f"  state   {service.state_dir}")
    command = shlex.quote(sys.argv[0])
    if sys.argv[0].endswith("__main__.py"):
        command = f"{shlex.quote(sys.executable)} -m blockstore"
    where = "" if service.state_dir == default_state_dir() else f" --state-dir {shlex.quote(str(service.state_dir))}"
    if service.config.source != Config.source:
        where += f" --config {shlex.quote(service.config.source)}"
    lines += [
        "Next, in another terminal:",
        f'  eval "$({command} openrc{where})"',
        "  openstack volume create --size 1 first",
    ]
    print("\n".join(lines), flush=True)
