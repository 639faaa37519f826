"""The command group order: running and finished operations."""

from __future__ import annotations

import json
from typing import Any

import click

from blockstore.cli.command import configured
from blockstore.cli.database import served_database
from blockstore.cli.output import print_table, time_text
from blockstore.config import Config
from blockstore.errors import BlockstoreError
from blockstore.logs import printable


@click.group()
def order() -> None:
    """Look at running and finished operations, and stop them."""


@order.command("list")
@configured
@click.option("--all", "everything", is_flag=True, help="Finished ones too, newest first.")
@click.option("--resource", help="Only those of one volume or snapshot.")
@click.option("--limit", default=50, show_default=True, help="At most so many.")
def order_list(config: Config, everything: bool, resource: str | None, limit: int) -> None:
    """List operations that wait or run."""
    from sqlalchemy import select

    from blockstore.db.models import OrderRow

    db = served_database(config)
    statement = select(OrderRow)
    if not everything and not resource:
        statement = statement.where(OrderRow.state == "open")
    if resource:
        statement = statement.where(OrderRow.resource_id == resource)
    with db.read() as session:
        rows = session.scalars(statement.order_by(OrderRow.id.desc()).limit(limit)).all()
    print_table(
        ("ORDER", "WHAT", "RESOURCE", "STATE", "PROGRESS", "STARTED", "REASON"),
        [
            (
                row.id,
                row.kind,
                f"{row.resource_type} {row.resource_id}",
                _state(row),
                "-" if row.progress is None else f"{row.progress} %",
                time_text(row.created_at),
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

    with served_database(config).read() as session:
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
        ("created", time_text(row.created_at)),
        ("finished", time_text(row.finished_at)),
        ("reason", row.reason or "-"),
        ("details", json.dumps(row.body)),
    ):
        click.echo(f"{name:10} {printable(str(value))}")


@order.command("cancel")
@configured
@click.argument("order_id")
def order_cancel(config: Config, order_id: str) -> None:
    """Ask an operation to stop; its resource then settles with that reason."""
    from blockstore.db.models import OrderRow
    from blockstore.orders import KINDS

    with served_database(config).write() as session:
        row = session.get(OrderRow, order_id)
        if row is None:
            raise BlockstoreError(f"There is no order {order_id}.")
        if row.state != "open":
            raise BlockstoreError(f"Order {order_id} is {row.state} already.")
        if not KINDS[row.kind].cancellable:
            raise BlockstoreError(f"{row.kind} cannot be stopped half-way without harm; it runs to its end.")
        row.cancel_asked = True
    click.echo(f"Asked {row.kind} of {row.resource_type} {row.resource_id} to stop.")


def _state(row: Any) -> str:
    if row.state != "open":
        return str(row.state)
    if row.cancel_asked:
        return "stopping"
    return "running" if row.started_at is not None else "queued"
