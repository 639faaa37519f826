"""The commands attach and detach, and the group attachment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from blockstore.cli.admin_client import admin_client
from blockstore.cli.command import configured
from blockstore.cli.database import served_database
from blockstore.cli.output import print_table
from blockstore.config import Config
from blockstore.errors import BlockstoreError


@click.command()
@configured
@click.argument("volume")
@click.option("--read-only", is_flag=True, help="Attach the volume read-only.")
def attach(config: Config, volume: str, read_only: bool) -> None:
    """Attach a volume (name or id) to this node, and print the path of its device or file."""
    from blockstore.app.wiring import local_connector

    ask = admin_client(config)
    found = _find_volume(ask, volume)
    wanted = {
        "volume_uuid": found,
        "connector": local_connector(),
        "mode": "ro" if read_only else "rw",
    }
    created = ask("POST", "/attachments", {"attachment": wanted})["attachment"]
    ask("POST", f"/attachments/{created['id']}/action", {"os-complete": {}})
    click.echo(created["connection_info"]["device_path"])


@click.command()
@configured
@click.argument("volume")
def detach(config: Config, volume: str) -> None:
    """Detach a volume (name or id) from this node. Refused while a process has it open."""
    from blockstore.app.wiring import local_connector

    ask = admin_client(config)
    found = _find_volume(ask, volume)
    listed = ask("GET", f"/attachments/detail?all_tenants=1&volume_id={found}")["attachments"]
    ours = [
        attachment
        for attachment in listed
        if attachment["connection_info"].get("attached_here") == local_connector()["host"]
    ]
    if not ours:
        raise BlockstoreError(f"The volume {volume} is not attached to this node by `blockstore attach`.")
    for attachment in ours:
        ask("DELETE", f"/attachments/{attachment['id']}")


def _find_volume(ask: Callable[..., Any], volume: str) -> str:
    from urllib.parse import quote

    from blockstore.schemas.base import is_uuid

    if is_uuid(volume):
        return str(ask("GET", f"/volumes/{volume}")["volume"]["id"])
    found = ask("GET", f"/volumes?all_tenants=1&name={quote(volume, safe='')}")["volumes"]
    if len(found) != 1:
        raise BlockstoreError(f"{len(found) or 'No'} volumes are named {volume}; give the id.")
    return str(found[0]["id"])


@click.group()
def attachment() -> None:
    """List and end attachments of volumes."""


@attachment.command("list")
@configured
@click.option("--volume", "volume_id", help="Only the attachments of this volume.")
@click.option("--stale", is_flag=True, help="Only attachments without a connected initiator.")
def attachment_list(config: Config, volume_id: str | None, stale: bool) -> None:
    """List the attachments, and show whether their initiators are connected.

    The list includes connections made by os-initialize_connection, which the API does not list; STATUS marks them.
    """
    from sqlalchemy import select

    from blockstore.app.wiring import probe_sessions
    from blockstore.db.models import Attachment
    from blockstore.operations.states import EXPORTED

    with served_database(config).read() as session:
        statement = select(Attachment).order_by(Attachment.created_at, Attachment.id)
        rows = session.scalars(statement.where(Attachment.volume_id == volume_id) if volume_id else statement).all()
    connected, untold = probe_sessions(config)
    table = []
    for row in rows:
        exported = row.connection is not None and row.status in EXPORTED
        who = ", ".join(connected.get(row.id, ())) or ("unknown" if row.target in untold else "nobody")
        if stale and (not exported or who != "nobody"):
            continue
        table.append(
            (
                row.id,
                row.volume_id,
                row.project_id,
                f"{row.status} (os-initialize_connection)" if row.legacy else row.status,
                row.instance_uuid or "-",
                row.host_name or "-",
                row.target or "-",
                who if exported else "-",
                row.reason or "-",
            )
        )
    print_table(
        ("ATTACHMENT", "VOLUME", "PROJECT", "STATUS", "SERVER", "HOST", "TARGET", "CONNECTED", "REASON"),
        table,
        empty="There are no such attachments." if stale or volume_id else "There are no attachments.",
    )
    for name, reason in untold.items():
        click.echo(f"blockstore: the target {name} cannot list its connected initiators: {reason}", err=True)


@attachment.command("delete")
@configured
@click.argument("attachment_id")
def attachment_delete(config: Config, attachment_id: str) -> None:
    """End an attachment and its export. This includes connections made by os-initialize_connection."""
    from urllib.parse import quote

    admin_client(config)("DELETE", f"/attachments/{quote(attachment_id, safe='')}")


@attachment.command("forget-saved")
@configured
def attachment_forget_saved(config: Config) -> None:
    """Remove exports from the file that target.service restores at boot. Use it in a unit ordered before that service.

    Exports saved by targetcli would return with former volumes and passwords. The service creates its own exports.
    """
    from blockstore.app.wiring import configured_targets

    for name, target in configured_targets(config).items():
        taken = target.forget_saved()
        if taken:
            click.echo(f"Removed {taken} saved entries of the target {name}.")
