"""The command: serve, openrc, order, backend, db, config.

Imports what a command needs when it runs, so that ``blockstore openrc`` is quick.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from blockstore import __version__
from blockstore.config import Config, load
from blockstore.errors import BlockstoreError

_config_option = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="Configuration file; the defaults without it."
)
_state_option = click.option(
    "--state-dir", type=click.Path(path_type=Path), help="State directory instead of the configured one."
)


def configured(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --config and --state-dir, and turn mistakes into one sentence."""

    @_config_option
    @_state_option
    @click.pass_context
    def command(ctx: click.Context, config_path: Path | None, state_dir: Path | None, **kw: Any) -> Any:
        try:
            config = load(config_path)
            if state_dir is not None:
                config = dataclasses.replace(
                    config, service=dataclasses.replace(config.service, state_dir=state_dir.absolute())
                )
            return ctx.invoke(function, config=config, **kw)
        except BlockstoreError as exc:
            click.echo(f"blockstore: {exc.message}", err=True)
            sys.exit(1)

    command.__doc__ = function.__doc__
    command.__click_params__ = [  # type: ignore[attr-defined]
        *getattr(function, "__click_params__", []),
        *getattr(command, "__click_params__", []),
    ]
    command.__name__ = function.__name__
    return command


@click.group()
@click.version_option(__version__, prog_name="blockstore")
def main() -> None:
    """Block storage for a small lab: the OpenStack Block Storage API v3 in one process."""


@main.command()
@configured
@click.option("--listen", help="HOST:PORT instead of the configured one.")
@click.option("--insecure", is_flag=True, help="Serve without authentication where others can reach it.")
def serve(config: Config, listen: str | None, insecure: bool) -> None:
    """Serve the API until SIGTERM."""
    from blockstore import service

    changes: dict[str, Any] = {}
    if listen:
        changes["listen"] = listen
    if insecure:
        changes["insecure"] = True
    config = dataclasses.replace(config, service=dataclasses.replace(config.service, **changes))
    sys.exit(service.serve(config))


@main.command()
@configured
def openrc(config: Config) -> None:
    """Print the exports that make openstack, cinder and openstacksdk use this service."""
    note = config.state_dir / "endpoint"
    url = note.read_text().strip() if note.exists() else f"http://{config.service.listen}/v3"
    for name, value in (
        ("OS_AUTH_TYPE", "none"),
        ("OS_ENDPOINT", url),
        ("OS_VOLUME_API_VERSION", "3.71"),
    ):
        click.echo(f"export {name}={shlex.quote(value)}")


# --- orders ------------------------------------------------------------------------------------------------


@main.group()
def order() -> None:
    """Look at running and finished operations, and stop them."""


@order.command("list")
@configured
@click.option("--all", "everything", is_flag=True, help="Finished ones too, newest first.")
@click.option("--resource", help="Only those of one volume or snapshot.")
@click.option("--limit", default=50, show_default=True, help="At most so many.")
def order_list(config: Config, everything: bool, resource: str | None, limit: int) -> None:
    """List operations that wait or run."""
    from blockstore.db.models import OrderRow

    statement, db = _orders(config)
    if not everything and not resource:
        statement = statement.where(OrderRow.state == "open")
    if resource:
        statement = statement.where(OrderRow.resource_id == resource)
    with db.read() as session:
        rows = session.scalars(statement.order_by(OrderRow.id.desc()).limit(limit)).all()
    _table(
        ("ORDER", "WHAT", "RESOURCE", "STATE", "PROGRESS", "STARTED", "REASON"),
        [
            (
                row.id,
                row.kind,
                f"{row.resource_type} {row.resource_id}",
                _state(row),
                "-" if row.progress is None else f"{row.progress} %",
                _time(row.created_at),
                row.reason or "-",
            )
            for row in rows
        ],
        empty="Nothing waits or runs." if not everything else "There are no orders.",
    )


@order.command("show")
@configured
@click.argument("order_id")
def order_show(config: Config, order_id: str) -> None:
    """Show one operation."""
    from blockstore.db.models import OrderRow

    _, db = _orders(config)
    with db.read() as session:
        row = session.get(OrderRow, order_id)
    if row is None:
        raise BlockstoreError(f"There is no order {order_id}.")
    for name, value in (
        ("order", row.id),
        ("what", row.kind),
        (row.resource_type, row.resource_id),
        ("project", row.project_id),
        ("request", row.request_id),
        ("state", _state(row)),
        ("progress", "-" if row.progress is None else f"{row.progress} %"),
        ("attempt", row.attempt),
        ("created", _time(row.created_at)),
        ("finished", _time(row.finished_at)),
        ("reason", row.reason or "-"),
        ("details", json.dumps(row.body)),
    ):
        click.echo(f"{name:10} {value}")


@order.command("cancel")
@configured
@click.argument("order_id")
def order_cancel(config: Config, order_id: str) -> None:
    """Ask an operation to stop; its resource then settles with that reason."""
    from blockstore.db.models import OrderRow
    from blockstore.orders import KINDS

    _, db = _orders(config)
    with db.write() as session:
        row = session.get(OrderRow, order_id)
        if row is None:
            raise BlockstoreError(f"There is no order {order_id}.")
        if row.state != "open":
            raise BlockstoreError(f"Order {order_id} is {row.state} already.")
        if not KINDS[row.kind].cancellable:
            raise BlockstoreError(f"{row.kind} cannot be stopped half-way without harm; it runs to its end.")
        row.cancel_asked = True
    click.echo(f"Asked {row.kind} of {row.resource_type} {row.resource_id} to stop.")


def _orders(config: Config) -> tuple[Any, Any]:
    from sqlalchemy import select

    from blockstore.db.models import OrderRow
    from blockstore.db.session import Database
    from blockstore.service import database_url

    if not config.database.url and not (config.state_dir / "blockstore.db").exists():
        raise BlockstoreError(f"There is no database in {config.state_dir} yet; has blockstore served from there?")
    return select(OrderRow), Database(database_url(config))


def _state(row: Any) -> str:
    if row.state != "open":
        return str(row.state)
    if row.cancel_asked:
        return "stopping"
    return "running" if row.started_at is not None else "queued"


def _time(at: datetime.datetime | None) -> str:
    return "-" if at is None else at.isoformat(sep=" ", timespec="seconds") + "Z"


# --- backends ----------------------------------------------------------------------------------------------


@main.group()
def backend() -> None:
    """Look at the configured backends."""


@backend.command("list")
@configured
def backend_list(config: Config) -> None:
    """List the backends, whether they are well, and what they can do."""
    rows = []
    for name, instance in _backends(config).items():
        try:
            instance.check()
            capacity, caps = instance.capacity(), instance.capabilities()
            flags = [f.name for f in dataclasses.fields(caps) if getattr(caps, f.name) is True]
            rows.append((name, "up", f"{capacity.total_gib:.1f}", f"{capacity.free_gib:.1f}", " ".join(flags)))
        except BlockstoreError as exc:
            rows.append((name, "DOWN", "-", "-", exc.message))
    _table(("POOL", "STATE", "GIB", "FREE", "CAN"), rows, empty="No backend is configured.")


@backend.command("check")
@configured
@click.argument("name")
def backend_check(config: Config, name: str) -> None:
    """Prove that a backend keeps every promise, by running the conformance suite on it.

    Makes and removes small volumes with names of its own; touches nothing else.
    """
    from blockstore.backends import conformance

    chosen = [b for pool, b in _backends(config).items() if name in (b.name, pool)]
    if not chosen:
        raise BlockstoreError(f"There is no backend {name}; configured are {', '.join(b.name for b in config.backends)}.")
    failed = 0
    for instance in chosen:
        instance.check()
        results = conformance.run(instance, report=click.echo)
        failed += sum(result.outcome == "failed" for result in results)
    click.echo(f"{failed} promises broken." if failed else "Every promise kept.")
    sys.exit(1 if failed else 0)


def _backends(config: Config) -> dict[str, Any]:
    from blockstore.service import load_backends, prepare_state_dir

    return load_backends(config, prepare_state_dir(config.state_dir))


# --- database, configuration -------------------------------------------------------------------------------


@main.group()
def db() -> None:
    """Look after the database."""


@db.command("upgrade")
@configured
def db_upgrade(config: Config) -> None:
    """Bring the database up to date, as every start does."""
    from blockstore.db.migrations import HEAD, upgrade
    from blockstore.db.session import Database
    from blockstore.service import StateLock, database_url

    with StateLock(config.state_dir):
        aside = upgrade(Database(database_url(config)))
    click.echo(f"The database is at revision {HEAD}." + (f" A copy of the old one: {aside}" if aside else ""))


@main.group("config")
def config_group() -> None:
    """Look at the configuration."""


@config_group.command("show")
@configured
def config_show(config: Config) -> None:
    """Print the configuration in force, secrets hidden."""
    click.echo(f"# from {config.source}")
    for section in ("service", "database", "log", "quota", "scheduler"):
        _section(section, getattr(config, section))
    for configured_backend in config.backends:
        _section(f"backend:{configured_backend.name}", configured_backend.pool)
        for key in configured_backend.plugin_options:
            click.echo(f"{key} = (set)")


def _section(name: str, part: Any) -> None:
    click.echo(f"\n[{name}]")
    for f in dataclasses.fields(part):
        value = getattr(part, f.name)
        hidden = f.metadata.get("secret") and value
        click.echo(f"{f.name} = {'(hidden)' if hidden else '' if value is None else value}")


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]], *, empty: str) -> None:
    if not rows:
        click.echo(empty)
        return
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        click.echo("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
