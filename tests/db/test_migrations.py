"""Migrations: they make what the models say, on both databases, and never lose what was there."""

from __future__ import annotations

import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from sqlalchemy import MetaData, inspect, select, text

from blockstore.cli import main
from blockstore.db import migrations
from blockstore.db.models import Base, Snapshot, VolumeType
from blockstore.db.session import Database
from blockstore.errors import ConfigError

NEXT = '''
"""The next shape, as a test imagines it."""
import sqlalchemy as sa
from alembic import op

revision = "9001"
down_revision = "{before}"

def upgrade() -> None:
    op.create_table("imagined", sa.Column("id", sa.Integer(), primary_key=True))
    {then}
'''


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/blockstore.db"
    made = Database(url if request.param == "sqlite" else request.getfixturevalue("postgres").new_database())
    yield made
    made.dispose()


def imagine(monkeypatch: pytest.MonkeyPatch, folder: Path, then: str = "pass") -> None:
    """Let this blockstore know one revision more."""
    here = folder / "migrations"
    shutil.copytree(migrations.HERE, here, ignore=shutil.ignore_patterns("__pycache__"))
    (here / "versions" / "9001_imagined.py").write_text(NEXT.format(before=migrations.HEAD, then=then))
    monkeypatch.setattr(migrations, "HERE", here)
    monkeypatch.setattr(migrations, "REVISIONS", [*migrations.REVISIONS, "9001"])
    monkeypatch.setattr(migrations, "HEAD", "9001")


def differences(db: Database) -> list[object]:
    with db.engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata))


def run_revisions(db: Database, to: str) -> None:
    """Bring a database to a revision, from nothing as well: one revision after the other."""
    config = AlembicConfig()
    config.set_main_option("script_location", str(migrations.HERE))
    with db.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, to)


def shape(db: Database) -> dict[str, object]:
    """Return what the database itself says about each table, in an order of its own."""
    inspector = inspect(db.engine)
    tables = inspector.get_table_names()

    def ordered(facts: object) -> list[str]:
        assert isinstance(facts, list)
        return sorted(repr(sorted((key, repr(value)) for key, value in fact.items())) for fact in facts)

    return {
        table: (
            ordered(inspector.get_columns(table)),
            ordered([dict(inspector.get_pk_constraint(table))]),
            ordered(inspector.get_foreign_keys(table)),
            ordered(inspector.get_unique_constraints(table)),
            ordered(inspector.get_check_constraints(table)),
            ordered(inspector.get_indexes(table)),
        )
        for table in tables
    }


def test_migrations_make_what_the_models_say(db: Database) -> None:
    assert migrations.current(db) is None
    run_revisions(db, "head")
    assert migrations.current(db) == migrations.HEAD
    assert differences(db) == []


def test_an_empty_database_is_made_as_the_revisions_make_it(db: Database) -> None:
    run_revisions(db, "head")
    by_revisions = shape(db)
    with db.engine.begin() as connection:
        everything = MetaData()
        everything.reflect(connection)
        everything.drop_all(connection)
    assert shape(db) == {}
    assert migrations.upgrade(db) is None
    assert migrations.current(db) == migrations.HEAD
    assert shape(db) == by_revisions
    assert differences(db) == []


def test_a_database_that_cannot_be_made_whole_stays_empty(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise RuntimeError("half-way")

    monkeypatch.setattr(migrations.VERSION, "create", fail)  # what is made last
    with pytest.raises(RuntimeError, match="half-way"):
        migrations.upgrade(db)
    assert shape(db) == {}


def test_upgrade_of_a_database_that_is_up_to_date_does_nothing(db: Database, tmp_path: Path) -> None:
    migrations.upgrade(db)
    before = sorted(tmp_path.iterdir())
    assert migrations.upgrade(db) is None
    assert sorted(tmp_path.iterdir()) == before


def test_copy_of_an_older_sqlite_file_is_set_aside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/blockstore.db")
    migrations.upgrade(db)
    with db.write() as session:
        session.add(VolumeType(name="gold"))  # lies in the write-ahead log yet
    old = migrations.HEAD
    imagine(monkeypatch, tmp_path)
    aside = migrations.upgrade(db)
    assert aside == tmp_path / f"blockstore.db.before-9001-at-{old}"
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    copy = sqlite3.connect(aside)
    assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [(old,)]
    assert copy.execute("SELECT name FROM volume_types").fetchall() == [("gold",)]
    copy.close()
    assert migrations.current(db) == "9001"
    with db.read() as session:
        assert list(session.scalars(select(VolumeType.name))) == ["gold"]
    db.dispose()


def test_migration_that_fails_leaves_the_database_as_it_was(
    db: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    migrations.upgrade(db)
    old = migrations.HEAD
    imagine(monkeypatch, tmp_path, then="raise RuntimeError('half-way')")
    with pytest.raises(RuntimeError, match="half-way"):
        migrations.upgrade(db)
    assert migrations.current(db) == old
    with db.engine.connect() as connection:
        assert not inspect(connection).has_table("imagined")


def test_newer_database_is_refused(db: Database) -> None:
    migrations.upgrade(db)
    with db.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match=rf"at revision 9999, newer than {migrations.HEAD} of this version"):
        migrations.upgrade(db)


def test_there_is_no_way_back() -> None:
    for path in (migrations.HERE / "versions").glob("[0-9]*.py"):
        assert "def downgrade" not in path.read_text(), path.name
    assert "downgrade" not in main.commands["db"].commands  # type: ignore[attr-defined]


def test_revisions_follow_each_other() -> None:
    before = None
    for path in sorted((migrations.HERE / "versions").glob("[0-9]*.py")):
        made: dict[str, object] = {}
        exec(compile(path.read_text(), path.name, "exec"), made)
        assert made["revision"] == path.name.split("_")[0]
        assert made["down_revision"] == before
        before = made["revision"]


def test_older_messages_are_in_full_for_administrators_only(db: Database) -> None:
    run_revisions(db, "0006")
    with db.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO messages (id, project_id, request_id, event_id, action_id, detail_id, message_level,"
                " user_message, created_at) VALUES ('m', 'p', 'req-1', 'e', '1', '1', 'ERROR', 'pool canary',"
                " '2026-01-01 00:00:00')"
            )
        )
    migrations.upgrade(db)
    with db.engine.connect() as connection:
        (row,) = connection.execute(text("SELECT user_message, operator_message FROM messages")).all()
    assert row.operator_message == "pool canary"
    assert "canary" not in row.user_message
    assert "Ask your administrator" in row.user_message


def test_snapshots_that_are_there_are_numbered_by_their_time(db: Database) -> None:
    run_revisions(db, "0006")
    rows = [("a", "v", 3), ("b", "v", 1), ("c", "v", 2), ("d", "v", 2), ("e", "w", 9)]
    with db.write() as session:
        session.execute(
            text("INSERT INTO volume_types (id, name, is_public, created_at) VALUES ('t', 't', TRUE, :at)"),
            {"at": "2026-01-01 00:00:00"},
        )
        for volume in "vw":
            session.execute(
                text(
                    "INSERT INTO volumes (id, project_id, size, status, attach_status, volume_type_id, bootable,"
                    " multiattach, admin_metadata, consumes_quota, created_at)"
                    " VALUES (:id, 'p', 1, 'available', 'detached', 't', FALSE, FALSE, '{}', TRUE, :at)"
                ),
                {"id": volume, "at": "2026-01-01 00:00:00"},
            )
        for shot, volume, second in rows:
            session.execute(
                text(
                    "INSERT INTO snapshots (id, project_id, volume_id, volume_size, status, consumes_quota, created_at)"
                    " VALUES (:id, 'p', :volume, 1, 'available', TRUE, :at)"
                ),
                {"id": shot, "volume": volume, "at": f"2026-01-01 00:00:0{second}"},
            )
    migrations.upgrade(db)
    with db.read() as session:
        numbered = dict(session.execute(text("SELECT id, number FROM snapshots")).all())
    assert numbered == {"b": 1, "c": 2, "d": 3, "a": 4, "e": 1}


def test_snapshots_that_are_there_keep_what_their_volume_is_if_it_is_still_their_projects(db: Database) -> None:
    run_revisions(db, "0009")
    at = {"at": "2026-01-01 00:00:00"}
    with db.write() as session:
        session.execute(
            text("INSERT INTO volume_types (id, name, is_public, created_at) VALUES ('t', 't', TRUE, :at)"), at
        )
        session.execute(
            text(
                "INSERT INTO volumes (id, project_id, size, status, attach_status, volume_type_id, bootable,"
                " multiattach, admin_metadata, consumes_quota, has_image_metadata, created_at)"
                " VALUES ('v', 'p', 1, 'available', 'detached', 't', TRUE, FALSE, '{}', TRUE, TRUE, :at)"
            ),
            at,
        )
        session.execute(text("INSERT INTO volume_image_metadata (volume_id, key, value) VALUES ('v', 'k', '\"w\"')"))
        for shot, project in (("own", "p"), ("left", "q")):
            session.execute(
                text(
                    "INSERT INTO snapshots (id, project_id, volume_id, volume_size, status, consumes_quota, created_at)"
                    " VALUES (:id, :project, 'v', 1, 'available', TRUE, :at)"
                ),
                {"id": shot, "project": project, **at},
            )
    migrations.upgrade(db)
    with db.read() as session:
        kept = {row.id: (row.bootable, row.image_metadata) for row in session.scalars(select(Snapshot))}
    assert kept == {"own": (True, {"k": '"w"'}), "left": (False, None)}
