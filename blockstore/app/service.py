"""The composition root: config → database → backends → bus → components → HTTP; their start and their stop, in order.

The only file that imports all components. Used by ``app/process.py`` and by tests.
"""

from __future__ import annotations

import functools
import logging
import socket
from typing import Any
from urllib.parse import urlsplit

from blockstore import manager, private_files, scheduler, zones
from blockstore.accounting.pool_reports import PoolReports
from blockstore.address import parse_networks
from blockstore.api import create_app
from blockstore.api.http import authentication
from blockstore.api.http.authentication import Authenticator
from blockstore.api.http.call import Core
from blockstore.api.http.waiting import ThreadReserve
from blockstore.api.types.types import ensure_default_type
from blockstore.app import periodic
from blockstore.app.wiring import database_url, load_backends, load_policy, load_targets, words
from blockstore.config import Config, ServiceConfig
from blockstore.db import opening
from blockstore.db.models import ServiceRow
from blockstore.db.session import Database
from blockstore.identity import bootstrap
from blockstore.identity.login import Login
from blockstore.identity.throttle import Throttle
from blockstore.keys.keyring import Keyring
from blockstore.manager import manageable, reporting
from blockstore.manager.context import ManagerContext, is_attached, pool_of
from blockstore.manager.exports import Exports
from blockstore.operations import recovery
from blockstore.operations.bus import Bus
from blockstore.operations.runner import mark_started
from blockstore.policy.rules import Policy
from blockstore.scheduler import explaining, loading
from blockstore.scheduler.placement import SchedulerContext
from blockstore.server.token_projects import TokenProjects
from blockstore.service_names import VOLUME_SERVICE, backend_of

log = logging.getLogger(__name__)

HANDLERS = {**scheduler.HANDLERS, **manager.HANDLERS, **manager.MIGRATION_HANDLERS}
"""The handler of each kind of operation, of all components."""

FIRST_REPORT_S = 5.0
"""Longest wait of a start for slow backends; then it answers without them."""


class Service:
    """The service without its HTTP server. Tests of journeys start it without a socket."""

    def __init__(self, config: Config) -> None:
        """Build every part; touches no storage yet. Raises ConfigError."""
        self.config = config
        self.state_dir = private_files.prepare_state_dir(config.state_dir)
        url = database_url(config)
        self.api_threads = config.service.api_threads or (1 if url.startswith("sqlite") else 4)
        self.backends = load_backends(config, self.state_dir)
        places = len(self.backends) + 1  # one more for operations on no pool or on a former pool
        self.db = _database(config, url, self.api_threads, places)
        self.pool_reports = PoolReports()
        keyring = Keyring(self.state_dir / "attachments.key")
        self.exports = Exports(self.db, keyring, *load_targets(config, self.backends, self.state_dir, keyring))
        for backend in self.backends.values():
            backend.is_attached = functools.partial(is_attached, self.db)
        self.context = ManagerContext(
            db=self.db,
            backends=self.backends,
            pool_reports=self.pool_reports,
            config=config,
            exports=self.exports,
            installation=keyring.owner,
        )
        scheduling = _scheduler_context(config, self.db, self.pool_reports)
        self.bus = _bus(config.service, self.db, scheduling, self.context, places)
        self.db.enqueue = self.bus.enqueue
        self.thread_reserve = ThreadReserve(self.api_threads, self.db.interpreter.released)
        self.policy = load_policy(config)
        self.policy.released = self.db.interpreter.released
        self.token_projects = TokenProjects()
        self.manageable_lister = manageable.ManageableLister(self.context)
        builtin = config.service.auth == "builtin"
        self.login = Login(self.db, config.identity, self.thread_reserve.lend_thread) if builtin else None
        self.app = create_app(self._core(scheduling, keyring), self.login)
        self.application = self._guarded(self.app)
        """The application that the HTTP server calls."""
        self.reporter = reporting.Reporter(self.context)
        self.clock = periodic.jobs(config.service, self.state_dir, self.db, self.report)

    def _core(self, scheduling: SchedulerContext, keyring: Keyring) -> Core:
        """Return what the API is given of the other parts."""
        config = self.config
        return Core(
            config=config,
            db=self.db,
            pool_reports=self.pool_reports,
            bus=self.bus,
            thread_reserve=self.thread_reserve,
            authenticate=_authenticator(config, self.policy, self.db, self.token_projects),
            policy=self.policy,
            transfer_key_throttle=Throttle(config.identity.login_failures, config.identity.login_pause_s),
            secret_of=keyring.secret,
            check_connector=self.exports.check_connector,
            explain_new=functools.partial(explaining.explain_new, scheduling),
            plan_drain=functools.partial(explaining.plan_drain, scheduling),
            note_token=self.token_projects.note,
            manageable=self.manageable_lister.manageable,
        )

    def _guarded(self, app: Any) -> Any:
        """Return the application behind Keystone's middleware, if Keystone authenticates the callers."""
        config = self.config
        if config.service.auth != "keystone":
            return app
        from blockstore.api.http.keystone import guard

        trusted = parse_networks(config.service.trusted_proxies)
        return guard(app, config.keystone, config.source, trusted, self.token_projects.of, self.thread_reserve)

    def start(self, *, new_database: bool = False) -> None:
        """Open and upgrade the database, check the backends, resume unfinished operations, and start to work."""
        is_new = self.login is not None and self.db.path is not None and not self.db.path.exists()
        password = bootstrap.FirstPassword() if is_new else None
        opening.open_database(self.db, self.state_dir, new=new_database)
        self._register(password)
        zones.warn_of_empty_default(self.config)
        service = self.config.service
        unfinished = recovery.resume(
            self.db, HANDLERS, attempts=service.operation_attempts, message_days=service.operation_keep_days
        )
        self.reporter.check_all(wait_s=FIRST_REPORT_S)  # also withdraws the exports of operations that were given up
        self.bus.start()
        for operation in unfinished:
            self.bus.enqueue(operation)
        self.clock.start()

    def report(self) -> None:
        """Check every backend."""
        self.reporter.check_all(wait_s=self.config.service.report_interval_s)

    def refuse_waiting_logins(self) -> None:
        """Refuse waiting logins, so that a stop need not wait for them."""
        if self.login is not None:
            self.login.close()

    def stop(self) -> bool:
        """Wait for running operations and leave the rest to the next start. Return True if all running ones ended."""
        if not self.clock.running:
            return True  # stopped before
        self.refuse_waiting_logins()
        self.clock.shutdown(wait=False)
        clean = self.bus.drain(self.config.service.drain_timeout_s)
        clean = self.reporter.stop() and clean
        clean = self.manageable_lister.stop() and clean
        self.bus.stop()
        self.db.dispose()
        return clean

    def _register(self, password: bootstrap.FirstPassword | None = None) -> None:
        with self.db.write() as session:
            ensure_default_type(session, self.config.service.default_volume_type)
            if self.login is not None and bootstrap.ensure_admin(session, self.state_dir, password):
                log.info("the administrator's password is in %s", self.state_dir / bootstrap.PASSWORD_FILE)
            for name in {backend_of(pool) for pool in self.backends}:
                if session.get(ServiceRow, (VOLUME_SERVICE, name)) is None:
                    session.add(ServiceRow(binary=VOLUME_SERVICE, host=name))


def _database(config: Config, url: str, api_threads: int, places: int) -> Database:
    """Return the database, with a connection for each thread that may need one at the same time."""
    service = config.service
    workers = (service.workers + 1) * places + service.migration_workers + 1
    return Database(url, connections=api_threads + workers + 4, timeout_s=config.database.timeout_s)


def _scheduler_context(config: Config, db: Database, pool_reports: PoolReports) -> SchedulerContext:
    """Return what the scheduler's handlers are given, with the configured filters and weighers."""
    options = config.scheduler
    return SchedulerContext(
        db=db,
        pool_reports=pool_reports,
        config=options,
        filters=loading.load_filters(words(options.filters)),
        weighers=loading.load_weighers(words(options.weighers), options.multiplier),
        message_days=config.service.operation_keep_days,
    )


def _bus(
    service: ServiceConfig, db: Database, scheduling: SchedulerContext, managing: ManagerContext, places: int
) -> Bus:
    """Return the bus with its components, their handlers and their workers."""
    bus = Bus(on_slow=functools.partial(mark_started, db))
    # One worker: each decision sees the reservations of all earlier decisions.
    bus.add_component("scheduler", _bound(scheduler.HANDLERS, scheduling), workers=1)
    bus.add_component(
        "manager",
        _bound(manager.HANDLERS, managing),
        workers=service.workers,
        spare=1,
        places=places,
        place_of=functools.partial(pool_of, db),
    )
    bus.add_component(
        "migration", _bound(manager.MIGRATION_HANDLERS, managing), workers=service.migration_workers, spare=1
    )
    return bus


def _authenticator(config: Config, policy: Policy, db: Database, token_projects: TokenProjects) -> Authenticator:
    if config.service.auth == "builtin":
        return authentication.by_tokens(policy, db, token_projects.note)
    if config.service.auth == "keystone":
        roles = frozenset(word.lower() for word in words(config.keystone.service_token_roles))
        return authentication.by_middleware(policy, roles, token_projects.note)
    return authentication.trusted_headers(policy, None if config.service.insecure else _own_names(config))


def _own_names(config: Config) -> frozenset[str]:
    """Return the host names by which clients may address this service, beside IP addresses."""
    named = (f"//{config.service.listen}", config.service.public_endpoint)
    names = {(urlsplit(url).hostname or "").lower() for url in named}
    return frozenset({"localhost", socket.gethostname().lower(), *names} - {""})


def _bound(handlers: Any, context: Any) -> Any:
    return {operation: functools.partial(handler, context) for operation, handler in handlers.items()}
