"""Engine and sessions: how every component reads and writes the database.

``read()`` gives a session for reading. ``write()`` gives a session that holds the right to write, commits at its end,
and then hands over the items in its outbox (``after_commit``): the commit always comes first.
No session is held across a backend call.
"""

from __future__ import annotations

import importlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, cast

import orjson
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import Session

from blockstore.db import outages, postgresql_limits, wait_limits
from blockstore.db.models import Base
from blockstore.db.read_session import ReadSession
from blockstore.db.reserve import Reserve
from blockstore.db.writer import Writer
from blockstore.errors import ConfigError, DatabaseAway
from blockstore.interpreter import InterpreterTurns

AFTER_COMMIT = "handed over after the commit"
"""The key of a writing session's outbox in ``Session.info``."""

WRITER_WAIT_MS = 5
"""SQLite's own wait for another process's lock; then ``writer.py`` waits, while other requests are answered."""

READER_WAIT_MS = 500
"""A reader meets a lock only while another process recovers the file or locks it exclusively."""

SOLE_USE_WAIT_S = 5.0
"""The server takes a moment to notice that the previous service is gone."""
PROVED_S = 0.01
"""A proof of the file also serves later writes for so long: no longer than a write takes."""

SOLE_USE_KEY = 0x626C6F636B
"""Name of the advisory lock: the first letters of blockstore."""


class Database:
    """One database, SQLite or PostgreSQL."""

    def __init__(self, url: str, *, connections: int = 16, timeout_s: float = postgresql_limits.TIMEOUT_S):
        """Prepare an engine; connects at the first use. Raises ConfigError for a URL that cannot work.

        ``timeout_s`` is the longest time that PostgreSQL may take for a connection, a lock or a statement.
        """
        self.url = make_url_or_explain(url)
        self.timeout_s = timeout_s
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = self._make_engine(connections)
        self._readers = self._make_engine(connections) if self.is_sqlite else self.engine
        self.enqueue: Callable[[Any], None] = lambda _item: None
        """Called with each item of a session's outbox after the commit; the service connects the bus."""
        self._writer = Writer(str(self.path)) if self.is_sqlite else None
        self.interpreter = InterpreterTurns(are_taken=self.is_sqlite)
        self._guard: Connection | None = None
        self.damage: str | None = None
        """The finding of the check of the file, as a sentence. The check can take longer than the start."""
        self._files: dict[Path, tuple[int, int]] = {}
        """Device and inode of the SQLite file and of the files beside it, at the start, by path."""
        self._holder: sqlite3.Connection | None = None
        """Keeps SQLite from removing the files beside the database, as it does when the last connection ends."""
        self._proved = 0.0
        self._reserve: Reserve | None = None
        if self._writer is not None:
            _tune_sqlite(self.engine, self._writer)
            _tune_sqlite(self._readers, None)
        else:
            postgresql_limits.limit(self.engine, timeout_s)

    def _make_engine(self, connections: int) -> Engine:
        try:
            return create_engine(
                self.url,
                pool_size=connections,
                max_overflow=connections,
                pool_pre_ping=not self.is_sqlite,
                hide_parameters=True,  # parameters may be secrets, and failures are logged
                pool_timeout=self.timeout_s,
                json_serializer=_to_json,
                json_deserializer=orjson.loads,
                **({} if self.is_sqlite else {"isolation_level": "READ COMMITTED"}),
            )
        except (ImportError, NoSuchModuleError) as exc:
            raise ConfigError(
                f"[database] url needs a driver that is not installed ({exc}). For PostgreSQL: pip install"
                " 'blockstore[postgresql]' and write postgresql+psycopg://..."
            ) from exc

    @property
    def path(self) -> Path | None:
        """Return the SQLite file, or None."""
        return Path(self.url.database) if self.is_sqlite and self.url.database else None

    @contextmanager
    def read(self, *, in_turn: bool = True) -> Iterator[Session]:
        """Open a session for reading. Its changes are not kept, and SQLite refuses them.

        Statements that may take long are not run in a turn (``interpreter.py``).

        Raise DatabaseAway if the driver's error means an outage.
        """
        with (
            self.interpreter.held(wait_limits.project()) if in_turn else nullcontext(),
            self.explained(reading=True),
            closing(ReadSession(self._readers)) as session,
        ):
            yield cast("Session", session)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a session that may write. Commit at the end, or roll everything back if the block raises.

        Raise DatabaseAway if the driver's error means an outage, or if the changes would be lost.
        """
        turn: AbstractContextManager[Any] = self._writer.turn() if self._writer is not None else nullcontext()
        with (
            self.interpreter.released(),
            self.explained(),
            turn,
            self._proved_file(),
            Session(self.engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            session.connection()  # begins here, so that an outage is found before any work is done
            with self.interpreter.held(wait_limits.project(), first=True):
                yield session
                outbox = session.info.pop(AFTER_COMMIT, ())
                session.flush()
            try:
                session.commit()
            except Exception:
                # The commit may have succeeded without an answer. An operation that was not stored ends at once.
                self._hand_over(outbox)
                raise
        self._hand_over(outbox)

    def keep_reserve(self) -> None:
        """Reserve space on the disk of a SQLite file for writes that free space. Call it before the first write."""
        if self.path is not None:
            self._reserve = Reserve(self.path)
            self._reserve.open()

    def note_file(self) -> None:
        """Remember the identity of the SQLite files until ``dispose``."""
        if self.path is None:
            return
        if self._holder is None:
            self._holder = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self._holder.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the files beside it
        real = self.path.resolve()  # SQLite has its other files beside the real path
        for suffix in ("", "-wal", "-shm"):
            file = real.with_name(real.name + suffix) if suffix else self.path
            with suppress(FileNotFoundError):  # if the file system cannot have a write-ahead log
                status = file.stat()
                self._files[file] = (status.st_dev, status.st_ino)
        if self._reserve is not None:
            self._reserve.lengthen_log()

    def prove_file(self) -> None:
        """Raise DatabaseAway if a SQLite file was removed, replaced or emptied: writes to it would be lost."""
        for file, noted in self._files.items():
            try:
                status = file.stat()
            except OSError:
                status = None
            if (
                status is None
                or (status.st_dev, status.st_ino) != noted
                # A log that was written back to the database may be empty.
                or (status.st_size == 0 and file == self.path)
            ):
                detail = f"{file} was removed, replaced or emptied while the service uses it."
                detail += " Stop the service and restore a copy of the database."
                raise DatabaseAway(outages.DAMAGED, detail, outages.LATER_S)

    @contextmanager
    def _proved_file(self) -> Iterator[None]:
        """Prove the file before a connection is made, which would make a new file. Writers enter one at a time."""
        if self._files and time.monotonic() - self._proved > PROVED_S:
            self.prove_file()
            self._proved = time.monotonic()
        if self._reserve is not None:
            self._reserve.prove()
        yield

    @contextmanager
    def explained(self, *, reading: bool = False) -> Iterator[None]:
        """Turn driver errors inside the block into DatabaseAway if they mean an outage of the database."""
        try:
            yield
        except Exception as exc:
            away = outages.outage(exc, self.path)
            # query_only has refused a write in a reading session: that is a bug of ours.
            if away is None or away is exc or (reading and away.message == outages.READ_ONLY):
                raise
            raise away from exc

    def _hand_over(self, outbox: Iterable[Any]) -> None:
        for item in outbox:
            self.enqueue(item)

    def take_sole_use(self) -> None:
        """Keep other services away from a PostgreSQL database: two would run each other's operations.

        Held until ``dispose``. SQLite is guarded by the lock on its state directory. Raises ConfigError.
        """
        if self.is_sqlite or self._guard is not None:
            return
        guard = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        deadline = time.monotonic() + SOLE_USE_WAIT_S
        while not guard.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": SOLE_USE_KEY}).scalar():
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            guard.close()
            raise ConfigError("[database] url: another blockstore uses this database; stop it first.")
        self._guard = guard

    def dispose(self) -> None:
        """Close every connection."""
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        self.engine.dispose()
        self._readers.dispose()
        self._files = {}
        if self._holder is not None:
            self._holder.close()
            self._holder = None


def make_url_or_explain(url: str) -> Any:
    """Return the parsed URL. Raise ConfigError if it is invalid or names an unsupported database."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # from None: the errors quote the URL, which may contain a password
        raise ConfigError(
            "[database] url is not a SQLAlchemy URL such as postgresql+psycopg://USER@HOST/NAME."
        ) from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ConfigError(f"[database] url names {parsed.get_backend_name()}; supported are sqlite and postgresql.")
    return parsed


def _to_json(value: Any) -> str:
    return orjson.dumps(value).decode()


def after_commit(session: Session, item: Any) -> None:
    """Put an item into the outbox of a writing session. ``Database.enqueue`` gets it after the commit."""
    session.info.setdefault(AFTER_COMMIT, []).append(item)


def insert_if_absent(session: Session, model: type[Base], **values: Any) -> None:
    """Insert a row unless its key exists already."""
    # The engine has imported the dialect in use. Importing the other one would cost 2 MiB and part of each start.
    dialect = importlib.import_module(f"sqlalchemy.dialects.{session.get_bind().dialect.name}")
    session.execute(dialect.insert(model).values(**values).on_conflict_do_nothing())


def hold_name(session: Session, name: str) -> None:
    """Wait until no other transaction holds a name, and hold it until this transaction ends.

    For facts that no row represents, such as a count of rows that others insert. SQLite has one writer at a time and
    needs no lock.
    """
    if session.get_bind().dialect.name != "sqlite":
        session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})


def _tune_sqlite(engine: Engine, writer: Writer | None) -> None:
    """Prepare connections, for a writer or for readers. Readers wait only while the file is recovered or locked."""

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the begin event below decides how a transaction starts
        for pragma in (
            f"busy_timeout={READER_WAIT_MS}",
            "journal_mode=WAL",
            "foreign_keys=ON",
            # Answered requests survive a power loss, not only a crash of the process.
            "synchronous=FULL",
            f"query_only={'ON' if writer is None else 'OFF'}",
            f"busy_timeout={READER_WAIT_MS if writer is None else WRITER_WAIT_MS}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        # IMMEDIATE for writers: a transaction that reads first and writes later could not be promoted under WAL.
        # Readers begin no transaction: each statement sees one state of the database, which is enough.
        if writer is not None:
            # Directly on the driver: this runs often and needs nothing that SQLAlchemy does around it.
            cursor = connection.connection.cursor()
            try:
                writer.begin(cursor)
            finally:
                cursor.close()
