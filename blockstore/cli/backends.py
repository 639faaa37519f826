"""The command group backend: the configured backends, their storage and its owner."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from blockstore.cli.admin_client import admin_client
from blockstore.cli.command import configured
from blockstore.cli.database import open_database
from blockstore.cli.output import print_table
from blockstore.config import Config
from blockstore.errors import BlockstoreError
from blockstore.service_names import backend_host, has_node


@click.group()
def backend() -> None:
    """List, check, accept and drain backends."""


@backend.command("list")
@configured
def backend_list(config: Config) -> None:
    """List the backends with their state and their capabilities."""
    from blockstore.manager.installations import refuse_foreign

    rows = []
    installation = _installation(config)
    for name, instance in _backends(config).items():
        try:
            instance.prove_identity()
            instance.check()
            if instance.capabilities().owner_mark:
                refuse_foreign(instance, installation, instance.owner())
            capacity, caps = instance.capacity(), instance.capabilities()
            flags = [f.name for f in dataclasses.fields(caps) if getattr(caps, f.name) is True]
            state = "up"
            if capacity.closed_because:
                state = "closed"
                flags = [capacity.closed_because]
            rows.append((name, state, f"{capacity.total_gib:.1f}", f"{capacity.free_gib:.1f}", " ".join(flags)))
        except BlockstoreError as exc:
            rows.append((name, "DOWN", "-", "-", exc.message))
    print_table(("POOL", "STATE", "GIB", "FREE", "CAN"), rows, empty="No backend is configured.")


@backend.command("check")
@configured
@click.argument("name")
def backend_check(config: Config, name: str) -> None:
    """Run the conformance suites on a backend and its target.

    The suites create and delete small volumes and exports of their own, and change nothing else.
    """
    from blockstore.conformance import backend as backends_suite
    from blockstore.conformance import target as targets_suite

    failed = 0
    for pool, instance in _chosen(config, name).items():
        instance.prove_identity()
        instance.check()
        click.echo(f"The backend {instance.name}:")
        results = [*backends_suite.run(instance, report=click.echo)]
        with _target_on_trial(config, pool, instance) as target:
            if target is None:
                click.echo(f"Consumers reach the storage of {instance.name} directly, without a target.")
                failed += sum(result.outcome == "failed" for result in results)
                continue
            target.check()
            click.echo(f"The backend {instance.name} with the target {target.name}:")
            results += targets_suite.run(targets_suite.Pair(instance, target), report=click.echo)
        failed += sum(result.outcome == "failed" for result in results)
    click.echo(f"{failed} promises broken." if failed else "Every promise kept.")
    sys.exit(1 if failed else 0)


@backend.command("takeover")
@configured
@click.argument("name")
@click.option("--from", "former", required=True, help="Id of the installation that owns the storage now.")
def backend_takeover(config: Config, name: str, former: str) -> None:
    """Take over the storage of a backend from an installation that no longer exists.

    A running service uses the storage after its next health check. If the other installation runs, it stops using it.
    """
    installation = _installation(config)
    marked = {pool: b for pool, b in _chosen(config, name).items() if b.capabilities().owner_mark}
    taken = 0
    for pool, instance in marked.items():
        instance.prove_identity()
        instance.check()
        if instance.owner() == former:
            instance.change_owner(former, installation)
            taken += 1
        click.echo(f"{pool} is used by installation {instance.owner() or 'none'}; this one is {installation}.")
    if not taken:
        raise BlockstoreError(f"No pool of {name} is used by installation {former}; nothing was changed.")


@backend.command("accept")
@configured
@click.argument("name")
@click.option(
    "--found", required=True, help="Identity of the present storage, as given in the reason of the down pool."
)
def backend_accept(config: Config, name: str, found: str) -> None:
    """Accept a replaced storage as the new storage of a backend.

    Volumes that are not on it go to error, and their projects get a message. Nothing is deleted. A running service
    uses the storage after its next health check.
    """
    from blockstore.db import migrations
    from blockstore.manager.new_storage import accept

    chosen = {pool: b for pool, b in _chosen(config, name).items() if (b.identity() or "none") == found}
    if not chosen:
        raise BlockstoreError(f"No storage of {name} has the identity {found}; nothing was changed.")
    if len(chosen) > 1:
        raise BlockstoreError(
            f"{len(chosen)} pools of {name} have the identity {found}. Name one of them: {', '.join(chosen)}"
        )
    ((pool, instance),) = chosen.items()
    if migrations.current(database := open_database(config)) != migrations.HEAD:
        raise BlockstoreError(
            "The database has the schema of another version. Start the service first, or run: blockstore db upgrade"
        )
    done = accept(database, pool, instance, _installation(config), config.service.operation_keep_days)
    click.echo(f"{pool} now has the storage {done.identity}; before, it was {done.former or 'none'}.")
    if done.there:
        click.echo(f"{len(done.there)} volumes and snapshots of the service are on it. Reset those in error:")
        click.echo("  openstack volume set --state available VOLUME")
    if done.lost:
        click.echo(
            f"{len(done.lost)} are not on it; their projects got a message. Deleting them gives their quota back:"
        )
        for row_id in done.lost:
            click.echo(f"  {row_id}")


@backend.command("drain")
@configured
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Only show the destination of each volume.")
def backend_drain(config: Config, name: str, dry_run: bool) -> None:
    """Migrate every volume of a backend to other backends, and disable the backend for new volumes.

    Volumes that cannot be migrated are listed with the reason. `blockstore operation list` shows the progress;
    `openstack volume service set --enable HOST cinder-volume` enables the backend again.
    """
    ask = admin_client(config)
    host = name if has_node(name) else backend_host(config.service.node, name)
    plan = ask("POST", "/os-services/drain", {"drain": {"host": host, "dry_run": dry_run}})["drain"]["volumes"]
    rows = [(v["volume_id"], v["size"], v["source"], v["destination"] or f"stays: {v['reason']}") for v in plan]
    print_table(("VOLUME", "GIB", "FROM", "TO"), rows, empty=f"No volumes are on {host}.")
    moved = sum(v["destination"] is not None for v in plan)
    click.echo(f"{moved} of {len(plan)} volumes {'would be' if dry_run else 'are being'} migrated.")
    sys.exit(0 if moved == len(plan) else 1)


def _installation(config: Config) -> str:
    from blockstore.keys.keyring import Keyring
    from blockstore.private_files import prepare_state_dir

    return Keyring(prepare_state_dir(config.state_dir) / "attachments.key").owner


def _chosen(config: Config, name: str) -> dict[str, Any]:
    """Return the pools of a backend, or the pool of that name. Raise BlockstoreError if there is none."""
    chosen = {pool: b for pool, b in _backends(config).items() if name in (b.name, f"{b.name}#{b.pool}", pool)}
    if not chosen:
        known = ", ".join(b.name for b in config.backends)
        raise BlockstoreError(f"There is no backend {name}. The configured backends are {known}.")
    return chosen


@contextlib.contextmanager
def _target_on_trial(config: Config, pool: str, instance: Any) -> Iterator[Any]:
    """Give a pool's target as a separate installation would have it, beside the target that may be serving."""
    import secrets
    import tempfile

    from blockstore.app.wiring import load_targets
    from blockstore.keys.keyring import Keyring
    from blockstore.targets import loader

    keyring = Keyring(config.state_dir / "attachments.key")
    _, serving = load_targets(config, {pool: instance}, config.state_dir, keyring)
    name = serving[pool]
    if name is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="check-", dir=config.state_dir) as directory:
        yield loader.load(config.target(name), Path(directory), f"check{secrets.token_hex(2)}")


def _backends(config: Config) -> dict[str, Any]:
    from blockstore.app.wiring import load_backends
    from blockstore.private_files import prepare_state_dir

    backends = load_backends(config, prepare_state_dir(config.state_dir))
    for pool, identity in _recorded(config).items():
        if pool in backends:
            backends[pool].recognise(identity)
    return backends


def _recorded(config: Config) -> dict[str, str]:
    """Return the recorded identities by pool; none if the database is missing or not at the present version."""
    from blockstore.app.wiring import database_url
    from blockstore.db import migrations
    from blockstore.manager.recognition import recorded_identities

    url = database_url(config)
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return {}
    database = open_database(config)
    return recorded_identities(database) if migrations.current(database) == migrations.HEAD else {}
