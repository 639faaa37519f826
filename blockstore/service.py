"""The composition root: config → database → backends → bus → rooms → HTTP; their start and their stop, in order.

The only file that imports all rooms. Used by the command line and by tests.
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
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from blockstore import (
    __version__,
    address,
    certificate,
    exposed_secrets,
    logs,
    manager,
    periodic,
    plugins,
    private_files,
    recovery,
    scheduler,
    zones,
)
from blockstore.api import authentication, create_app
from blockstore.api.authentication import Authenticator
from blockstore.api.endpoint import Core
from blockstore.api.types import ensure_default_type
from blockstore.api.waiting import WaitingRoom
from blockstore.backends import loader
from blockstore.backends.contract import Backend
from blockstore.board import Board
from blockstore.bus import Bus
from blockstore.config import Config, default_state_dir, load, parse_listen
from blockstore.db import opening
from blockstore.db.models import ServiceRow
from blockstore.db.session import Database
from blockstore.errors import BackendError, ConfigError
from blockstore.identity import bootstrap
from blockstore.identity.login import Login
from blockstore.keyring import Keyring
from blockstore.manager import managing, reporting
from blockstore.manager.desk import Desk, is_attached, pool_of
from blockstore.manager.exports import ATTACH_LOCAL, LOCAL, Exports
from blockstore.policies import Overrides, Policy
from blockstore.scheduler import explaining, loading
from blockstore.scheduler.placing import Scheduler
from blockstore.server.lines import Lines
from blockstore.settling import mark_started
from blockstore.targets import loader as target_loader
from blockstore.targets.contract import Target
from blockstore.throttle import Throttle

if TYPE_CHECKING:
    from blockstore.server.http import HttpServer

log = logging.getLogger(__name__)

HANDLERS = {**scheduler.HANDLERS, **manager.HANDLERS, **manager.MOVERS}
"""What carries out each kind of order, in whatever room."""

FIRST_REPORT_S = 5.0
"""How long a start waits for slow backends before it answers without them."""

SWITCH_INTERVAL_S, BUSY_SWITCH_INTERVAL_S = 0.0005, 0.00005
"""Seconds after which a thread that works gives Python's lock to one that waits; the interpreter's 5 ms would let one
hold up an answer. An operation gives the lock up at each statement, and waits for it behind those who answer: while
operations run, it changes hands sooner. (Always so soon, 64 clients get a third less.)"""


class Service:
    """Everything but HTTP: what tests of journeys start without a socket."""

    def __init__(self, config: Config) -> None:
        """Build every part; touches no storage yet. Raises ConfigError."""
        self.config = config
        self.state_dir = private_files.prepare_state_dir(config.state_dir)
        service = config.service
        url = database_url(config)
        self.api_threads = service.api_threads or (1 if url.startswith("sqlite") else 4)
        self.backends = load_backends(config, self.state_dir)
        places = len(self.backends) + 1  # one more for what is on no pool, or on a former one
        workers = (service.workers + 1) * places + service.moves + 1
        self.db = Database(url, connections=self.api_threads + workers + 4, timeout_s=config.database.timeout_s)
        self.board = Board()
        keyring = Keyring(self.state_dir / "attachments.key")
        self.exports = Exports(self.db, keyring, *load_targets(config, self.backends, self.state_dir, keyring))
        for backend in self.backends.values():
            backend.is_attached = functools.partial(is_attached, self.db)
        self.desk = Desk(
            db=self.db,
            backends=self.backends,
            board=self.board,
            config=config,
            exports=self.exports,
            installation=keyring.owner,
        )
        room = Scheduler(
            db=self.db,
            board=self.board,
            config=config.scheduler,
            filters=loading.load_filters(words(config.scheduler.filters)),
            weighers=loading.load_weighers(words(config.scheduler.weighers), config.scheduler.multiplier),
            message_days=service.order_keep_days,
        )
        self.bus = Bus(on_slow=functools.partial(mark_started, self.db))
        # One worker: each decision sees the claims of those before it.
        self.bus.open_room("scheduler", _bound(scheduler.HANDLERS, room), workers=1)
        self.bus.open_room(
            "manager",
            _bound(manager.HANDLERS, self.desk),
            workers=service.workers,
            spare=1,
            places=places,
            place_of=functools.partial(pool_of, self.db),
        )
        self.bus.open_room("mover", _bound(manager.MOVERS, self.desk), workers=service.moves, spare=1)
        self.db.cast = self.bus.cast
        self.waiting_room = WaitingRoom(self.api_threads)
        self.policy = load_policy(config)
        self.lines = Lines()
        self.looker = managing.Looker(self.desk)
        self.login = Login(self.db, config.identity, self.waiting_room.lent) if service.auth == "builtin" else None
        self.app = create_app(
            Core(
                config=config,
                db=self.db,
                board=self.board,
                bus=self.bus,
                waiting_room=self.waiting_room,
                authenticate=_authenticator(config, self.policy, self.db, self.lines),
                policy=self.policy,
                guesses=Throttle(config.identity.login_failures, config.identity.login_pause_s),
                secret_of=keyring.secret,
                check_connector=self.exports.check_connector,
                explain_new=functools.partial(explaining.explain_new, room),
                plan_drain=functools.partial(explaining.plan_drain, room),
                note_token=self.lines.note,
                manageable=self.looker.manageable,
            ),
            self.login,
        )
        self.application: Any = self.app
        """What the HTTP server calls."""
        if service.auth == "keystone":
            from blockstore.api.keystone import guard

            self.application = guard(self.app, config.keystone, config.source)
        self.reporter = reporting.Reporter(self.desk)
        self.clock = periodic.jobs(service, self.state_dir, self.db, self.report)

    def start(self, *, new_database: bool = False) -> None:
        """Open the database and bring it up to date, look at the backends, resume what was left, and begin to work."""
        opening.open_database(self.db, self.state_dir, new=new_database)
        self._register()
        zones.warn_of_empty_default(self.config)
        service = self.config.service
        unfinished = recovery.resume(
            self.db, HANDLERS, attempts=service.order_attempts, message_days=service.order_keep_days
        )
        self.reporter.look(wait_s=FIRST_REPORT_S)  # also ends what orders that were given up have exported
        self.bus.start()
        for order in unfinished:
            self.bus.cast(order)
        self.clock.start()

    def report(self) -> None:
        """Look at every backend."""
        self.reporter.look(wait_s=self.config.service.report_interval_s)

    def hurry(self) -> None:
        """Turn away those who wait to be let in, so that a stop need not wait for them."""
        if self.login is not None:
            self.login.close()

    def stop(self) -> bool:
        """Let what runs come to its end, leave the rest to the next start; say whether all that ran did end."""
        if not self.clock.running:
            return True  # stopped before
        self.hurry()
        self.clock.shutdown(wait=False)
        clean = self.bus.drain(self.config.service.drain_timeout_s)
        clean = self.reporter.stop() and clean
        clean = self.looker.stop() and clean
        self.bus.stop()
        self.db.dispose()
        return clean

    def _register(self) -> None:
        with self.db.write() as session:
            ensure_default_type(session, self.config.service.default_volume_type)
            if self.config.service.auth == "builtin" and bootstrap.ensure_admin(session, self.state_dir):
                log.info("the administrator's password is in %s", self.state_dir / bootstrap.PASSWORD_FILE)
            for name in {pool.partition("#")[0] for pool in self.backends}:
                if session.get(ServiceRow, ("cinder-volume", name)) is None:
                    session.add(ServiceRow(binary="cinder-volume", host=name))


def serve(config: Config, *, new_database: bool = False) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status.

    ``new_database``: begin with an empty database, although the state directory has served before.
    """
    from blockstore.server.http import raise_file_limit  # commands that do not serve need not import it

    os.umask(0o077)  # also for what plugins and their programs make
    logs.configure(config.log)
    _hurry(False)
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
        service.waiting_room.set_thread_count = server.set_thread_count
        service.bus.on_busy = _hurry
        with private_files.explained(config.state_dir):
            service.start(new_database=new_database)
        gc.freeze()  # what is here now stays; looking through it again and again would only take time
        gc.set_threshold(10_000, 10, 10)
        return _run(service, server)


def _hurry(is_busy: bool) -> None:
    sys.setswitchinterval(BUSY_SWITCH_INTERVAL_S if is_busy else SWITCH_INTERVAL_S)


def _costly_handshakes(config: Config) -> str:
    section = config.service
    with suppress(OSError):  # what cannot be read is told when it is used
        if section.tls_certificate and section.tls_key:
            return certificate.costly(section.tls_certificate, section.tls_key)
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
        line_of=service.lines.of,
        client_of=lambda connected, forwarded_for: address.client_of(proxies, connected, forwarded_for)[0],
    )


def policy_file(config: Config) -> Path:
    """Return where the policies of this site are, or would be. Raises ConfigError when a named file is not there."""
    named = config.service.policy_file
    if named is not None and not named.exists():
        raise ConfigError(f"{config.source}: [service] policy_file: there is no {named}.")
    if named is not None:
        return named
    file = private_files.prove_state_dir(config.state_dir) / "policy.yaml"
    with private_files.explained(config.state_dir):
        private_files.check_file(file)
    return file


def load_policy(config: Config) -> Policy:
    """Return the rules in force. Raises ConfigError."""

    def read(_file: Path) -> Overrides | None:
        file = policy_file(config)  # checked again: it may be another file than at the start
        if not os.path.lexists(file):
            return None
        from blockstore.policy_file import PolicyFile  # it takes longer to import than the rest of a start

        return PolicyFile(file)

    return Policy(policy_file(config), read)


def _authenticator(config: Config, policy: Policy, db: Database, lines: Lines) -> Authenticator:
    if config.service.auth == "builtin":
        return authentication.by_tokens(policy, db, lines.note)
    if config.service.auth == "keystone":
        roles = frozenset(word.lower() for word in words(config.keystone.service_token_roles))
        return authentication.by_middleware(policy, roles, lines.note)
    return authentication.believing(policy, None if config.service.insecure else _own_names(config))


def _own_names(config: Config) -> frozenset[str]:
    """Return the names by which this service may be asked for, beside addresses."""
    named = (f"//{config.service.listen}", config.service.public_endpoint)
    asked = {(urlsplit(url).hostname or "").lower() for url in named}
    return frozenset({"localhost", socket.gethostname().lower(), *asked} - {""})


def database_url(config: Config) -> str:
    """Return the database to use. Raises ConfigError when somebody planted one in the state directory."""
    if config.database.url:
        return config.database.url
    file = private_files.prove_state_dir(config.state_dir) / "blockstore.db"
    with private_files.explained(config.state_dir):
        private_files.check_database(file)  # SQLite opens by path, and follows links
    return f"sqlite:///{file}"


def load_backends(config: Config, state_dir: Path) -> dict[str, Backend]:
    """Return every configured backend by pool name, NODE@BACKEND#POOL. Raises ConfigError."""
    found: dict[str, Backend] = {}
    for section in config.backends:
        for backend in loader.load(section, state_dir / section.name):
            found[f"{config.service.node}@{section.name}#{backend.pool}"] = backend
    return found


def load_targets(
    config: Config, backends: Mapping[str, Backend], state_dir: Path, keyring: Keyring
) -> tuple[dict[str, Target], dict[str, str | None]]:
    """Return every target in use by name, and the name of each pool's, None where there is none. Raises ConfigError."""
    targets: dict[str, Target] = {}
    serving: dict[str, str | None] = {}
    chosen = {section.name: section.pool.target for section in config.backends}

    def target(name: str) -> Target:
        if name not in targets:
            targets[name] = target_loader.load(config.target(name), state_dir / "targets" / name, keyring.owner)
        return targets[name]

    target(LOCAL)  # for consumers on this node, whatever the backends have
    for section in config.targets:
        target(section.name)  # also what no backend names any more: its exports are to be ended
    for pool, backend in backends.items():
        if backend.is_direct and chosen[backend.name] in ("", "direct"):
            serving[pool] = None
            continue
        name = chosen[backend.name] or (LOCAL if backend.file_format == "raw" else "nbd")
        if backend.file_format not in target(name).capabilities().formats:
            raise ConfigError(
                f"{config.source}: [backend:{backend.name}] target is {name}, which cannot export"
                f" {backend.file_format} files; the target nbd can."
            )
        serving[pool] = name
    return targets, serving


def local_connector() -> dict[str, Any]:
    """Return the connector of a consumer on this node that wants the path itself."""
    host = socket.gethostname()
    return {"host": host, "ip": "127.0.0.1", "multipath": False, ATTACH_LOCAL: True}


def configured_targets(config: Config) -> dict[str, Target]:
    """Return the targets for a command beside the service. Raises ConfigError."""
    state_dir = private_files.prepare_state_dir(config.state_dir)
    keyring = Keyring(state_dir / "attachments.key")
    targets, _ = load_targets(config, load_backends(config, state_dir), state_dir, keyring)
    return targets


def probe_sessions(config: Config) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Return who is connected by attachment id, and why a target cannot tell, by its name. Raises ConfigError."""
    connected: dict[str, tuple[str, ...]] = {}
    untold: dict[str, str] = {}
    for name, target in configured_targets(config).items():
        try:
            connected |= target.sessions()
        except BackendError as exc:
            untold[name] = exc.message
    return connected, untold


def words(text: str) -> list[str]:
    """Return the words of a comma separated list."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _bound(handlers: Any, room: Any) -> Any:
    return {order: functools.partial(handler, room) for order, handler in handlers.items()}


# --- the process -------------------------------------------------------------------------------------------


class StateLock:
    """Held while a process serves from a state directory: two would run each other's orders."""

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
                f"Another blockstore serves from {self._path.parent}; stop it, or use --state-dir."
            ) from None
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self._fd)


def refuse_open_door(config: Config, host: str) -> None:
    """Raise ConfigError when strangers could reach a service that asks nobody who they are; warn of plain HTTP."""
    if config.service.auth == "none" and not config.service.insecure and not _is_loopback(host):
        raise ConfigError(
            f"{host} can be reached by others, and without authentication everybody is an administrator."
            " Listen on 127.0.0.1, or say --insecure if the network is yours alone."
        )
    if config.service.tls_certificate is None and not _is_loopback(host):
        log.warning(
            "%s can be reached by others, and without TLS they can read passwords, tokens and secrets of attachments on"
            " the way: set tls_certificate and tls_key, or let a proxy speak HTTPS",
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
    _greet(service, f"{section.public_endpoint.rstrip('/') or url}/v3")
    for stopping in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stopping, functools.partial(_stop, server, service))
    signal.signal(signal.SIGHUP, functools.partial(_reread_log_level, service.config))
    server.run()  # until a signal; then it has stopped taking requests
    log.info(
        "stopping: no new requests; running operations may end within %g s", service.config.service.drain_timeout_s
    )
    clean = service.stop()
    log.info("stopped; %s", "nothing was cut off" if clean else "what was cut off is resumed at the next start")
    if not clean:
        # Else the interpreter waits for the threads, whose work would go on after the state lock was given up.
        logging.shutdown()
        os._exit(0)
    return 0


def _stop(server: HttpServer, service: Service, _signal: int, _frame: object) -> None:
    for again in (signal.SIGTERM, signal.SIGINT):  # a second one must not cut off the stop that has begun
        signal.signal(again, signal.SIG_IGN)
    service.hurry()
    server.stop()


def _reread_log_level(config: Config, _signal: int, _frame: object) -> None:
    try:
        logs.configure(load(None if config.source == Config.source else Path(config.source)).log)
        log.warning("log level read again")
    except ConfigError as exc:
        log.error("log level not changed: %s", exc)


def _greet(service: Service, url: str) -> None:
    known = {
        "none": "no authentication: everybody who can reach it is an administrator",
        "builtin": "users and projects of its own",
        "keystone": f"users of {service.config.keystone.auth_url}",
    }
    lines = [f"blockstore {__version__} serves {url} ({known[service.config.service.auth]})"]
    for name, report in sorted(service.board.reports().items()):
        state = f"up, {report.capacity.free_gib:.1f} GiB free" if report.up else f"DOWN: {report.reason}"
        lines.append(f"  backend {name.partition('@')[2].partition('#')[0]}: {state}")
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
