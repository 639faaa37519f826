"""The health of the database: it is written to, and asking often costs nothing."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockstore.db import health, migrations, outages, session, wait_limits
from blockstore.db.health import Health
from blockstore.db.models import ServiceRow
from blockstore.db.session import Database
from blockstore.errors import DatabaseAway


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path}/blockstore.db")
    migrations.upgrade(made)
    with made.write() as writing:
        writing.add(ServiceRow(binary="cinder-volume", host="h"))
    made.note_file()
    yield made
    made.dispose()


@pytest.fixture
def asked(db: Database) -> Health:
    return Health(db, lambda: contextlib.nullcontext(True))


def written(db: Database) -> bytes:
    """Return what was written last."""
    assert db.path is not None
    return db.path.with_name(db.path.name + "-wal").read_bytes()


def test_well_means_written(db: Database, asked: Health) -> None:
    before = written(db)
    assert asked.complaint() is None
    assert written(db) != before


def test_asking_often_writes_once(db: Database, asked: Health) -> None:
    assert asked.complaint() is None
    before = written(db)
    for _ in range(50):
        assert asked.complaint() is None
    assert written(db) == before


@pytest.mark.timed
def test_locked_database_is_told_within_a_second_and_then_at_once(
    db: Database, asked: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "FRESH_S", 0)
    with contextlib.closing(sqlite3.connect(str(db.path), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        assert asked.complaint() == health.SLOW
        assert 0.9 < time.monotonic() - started < wait_limits.OPERATION_S
        started = time.monotonic()
        for _ in range(20):
            assert asked.complaint() in (health.SLOW, outages.BUSY)
        assert time.monotonic() - started < 10  # a second for each would be twenty
    for _ in range(1200):
        if asked.complaint() is None:
            return
        time.sleep(0.05)
    raise AssertionError(asked.complaint())


@pytest.mark.parametrize("how", ["removed", "replaced", "emptied", "without -wal", "without -shm"])
def test_file_that_is_not_the_one_of_the_start(
    db: Database, asked: Health, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PROVED_S", 0)
    assert db.path is not None
    if how.startswith("without"):
        db.path.with_name(db.path.name + how.removeprefix("without ")).unlink()
    elif how == "emptied":
        db.path.write_bytes(b"")
    else:
        copy = db.path.read_bytes()
        db.path.unlink()
        if how == "replaced":
            db.path.with_name("keeps its number").touch()
            db.path.write_bytes(copy)
    assert asked.complaint() == outages.DAMAGED
    with pytest.raises(DatabaseAway) as raised, db.write():
        pass
    assert (raised.value.message, raised.value.wait_s) == (outages.DAMAGED, outages.LATER_S)


def test_files_stay_when_no_connection_is_left(db: Database, asked: Health) -> None:
    db.engine.dispose()
    db._readers.dispose()
    assert asked.complaint() is None


def test_many_writes_share_a_proof(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "PROVED_S", 60)
    proofs: list[None] = []
    monkeypatch.setattr(db, "prove_file", lambda: proofs.append(None))
    for _ in range(10):
        with db.write():
            pass
    assert len(proofs) <= 1


def test_tables_that_are_empty_suddenly(db: Database, asked: Health) -> None:
    with db.write() as writing:
        writing.query(ServiceRow).delete()
    assert asked.complaint() == health.EMPTIED


def test_damage_that_the_check_found_after_the_start(db: Database, asked: Health) -> None:
    db.damage = outages.DAMAGED
    assert asked.complaint() == outages.DAMAGED
