"""The drivers' errors, as the drivers raise them: which say that the database is the matter, and what is said of it."""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from blockstore.db import migrations, outages
from blockstore.db.models import VolumeType
from blockstore.db.outages import outage
from blockstore.db.session import Database
from blockstore.errors import DatabaseAway, TryAgain, is_out_of_files


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path}/blockstore.db")
    migrations.upgrade(made)
    yield made
    made.dispose()


def write(db: Database, name: str = "gold") -> None:
    with db.write() as session:
        session.add(VolumeType(name=name))


def caught(db: Database) -> DatabaseAway:
    with pytest.raises(DatabaseAway) as raised:
        write(db)
    return raised.value


def test_the_bus_tries_again_what_found_the_database_away() -> None:
    assert issubclass(DatabaseAway, TryAgain)
    assert (DatabaseAway.status, DatabaseAway.fault) == (503, "serviceUnavailable")


def test_full_disk_names_the_directory_for_the_operator_only(db: Database, tmp_path: Path) -> None:
    @event.listens_for(db.engine, "connect")
    def limit(connection: sqlite3.Connection, _record: object) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")

    db.engine.dispose()
    with pytest.raises(DatabaseAway) as raised, db.write() as session:
        session.execute(text("CREATE TABLE more AS SELECT randomblob(1000000) AS x"))
    assert raised.value.message == outages.FULL
    assert f"Make space on the disk of {tmp_path}." in raised.value.detail
    assert str(tmp_path) not in raised.value.message
    write(db)  # what fits is written again


@pytest.mark.parametrize("writes", [False, True])
def test_damaged_file(db: Database, writes: bool) -> None:
    assert db.path is not None
    write(db)
    db.dispose()
    with db.path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(db.path.stat().st_size - 4096))
    session = db.write if writes else db.read
    with pytest.raises(DatabaseAway) as raised, session() as opened:
        opened.scalars(text("SELECT name FROM volume_types")).all()
    assert raised.value.message == outages.DAMAGED
    assert raised.value.wait_s == outages.LATER_S


def test_emptied_file(db: Database) -> None:
    assert db.path is not None
    db.dispose()
    db.path.write_bytes(b"")
    assert caught(db).message == outages.DAMAGED  # no such table


def test_removed_directory(db: Database, tmp_path: Path) -> None:
    db.dispose()
    tmp_path.rename(tmp_path.with_name("elsewhere"))
    assert caught(db).message == outages.NO_ANSWER


def test_too_many_open_files(db: Database) -> None:
    db.dispose()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())), hard))
    held: list[int] = []
    try:
        with suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        away = caught(db)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)
    assert (away.message, away.wait_s) == (outages.NO_FILES, outages.SOON_S)
    write(db)


def test_what_the_drivers_raise_outside_of_sqlalchemy(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    first, second = (sqlite3.connect(path, timeout=0, isolation_level=None) for _ in range(2))
    first.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError) as raised:
        second.execute("SELECT * FROM sqlite_master")
    assert outage(raised.value, path).message == outages.BUSY  # type: ignore[union-attr]
    for connection in (first, second):
        connection.close()


def test_mistakes_in_statements_are_not_outages(db: Database) -> None:
    for statement in ("SELEC 1", "SELECT nothing FROM volumes", "INSERT INTO volume_types (id) VALUES ('1')"):
        with pytest.raises(Exception) as raised, db.write() as session:
            session.execute(text(statement))
        assert not isinstance(raised.value, DatabaseAway)
    with pytest.raises(OperationalError, match="readonly"), db.read() as session:
        session.execute(text("DELETE FROM volumes"))
    assert outage(ValueError("no"), None) is None


def test_pool_without_a_free_connection() -> None:
    assert outage(PoolTimeout("QueuePool limit")).message == outages.NO_ANSWER  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OperationalError", outages.NO_ANSWER),  # of libpq itself: it has no SQLSTATE
        ("InterfaceError", outages.NO_ANSWER),
        ("errors.AdminShutdown", outages.NO_ANSWER),
        ("errors.TooManyConnections", outages.NO_ANSWER),
        ("errors.LockNotAvailable", outages.BUSY),
        ("errors.QueryCanceled", outages.BUSY),
        ("errors.DeadlockDetected", outages.BUSY),
        ("errors.IdleInTransactionSessionTimeout", outages.BUSY),
        ("errors.DiskFull", outages.FULL),
        ("errors.ReadOnlySqlTransaction", outages.READ_ONLY),
        ("errors.InsufficientPrivilege", outages.READ_ONLY),
        ("errors.DataCorrupted", outages.DAMAGED),
        ("errors.UndefinedTable", outages.DAMAGED),
        ("errors.UndefinedColumn", None),
        ("errors.UniqueViolation", None),
        ("ProgrammingError", None),
    ],
)
def test_postgresql(name: str, message: str | None) -> None:
    import psycopg

    error = psycopg
    for part in name.split("."):
        error = getattr(error, part)
    away = outage(error("said\nmore"))  # type: ignore[operator]
    assert (away and away.message) == message
    assert away is None or away.detail == "PostgreSQL: said"


def test_too_many_files_is_seen_through_what_was_made_of_it() -> None:
    made = RuntimeError("no")
    made.__cause__ = ValueError("because")
    made.__cause__.__context__ = OSError(errno.EMFILE, "Too many open files")
    assert is_out_of_files(made)
    assert not is_out_of_files(OSError(errno.ENOENT, "No such file"))
    assert not is_out_of_files(None)
