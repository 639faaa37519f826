"""Metadata of a snapshot: all of it, and key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete

from blockstore.api.endpoint import Call, Room
from blockstore.api.snapshots import find_snapshot, metadata_of, replace_metadata, touch
from blockstore.db.models import SnapshotMetadata
from blockstore.errors import BadRequest, NotFound
from blockstore.schemas import snapshots as schemas

room = Room()

PATH = "/snapshots/<snapshot_id>/metadata"


@room.get(PATH, policy="volume:get_snapshot_metadata")
def index(call: Call, snapshot_id: str) -> dict[str, Any]:
    """Show all pairs."""
    find_snapshot(call, snapshot_id)
    return {"metadata": _pairs(call, snapshot_id)}


@room.post(PATH, policy="volume:update_snapshot_metadata", body=schemas.Metadata, status=200)
def merge(call: Call, snapshot_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Add pairs to those that are there."""
    touch(call, find_snapshot(call, snapshot_id))
    replace_metadata(call, snapshot_id, body["metadata"], merge=True)
    return {"metadata": _pairs(call, snapshot_id)}


@room.put(PATH, policy="volume:update_snapshot_metadata", body=schemas.Metadata)
def replace(call: Call, snapshot_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Replace all pairs."""
    touch(call, find_snapshot(call, snapshot_id))
    replace_metadata(call, snapshot_id, body["metadata"])
    return {"metadata": _pairs(call, snapshot_id)}


@room.get(f"{PATH}/<key>", policy="volume:get_snapshot_metadata")
def show(call: Call, snapshot_id: str, key: str) -> dict[str, Any]:
    """Show one pair."""
    find_snapshot(call, snapshot_id)
    return {"meta": {key: _value(call, snapshot_id, key)}}


@room.put(f"{PATH}/<key>", policy="volume:update_snapshot_metadata", body=schemas.MetadataItem)
def set_one(call: Call, snapshot_id: str, key: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Set one pair."""
    snapshot = find_snapshot(call, snapshot_id)
    if key not in body["meta"]:
        raise BadRequest(f"The body's one key must be that of the URL, {key}.")
    touch(call, snapshot)
    replace_metadata(call, snapshot_id, body["meta"], merge=True)
    return {"meta": body["meta"]}


@room.delete(f"{PATH}/<key>", policy="volume:delete_snapshot_metadata", status=200)
def remove(call: Call, snapshot_id: str, key: str) -> None:
    """Remove one pair."""
    snapshot = find_snapshot(call, snapshot_id)
    _value(call, snapshot_id, key)
    touch(call, snapshot)
    call.session.execute(
        delete(SnapshotMetadata).where(SnapshotMetadata.snapshot_id == snapshot_id, SnapshotMetadata.key == key)
    )


def _pairs(call: Call, snapshot_id: str) -> dict[str, str]:
    return metadata_of(call, [snapshot_id]).get(snapshot_id, {})


def _value(call: Call, snapshot_id: str, key: str) -> str:
    pairs = _pairs(call, snapshot_id)
    if key not in pairs:
        raise NotFound(f"Snapshot {snapshot_id} has no metadata with key {key}.")
    return pairs[key]
