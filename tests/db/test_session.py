"""Sessions: what is written is there, what failed is not, and operations are enqueued after the commit and only
then.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError

from blockstore.db import migrations
from blockstore.db.models import ExtraSpec, OperationRow, QuotaUsage, VolumeType
from blockstore.db.session import Database, insert_if_absent
from blockstore.errors import ConfigError
from blockstore.operations import journal
from blockstore.operations.catalogue import DeleteVolume, Operation, new_operation_id


@pytest.fixture
def db(database_url: str, tmp_path: Path) -> Iterator[Database]:
    made = Database(database_url or f"sqlite:///{tmp_path}/blockstore.db")
    migrations.upgrade(made)
    yield made
    made.dispose()


def an_operation() -> Operation:
    return DeleteVolume(operation_id=new_operation_id(), request_id="req-1", project_id="p", volume_id="v")


def names(db: Database) -> list[str]:
    with db.read() as session:
        return list(session.scalars(select(VolumeType.name).order_by(VolumeType.name)))


def test_write_commits_at_its_end(db: Database) -> None:
    with db.write() as session:
        session.add(VolumeType(name="gold"))
    assert names(db) == ["gold"]


def test_write_that_raises_changes_nothing(db: Database) -> None:
    with pytest.raises(RuntimeError), db.write() as session:  # noqa: PT012
        session.add(VolumeType(name="gold"))
        session.flush()
        raise RuntimeError
    assert names(db) == []
    with db.write() as session:  # and the next one may write
        session.add(VolumeType(name="silver"))
    assert names(db) == ["silver"]


def test_read_keeps_nothing(db: Database) -> None:
    with suppress(OperationalError), db.read() as session:  # SQLite refuses at once, PostgreSQL rolls back
        session.add(VolumeType(name="gold"))
        session.flush()
    assert names(db) == []


def test_operations_are_enqueued_after_the_commit(db: Database) -> None:
    seen: list[str | None] = []

    def enqueued(operation: Operation) -> None:
        with db.read() as session:
            seen.append(session.scalar(select(OperationRow.state).where(OperationRow.id == operation.operation_id)))

    db.enqueue = enqueued
    with db.write() as session:
        journal.enqueue(session, an_operation())
        journal.enqueue(session, an_operation())
        assert seen == []
    assert seen == ["open", "open"]


def test_operations_of_a_write_that_raised_are_not_enqueued(db: Database) -> None:
    enqueued: list[Operation] = []
    db.enqueue = enqueued.append
    with pytest.raises(RuntimeError), db.write() as session:  # noqa: PT012
        journal.enqueue(session, an_operation())
        session.flush()
        raise RuntimeError
    assert enqueued == []


def test_many_threads_write_without_losing_or_locking(db: Database) -> None:
    with db.write() as session:
        session.add(QuotaUsage(project_id="p", resource="volumes", in_use=0))

    def add(_n: int) -> None:
        with db.write() as session:
            session.execute(
                update(QuotaUsage).values(in_use=QuotaUsage.in_use + 1).execution_options(synchronize_session=False)
            )

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(200)))
    with db.read() as session:
        assert session.scalar(select(QuotaUsage.in_use)) == 200


def test_reader_does_not_wait_for_a_writer(db: Database) -> None:
    written, read = threading.Event(), threading.Event()

    def write() -> None:
        with db.write() as session:
            session.add(VolumeType(name="gold"))
            session.flush()
            with db.interpreter.released():  # as a writer that waits for the disk
                written.set()
                assert read.wait(60)

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write)
        assert written.wait(60)
        assert names(db) == []
        read.set()
        writing.result()
    assert names(db) == ["gold"]


def test_foreign_keys_are_enforced(db: Database) -> None:
    with pytest.raises(IntegrityError), db.write() as session:
        session.add(ExtraSpec(volume_type_id="nobody", key="k", value="v"))


def test_insert_if_absent_leaves_what_is_there(db: Database) -> None:
    for amount in (1, 2):
        with db.write() as session:
            insert_if_absent(session, QuotaUsage, project_id="p", resource="volumes", in_use=amount)
    with db.read() as session:
        assert list(session.scalars(select(QuotaUsage.in_use))) == [1]


def test_sqlite_is_durable_and_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        db = Database(f"sqlite:///{tmp_path}/private/blockstore.db")
        migrations.upgrade(db)
        with db.write() as session:
            session.add(VolumeType(name="gold"))
            assert session.scalar(text("PRAGMA journal_mode")) == "wal"
            assert session.scalar(text("PRAGMA synchronous")) == 2
        files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "private").iterdir()}
        assert files == {f"blockstore.db{suffix}": 0o600 for suffix in ("", "-wal", "-shm")}
        assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o700
        db.dispose()
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nonsense", r"\[database\] url is not a SQLAlchemy URL such as postgresql\+psycopg://USER@HOST/NAME\."),
        ("mysql://u:hunter2@h/n", r"\[database\] url names mysql; supported are sqlite and postgresql\."),
        ("postgresql+nosuch://u:hunter2@h/n", r"\[database\] url needs a driver that is not installed"),
    ],
)
def test_url_that_cannot_work_is_one_sentence_without_the_password(url: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        Database(url)
    assert "hunter2" not in caught.value.message


def test_driver_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'blockstore\[postgresql\]'"):
        Database("postgresql+psycopg://u@h/n")


def test_only_one_service_has_a_postgresql_database(postgres: object) -> None:
    url = postgres.new_database()  # type: ignore[attr-defined]
    first, second = Database(url), Database(url)
    first.take_sole_use()
    with pytest.raises(ConfigError, match="another blockstore uses this database"):
        second.take_sole_use()
    first.dispose()
    second.take_sole_use()
    second.dispose()
