"""The driver errors that mean an outage of the database. No other module knows them.

``session.py`` turns each of them into ``DatabaseAway``, also those that SQLAlchemy does not wrap (of BEGIN, COMMIT,
PRAGMA and connecting). Every other driver error is a bug of ours, and is not changed.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from blockstore.errors import DatabaseAway, is_out_of_files
from blockstore.private_files import is_full

BUSY = "The database is busy. Try again in a moment."
NO_ANSWER = "The database does not answer. Try again in a moment."
FULL = (
    "The database cannot be written, because its disk is full. Until there is space again, only deletions are accepted."
    " Delete volumes or snapshots, or ask an administrator to make space."
)
DAMAGED = "The database is damaged. An administrator must repair it, or restore a copy."
READ_ONLY = "The database cannot be written. An administrator must find the cause."
NO_FILES = "The service has too many files open. Try again in a moment."

SOON_S, LATER_S = 5, 60
"""Seconds that a client should wait: for outages that end by themselves, and for those that need an administrator."""

SQLITE = {
    sqlite3.SQLITE_BUSY: BUSY,
    sqlite3.SQLITE_LOCKED: BUSY,
    sqlite3.SQLITE_PROTOCOL: BUSY,
    sqlite3.SQLITE_INTERRUPT: BUSY,
    sqlite3.SQLITE_SCHEMA: BUSY,
    sqlite3.SQLITE_NOMEM: NO_ANSWER,
    sqlite3.SQLITE_IOERR: NO_ANSWER,
    sqlite3.SQLITE_CANTOPEN: NO_ANSWER,
    sqlite3.SQLITE_PERM: READ_ONLY,
    sqlite3.SQLITE_READONLY: READ_ONLY,
    sqlite3.SQLITE_FULL: FULL,
    sqlite3.SQLITE_CORRUPT: DAMAGED,
    sqlite3.SQLITE_NOTADB: DAMAGED,
}
"""Primary result codes. SQLITE_ERROR and the others are mistakes in a statement."""

POSTGRESQL = {
    "08": NO_ANSWER,  # the connection
    "28": NO_ANSWER,  # the password was changed
    "3D": NO_ANSWER,  # the database was removed
    "40": BUSY,  # a deadlock, or a transaction that was rolled back for another
    "53": NO_ANSWER,  # memory, connections
    "57": NO_ANSWER,  # shut down, or a statement that took too long
    "58": NO_ANSWER,  # its disk
    "XX": DAMAGED,
    "53100": FULL,
    "55P03": BUSY,  # lock_timeout
    "57014": BUSY,  # statement_timeout
    "25006": READ_ONLY,  # a standby
    "25P03": BUSY,  # idle_in_transaction_session_timeout
    "42501": READ_ONLY,  # rights were revoked
    "42P01": DAMAGED,  # the tables were removed
}
"""By SQLSTATE, or by its class."""

NO_TABLE = "no such table"


def outage(exc: BaseException, path: Path | None = None) -> DatabaseAway | None:
    """Return the outage that an error means, or None if it means none. ``path`` is the SQLite file."""
    if isinstance(exc, DatabaseAway):
        return exc
    if isinstance(exc, PoolTimeout | DisconnectionError):
        return DatabaseAway(NO_ANSWER, f"no connection to the database is free: {exc}", SOON_S)
    driver = exc.orig if isinstance(exc, DBAPIError) else exc
    if isinstance(driver, sqlite3.Error):
        return _of_sqlite(driver, path)
    if type(driver).__module__.partition(".")[0] == "psycopg":  # the driver is imported only if it is used
        return _of_postgresql(driver, disconnected=isinstance(exc, DBAPIError) and exc.connection_invalidated)
    if isinstance(exc, OperationalError | InterfaceError) or getattr(exc, "connection_invalidated", False):
        return DatabaseAway(NO_ANSWER, f"the database does not answer: {_line(driver)}", SOON_S)
    return None


def _of_sqlite(error: sqlite3.Error, path: Path | None) -> DatabaseAway | None:
    where, text = path or "the database", _line(error)
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # an error of Python's module: a closed connection, a value that cannot be bound
        return None
    message = SQLITE.get(code & 0xFF)
    if message is None and code == sqlite3.SQLITE_ERROR and text.startswith(NO_TABLE):
        message = DAMAGED  # the file was emptied or replaced
    if message is None:
        return None
    if code & 0xFF == sqlite3.SQLITE_CANTOPEN and out_of_files():
        return DatabaseAway(NO_FILES, f"{where}: {text}: too many open files", SOON_S)
    if code & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR) and path is not None and is_full(path.parent):
        message = FULL  # SQLite cannot make or lengthen the files beside the database
    if message == FULL:
        directory = path.parent if path is not None else "the database"
        return DatabaseAway(FULL, f"{where}: {text}. Make space on the disk of {directory}.", LATER_S)
    if message == DAMAGED:
        return DatabaseAway(DAMAGED, f"{where}: {text}. Stop the service and restore a copy of the file.", LATER_S)
    return DatabaseAway(message, f"{where}: {text}", SOON_S if message in (BUSY, NO_ANSWER) else LATER_S)


def out_of_files() -> bool:
    """Return True if this process cannot open a file now. SQLite does not report this reason."""
    try:
        with Path("/dev/null").open("rb"):
            return False
    except OSError as exc:
        return is_out_of_files(exc)


def _of_postgresql(error: BaseException | None, *, disconnected: bool) -> DatabaseAway | None:
    state = getattr(error, "sqlstate", None) or ""
    message = POSTGRESQL.get(state) or POSTGRESQL.get(state[:2])
    if message is None and (disconnected or (not state and _is_operational(error))):
        message = NO_ANSWER
    if message is None:
        return None
    wait_s = SOON_S if message in (BUSY, NO_ANSWER) else LATER_S
    return DatabaseAway(message, f"PostgreSQL: {_line(error)}", wait_s)


def _is_operational(error: BaseException | None) -> bool:
    return any(cls.__name__ in ("OperationalError", "InterfaceError") for cls in type(error).__mro__)


def _line(error: BaseException | None) -> str:
    """Return the first line of a driver's error text, which contains no password."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
