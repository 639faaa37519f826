"""Who waits for the right to write, for how long, and that looking never waits."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from blockstore.db import migrations, outages, wait_limits
from blockstore.db.models import VolumeType
from blockstore.db.session import Database
from blockstore.errors import DatabaseAway


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path}/blockstore.db")
    migrations.upgrade(made)
    yield made
    made.dispose()


@contextlib.contextmanager
def locked(db: Database, how: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """Hold the lock of the file, as another process does: by a connection of its own."""
    with contextlib.closing(sqlite3.connect(str(db.path), isolation_level=None)) as other:
        other.execute(how)
        yield


def write(db: Database, name: str) -> None:
    with db.write() as session:
        session.add(VolumeType(name=name))


def names(db: Database) -> list[str]:
    with db.read() as session:
        return list(session.scalars(select(VolumeType.name).order_by(VolumeType.name)))


@pytest.mark.timed
@pytest.mark.parametrize("how", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_looking_does_not_wait_for_another_process(db: Database, how: str) -> None:
    write(db, "gold")
    with locked(db, how):
        started = time.monotonic()
        for _ in range(100):
            assert names(db) == ["gold"]
        db.dispose()  # nor does a new connection
        assert names(db) == ["gold"]
        assert time.monotonic() - started < wait_limits.OPERATION_S  # which one alone would wait


@pytest.mark.timed
def test_writer_gives_up_after_its_patience_and_has_done_nothing(db: Database) -> None:
    done = []
    with locked(db), wait_limits.limited(0.2):
        started = time.monotonic()
        with pytest.raises(DatabaseAway) as raised, db.write():
            done.append(True)
        assert 0.2 <= time.monotonic() - started < wait_limits.OPERATION_S
    assert done == []
    assert raised.value.message == outages.BUSY
    assert "another process holds its lock" in raised.value.detail
    write(db, "gold")
    assert names(db) == ["gold"]


def test_writer_goes_on_when_the_other_process_is_done(db: Database) -> None:
    with locked(db):
        writing = threading.Thread(target=write, args=(db, "gold"))
        writing.start()
        writing.join(0.1)
        assert writing.is_alive()
    writing.join(60)
    assert names(db) == ["gold"]


@pytest.mark.timed
def test_another_thread_answers_before_a_request_waits(db: Database) -> None:
    entered: list[float] = []

    @contextlib.contextmanager
    def aside() -> Iterator[bool]:
        entered.append(time.monotonic())
        yield True

    with wait_limits.limited(1, aside):
        write(db, "gold")
        assert entered == []  # nobody was in the way
        with locked(db):
            with pytest.raises(DatabaseAway):
                write(db, "silver")
            ended = time.monotonic()
    assert ended - entered[0] > 0.5  # so it waits after that, and not before


@pytest.mark.timed
def test_who_finds_no_other_thread_does_not_wait(db: Database) -> None:
    with locked(db), wait_limits.limited(300, lambda: contextlib.nullcontext(False)):
        started = time.monotonic()
        with pytest.raises(DatabaseAway):
            write(db, "gold")
        assert time.monotonic() - started < 60


def test_request_does_not_wait_behind_a_thread_that_waits(db: Database) -> None:
    entered = threading.Event()
    assert db._writer is not None

    @contextlib.contextmanager
    def aside() -> Iterator[bool]:
        entered.set()
        yield True

    with locked(db):
        writing = threading.Thread(target=write, args=(db, "gold"))  # with the patience of an operation
        writing.start()
        deadline = time.monotonic() + 20
        while not db._writer._is_file_locked:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        with wait_limits.limited(0.2, aside), pytest.raises(DatabaseAway) as raised:
            write(db, "silver")
        assert entered.is_set()
        assert "another thread of this process" in raised.value.detail
    writing.join(60)
    assert names(db) == ["gold"]


def test_projects_take_turns(db: Database) -> None:
    """One with many writers delays another by one of them."""
    operation: list[str] = []

    def queue(project: str) -> threading.Thread:
        def write_for() -> None:
            with wait_limits.acting_for(project), db.write():
                operation.append(project)

        before = len(waiting)
        thread = threading.Thread(target=write_for)
        thread.start()
        deadline = time.monotonic() + 60
        while len(waiting) == before:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return thread

    assert db._writer is not None
    waiting = db._writer._waiting
    with db.write():
        threads = [queue("loud") for _ in range(5)] + [queue("quiet")]
    for thread in threads:
        thread.join(60)
    assert operation == ["loud", "quiet", "loud", "loud", "loud", "loud"]


def test_who_gives_up_loses_no_turn_of_the_others(db: Database) -> None:
    with db.write():
        with wait_limits.limited(0.05), pytest.raises(DatabaseAway), db.write():
            raise AssertionError("it was nobody's turn")
        writing = threading.Thread(target=write, args=(db, "gold"))
        writing.start()
    writing.join(60)
    assert names(db) == ["gold"]
