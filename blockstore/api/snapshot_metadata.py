"""Metadata of a snapshot: all pairs or one pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockstore.api.http.call import Call
from blockstore.api.http.routes import Routes
from blockstore.api.metadata import OF_SNAPSHOTS
from blockstore.api.snapshots import find_snapshot, touch
from blockstore.errors import BadRequest
from blockstore.schemas import snapshots as schemas

routes = Routes()

PATH = "/snapshots/<snapshot_id>/metadata"


@routes.get(PATH, policy="volume:get_snapshot_metadata")
def index(call: Call, snapshot_id: str) -> dict[str, Any]:
    """Show all pairs."""
    find_snapshot(call, snapshot_id)
    return {"metadata": OF_SNAPSHOTS.of(call.session, snapshot_id)}


@routes.post(PATH, policy="volume:update_snapshot_metadata", body=schemas.SnapshotMetadataBody, status=200)
def merge(call: Call, snapshot_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Add pairs to the existing ones."""
    touch(call, find_snapshot(call, snapshot_id, lock=True))
    OF_SNAPSHOTS.merge(call.session, snapshot_id, body["metadata"])
    return {"metadata": OF_SNAPSHOTS.of(call.session, snapshot_id)}


@routes.put(PATH, policy="volume:update_snapshot_metadata", body=schemas.SnapshotMetadataBody)
def replace(call: Call, snapshot_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Replace all pairs."""
    touch(call, find_snapshot(call, snapshot_id, lock=True))
    OF_SNAPSHOTS.replace(call.session, snapshot_id, body["metadata"])
    return {"metadata": OF_SNAPSHOTS.of(call.session, snapshot_id)}


@routes.get(f"{PATH}/<key>", policy="volume:get_snapshot_metadata")
def show(call: Call, snapshot_id: str, key: str) -> dict[str, Any]:
    """Show one pair."""
    find_snapshot(call, snapshot_id)
    return {"meta": {key: OF_SNAPSHOTS.value(call.session, snapshot_id, key)}}


@routes.put(f"{PATH}/<key>", policy="volume:update_snapshot_metadata", body=schemas.SnapshotMetadataItemBody)
def set_one(call: Call, snapshot_id: str, key: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Set one pair."""
    snapshot = find_snapshot(call, snapshot_id, lock=True)
    if key not in body["meta"]:
        raise BadRequest(f"The body must have one key, that of the URL: {key}.")
    touch(call, snapshot)
    OF_SNAPSHOTS.merge(call.session, snapshot_id, body["meta"])
    return {"meta": body["meta"]}


@routes.delete(f"{PATH}/<key>", policy="volume:delete_snapshot_metadata", status=200)
def remove(call: Call, snapshot_id: str, key: str) -> None:
    """Remove one pair."""
    snapshot = find_snapshot(call, snapshot_id, lock=True)
    touch(call, snapshot)
    OF_SNAPSHOTS.remove(call.session, snapshot_id, key)
