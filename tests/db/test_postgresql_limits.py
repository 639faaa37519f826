"""PostgreSQL that is gone, stopped or slow: nobody waits longer than the limit, and what was accepted is done later."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import text

from blockstore.db import outages, postgresql_limits
from blockstore.db.postgresql_limits import parameters_of
from blockstore.db.session import Database
from blockstore.errors import DatabaseAway
from tests.conftest import Served

LIMIT_S = 2.0


class Forwarder:
    """A way over TCP to the server's socket, which can be cut as a partition cuts it: nobody is told."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open = threading.Event()
        self._open.set()
        self._ended = False
        threading.Thread(target=self._accept, daemon=True).start()

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    def stop(self) -> None:
        self._ended = True
        self._open.set()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._path)
                threading.Thread(target=self._forward, args=(client, server), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with selectors.DefaultSelector() as selector, client, server, contextlib.suppress(OSError):
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while not self._ended:
                for key, _ in selector.select(1):
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    self._open.wait()
                    if not data:
                        return
                    key.data.sendall(data)


@pytest.fixture
def forwarder(postgres: Any) -> Iterator[Forwarder]:
    made = Forwarder(f"{postgres.directory}/.s.PGSQL.5432")
    yield made
    made.stop()


@pytest.fixture
def url(postgres: Any, forwarder: Forwarder) -> str:
    name = postgres.new_database().partition("@/")[2].partition("?")[0]
    return f"postgresql+psycopg://blockstore@127.0.0.1:{forwarder.port}/{name}"


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    made = Database(url, timeout_s=LIMIT_S)
    yield made
    made.dispose()


def test_what_the_url_says_is_left_as_it_is() -> None:
    made = parameters_of({"connect_timeout": "60", "options": "-c statement_timeout=5 -c search_path=x"}, 10)
    assert "connect_timeout" not in made
    assert made["tcp_user_timeout"] == 10_000
    assert made["options"].startswith("-c lock_timeout=5000 -c statement_timeout=10000 ")
    assert made["options"].endswith(" -c statement_timeout=5 -c search_path=x")


def test_statement_that_takes_too_long(db: Database) -> None:
    started = time.monotonic()
    with pytest.raises(DatabaseAway) as raised, db.read() as session:
        session.execute(text("SELECT pg_sleep(60)"))
    assert raised.value.message == outages.BUSY  # the server's own limit came first
    assert time.monotonic() - started < 50  # of the 60 that it sleeps


def test_lock_that_is_held(db: Database) -> None:
    with db.write() as session:
        session.execute(text("CREATE TABLE t (x int)"))
    with db.write() as holder:
        holder.execute(text("LOCK TABLE t"))
        with pytest.raises(DatabaseAway) as raised, db.write() as session:
            session.execute(text("INSERT INTO t VALUES (1)"))
    assert raised.value.message == outages.BUSY


def test_migration_is_not_cut_off(db: Database) -> None:
    with db.engine.begin() as connection, postgresql_limits.unlimited(connection):
        connection.execute(text(f"SELECT pg_sleep({LIMIT_S + postgresql_limits.GRACE_S + 0.5})"))


def test_partition(db: Database, forwarder: Forwarder) -> None:
    with db.read() as session:
        session.execute(text("SELECT 1"))
    with forwarder.cut():
        for longest_s in (postgresql_limits.PING_S + 2, 2 + 1):  # a connection of the pool; then a new one
            started = time.monotonic()
            with pytest.raises(DatabaseAway) as raised, db.read() as session:
                session.execute(text("SELECT 1"))
            assert raised.value.message == outages.NO_ANSWER
            assert time.monotonic() - started < longest_s + 30  # it would never end without a limit
    time.sleep(postgresql_limits.REFUSAL_S)
    with db.read() as session:
        assert session.scalar(text("SELECT 1")) == 1


def test_partition_within_a_transaction(db: Database, forwarder: Forwarder) -> None:
    started = time.monotonic()
    with pytest.raises(DatabaseAway), db.write() as session, forwarder.cut():
        session.execute(text("SELECT 1"))
    assert time.monotonic() - started < LIMIT_S + postgresql_limits.GRACE_S + 30


# --- the served process ------------------------------------------------------------------------------------


def ask(served: Served, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    request = urllib.request.Request(
        served.url + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as exc:
        return exc.code, json.loads(exc.read())


@pytest.mark.slow
def test_service_goes_on_after_a_partition_and_stops_within_one(
    serve: Callable[..., Served], url: str, forwarder: Forwarder
) -> None:
    served = serve(
        f"[service]\nauth = none\ndrain_timeout_s = 2\n[database]\nurl = {url}\ntimeout_s = {LIMIT_S}\n"
        "[backend:m]\nplugin = memory\n[quota]\nvolumes = -1\n"
    )
    accepted = [ask(served, "POST", "/volumes", {"volume": {"size": 1}})[1]["volume"]["id"] for _ in range(3)]
    with forwarder.cut():
        for _ in range(2):
            started = time.monotonic()
            status, said = ask(served, "GET", "/volumes")
            assert time.monotonic() - started < postgresql_limits.PING_S + LIMIT_S + 30
            assert (status, said["serviceUnavailable"]["message"]) == (503, outages.NO_ANSWER)
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(served.url.removesuffix("/v3") + "/healthcheck", timeout=60)
    deadline = time.monotonic() + 60
    for volume_id in accepted:
        while ask(served, "GET", f"/volumes/{volume_id}")[1].get("volume", {}).get("status") != "available":
            assert time.monotonic() < deadline, served.log.read_text()
            time.sleep(0.2)
    assert ask(served, "POST", "/volumes", {"volume": {"size": 1}})[0] == 202
    with forwarder.cut():
        started = time.monotonic()
        served.stop()
        assert time.monotonic() - started < 60
    assert "Traceback" not in served.log.read_text()
