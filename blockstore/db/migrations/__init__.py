"""Brings a database to the present shape at start; sets a copy of a SQLite file aside first.

An empty database is made from the models. Alembic is imported only when an older one is to be upgraded, because
importing it takes as long as half a start. ``tests/db/test_migrations.py`` proves that both ways make the same.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table, insert, inspect, text

from blockstore import private_files
from blockstore.db import postgresql_limits
from blockstore.db.models import Base
from blockstore.db.session import Database
from blockstore.errors import ConfigError

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
REVISIONS = sorted(path.name.split("_")[0] for path in (HERE / "versions").glob("[0-9]*.py"))
HEAD = REVISIONS[-1]

VERSION = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Where Alembic notes the revision that a database is at, as Alembic makes it."""


def current(db: Database) -> str | None:
    """Return the revision a database is at; None when it is empty."""
    with db.engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return None if found is None else str(found)


def upgrade(db: Database) -> Path | None:
    """Apply what is missing; return the copy that was set aside, if any. Raises ConfigError on a newer database."""
    if db.path is not None:
        if not db.path.parent.exists():
            private_files.make_directory(db.path.parent)
        if private_files.create(db.path.resolve()):
            return _first(db, db.path)
    return _upgrade(db)


def _first(db: Database, path: Path) -> Path | None:
    """Make a new database, or leave nothing of it: half of one would be taken for one that was damaged."""
    try:
        return _upgrade(db)
    except BaseException:
        db.dispose()
        for suffix in private_files.SQLITE_SUFFIXES:
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        raise


def _upgrade(db: Database) -> Path | None:
    at = current(db)
    if at == HEAD:
        return None
    if at is not None and at not in REVISIONS:
        raise ConfigError(
            f"The database is at revision {at}, newer than {HEAD} of this version of blockstore. Upgrade blockstore."
        )
    copy = _set_aside(db.path, at) if at is not None and db.path is not None else None
    _apply(db, at)
    log.info("database upgraded from revision %s to %s%s", at or "nothing", HEAD, f"; copy: {copy}" if copy else "")
    return copy


def _set_aside(path: Path, revision: str) -> Path:
    copy = path.with_name(f"{path.name}.before-{HEAD}-at-{revision}")
    private_files.create(copy)
    source, target = sqlite3.connect(path), sqlite3.connect(copy)
    try:
        source.backup(target)  # includes what is still in the write-ahead log
    except sqlite3.Error:
        copy.unlink()  # half a copy would be taken for one
        raise
    finally:
        source.close()
        target.close()
    return copy


def _apply(db: Database, at: str | None) -> None:
    with db.engine.begin() as connection, postgresql_limits.unlimited(connection):
        if at is None:
            make(connection)
        else:
            _run_revisions(connection)


def make(connection: Connection) -> None:
    """Make the tables of the present shape in a database that has none of them."""
    Base.metadata.create_all(connection, checkfirst=False)
    VERSION.create(connection, checkfirst=True)
    connection.execute(insert(VERSION).values(version_num=HEAD))


def _run_revisions(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(HERE))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
