"""Volume transfers: a project offers a volume; the project that accepts the offer with the key gets the volume.

There are two generations of this API: /volume-transfers, and /os-volume-transfer, which always includes the snapshots.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, exists, func, select, update

from blockstore.accounting import quotas
from blockstore.api.holds import is_connected, is_worked_on, keep_project, what_holds
from blockstore.api.http import listing
from blockstore.api.http.call import Call
from blockstore.api.http.lookup import find
from blockstore.api.http.routes import Routes
from blockstore.api.types.types import may_use
from blockstore.api.volumes.volumes import find_volume
from blockstore.db.models import Snapshot, Transfer, Volume, VolumeType, new_id, now
from blockstore.errors import BadRequest, InvalidStatus, NotFound, StateConflict
from blockstore.microversions import TRANSFER_PAGING
from blockstore.operations import states, transitions
from blockstore.operations.states import S, V
from blockstore.schemas import transfers as schemas
from blockstore.schemas.base import is_uuid

routes = Routes()

OLD, NEW = "/os-volume-transfer", "/volume-transfers"

LISTING = listing.Listing(
    model=Transfer,
    noun="Transfer",
    collection="os-volume-transfer",  # compat: in both generations
    links_key="transfers_links",
    columns={
        name: column
        for name, column in listing.columns_of(Transfer, display_name=Transfer.name).items()
        if name not in ("salt", "key_hash")
    },
    sortable=frozenset({"id", "name", "display_name", "volume_id", "created_at"}),
    public=frozenset({"id", "name", "volume_id"}),
)


@dataclass(slots=True)
class TransferView:
    """A transfer as replies show it."""

    row: Transfer
    links: list[dict[str, str]]


@routes.get(NEW, policy="volume:get_all_transfers")
def index(call: Call) -> dict[str, Any]:
    """List the project's transfers."""
    return _listed(call, paged=call.version >= TRANSFER_PAGING, detailed=False)


@routes.get(f"{NEW}/detail", policy="volume:get_all_transfers")
def detail(call: Call) -> dict[str, Any]:
    """List the project's transfers with every field."""
    return _listed(call, paged=call.version >= TRANSFER_PAGING, detailed=True)


@routes.get(f"{NEW}/<transfer_id>", policy="volume:get_transfer")
def show(call: Call, transfer_id: str) -> dict[str, Any]:
    """Show a transfer."""
    return {"transfer": _render(call, find(call, Transfer, transfer_id))}


@routes.post(NEW, policy="volume:create_transfer", body=schemas.CreateTransferBody)
def create(call: Call, body: Mapping[str, Any]) -> dict[str, Any]:
    """Offer a volume; only this reply contains the key."""
    return _create(call, body["transfer"])


@routes.post(f"{NEW}/<transfer_id>/accept", policy="volume:accept_transfer", body=schemas.AcceptTransferBody)
def accept(call: Call, transfer_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Accept an offered volume, with its snapshots unless the offer excludes them."""
    key = body["accept"]["auth_key"]
    row = call.session.get(Transfer, transfer_id) if is_uuid(transfer_id) else None
    if row is None:
        raise NotFound.resource("Transfer", transfer_id)
    # Failures are counted for each project: a stranger's guesses slow down the stranger, never the receiver. Guesses
    # from many projects need no limit of their own: at 10,000 guesses a second, half of the 64-bit keys take 29 million
    # years.
    guesser = (transfer_id, call.ctx.project_id)
    call.core.transfer_key_throttle.admit(*guesser)
    if not hmac.compare_digest(_hashed(row.salt, key), row.key_hash):
        call.core.transfer_key_throttle.failed(*guesser)
        raise BadRequest(f"Invalid auth key: Attempt to transfer {transfer_id} with invalid auth key.")
    call.core.transfer_key_throttle.succeeded(*guesser)
    _hand_over(call, row)
    return {"transfer": _summary(call, row)}


@routes.delete(f"{NEW}/<transfer_id>", policy="volume:delete_transfer")
def remove(call: Call, transfer_id: str) -> None:
    """Withdraw an offer."""
    row = find(call, Transfer, transfer_id)
    transitions.lock(call.session, row.volume_id)  # before the offer, as in accept: the two cannot deadlock
    _take(call, row)
    transitions.cancel_transfer(call.session, row.volume_id)


@routes.get(OLD, policy="volume:get_all_transfers")
def old_index(call: Call) -> dict[str, Any]:
    """List the project's transfers."""
    return _listed(call, paged=False, detailed=False)


@routes.get(f"{OLD}/detail", policy="volume:get_all_transfers")
def old_detail(call: Call) -> dict[str, Any]:
    """List the project's transfers with every field."""
    return _listed(call, paged=False, detailed=True)


@routes.get(f"{OLD}/<transfer_id>", policy="volume:get_transfer")
def old_show(call: Call, transfer_id: str) -> dict[str, Any]:
    """Show a transfer."""
    return {"transfer": _render(call, find(call, Transfer, transfer_id))}


@routes.post(OLD, policy="volume:create_transfer", body=schemas.OldCreateTransferBody)
def old_create(call: Call, body: Mapping[str, Any]) -> dict[str, Any]:
    """Offer a volume; only this reply contains the key."""
    return _create(call, body["transfer"])


routes.post(f"{OLD}/<transfer_id>/accept", policy="volume:accept_transfer", body=schemas.AcceptTransferBody)(accept)
routes.delete(f"{OLD}/<transfer_id>", policy="volume:delete_transfer")(remove)


# --- reading -----------------------------------------------------------------------------------------------


def _listed(call: Call, *, paged: bool, detailed: bool) -> dict[str, Any]:
    if not paged:  # compat: without paging, all transfers are listed, oldest first
        own = {name: value for name, value in call.query.items() if name in (*LISTING.public, "all_tenants")}
        call.query = {**own, "sort": "created_at:asc"}
    page = listing.page(call, LISTING, _visible(call))
    show_one = _render if detailed else _summary
    return {"transfers": [show_one(call, row) for (row,) in page.rows], **page.envelope}


def _visible(call: Call) -> Select[Any]:
    return select(Transfer).where(*listing.visible_projects(call, Transfer, strict=False))


def _links(call: Call, row: Transfer) -> list[dict[str, str]]:
    return call.links.of_resource("os-volume-transfer", row.id)


def _summary(call: Call, row: Transfer) -> dict[str, Any]:
    return {"id": row.id, "volume_id": row.volume_id, "name": row.name, "links": _links(call, row)}


def _render(call: Call, row: Transfer) -> dict[str, Any]:
    view = TransferView(row, _links(call, row))
    getters = schemas.TRANSFER.getters(call.version, frozenset())
    return {name: get(view) for name, get in getters}


# --- offering and accepting --------------------------------------------------------------------------------


def _create(call: Call, params: Mapping[str, Any]) -> dict[str, Any]:
    volume = find_volume(call, params["volume_id"], lock=True)
    no_snapshots = params.get("no_snapshots", False)
    if not no_snapshots:
        busy = call.session.execute(
            select(Snapshot.id, Snapshot.status).where(Snapshot.volume_id == volume.id, Snapshot.status != S.AVAILABLE)
        ).first()
        if busy is not None:
            raise InvalidStatus(
                f"Invalid snapshot: snapshot {busy.id} of volume {volume.id} is {busy.status}; it must be available."
            )
    try:
        transitions.move(call.session, states.VOLUME, volume.id, V.AWAITING_TRANSFER, where=_free(volume))
    except StateConflict:
        raise _refused(call, volume, "offered", V.AVAILABLE) from None
    # An administrator's reset of the status may have left an older offer.
    call.session.execute(delete(Transfer).where(Transfer.volume_id == volume.id))
    key, salt = secrets.token_hex(8), secrets.token_hex(4)
    row = Transfer(
        id=new_id(),
        volume_id=volume.id,
        project_id=volume.project_id,
        name=params.get("name"),
        no_snapshots=no_snapshots,
        salt=salt,
        key_hash=_hashed(salt, key),
        created_at=now(),
    )
    call.session.add(row)
    call.session.flush()
    return {"transfer": {**_render(call, row), "auth_key": key}}


def _hand_over(call: Call, row: Transfer) -> None:
    """Transfer the volume, its snapshots and their quota usage to the caller's project, in this transaction."""
    volume = call.session.get(Volume, row.volume_id, with_for_update=True)
    if volume is None:  # deleted since the offer was read
        raise NotFound.resource("Transfer", row.id)
    donor, receiver = volume.project_id, call.ctx.project_id
    _check_types(call, row, volume)
    keep_project(call, receiver)
    moved: dict[str, Any] = {"project_id": receiver, "user_id": call.ctx.user_id, "updated_at": now()}
    _take(call, row)
    try:
        transitions.move(
            call.session,
            states.VOLUME,
            volume.id,
            V.AVAILABLE,
            only_from=(V.AWAITING_TRANSFER,),
            where=_free(volume),
            **moved,
        )
    except StateConflict:
        raise _refused(call, volume, "accepted", V.AWAITING_TRANSFER) from None
    count = gib = 0
    if not row.no_snapshots:
        of_volume = Snapshot.volume_id == volume.id
        count, gib = call.session.execute(
            select(func.count(), func.coalesce(func.sum(Snapshot.volume_size), 0)).where(
                of_volume, Snapshot.consumes_quota, Snapshot.project_id == donor
            )
        ).one()
        call.session.execute(update(Snapshot).where(of_volume, Snapshot.project_id == donor).values(moved))
    if donor == receiver:
        return
    limits = call.core.config.quota
    quotas.check_volume_size(call.session, limits, receiver, volume.size)
    amounts = {
        "volumes": 1 if volume.consumes_quota else 0,
        "snapshots": count,
        "gigabytes": (volume.size if volume.consumes_quota else 0) + int(gib),
    }
    # In the same order for all transfers: two concurrent transfers in opposite directions cannot deadlock.
    for project in sorted((donor, receiver)):
        if project == receiver:
            quotas.charge(call.session, limits, receiver, volume.volume_type_id, **amounts)
        else:
            quotas.refund(call.session, donor, volume.volume_type_id, **amounts)


def _free(volume: Volume) -> list[ColumnElement[bool]]:
    """Return the conditions for a transfer: the former project must have no access to the volume's data."""
    return [~is_connected(volume.id), ~is_worked_on(volume.id)]


def _refused(call: Call, volume: Volume, done: str, status: V) -> InvalidStatus:
    """Return the InvalidStatus that says why a volume cannot be offered or accepted."""
    held = what_holds(call, volume.id) if volume.status == status else None
    return InvalidStatus(
        f"Invalid volume: volume {volume.id} cannot be {done}: {held}."
        if held
        else f"Invalid volume: volume {volume.id} is {volume.status}; to be {done} it must be {status}."
    )


def _check_types(call: Call, row: Transfer, volume: Volume) -> None:
    """Raise BadRequest if the receiver may not use the type of the volume or of a snapshot that goes with it.

    A snapshot keeps its type, so the receiver could create volumes of that type from it.
    """
    types = {volume.volume_type_id: "the volume's type"}
    if not row.no_snapshots:
        of_volume = select(Snapshot.volume_type_id, func.min(Snapshot.id)).where(Snapshot.volume_id == volume.id)
        for type_id, snapshot_id in call.session.execute(of_volume.group_by(Snapshot.volume_type_id)):
            if type_id is not None:
                types.setdefault(type_id, f"the type of snapshot {snapshot_id}")
    for type_id, what in types.items():
        volume_type = call.session.get(VolumeType, type_id)
        if volume_type is not None and not may_use(call, volume_type):  # no volume can be created of a deleted type
            raise BadRequest(
                f"Invalid volume type: the project {call.ctx.project_id} may not use {what}, which is private."
            )


def _take(call: Call, row: Transfer) -> None:
    """Delete the offer. Raise NotFound if another request has just accepted or withdrawn it."""
    gone = call.session.execute(
        delete(Transfer).where(Transfer.id == row.id, exists().where(Volume.id == row.volume_id))
    )
    if gone.rowcount != 1:  # type: ignore[attr-defined]
        raise NotFound.resource("Transfer", row.id)


def _hashed(salt: str, key: str) -> str:
    # 64 random bits need no slow hash: they cannot be guessed over the network.
    return hmac.digest(salt.encode(), key.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()
