"""Time limits of PostgreSQL connections: they bound the wait of requests and operations for a server that is gone.

The server's own limits (``lock_timeout``, ``statement_timeout``) need a server that runs and can be reached. TCP's
limits do not detect a suspended server, or a forwarder that still acknowledges. So the client has a limit too.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator, Iterator
from contextvars import ContextVar
from typing import Any

from sqlalchemy import Connection, Engine, event, text

TIMEOUT_S = 10.0

PING_S = 2.0
"""Longest time for the ping of a pooled connection before it is used again."""

GRACE_S = 1.0
"""The client waits so much longer than the server's limit, so that it receives the server's own refusal."""

REFUSAL_S = 1.0

_LIMIT: ContextVar[float | None] = ContextVar("limit", default=None)


def limit(engine: Engine, timeout_s: float) -> None:
    """Set the time limits of every connection of an engine."""
    if engine.dialect.driver != "psycopg":
        return  # a driver chosen by the site takes other parameters
    timed = _timed_connection(timeout_s + GRACE_S)
    parameters = parameters_of(dict(engine.url.query), timeout_s)
    ping = engine.dialect.do_ping
    refusal = _Refusal()

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, arguments: Any, given: dict[str, Any]) -> Any:
        with refusal.remembered():
            return timed.connect(*arguments, **{**given, **parameters})

    def short_ping(connection: Any) -> bool:
        token = _LIMIT.set(PING_S)
        try:
            return bool(ping(connection))
        finally:
            _LIMIT.reset(token)

    engine.dialect.do_ping = short_ping  # type: ignore[method-assign, assignment]


class _Refusal:
    """Remembers a slow failure to connect, so that attempts within the next second fail at once."""

    def __init__(self) -> None:
        self._until = 0.0
        self._error: Exception | None = None

    @contextlib.contextmanager
    def remembered(self) -> Iterator[None]:
        """Make a connection inside the block. If the last error is recent, raise a copy of it at once."""
        started = time.monotonic()
        if self._error is not None and started < self._until:
            raise type(self._error)(str(self._error))
        try:
            yield
        except Exception as exc:
            if time.monotonic() - started > REFUSAL_S:
                self._error, self._until = exc, time.monotonic() + REFUSAL_S
            raise
        self._error = None


def parameters_of(given: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Return the parameters of a connection. Parameters in the URL take precedence."""
    milliseconds = int(timeout_s * 1000)
    ours = {
        "client_encoding": "UTF8",  # otherwise a SQL_ASCII database answers in bytes before it can be refused
        "connect_timeout": max(2, math.ceil(timeout_s / 2)),  # libpq takes whole seconds, from 2
        "tcp_user_timeout": milliseconds,
        "keepalives": 1,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }
    settings = {
        "lock_timeout": milliseconds // 2,
        "statement_timeout": milliseconds,
        # The server releases the locks of a lost client: on rows, and on the sole use of the database.
        "idle_in_transaction_session_timeout": 6 * milliseconds,
        "tcp_user_timeout": 3 * milliseconds,
        "tcp_keepalives_idle": 10,
        "tcp_keepalives_interval": 5,
        "tcp_keepalives_count": 3,
    }
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    if given.get("options"):
        options += f" {given['options']}"  # later ones win
    return {**{name: value for name, value in ours.items() if name not in given}, "options": options}


@contextlib.contextmanager
def unlimited(connection: Connection) -> Iterator[None]:
    """Remove the time limits of a transaction inside the block, so that a migration is not cut off."""
    if connection.dialect.driver != "psycopg":
        yield
        return
    for name in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
        connection.execute(text(f"SET LOCAL {name} = 0"))
    driver: Any = connection.connection.driver_connection
    limit_s, driver.limit_s = driver.limit_s, None
    try:
        yield
    finally:
        driver.limit_s = limit_s


def _timed_connection(limit_s: float) -> Any:
    import psycopg

    class TimedConnection(psycopg.Connection[Any]):
        """A connection that is closed if the server does not answer in time."""

        limit_s: float | None = None

        def wait(self, gen: Any, *arguments: Any, **named: Any) -> Any:
            seconds = _LIMIT.get() or self.limit_s
            if seconds is None:
                return super().wait(gen, *arguments, **named)
            return super().wait(self._limited(gen, seconds), *arguments, **named)

        def _limited(self, gen: Any, seconds: float) -> Generator[Any, Any, Any]:
            """Drive a generator of psycopg with a deadline. It is sent 0 ten times a second while no data arrives."""
            deadline = time.monotonic() + seconds
            try:
                state = next(gen)
                while True:
                    ready = yield state
                    if not ready and time.monotonic() > deadline:
                        self.pgconn.finish()  # otherwise a rollback would wait too
                        raise psycopg.OperationalError(f"the server did not answer within {seconds:g} s")
                    state = gen.send(ready)
            except StopIteration as end:
                return end.value

    TimedConnection.limit_s = limit_s
    return TimedConnection
