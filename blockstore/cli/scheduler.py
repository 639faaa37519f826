"""The command group schedule: explanations of the scheduler's decisions."""

from __future__ import annotations

import sys

import click

from blockstore.cli.admin_client import admin_client
from blockstore.cli.command import configured
from blockstore.cli.output import print_table
from blockstore.config import Config


@click.group()
def schedule() -> None:
    """Ask the scheduler."""


@schedule.command("explain")
@configured
@click.option("--size", type=int, required=True, help="GiB.")
@click.option("--type", "volume_type", help="Volume type; without it, the default type.")
@click.option("--zone", help="Availability zone.")
def schedule_explain(config: Config, size: int, volume_type: str | None, zone: str | None) -> None:
    """Show the pool on which a volume would be placed, and the numbers of each pool, filter and weigher."""
    from urllib.parse import urlencode

    wanted = {"size": size, "volume_type": volume_type, "availability_zone": zone}
    query = urlencode({key: value for key, value in wanted.items() if value is not None})
    explanation = admin_client(config)("GET", f"/scheduler-stats/explain?{query}")["explanation"]
    rows = []
    for pool in explanation["pools"]:
        if pool["rank"] is None:
            why = f"{pool['filter']}: {pool['reason']}"
        else:
            parts = [f"{w['weigher']} {w['raw']} is {w['normalised']} x {w['multiplier']}" for w in pool["weights"]]
            why = f"{pool['total']} = {' + '.join(parts) or 'not weighed'}"
        rows.append(
            (pool["rank"] or "-", pool["name"], pool.get("free_gib", "-"), pool.get("virtual_free_gib", "-"), why)
        )
    print_table(("RANK", "POOL", "FREE", "MAY PROMISE", "WHY"), rows, empty="No pool is configured.")
    click.echo(
        f"The volume would be placed on {explanation['winner']}."
        if explanation["winner"]
        else "No pool can take the volume."
    )
    sys.exit(0 if explanation["winner"] else 1)
