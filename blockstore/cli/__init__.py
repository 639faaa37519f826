"""The command blockstore: ``serve`` and ``db``; each other module of this package has a group of commands.

Imports what a command needs when it runs, so that ``blockstore openrc`` is quick.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
from typing import Any

import click

from blockstore import __version__
from blockstore.cli import attachments, backends, config, identity, openrc, operations, policy, scheduler
from blockstore.cli.command import configured
from blockstore.cli.database import open_database
from blockstore.config import Config


@click.group()
@click.version_option(__version__, prog_name="blockstore")
def main() -> None:
    """Block storage for a small lab: the OpenStack Block Storage API v3 in one process."""


for _command in (
    openrc.openrc,
    openrc.clouds_yaml,
    operations.operation,
    attachments.attach,
    attachments.detach,
    attachments.attachment,
    identity.user,
    identity.project,
    policy.policy,
    backends.backend,
    scheduler.schedule,
    config.config_group,
):
    main.add_command(_command)


@main.command()
@configured
@click.option("--listen", help="Listen on HOST:PORT instead of the configured address.")
@click.option("--insecure", is_flag=True, help="Serve without authentication on an address that others can reach.")
@click.option(
    "--new-database", is_flag=True, help="Start with an empty database although the state directory was used before."
)
def serve(config: Config, listen: str | None, insecure: bool, new_database: bool) -> None:
    """Serve the API until SIGTERM."""
    gc.disable()  # imported objects stay: collections that check them take a tenth of a start
    from blockstore.app import process

    gc.freeze()
    gc.enable()
    changes: dict[str, Any] = {}
    if listen:
        changes["listen"] = listen
    if insecure:
        changes["insecure"] = True
    config = dataclasses.replace(config, service=dataclasses.replace(config.service, **changes))
    sys.exit(process.serve(config, new_database=new_database))


@main.group()
def db() -> None:
    """Manage the database."""


@db.command("upgrade")
@configured
def db_upgrade(config: Config) -> None:
    """Upgrade the database to this version, as every start of the service does."""
    from blockstore import private_files
    from blockstore.app.process import StateLock
    from blockstore.db.migrations import HEAD, upgrade

    with StateLock(config.state_dir), private_files.explained(config.state_dir):
        database = open_database(config)
        database.take_sole_use()
        copy = upgrade(database)
    click.echo(f"The database is at revision {HEAD}." + (f" The old database was copied to {copy}" if copy else ""))
