"""What all tests share: a service in this process or in its own, on SQLite and on PostgreSQL, and a small client.

Tests that touch the database take ``database_url`` (directly or through ``service``), and so run on both.
A missing tool is a skip that says what to install; with CI set it is a failure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pwd
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from blockstore.app.service import Service
from blockstore.config import (
    BackendSection,
    Config,
    DatabaseConfig,
    PoolConfig,
    QuotaConfig,
    ServiceConfig,
    TargetSection,
)
from blockstore.db import migrations
from blockstore.db.session import Database
from tests import sampling
from tests.durations import Durations
from tests.failures import from_environment as failures

ROOT = Path(__file__).parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Print at the end how long each folder took, and keep the failures."""
    config.pluginmanager.register(Durations())
    if to_file := failures():
        config.pluginmanager.register(to_file)


def pytest_report_header() -> str:
    """Say what draws the samples."""
    return f"TEST_SEED={sampling.SEED}" + (", everything at full size" if sampling.LONG else "")


def need(condition: object, install: str) -> None:
    """Skip with what to install; in CI fail."""
    if not condition:
        if os.environ.get("CI"):
            pytest.fail(f"missing in CI: {install}")
        pytest.skip(f"install it to run this test: {install}")


# --- databases ---------------------------------------------------------------------------------------------


class Postgres:
    """A PostgreSQL server of Debian's package, in a directory of its own, on a unix socket."""

    def __init__(self, directory: Path) -> None:
        candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
        need(candidates, "apt-get install postgresql")
        self.bin, self.directory = candidates[0].parent, directory
        self._template = ""
        # The server refuses to run as root.
        self.user = pwd.getpwnam("postgres").pw_name if os.geteuid() == 0 else None
        if self.user:
            shutil.chown(directory, self.user, self.user)
        self.run("initdb", "-D", str(directory / "data"), "-A", "trust", "-U", "blockstore", "--no-sync")
        settings = f"-c listen_addresses= -c unix_socket_directories={directory} -c fsync=off -c max_connections=300"
        self.run("pg_ctl", "-D", str(directory / "data"), "-w", "-o", settings, "-l", str(directory / "log"), "start")

    def run(self, tool: str, *args: str) -> None:
        argv = [str(self.bin / tool), *args]
        if self.user:
            argv = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", *argv]
        done = subprocess.run(argv, capture_output=True, text=True, cwd="/", stdin=subprocess.DEVNULL, timeout=120)
        assert done.returncode == 0, f"{argv}: {done.stdout} {done.stderr}"

    def new_database(self, template: str = "template1") -> str:
        """Make a database, which is empty unless told otherwise."""
        import psycopg

        name = f"t{uuid.uuid4().hex[:12]}"
        with psycopg.connect(host=str(self.directory), user="blockstore", dbname="postgres", autocommit=True) as c:
            c.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return f"postgresql+psycopg://blockstore@/{name}?host={self.directory}"

    def database_with_tables(self) -> str:
        """Make a database of the present shape: a copy, which takes a fourth of the time of making the tables."""
        if not self._template:
            db = Database(self.new_database())
            migrations.upgrade(db)
            self._template = str(db.url.database)
            db.dispose()
        return self.new_database(self._template)

    def stop(self) -> None:
        self.run("pg_ctl", "-D", str(self.directory / "data"), "-m", "immediate", "-w", "stop")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL server for the session, below /tmp because socket paths are short."""
    directory = Path(f"/tmp/blockstore-pg-{os.getpid()}")
    directory.mkdir(mode=0o700)
    server = None
    try:
        server = Postgres(directory)
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A database without rows, and for PostgreSQL with its tables: empty text is SQLite in the state directory."""
    return "" if request.param == "sqlite" else request.getfixturevalue("postgres").database_with_tables()


# --- a service in this process -----------------------------------------------------------------------------


def backend_section(name: str, plugin: str, pool: Mapping[str, Any] | None = None, **options: str) -> BackendSection:
    """A [backend:NAME] section; a ratio large enough that only tests of capacity meet it."""
    common = {
        "max_over_subscription_ratio": "1000",
        "reserved_percentage": 0,
        "fill_limit_percentage": 100,
        **(pool or {}),
    }
    return BackendSection(name=name, pool=PoolConfig(plugin=plugin, **common), plugin_options=options, source="test")


def target_section(name: str, plugin: str = "", **options: str) -> TargetSection:
    """A [target:NAME] section."""
    return TargetSection(name=name, plugin=plugin or name, plugin_options=options, source="test")


UNLIMITED = QuotaConfig(volumes=-1, snapshots=-1, gigabytes=-1)


def make_config(state_dir: Path, database_url: str = "", **parts: Any) -> Config:
    """A configuration with one memory backend, no quota and no authentication, unless told otherwise.

    Nor are there periodic health checks: one that began before a test broke or mended something tells what was. And a
    request waits for a slow tool.
    """
    parts.setdefault("quota", UNLIMITED)
    parts.setdefault("backends", (backend_section("memory", "memory"),))
    service = dataclasses.replace(
        parts.pop("service", ServiceConfig(report_interval_s=3600, attach_timeout_s=600)),
        state_dir=state_dir,
        auth=parts.pop("auth", "none"),
    )
    return Config(service=service, database=DatabaseConfig(url=database_url), source="test", **parts)


@dataclasses.dataclass
class Answer:
    """What a request was answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        (fault,) = self.json.values()
        return str(fault["message"])


class Client:
    """Speaks the API to a service in this process; each call may name microversion and caller."""

    def __init__(self, service: Service, **headers: str) -> None:
        self.service, self.headers = service, headers
        self.http = service.app.test_client()

    def as_(self, project: str, roles: str = "member,reader", user: str = "someone") -> Client:
        """The same service, asked by somebody else."""
        return Client(self.service, **{"X-Project-Id": project, "X-Roles": roles, "X-User-Id": user})

    def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        version: str | None = "3.71",
        raw: bytes | None = None,
        **headers: str,
    ) -> Answer:
        sent = {**self.headers, **headers}
        if version:
            sent["OpenStack-API-Version"] = f"volume {version}"
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        answer = self.http.open(f"/v3{path}", method=method, data=data, headers=sent)
        return Answer(answer.status_code, dict(answer.headers), answer.data)

    def get(self, path: str, **kw: Any) -> Any:
        """GET that must succeed."""
        answer = self("GET", path, **kw)
        assert answer.status == 200, (path, answer.status, answer.body)
        return answer.json

    def wait_idle(self, timeout_s: float = 60) -> None:
        """Wait until no operation waits or runs."""
        assert self.service.bus.wait_idle(timeout_s), self.service.bus.running()

    def volume(self, settle: bool = True, **fields: Any) -> dict[str, Any]:
        """Create a volume, wait, and return it."""
        answer = self("POST", "/volumes", {"volume": {"size": 1, **fields}})
        assert answer.status == 202, answer.body
        if not settle:
            return dict(answer.json["volume"])
        self.wait_idle()
        return dict(self.get(f"/volumes/{answer.json['volume']['id']}")["volume"])

    def snapshot(self, volume_id: str, **fields: Any) -> dict[str, Any]:
        """Take a snapshot, wait, and return it."""
        answer = self("POST", "/snapshots", {"snapshot": {"volume_id": volume_id, **fields}})
        assert answer.status == 202, answer.body
        self.wait_idle()
        return dict(self.get(f"/snapshots/{answer.json['snapshot']['id']}")["snapshot"])

    def action(self, noun_and_id: str, name: str, arguments: Any = None, **kw: Any) -> Answer:
        """Call an action and wait."""
        answer = self("POST", f"/{noun_and_id}/action", {name: arguments}, **kw)
        self.wait_idle()
        return answer


@pytest.fixture
def start_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Service]]:
    """Start services in this process; they are stopped at the end."""
    monkeypatch.setattr("blockstore.app.service.FIRST_REPORT_S", 120)  # without a report a pool takes no volume
    with contextlib.ExitStack() as stack:

        def start(config: Config | None = None, **parts: Any) -> Service:
            service = Service(config or make_config(tmp_path / "state", **parts))
            service.start()
            stack.callback(service.stop)
            return service

        yield start


@pytest.fixture
def service(start_service: Callable[..., Service], database_url: str) -> Service:
    """A service with a memory backend, on each database."""
    return start_service(database_url=database_url)


@pytest.fixture
def api(service: Service) -> Client:
    """An administrator's client of ``service``."""
    return Client(service)


# --- a service in a process of its own ---------------------------------------------------------------------


def with_auth(config: str) -> str:
    """Return a configuration without authentication, unless it says something about that itself."""
    if "auth =" in config:
        return config
    if "[service]" in config:
        return config.replace("[service]", "[service]\nauth = none", 1)
    return f"[service]\nauth = none\n{config}"


class Served:
    """`blockstore serve` as a user starts it."""

    def __init__(
        self,
        state_dir: Path,
        config: str | None = None,
        *arguments: str,
        trusting: ssl.SSLContext | None = None,
        limits: Mapping[int, tuple[int, int]] | None = None,
    ) -> None:
        """Start it; ``trusting`` knows the certificate that the configuration names, ``limits`` are for the process."""
        self.state_dir, self._trusting = state_dir, trusting
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "blockstore", "serve", "--state-dir", str(state_dir), *arguments]
        if "--listen" not in arguments:
            argv += ["--listen", "127.0.0.1:0"]
        path = state_dir / "config.ini"
        path.write_text(with_auth(config or ""))
        argv += ["--config", str(path)]
        (state_dir / "endpoint").unlink(missing_ok=True)
        self.log = state_dir / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        for limit, values in (limits or {}).items():
            resource.prlimit(self.process.pid, limit, values)
        self.url = self._wait_for_answer()

    def _wait_for_answer(self, timeout_s: float = 60) -> str:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError, urllib.error.URLError):
                url = (self.state_dir / "endpoint").read_text().strip()
                if self._trusting is not None:  # the name in the certificate may be one that leads nowhere
                    socket.create_connection(("127.0.0.1", urlsplit(url).port), timeout=2).close()
                    return url
                with contextlib.suppress(urllib.error.HTTPError):  # what is wrong is told in an answer
                    urllib.request.urlopen(url.removesuffix("/v3") + "/healthcheck", timeout=2).close()
                return url
            time.sleep(0.02)
        raise AssertionError(f"no answer in {timeout_s} s: {self.log.read_text()}")

    def kill(self) -> None:
        """As the power would."""
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s: float = 60) -> int:
        """As an administrator would."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start `blockstore serve` processes; they are killed at the end."""
    started: list[Served] = []

    def start(
        config: str | None = None,
        *arguments: str,
        state_dir: Path | None = None,
        trusting: ssl.SSLContext | None = None,
    ) -> Served:
        started.append(Served(state_dir or tmp_path / "served", config, *arguments, trusting=trusting))
        return started[-1]

    yield start
    for served in started:
        if served.process.poll() is None:
            served.kill()
