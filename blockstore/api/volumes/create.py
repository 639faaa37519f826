"""Accept a new volume: insert a row in status ``creating`` and an operation in one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blockstore.accounting import quotas
from blockstore.api.holds import keep_project
from blockstore.api.http.call import Call
from blockstore.api.http.lookup import find
from blockstore.api.http.routes import Routes
from blockstore.api.metadata import OF_IMAGES, OF_VOLUMES
from blockstore.api.types.types import default_type, find_type, size_bounds
from blockstore.api.volumes.volumes import find_volume, render
from blockstore.db.models import (
    IS_TRUE,
    Snapshot,
    Volume,
    VolumeType,
    new_id,
    now,
)
from blockstore.errors import BadRequest, InvalidInput, InvalidStatus, NotFound, NotOffered
from blockstore.operations import transitions
from blockstore.operations.catalogue import PlaceVolume
from blockstore.operations.states import S, V
from blockstore.schemas import volumes as schemas
from blockstore.zones import zone_of_new

routes = Routes()


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a new volume."""

    size: int
    volume_type_id: str
    availability_zone: str | None
    bootable: bool
    image_metadata: Mapping[str, str]
    """Copied to the new volume."""


@routes.post("/volumes", policy="volume:create", body=schemas.CreateVolumeBody)
def create(call: Call, body: Mapping[str, Any]) -> dict[str, Any]:
    """Accept a new volume: empty, from a snapshot, or from a volume."""
    params = body["volume"]
    keep_project(call, call.ctx.project_id)
    source = _source(call, params)
    volume_type = _type(call, params, source)
    size = _size(params, source)
    size_bounds(volume_type, size)
    if volume_type.encryption is not None:
        raise BadRequest(
            f"Invalid volume type: volumes of type {volume_type.name} must be encrypted, and this service has no"
            " encryption keys yet. Use another type."
        )
    multiattach = volume_type.multiattach
    if multiattach:
        call.enforce("volume:multiattach")
    volume = Volume(
        id=new_id(),
        project_id=call.ctx.project_id,
        user_id=call.ctx.user_id,
        name=params.get("name"),
        description=params.get("description"),
        size=size,
        volume_type_id=volume_type.id,
        availability_zone=zone_of_new(
            call.core.config,
            volume_type.extra_specs,
            requested=params.get("availability_zone"),
            of_source=source.availability_zone if source else None,
            source="snapshot" if params.get("snapshot_id") else "source volume",
        ),
        snapshot_id=params.get("snapshot_id"),
        source_volid=params.get("source_volid"),
        bootable=source.bootable if source else False,
        has_image_metadata=source is not None and bool(source.image_metadata),
        multiattach=multiattach,
        created_at=now(),
    )
    limits = call.core.config.quota
    quotas.charge(
        call.session, limits, call.ctx.project_id, volume_type.id, volumes=1, gigabytes=size, volume_size_gib=size
    )
    operation = call.operation(
        PlaceVolume,
        volume,
        snapshot_id=volume.snapshot_id,
        source_volume_id=volume.source_volid,
        hints=body.get("hints") or {},
    )
    transitions.insert_with_operation(call.session, volume, operation)
    pairs = params.get("metadata") or {}
    OF_VOLUMES.add(call.session, volume.id, pairs)
    if source is not None:
        OF_IMAGES.copy(call.session, volume.id, source.image_metadata)
    return {"volume": render(call, [(volume, volume_type.name)], {volume.id: pairs}, detailed=False)[0]}


def _source(call: Call, params: Mapping[str, Any]) -> Source | None:
    named = [name for name in ("snapshot_id", "source_volid", "imageRef", "image_id", "backup_id") if params.get(name)]
    if len(named) > 1 and set(named) != {"imageRef", "image_id"}:
        raise BadRequest(f"Only one source may be given, not {' and '.join(named)}.")
    if params.get("multiattach"):
        raise InvalidInput(
            "volume.multiattach", True, f"Use a volume type whose extra spec multiattach is '{IS_TRUE}'."
        )
    for name, noun in (("group_id", "Group"), ("consistencygroup_id", "Consistency group"), ("backup_id", "Backup")):
        if params.get(name):
            raise NotFound.resource(noun, params[name])
    if not named:
        return None
    if named[0] in ("imageRef", "image_id"):
        call.enforce("volume:create_from_image")
        raise NotOffered(
            f"This service does not offer images yet; leave out {named[0]}, or make the volume from a snapshot."
        )
    if named[0] == "snapshot_id":
        return _snapshot_source(call, params["snapshot_id"])
    # Locked: otherwise the volume could belong to another project when it is copied.
    volume = find_volume(call, params["source_volid"], lock=True)
    if volume.status not in (V.AVAILABLE, V.IN_USE):
        raise InvalidStatus(
            f"Invalid volume: volume {volume.id} is {volume.status}; a source must be available or in-use."
        )
    images = OF_IMAGES.of(call.session, volume.id) if volume.has_image_metadata else {}
    return Source(volume.size, volume.volume_type_id, volume.availability_zone, volume.bootable, images)


def _snapshot_source(call: Call, snapshot_id: str) -> Source:
    snapshot = find(call, Snapshot, snapshot_id, rule="volume:get_snapshot")
    if snapshot.status != S.AVAILABLE:
        raise InvalidStatus(
            f"Invalid snapshot: snapshot {snapshot_id} is {snapshot.status}; a source must be available."
        )
    # The snapshot has its own copy of fields that may change: its volume may belong to another project by now.
    zone = call.session.get_one(Volume, snapshot.volume_id).availability_zone
    images = snapshot.image_metadata or {}
    return Source(snapshot.volume_size, snapshot.volume_type_id or "", zone, snapshot.bootable, images)


def _type(call: Call, params: Mapping[str, Any], source: Source | None) -> VolumeType:
    if params.get("volume_type"):
        return find_type(call, params["volume_type"])
    if source is not None and (volume_type := call.session.get(VolumeType, source.volume_type_id)) is not None:
        return volume_type
    return default_type(call)  # also if the snapshot's type has been deleted


def _size(params: Mapping[str, Any], source: Source | None) -> int:
    size: int | None = params.get("size")
    if size is None:
        if source is None:
            raise InvalidInput(
                "volume.size", None, "It is needed unless the volume is made from a snapshot or a volume."
            )
        return source.size
    if source is not None and size < source.size:
        raise InvalidInput("volume.size", size, f"It must not be less than the source's size, {source.size} GiB.")
    return size
