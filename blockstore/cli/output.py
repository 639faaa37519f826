"""Tables and times for a terminal."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import click

from blockstore.server.logs import printable


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print rows below a header, in columns; ``empty`` if there are no rows."""
    if not rows:
        click.echo(empty)
        return
    # Tenants choose names that an administrator's terminal must not obey.
    cells = [[printable(str(cell)) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def time_text(at: datetime.datetime | None) -> str:
    """Return a time of the database as text; "-" for None."""
    return "-" if at is None else at.isoformat(sep=" ", timespec="seconds") + "Z"
