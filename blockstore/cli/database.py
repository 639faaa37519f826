"""The database of a service, for commands that read or change it themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import click

from blockstore.config import Config
from blockstore.errors import BlockstoreError


def served_database(config: Config) -> Any:
    """Return the database of a service that has been started before. Raise BlockstoreError if there is none."""
    from blockstore.db import migrations
    from blockstore.private_files import prove_state_dir

    if not config.database.url and not (prove_state_dir(config.state_dir) / "blockstore.db").exists():
        raise BlockstoreError(
            f"There is no database in {config.state_dir}. Has `blockstore serve` used this state directory?"
        )
    db = open_database(config)
    found = migrations.current(db)
    if found != migrations.HEAD:
        raise BlockstoreError(
            f"The database is at revision {found or 'nothing'}, and this version of blockstore needs"
            f" {migrations.HEAD}. Restart the service; it upgrades the database when it starts."
        )
    return db


def open_database(config: Config) -> Any:
    """Return the configured database; closed when the command ends."""
    from blockstore.app.wiring import database_url
    from blockstore.db.session import Database

    db = Database(database_url(config))
    click.get_current_context().call_on_close(db.dispose)
    return db


@contextlib.contextmanager
def open_accounts(config: Config) -> Iterator[Any]:
    """Open a session on the users and projects of the built-in identity."""
    if config.service.auth != "builtin":
        raise BlockstoreError(
            f"auth is {config.service.auth}; blockstore has users and projects of its own only with auth = builtin."
        )
    with served_database(config).write() as session:
        yield session
