"""The command group operation: running and finished operations."""

from __future__ import annotations

import json
from typing import Any

import click

from blockstore.cli.command import configured
from blockstore.cli.database import served_database
from blockstore.cli.output import print_table, time_text
from blockstore.config import Config
from blockstore.errors import BlockstoreError
from blockstore.server.logs import printable


@click.group()
def operation() -> None:
    """Show and cancel operations."""


@operation.command("list")
@configured
@click.option("--all", "everything", is_flag=True, help="Include finished operations, newest first.")
@click.option("--resource", help="Only operations of this volume or snapshot.")
@click.option("--limit", default=50, show_default=True, help="Maximum number of operations to show.")
def operation_list(config: Config, everything: bool, resource: str | None, limit: int) -> None:
    """List waiting and running operations."""
    from sqlalchemy import select

    from blockstore.db.models import OperationRow

    db = served_database(config)
    statement = select(OperationRow)
    if not everything and not resource:
        statement = statement.where(OperationRow.state == "open")
    if resource:
        statement = statement.where(OperationRow.resource_id == resource)
    with db.read() as session:
        rows = session.scalars(statement.order_by(OperationRow.id.desc()).limit(limit)).all()
    print_table(
        ("OPERATION", "WHAT", "RESOURCE", "STATE", "PROGRESS", "STARTED", "REASON"),
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
        empty="No operations are waiting or running." if not everything else "There are no operations.",
    )


@operation.command("show")
@configured
@click.argument("operation_id")
def operation_show(config: Config, operation_id: str) -> None:
    """Show one operation."""
    from blockstore.db.models import OperationRow

    with served_database(config).read() as session:
        row = session.get(OperationRow, operation_id)
    if row is None:
        raise BlockstoreError(f"There is no operation {operation_id}.")
    for name, value in (
        ("operation", row.id),
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


@operation.command("cancel")
@configured
@click.argument("operation_id")
def operation_cancel(config: Config, operation_id: str) -> None:
    """Ask an operation to stop. Its resource then settles, with the cancellation as the reason."""
    from blockstore.db.models import OperationRow
    from blockstore.operations.catalogue import KINDS

    with served_database(config).write() as session:
        row = session.get(OperationRow, operation_id)
        if row is None:
            raise BlockstoreError(f"There is no operation {operation_id}.")
        if row.state != "open":
            raise BlockstoreError(f"Operation {operation_id} is {row.state} already.")
        if not KINDS[row.kind].cancellable:
            raise BlockstoreError(f"{row.kind} cannot be stopped safely before its end.")
        row.cancel_asked = True
    click.echo(f"Asked {row.kind} of {row.resource_type} {row.resource_id} to stop.")


def _state(row: Any) -> str:
    if row.state != "open":
        return str(row.state)
    if row.cancel_asked:
        return "stopping"
    return "running" if row.started_at is not None else "queued"
