"""What a start refuses to work on, and that it says so in a sentence that helps."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from blockstore.db import migrations, opening
from blockstore.db.models import VolumeType
from blockstore.db.opening import open_database
from blockstore.db.session import Database
from blockstore.errors import ConfigError
from tests.conftest import need


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path}/blockstore.db")
    yield made
    made.dispose()


def refusal(db: Database, state_dir: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        open_database(db, state_dir)
    return raised.value.message


# --- a first start -----------------------------------------------------------------------------------------


def test_first_start_makes_the_database(db: Database, tmp_path: Path) -> None:
    (tmp_path / "attachments.key").touch()  # a command made it, or a start that was cut off
    (tmp_path / "directory" / "volumes").mkdir(parents=True)
    open_database(db, tmp_path)
    assert migrations.current(db) == migrations.HEAD
    open_database(db, tmp_path)


@pytest.mark.parametrize("how", ["missing", "empty", "without tables"])
@pytest.mark.parametrize("left", ["endpoint", "admin-password", "blockstore.db.before-0006-at-0005", "files/volumes/v"])
def test_empty_database_in_a_directory_that_has_served_is_no_first_start(
    db: Database, tmp_path: Path, how: str, left: str
) -> None:
    assert db.path is not None
    if how == "empty":
        db.path.touch()
    elif how == "without tables":
        with closing(sqlite3.connect(db.path)) as connection:
            connection.execute("PRAGMA user_version=1")
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).touch()
    said = refusal(db, tmp_path)
    assert said.startswith(f"The database {db.path} is {'missing' if how == 'missing' else 'empty'}, but {tmp_path}")
    assert ("1 files in files/volumes" if "volumes" in left else left) in said
    assert "Restore a copy" in said
    assert "`blockstore serve --new-database`" in said
    open_database(db, tmp_path, new=True)
    assert migrations.current(db) == migrations.HEAD


# --- a damaged file ----------------------------------------------------------------------------------------


def served(db: Database) -> Path:
    """Make a database with something in it; return its file."""
    migrations.upgrade(db)
    with db.write() as session:
        session.add_all(VolumeType(name=f"type {n}", description="x" * 200) for n in range(500))
    db.dispose()
    assert db.path is not None
    return db.path


@pytest.mark.parametrize("page", [0, 1])
def test_damaged_file_is_told_at_start(db: Database, tmp_path: Path, page: int) -> None:
    path = served(db)
    with path.open("r+b") as file:
        file.seek(4096 * page)
        file.write(os.urandom(path.stat().st_size // 2))
    said = refusal(db, tmp_path)
    assert said.startswith(f"The database {path} is damaged (")
    assert "restore a good copy" in said
    assert "\n" not in said


def test_damage_that_takes_long_to_find_is_told_to_the_health_check(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = served(db)
    with closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'volume_types'").fetchone()
    with path.open("r+b") as file:
        file.seek(4096 * (root - 1))
        file.write(bytes(4096))
    monkeypatch.setattr(opening, "CHECK_WAIT_S", 0)
    checks = []
    real = opening._Check.wait
    monkeypatch.setattr(opening._Check, "wait", lambda self, s: (checks.append(self), real(self, s))[1])
    try:
        open_database(db, tmp_path)
    except ConfigError:
        return  # it was found at once
    checks[0]._thread.join(60)
    assert db.damage == opening.DAMAGED
    assert "is damaged" in caplog.text


def test_file_that_is_no_database(db: Database, tmp_path: Path) -> None:
    assert db.path is not None
    db.path.write_bytes(b"not a database at all" * 100)
    assert refusal(db, tmp_path).startswith(f"The database {db.path} is damaged (file is not a database)")


def test_lock_that_another_process_holds(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "LOCK_WAIT_S", 0.1)
    path = served(db)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        said = refusal(db, tmp_path)
    assert said == (f"The database cannot be used: {path}: database is locked: another process holds its lock.")


def test_full_disk_names_the_directory(tmp_path: Path) -> None:
    import subprocess

    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True)
    need(mounted.returncode == 0, "run as root, where file systems may be mounted")
    db = Database(f"sqlite:///{tmp_path}/blockstore.db")
    try:
        said = refusal(db, tmp_path)
    finally:
        db.dispose()
        subprocess.run(["umount", "-l", tmp_path], check=True)
    assert said.startswith("The database cannot be used:")
    assert f"Make space on the disk of {tmp_path}" in said


# --- PostgreSQL --------------------------------------------------------------------------------------------


def ask(postgres: Any, statement: str, database: str = "postgres") -> None:
    import psycopg

    with psycopg.connect(host=str(postgres.directory), user="blockstore", dbname=database, autocommit=True) as c:
        c.execute(statement)  # type: ignore[arg-type]


def refused_url(url: str, state_dir: Path) -> str:
    db = Database(url, timeout_s=4)
    try:
        return refusal(db, state_dir)
    finally:
        db.dispose()


def test_database_that_keeps_bytes_instead_of_text(postgres: Any, tmp_path: Path) -> None:
    ask(postgres, "CREATE DATABASE ascii ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    said = refused_url(f"postgresql+psycopg://blockstore@/ascii?host={postgres.directory}", tmp_path)
    assert said.startswith("[database] url: the database ascii is encoded in SQL_ASCII")
    assert "CREATE DATABASE ascii ENCODING 'UTF8' TEMPLATE template0" in said


def test_wrong_password_missing_database_and_missing_rights(postgres: Any, tmp_path: Path) -> None:
    rules = postgres.directory / "data" / "pg_hba.conf"
    rules.write_text("local all locked scram-sha-256\n" + rules.read_text())
    ask(postgres, "CREATE ROLE locked LOGIN PASSWORD 'right'")
    ask(postgres, "SELECT pg_reload_conf()")
    name = postgres.new_database().partition("@/")[2].partition("?")[0]
    host = f"?host={postgres.directory}"
    cases = {
        f"postgresql+psycopg://locked:hunter2@/{name}{host}": "The user or the password in the URL is wrong.",
        f"postgresql+psycopg://locked@/{name}{host}": "The URL has no password, and the server requires one.",
        f"postgresql+psycopg://locked:right@/{name}{host}": "The user lacks rights:",
        f"postgresql+psycopg://blockstore:hunter2@/nosuch{host}": "Create it on the server, or correct the URL.",
        "postgresql+psycopg://u:hunter2@127.0.0.1:1/n": "Is the server running, and can this host reach it?",
        "postgresql+psycopg://u:hunter2@/n?host=/nowhere": "Is the server running, and can this host reach it?",
    }
    for url, hint in cases.items():
        said = refused_url(url, tmp_path)
        assert said.startswith("[database] url: PostgreSQL refuses the database "), (url, said)
        assert hint in said, (url, said)
        assert "hunter2" not in said
        assert "\n" not in said


def test_emptied_postgresql_database_is_no_first_start(postgres: Any, tmp_path: Path) -> None:
    (tmp_path / "endpoint").touch()
    url = postgres.new_database()
    assert "is empty, but" in refused_url(url, tmp_path)
    db = Database(url)
    open_database(db, tmp_path, new=True)
    with db.read() as session:
        assert session.scalar(text("SELECT count(*) FROM volumes")) == 0
    db.dispose()
