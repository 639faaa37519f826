"""Opens the database at start: checks that it is not in use, damaged or suddenly empty, and upgrades its schema.

Each refusal is a ConfigError of one sentence or two, which says what to do and contains no password.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from blockstore.db import migrations, wait_limits
from blockstore.db.outages import DAMAGED, outage
from blockstore.db.session import Database
from blockstore.errors import ConfigError, DatabaseAway

log = logging.getLogger(__name__)

CHECK_WAIT_S = 0.5
"""Longest wait of a start for the check of the file. The check of a larger file goes on beside the service."""

LOCK_WAIT_S = 10.0

NEW_DATABASE = "--new-database"

SERVED = ("endpoint", "admin-password")
"""Files that a start writes to the state directory after it has made the database.

``attachments.key`` is not among them: commands and interrupted starts make it too."""


def open_database(db: Database, state_dir: Path, *, new: bool = False) -> None:
    """Take the database for this process and bring it up to date. Raises ConfigError.

    ``new`` allows an empty database although the state directory has served before.
    """
    with _explained(db), wait_limits.limited(LOCK_WAIT_S):
        db.take_sole_use()
        db.keep_reserve()
        if not new:
            refuse_emptied(db, state_dir)
        check = _Check(db) if db.path is not None and db.path.exists() else None
        if check is not None:
            check.wait(CHECK_WAIT_S)
        _prove_encoding(db)
        if check is not None and migrations.current(db) not in (None, migrations.HEAD):
            check.wait(None)  # a damaged file is not migrated
        migrations.upgrade(db)
        db.note_file()


def refuse_emptied(db: Database, state_dir: Path) -> None:
    """Raise ConfigError if the database is empty although an earlier start has used the state directory."""
    if db.path is not None and db.path.exists() and db.path.stat().st_size > 0:
        empty = migrations.current(db) is None
    elif db.path is not None:
        empty = True
    else:
        empty = migrations.current(db) is None
    left = _left_by_a_former_start(state_dir) if empty else []
    if not left:
        return
    if db.path is None:
        what = f"[database] url: the database {db.url.database} is empty"
    else:
        what = f"The database {db.path} is {'empty' if db.path.exists() else 'missing'}"
    raise ConfigError(
        f"{what}, but {state_dir} has files of an earlier start: {', '.join(left)}. With a new database the service"
        " would know none of its volumes, projects and users. Restore a copy of the database. To start with an empty"
        f" one, run `blockstore serve {NEW_DATABASE}` once."
    )


def _left_by_a_former_start(state_dir: Path) -> list[str]:
    left = [name for name in SERVED if (state_dir / name).exists()]
    for volumes in sorted(state_dir.glob("*/volumes")):
        with suppress(OSError):
            if count := sum(1 for _ in volumes.iterdir()):
                left.append(f"{count} files in {volumes.relative_to(state_dir)}")
    left += sorted(path.name for path in state_dir.glob("*.db.before-*"))
    return left


class _Check:
    """PRAGMA quick_check of a SQLite file, on a thread of its own."""

    def __init__(self, db: Database) -> None:
        assert db.path is not None
        self._db, self._path = db, db.path
        self._complaint: str | None = None
        self._thread = threading.Thread(target=self._run, name="quick_check", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float | None) -> None:
        """Wait for the end of the check, at most until the timeout. Raise ConfigError if the file is damaged."""
        self._thread.join(timeout_s)
        if self._complaint is not None:
            raise ConfigError(damaged(self._path, self._complaint))

    def _run(self) -> None:
        try:
            found = quick_check(self._path)
        except sqlite3.Error as exc:
            away = outage(exc, self._path)
            found = str(exc) if away is not None and away.message == DAMAGED else None
        if found is not None:
            self._complaint = found
            self._db.damage = DAMAGED
            log.critical("%s", damaged(self._path, found))


def quick_check(path: Path) -> str | None:
    """Return SQLite's first complaint about a file, or None if the file is undamaged. Raises sqlite3.Error."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=5)) as connection:
        connection.execute("PRAGMA query_only=ON")
        finding = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    return None if finding == "ok" else " ".join(finding.split())


def damaged(path: Path, text: str) -> str:
    """Return the error text for a damaged file."""
    return (
        f"The database {path} is damaged ({text}). Keep a copy of it, then restore a good copy. To print the readable"
        f" data: sqlite3 {path} .recover"
    )


def _prove_encoding(db: Database) -> None:
    """Raise ConfigError if a PostgreSQL database does not store text as UTF-8."""
    if db.is_sqlite:
        return
    with db.engine.connect() as connection:
        encoding = connection.execute(text("SHOW server_encoding")).scalar()
    if encoding != "UTF8":
        raise ConfigError(
            f"[database] url: the database {db.url.database} is encoded in {encoding}, and names may hold any letter."
            f" Make it with: CREATE DATABASE {db.url.database} ENCODING 'UTF8' TEMPLATE template0"
        )


@contextmanager
def _explained(db: Database) -> Iterator[None]:
    try:
        yield
    except (DBAPIError, sqlite3.Error, DatabaseAway) as exc:
        raise ConfigError(explanation(db, exc)) from exc
    except OSError as exc:
        raise ConfigError(f"The database {db.path} cannot be used: {exc.strerror or exc}.") from exc
    except Exception as exc:
        if type(exc).__module__.partition(".")[0] != "psycopg":
            raise
        raise ConfigError(explanation(db, exc)) from exc


POSTGRESQL_HINTS = (
    ("password authentication failed", "The user or the password in the URL is wrong."),
    ("no password supplied", "The URL has no password, and the server requires one."),
    ("does not exist", "Create it on the server, or correct the URL."),
    ("permission denied", "The user lacks rights: let it own the database, or GRANT CREATE ON SCHEMA public TO it."),
    ("no pg_hba.conf entry", "Allow this host and user in the server's pg_hba.conf."),
    ("No such file", "Is the server running, and can this host reach it?"),
    ("not answer", "Is the server running, and can this host reach it?"),
    ("refused", "Is the server running, and can this host reach it?"),
    ("timeout", "Is the server running, and can this host reach it?"),
    ("too many clients", "Raise max_connections of the server."),
)


def explanation(db: Database, exc: BaseException) -> str:
    """Return the error text for a driver's error at start."""
    away = outage(exc, db.path)
    if db.path is not None:
        if away is None:
            return f"The database {db.path} cannot be used: {_driver_words(exc)}."
        if away.message == DAMAGED:
            return damaged(db.path, _driver_words(exc))
        return f"The database cannot be used: {away.detail.rstrip('.')}."
    text = _driver_words(exc)
    hint = next((hint for words, hint in POSTGRESQL_HINTS if words in text), "")
    where = f"{db.url.database} on {db.url.host or db.url.query.get('host', 'this host')}"
    return f"[database] url: PostgreSQL refuses the database {where}: {text.rstrip('.')}. {hint}".strip()


def _driver_words(exc: BaseException) -> str:
    driver: Any = exc
    while isinstance(driver, DatabaseAway) and driver.__cause__ is not None:
        driver = driver.__cause__
    driver = getattr(driver, "orig", None) or driver
    lines = [line.strip() for line in str(driver).splitlines() if line.strip()]
    fatal = [line for line in lines if "FATAL" in line or "ERROR" in line]
    return (fatal or lines or [type(driver).__name__])[0]
