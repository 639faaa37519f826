"""Volumes: create, list, show, update, delete, totals.

Accepts or refuses. What is accepted is a row in a transitional status and an order, in one transaction.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson
from marshmallow import ValidationError
from sqlalchemy import (
    ColumnElement,
    Select,
    Table,
    and_,
    bindparam,
    exists,
    func,
    or_,
    select,
    update,
)

from blockstore import quotas, states
from blockstore.api import listing
from blockstore.api.endpoint import Call, Room
from blockstore.api.holds import keep_project
from blockstore.api.metadata import MOST_PAIRS, OF_IMAGES, OF_VOLUMES
from blockstore.api.services import refuse_frozen
from blockstore.api.types import default_type, find_type, size_bounds
from blockstore.db.models import (
    Attachment,
    OrderRow,
    Snapshot,
    Volume,
    VolumeImageMetadata,
    VolumeMetadata,
    VolumeType,
    new_id,
    now,
)
from blockstore.errors import BadRequest, InvalidInput, InvalidStatus, NotFound, NotOffered, StateConflict
from blockstore.microversions import (
    BOOTABLE_STRICT,
    CONSUMES_QUOTA,
    DELETE_FORCE,
    FILTER_GLANCE_METADATA,
    FILTER_GROUP_ID,
    SUMMARY_METADATA,
    TIME_FILTERS,
    VOLUME_SUMMARY,
)
from blockstore.orders import DeleteSnapshot, DeleteVolume, PlaceVolume
from blockstore.schemas import volumes as schemas
from blockstore.schemas.base import bool_like, is_uuid, timestamp
from blockstore.states import A, S, V
from blockstore.zones import zone_of_new

room = Room()

DELETABLE = (V.AVAILABLE, V.ERROR, V.ERROR_RESTORING, V.ERROR_EXTENDING, V.ERROR_MANAGING)
MIGRATION_IDLE = ("deleting", "error", "success")

LISTING = listing.Listing(
    model=Volume,
    noun="Volume",
    collection="volumes",
    links_key="volumes_links",
    columns=listing.columns_of(Volume, display_name=Volume.name, display_description=Volume.description),
    special={
        "metadata": listing.pairs(Volume.id, VolumeMetadata, VolumeMetadata.volume_id, "metadata"),
        "glance_metadata": listing.pairs(
            Volume.id, VolumeImageMetadata, VolumeImageMetadata.volume_id, "glance_metadata"
        ),
        # compat: NODE@BACKEND means all its pools
        "host": lambda call, value: or_(Volume.host == value, Volume.host.startswith(f"{value}#", autoescape=True)),
        "bootable": listing.boolean(Volume.bootable, "bootable", BOOTABLE_STRICT),
        "created_at": listing.compared_time(Volume.created_at, "created_at", TIME_FILTERS),
        "updated_at": listing.compared_time(Volume.updated_at, "updated_at", TIME_FILTERS),
    },
    sortable=frozenset(
        {
            "id", "name", "display_name", "description", "display_description", "size", "status", "availability_zone",
            "bootable", "multiattach", "created_at", "updated_at", "volume_type_id", "snapshot_id", "source_volid",
            "group_id", "consumes_quota", "user_id", "project_id",
        }
    ),
    public=frozenset(
        {
            "name", "status", "metadata", "bootable", "migration_status", "availability_zone", "group_id", "size",
            "created_at", "updated_at", "consumes_quota", "glance_metadata",
        }
    ),
    since={
        "glance_metadata": FILTER_GLANCE_METADATA,
        "group_id": FILTER_GROUP_ID,
        "consumes_quota": CONSUMES_QUOTA,
    },
    counted=True,
)  # fmt: skip


# --- looking -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class View:
    """A volume as replies show it."""

    row: Volume
    type_name: str | None
    metadata: Mapping[str, str]
    attachments: list[dict[str, Any]]
    links: list[dict[str, str]]
    shared_targets: bool | None
    image_metadata: Mapping[str, str]


CHARACTERS_OF_ONE = 1000
"""What a volume without metadata counts for in a page of a list: the length of its JSON."""
SUMMARY_PAIRS = 10 * MOST_PAIRS
"""Pairs of metadata that a summary looks at: all that the volumes of the default quota can have."""


@room.get("/volumes", policy="volume:get_all")
def index(call: Call) -> dict[str, Any]:
    """List id and name."""
    page = listing.page(call, LISTING, _visible(call, select(Volume)))
    items = [{"id": v.id, "name": v.name, "links": call.links.of_resource("volumes", v.id)} for (v,) in page.rows]
    return {"volumes": items, **page.envelope}


@room.get("/volumes/detail", policy="volume:get_all")
def detail(call: Call) -> dict[str, Any]:
    """List every field."""
    page = listing.page(call, LISTING, _visible(call, _DETAIL), suffix="/detail")
    page, sizes = listing.fitting(
        call, LISTING, page, functools.partial(_sizes, call), suffix="/detail", characters_of_row=CHARACTERS_OF_ONE
    )
    metadata = OF_VOLUMES.of_many(call.session, [volume.id for volume, _ in page.rows if volume.id in sizes])
    return {"volumes": shown(call, page.rows, metadata, detailed=True), **page.envelope}


def _sizes(call: Call, rows: Sequence[Any]) -> Mapping[str, int]:
    sizes = OF_VOLUMES.sizes(call.session, [volume.id for volume, _ in rows])
    sizes += OF_IMAGES.sizes(call.session, [volume.id for volume, _ in rows if volume.has_image_metadata])
    return sizes


@room.get("/volumes/summary", policy="volume:get_all", since=VOLUME_SUMMARY)
def summary(call: Call) -> dict[str, Any]:
    """Tell number and size of all volumes, and their metadata."""
    conditions = listing.visible_projects(call, Volume)
    count, size = call.session.execute(
        select(func.count(), func.coalesce(func.sum(Volume.size), 0)).select_from(Volume).where(*conditions)
    ).one()
    totals: dict[str, Any] = {"total_count": count, "total_size": int(size)}
    if call.version >= SUMMARY_METADATA:
        some = (
            select(VolumeMetadata.key, VolumeMetadata.value)
            .join(Volume, Volume.id == VolumeMetadata.volume_id)
            .where(*conditions)
            .limit(SUMMARY_PAIRS)
            .subquery()
        )
        pairs = call.session.execute(select(some).distinct().order_by(some.c.key, some.c.value))
        totals["metadata"] = {}
        for key, value in pairs:
            totals["metadata"].setdefault(key, []).append(value)
    return {"volume-summary": totals}


@room.get("/volumes/<volume_id>", policy="volume:get")
def show(call: Call, volume_id: str) -> dict[str, Any]:
    """Show one volume."""
    return one(call, volume_id, detailed=True)


def find_volume(call: Call, volume_id: str, *, lock: bool = False) -> Volume:
    """Return a volume that the caller may see. Raises NotFound for others, as if they were not there.

    ``lock``: nobody else changes it before this transaction ends, so that what is decided from it stays true: also
    whose it is. Whoever changes a volume takes it.
    (On SQLite every writer is alone anyhow.)
    """
    volume = call.session.get(Volume, volume_id, with_for_update=lock or None) if is_uuid(volume_id) else None
    if volume is None or not call.ctx.may_see(volume.project_id) or not call.may("volume:get"):
        raise NotFound.resource("Volume", volume_id)
    return volume


def one(call: Call, volume_id: str, *, detailed: bool) -> dict[str, Any]:
    """Return the reply that holds one volume."""
    # On the connection: the most frequent question, which needs nothing of the ORM.
    found = call.session.connection().execute(_SHOW, {"volume": volume_id}) if is_uuid(volume_id) else None
    row = found.one_or_none() if found is not None else None
    if row is None or not call.ctx.may_see(row.project_id) or not call.may("volume:get"):
        raise NotFound.resource("Volume", volume_id)
    metadata = {volume_id: orjson.loads(row.pairs or "{}")}
    return {"volume": shown(call, [(row, row.type_name)], metadata, detailed=detailed)[0]}


def shown(
    call: Call, rows: Sequence[Any], metadata: Mapping[str, Mapping[str, str]], *, detailed: bool
) -> list[dict[str, Any]]:
    """Return volumes as replies show them; rows are pairs of volume and type name, metadata is by volume id."""
    visible = {rule for rule in schemas.VOLUME.rules() - {schemas.ADMIN_ONLY, schemas.IMAGE} if call.may(rule)}
    if not detailed:
        visible -= schemas.DETAIL_ONLY
    if call.ctx.is_admin:
        visible.add(schemas.ADMIN_ONLY)
    getters = schemas.VOLUME.getters(call.version, frozenset(visible))
    with_image = schemas.VOLUME.getters(call.version, frozenset(visible | {schemas.IMAGE}))
    images: Mapping[str, Mapping[str, str]] = {}
    from_images = [volume.id for volume, _ in rows if volume.has_image_metadata] if detailed else []
    if from_images and call.may(schemas.IMAGE):
        images = OF_IMAGES.of_many(call.session, from_images)
    attachments = _attachments_of(call, [volume.id for volume, _ in rows if volume.attach_status == "attached"])
    items = []
    for volume, type_name in rows:
        pairs = metadata.get(volume.id, {})
        if volume.admin_metadata:
            pairs = {**pairs, **{k: v for k, v in volume.admin_metadata.items() if k in ("readonly", "attached_mode")}}
        view = View(
            volume,
            type_name,
            pairs,
            attachments.get(volume.id, []),
            call.links.of_resource("volumes", volume.id),
            schemas.shared_targets(volume.shared_targets, call.version),
            images.get(volume.id, {}),
        )
        items.append({name: get(view) for name, get in (with_image if view.image_metadata else getters)})
    return items


def _attachments_of(call: Call, volume_ids: Sequence[str]) -> Mapping[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    if not volume_ids:
        return found  # the common case costs nothing
    may_see_host = call.ctx.is_admin or call.ctx.is_service
    rows = call.session.scalars(
        select(Attachment)
        .where(Attachment.volume_id.in_(volume_ids), Attachment.status == A.ATTACHED, Attachment.legacy.is_(False))
        .order_by(Attachment.created_at, Attachment.id)
    )
    for row in rows:
        found.setdefault(row.volume_id, []).append(
            {
                "id": row.volume_id,
                "attachment_id": row.id,
                "volume_id": row.volume_id,
                "server_id": row.instance_uuid,
                "host_name": row.host_name if may_see_host else None,
                "device": row.mountpoint,
                "attached_at": timestamp(row.attached_at),
            }
        )
    return found


# Built once: building a statement takes longer than running it.
_DETAIL = cast("Select[Any]", select(Volume, VolumeType.name).join(VolumeType, VolumeType.id == Volume.volume_type_id))
_VOLUMES, _TYPES = cast("Table", Volume.__table__), cast("Table", VolumeType.__table__)
# Show is what clients ask most while they wait, and plain columns come quicker than an object.
_SHOW = (
    select(*_VOLUMES.c, _TYPES.c.name.label("type_name"), OF_VOLUMES.text_of(_VOLUMES.c.id).label("pairs"))
    .join(_TYPES, _TYPES.c.id == _VOLUMES.c.volume_type_id)
    .where(_VOLUMES.c.id == bindparam("volume"))
)


def _visible(call: Call, statement: Select[Any]) -> Select[Any]:
    statement = statement.where(*listing.visible_projects(call, Volume))
    if not call.ctx.is_admin:
        # The hidden destination of a migration.
        statement = statement.where(
            or_(Volume.migration_status.is_(None), Volume.migration_status.not_like("target:%"))
        )
    return statement


# --- creating ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """What a volume is made from."""

    size: int
    volume_type_id: str
    availability_zone: str | None
    bootable: bool
    image_metadata: Mapping[str, str]
    """What the new volume takes over."""


@room.post("/volumes", policy="volume:create", body=schemas.CreateVolume)
def create(call: Call, body: Mapping[str, Any]) -> dict[str, Any]:
    """Accept a new volume: empty, from a snapshot, or from a volume."""
    asked = body["volume"]
    keep_project(call, call.ctx.project_id)
    source = _source(call, asked)
    volume_type = _type(call, asked, source)
    size = _size(asked, source)
    size_bounds(volume_type, size)
    if volume_type.encryption is not None:
        raise BadRequest(
            f"Invalid volume type: volumes of type {volume_type.name} are to be encrypted, and this service holds no"
            " keys yet. Use another type."
        )
    multiattach = (volume_type.extra_specs.get("multiattach") or "").strip() == "<is> True"
    if multiattach:
        call.enforce("volume:multiattach")
    volume = Volume(
        id=new_id(),
        project_id=call.ctx.project_id,
        user_id=call.ctx.user_id,
        name=asked.get("name"),
        description=asked.get("description"),
        size=size,
        volume_type_id=volume_type.id,
        availability_zone=zone_of_new(
            call.core.config,
            volume_type.extra_specs,
            requested=asked.get("availability_zone"),
            of_source=source.availability_zone if source else None,
            source="snapshot" if asked.get("snapshot_id") else "source volume",
        ),
        snapshot_id=asked.get("snapshot_id"),
        source_volid=asked.get("source_volid"),
        bootable=source.bootable if source else False,
        has_image_metadata=source is not None and bool(source.image_metadata),
        multiattach=multiattach,
        created_at=now(),
    )
    limits = call.core.config.quota
    quotas.charge(
        call.session, limits, call.ctx.project_id, volume_type.id, volumes=1, gigabytes=size, volume_size_gib=size
    )
    order = call.operation(
        PlaceVolume,
        volume,
        snapshot_id=volume.snapshot_id,
        source_volume_id=volume.source_volid,
        hints=body.get("hints") or {},
    )
    states.born(call.session, volume, order)
    pairs = asked.get("metadata") or {}
    OF_VOLUMES.add(call.session, volume.id, pairs)
    if source is not None:
        OF_IMAGES.copy(call.session, volume.id, source.image_metadata)
    return {"volume": shown(call, [(volume, volume_type.name)], {volume.id: pairs}, detailed=False)[0]}


def _source(call: Call, asked: Mapping[str, Any]) -> Source | None:
    named = [name for name in ("snapshot_id", "source_volid", "imageRef", "image_id", "backup_id") if asked.get(name)]
    if len(named) > 1 and set(named) != {"imageRef", "image_id"}:
        raise BadRequest(f"Only one source may be given, not {' and '.join(named)}.")
    if asked.get("multiattach"):
        raise InvalidInput(
            "volume.multiattach", True, "Ask for a volume type whose extra spec multiattach is '<is> True'."
        )
    for name, noun in (("group_id", "Group"), ("consistencygroup_id", "Consistency group"), ("backup_id", "Backup")):
        if asked.get(name):
            raise NotFound.resource(noun, asked[name])
    if not named:
        return None
    if named[0] in ("imageRef", "image_id"):
        call.enforce("volume:create_from_image")
        raise NotOffered(
            f"This service does not offer images yet; leave out {named[0]}, or make the volume from a snapshot."
        )
    if named[0] == "snapshot_id":
        return _snapshot_source(call, asked["snapshot_id"])
    # Locked: else its copy could be made when it is another project's already.
    volume = find_volume(call, asked["source_volid"], lock=True)
    if volume.status not in (V.AVAILABLE, V.IN_USE):
        raise InvalidStatus(
            f"Invalid volume: volume {volume.id} is {volume.status}; a source must be available or in-use."
        )
    images = OF_IMAGES.of(call.session, volume.id) if volume.has_image_metadata else {}
    return Source(volume.size, volume.volume_type_id, volume.availability_zone, volume.bootable, images)


def _snapshot_source(call: Call, snapshot_id: str) -> Source:
    snapshot = call.session.get(Snapshot, snapshot_id)
    if snapshot is None or not call.ctx.may_see(snapshot.project_id) or not call.may("volume:get_snapshot"):
        raise NotFound.resource("Snapshot", snapshot_id)
    if snapshot.status != S.AVAILABLE:
        raise InvalidStatus(
            f"Invalid snapshot: snapshot {snapshot_id} is {snapshot.status}; a source must be available."
        )
    # Of what may change later it has its own: the volume may be another project's by now.
    zone = call.session.get_one(Volume, snapshot.volume_id).availability_zone
    images = snapshot.image_metadata or {}
    return Source(snapshot.volume_size, snapshot.volume_type_id or "", zone, snapshot.bootable, images)


def _type(call: Call, asked: Mapping[str, Any], source: Source | None) -> VolumeType:
    if asked.get("volume_type"):
        return find_type(call, asked["volume_type"])
    if source is not None and (kind := call.session.get(VolumeType, source.volume_type_id)) is not None:
        return kind
    return default_type(call)  # also where the type that a snapshot had is deleted since


def _size(asked: Mapping[str, Any], source: Source | None) -> int:
    size: int | None = asked.get("size")
    if size is None:
        if source is None:
            raise InvalidInput(
                "volume.size", None, "It is needed unless the volume is made from a snapshot or a volume."
            )
        return source.size
    if source is not None and size < source.size:
        raise InvalidInput("volume.size", size, f"It must not be less than the source's size, {source.size} GiB.")
    return size


# --- changing ----------------------------------------------------------------------------------------------


@room.put("/volumes/<volume_id>", policy="volume:update", body=schemas.UpdateVolume)
def change(call: Call, volume_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Change name, description, metadata."""
    volume = find_volume(call, volume_id, lock=True)
    asked = body["volume"]
    touch(call, volume, **{name: asked[name] for name in ("name", "description") if name in asked})
    if "metadata" in asked:
        OF_VOLUMES.replace(call.session, volume_id, asked["metadata"])
    return one(call, volume_id, detailed=False)


def touch(call: Call, volume: Volume, *, not_while: Iterable[str] = (V.MAINTENANCE,), **values: Any) -> None:
    """Change columns of a volume unless its status forbids it. Raises InvalidStatus."""
    refused = sorted(not_while)
    done = call.session.execute(
        update(Volume).where(Volume.id == volume.id, Volume.status.not_in(refused)).values(updated_at=now(), **values)
    )
    if done.rowcount != 1:  # type: ignore[attr-defined]
        raise InvalidStatus(
            f"Invalid volume: volume {volume.id} is {volume.status}; it cannot be changed while {' or '.join(refused)}."
        )


@room.delete("/volumes/<volume_id>", policy="volume:delete")
def remove(call: Call, volume_id: str) -> None:
    """Accept the deletion of a volume; with ``cascade``, of its snapshots too."""
    force = call.version >= DELETE_FORCE and _switch(call, "force")
    if force:
        call.enforce("volume:force_delete")
    delete_volume(call, volume_id, force=force, cascade=_switch(call, "cascade"))


def delete_volume(call: Call, volume_id: str, *, force: bool, cascade: bool = False) -> None:
    """File the orders that remove a volume. Raises InvalidStatus with the reason; nothing is changed then."""
    volume = find_volume(call, volume_id, lock=True)  # no snapshot is born while its conditions are looked at
    refuse_frozen(call, volume.host, "deleted")
    if force and volume.status == V.DELETING and states.is_covered(call.session, DeleteVolume, volume_id):
        return  # it is on its way already
    if cascade:
        _delete_snapshots(call, volume, force=force)
    order = call.operation(DeleteVolume, volume, pool=volume.host or "")
    conditions = removable(force=force, cascade=cascade)
    at_once = _is_nowhere(call, volume)
    try:
        states.move(
            call.session, states.VOLUME, volume_id, V.DELETING, where=conditions, order=None if at_once else order
        )
    except StateConflict:
        raise InvalidStatus(why_not_removable(call, volume, cascade=cascade)) from None
    if at_once:
        if volume.consumes_quota:
            quotas.refund(call.session, volume.project_id, volume.volume_type_id, volumes=1, gigabytes=volume.size)
        states.removed_at_once(call.session, order)


def _is_nowhere(call: Call, volume: Volume) -> bool:
    """Say whether nothing of a volume is on any backend, and nobody works on it: compat: it then goes at once."""
    if volume.host is not None:
        return False
    idle = ~exists().where(OrderRow.resource_id == volume.id, OrderRow.state == "open")
    unused = ~exists().where(Attachment.volume_id == volume.id)
    without_snapshots = ~exists().where(Snapshot.volume_id == volume.id)
    return bool(call.session.execute(select(and_(idle, unused, without_snapshots))).scalar())


def removable(*, force: bool, cascade: bool) -> list[ColumnElement[bool]]:
    """Return what must hold of a volume that is to go."""
    conditions: list[ColumnElement[bool]] = [
        Volume.attach_status != "attached",
        or_(Volume.migration_status.is_(None), Volume.migration_status.in_(MIGRATION_IDLE)),
        Volume.group_id.is_(None),
    ]
    if not force:
        conditions.append(Volume.status != V.DELETING)
        # compat: what was never placed can be removed in any status
        conditions.append(or_(Volume.status.in_(DELETABLE), and_(Volume.host.is_(None))))
    if not cascade:
        conditions.append(~exists().where(Snapshot.volume_id == Volume.id))
    return conditions


def why_not_removable(call: Call, volume: Volume, *, cascade: bool, done: str = "deleted") -> str:
    """Return the sentence that says what is in the way."""
    said = f"Invalid volume: volume {volume.id} cannot be {done}: "
    if volume.attach_status == "attached":
        return said + "it is attached."
    if volume.migration_status and volume.migration_status not in MIGRATION_IDLE:
        return said + f"it is being migrated ({volume.migration_status})."
    if volume.group_id:
        return said + f"it belongs to group {volume.group_id}."
    count = call.session.execute(
        select(func.count()).select_from(Snapshot).where(Snapshot.volume_id == volume.id)
    ).scalar_one()
    if count and not cascade:
        way = "delete them first, or with cascade" if done == "deleted" else "unmanage or delete them first"
        return said + f"it has {count} snapshot{'s' if count > 1 else ''}; {way}."
    return said + f"its status is {volume.status}; it must be {', '.join(DELETABLE[:-1])} or {DELETABLE[-1]}."


def _delete_snapshots(call: Call, volume: Volume, *, force: bool) -> None:
    snapshots = call.session.scalars(
        select(Snapshot).where(Snapshot.volume_id == volume.id).order_by(Snapshot.number.desc())
    ).all()
    for snapshot in snapshots:
        if snapshot.group_snapshot_id is not None:
            raise InvalidStatus(f"Invalid volume: its snapshot {snapshot.id} belongs to a group snapshot.")
        if not call.ctx.may_see(snapshot.project_id):
            raise InvalidStatus(f"Invalid volume: volume {volume.id} has snapshots of another project.")
        if snapshot.status == S.DELETING:
            continue
        if not force and snapshot.status not in (S.AVAILABLE, S.ERROR):
            raise InvalidStatus(
                f"Invalid volume: its snapshot {snapshot.id} is {snapshot.status}; it must be available or error."
            )
        order = call.operation(DeleteSnapshot, snapshot, volume_id=volume.id, came_from=snapshot.status)
        states.move(call.session, states.SNAPSHOT, snapshot.id, S.DELETING, only_from=(snapshot.status,), order=order)


def _switch(call: Call, name: str) -> bool:
    try:
        return bool_like(call.query.get(name, "False"))
    except ValidationError as exc:
        raise InvalidInput(name, call.query[name], exc.messages[0]) from None
