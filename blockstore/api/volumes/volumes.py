"""Volumes: list, show, update, totals. ``create.py`` and ``delete.py`` have the rest."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson
from sqlalchemy import (
    Select,
    Table,
    bindparam,
    func,
    or_,
    select,
    update,
)

from blockstore.api.http import listing
from blockstore.api.http.call import Call
from blockstore.api.http.lookup import find
from blockstore.api.http.routes import Routes
from blockstore.api.metadata import MOST_PAIRS, OF_IMAGES, OF_VOLUMES
from blockstore.db.models import (
    Attachment,
    Volume,
    VolumeImageMetadata,
    VolumeMetadata,
    VolumeType,
    is_on_backend,
    now,
)
from blockstore.errors import InvalidStatus, NotFound
from blockstore.microversions import (
    BOOTABLE_STRICT,
    CONSUMES_QUOTA,
    FILTER_GLANCE_METADATA,
    FILTER_GROUP_ID,
    SUMMARY_METADATA,
    TIME_FILTERS,
    VOLUME_SUMMARY,
)
from blockstore.operations.states import A, V
from blockstore.schemas import volumes as schemas
from blockstore.schemas.base import is_uuid, timestamp

routes = Routes()

ACTION = "/volumes/<volume_id>/action"


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
        "host": lambda call, value: or_(Volume.host == value, is_on_backend(Volume.host, value)),
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


# --- reading -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class VolumeView:
    """A volume as replies show it."""

    row: Volume
    type_name: str | None
    metadata: Mapping[str, str]
    attachments: list[dict[str, Any]]
    links: list[dict[str, str]]
    shared_targets: bool | None
    image_metadata: Mapping[str, str]


CHARACTERS_OF_ONE = 1000
"""Characters that a volume without metadata counts for in a page of a list: the length of its JSON."""
SUMMARY_PAIRS = 10 * MOST_PAIRS
"""Metadata pairs that a summary reads at most: as many as the volumes of the default quota can have."""


@routes.get("/volumes", policy="volume:get_all")
def index(call: Call) -> dict[str, Any]:
    """List id and name."""
    page = listing.page(call, LISTING, _visible(call, select(Volume)))
    items = [{"id": v.id, "name": v.name, "links": call.links.of_resource("volumes", v.id)} for (v,) in page.rows]
    return {"volumes": items, **page.envelope}


@routes.get("/volumes/detail", policy="volume:get_all")
def detail(call: Call) -> dict[str, Any]:
    """List every field."""
    page = listing.page(call, LISTING, _visible(call, _DETAIL), suffix="/detail")
    page, sizes = listing.fitting(
        call, LISTING, page, functools.partial(_sizes, call), suffix="/detail", characters_of_row=CHARACTERS_OF_ONE
    )
    metadata = OF_VOLUMES.of_many(call.session, [volume.id for volume, _ in page.rows if volume.id in sizes])
    return {"volumes": render(call, page.rows, metadata, detailed=True), **page.envelope}


def _sizes(call: Call, rows: Sequence[Any]) -> Mapping[str, int]:
    sizes = OF_VOLUMES.sizes(call.session, [volume.id for volume, _ in rows])
    sizes += OF_IMAGES.sizes(call.session, [volume.id for volume, _ in rows if volume.has_image_metadata])
    return sizes


@routes.get("/volumes/summary", policy="volume:get_all", since=VOLUME_SUMMARY)
def summary(call: Call) -> dict[str, Any]:
    """Show the number and the total size of all volumes, and their metadata."""
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


@routes.get("/volumes/<volume_id>", policy="volume:get")
def show(call: Call, volume_id: str) -> dict[str, Any]:
    """Show one volume."""
    return render_one(call, volume_id, detailed=True)


def find_volume(call: Call, volume_id: str, *, lock: bool = False) -> Volume:
    """Return a volume that the caller may see. Raise NotFound for other volumes, as for volumes that do not exist.

    ``lock``: lock the volume until this transaction ends, so that decisions based on its fields stay valid, also on its
    project. Every change of a volume takes this lock. (SQLite allows only one writer at a time anyway.)
    """
    return find(call, Volume, volume_id, rule="volume:get", lock=lock)


def render_one(call: Call, volume_id: str, *, detailed: bool) -> dict[str, Any]:
    """Return the reply with one volume."""
    # On the connection: this is the most frequent query, and it does not need the ORM.
    found = call.session.connection().execute(_SHOW, {"volume": volume_id}) if is_uuid(volume_id) else None
    row = found.one_or_none() if found is not None else None
    if row is None or not call.ctx.may_see(row.project_id) or not call.may("volume:get"):
        raise NotFound.resource("Volume", volume_id)
    metadata = {volume_id: orjson.loads(row.pairs or "{}")}
    return {"volume": render(call, [(row, row.type_name)], metadata, detailed=detailed)[0]}


def render(
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
        view = VolumeView(
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
# Clients poll this request most while they wait, and plain columns load faster than an ORM object.
_SHOW = (
    select(*_VOLUMES.c, _TYPES.c.name.label("type_name"), OF_VOLUMES.text_of(_VOLUMES.c.id).label("pairs"))
    .join(_TYPES, _TYPES.c.id == _VOLUMES.c.volume_type_id)
    .where(_VOLUMES.c.id == bindparam("volume"))
)


def _visible(call: Call, statement: Select[Any]) -> Select[Any]:
    statement = statement.where(*listing.visible_projects(call, Volume))
    if not call.ctx.is_admin:
        # Hides the destination volume of a migration.
        statement = statement.where(
            or_(Volume.migration_status.is_(None), Volume.migration_status.not_like("target:%"))
        )
    return statement


# --- changing ----------------------------------------------------------------------------------------------


@routes.put("/volumes/<volume_id>", policy="volume:update", body=schemas.UpdateVolumeBody)
def change(call: Call, volume_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Change name, description, metadata."""
    volume = find_volume(call, volume_id, lock=True)
    params = body["volume"]
    touch(call, volume, **{name: params[name] for name in ("name", "description") if name in params})
    if "metadata" in params:
        OF_VOLUMES.replace(call.session, volume_id, params["metadata"])
    return render_one(call, volume_id, detailed=False)


METADATA_LOCKED = (V.MAINTENANCE, V.UPLOADING)
"""Statuses in which the metadata of a volume and of its image cannot be changed."""


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
