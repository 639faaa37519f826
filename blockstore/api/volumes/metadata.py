"""Metadata of a volume: all pairs or one pair, with an Etag."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from blockstore.api.http.call import Call, PlainText
from blockstore.api.http.routes import Routes
from blockstore.api.metadata import OF_VOLUMES
from blockstore.api.volumes.volumes import find_volume, touch
from blockstore.errors import BadRequest, PreconditionFailed
from blockstore.microversions import METADATA_ETAG
from blockstore.operations.states import V
from blockstore.schemas import volumes as schemas

routes = Routes()

PATH = "/volumes/<volume_id>/metadata"
LOCKED = (V.MAINTENANCE, V.UPLOADING)


@routes.get(PATH, policy="volume:get_volume_metadata")
def index(call: Call, volume_id: str) -> Any:
    """Show all pairs."""
    find_volume(call, volume_id)
    body = _body(call, volume_id)
    if call.version < METADATA_ETAG:
        return json.loads(body)
    # compat: the media type that Cinder sends with an Etag
    return PlainText(body=body, mimetype="text/html", headers={"Etag": _etag(body)})


@routes.post(PATH, policy="volume:create_volume_metadata", body=schemas.VolumeMetadataBody, status=200)
def merge(call: Call, volume_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Add pairs to the existing ones."""
    touch(call, find_volume(call, volume_id, lock=True), not_while=LOCKED)
    OF_VOLUMES.merge(call.session, volume_id, body["metadata"])
    return {"metadata": OF_VOLUMES.of(call.session, volume_id)}


@routes.put(PATH, policy="volume:update_volume_metadata", body=schemas.VolumeMetadataBody)
def replace(call: Call, volume_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Replace all pairs."""
    volume = find_volume(call, volume_id, lock=True)  # of two writers with one Etag, the second is refused
    _check_if_match(call, volume_id)
    touch(call, volume, not_while=LOCKED)
    OF_VOLUMES.replace(call.session, volume_id, body["metadata"])
    return {"metadata": OF_VOLUMES.of(call.session, volume_id)}


@routes.get(f"{PATH}/<key>", policy="volume:get_volume_metadata")
def show(call: Call, volume_id: str, key: str) -> dict[str, Any]:
    """Show one pair."""
    find_volume(call, volume_id)
    return {"meta": {key: OF_VOLUMES.value(call.session, volume_id, key)}}


@routes.put(f"{PATH}/<key>", policy="volume:update_volume_metadata", body=schemas.VolumeMetadataItemBody)
def set_one(call: Call, volume_id: str, key: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Set one pair."""
    volume = find_volume(call, volume_id, lock=True)
    if key not in body["meta"]:
        raise BadRequest(f"The body must have one key, that of the URL: {key}.")
    _check_if_match(call, volume_id)
    touch(call, volume, not_while=LOCKED)
    OF_VOLUMES.merge(call.session, volume_id, body["meta"])
    return {"meta": body["meta"]}


@routes.delete(f"{PATH}/<key>", policy="volume:delete_volume_metadata", status=200)
def remove(call: Call, volume_id: str, key: str) -> None:
    """Remove one pair."""
    volume = find_volume(call, volume_id, lock=True)
    touch(call, volume, not_while=LOCKED)
    OF_VOLUMES.remove(call.session, volume_id, key)


def _body(call: Call, volume_id: str) -> bytes:
    # compat: the Etag is the MD5 of the body written with these separators
    return json.dumps({"metadata": OF_VOLUMES.of(call.session, volume_id)}).encode()


def _etag(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def _check_if_match(call: Call, volume_id: str) -> None:
    if call.version < METADATA_ETAG or not call.if_match:
        return
    present = _etag(_body(call, volume_id))
    wanted = {tag.strip().removeprefix("W/").strip('"') for tag in call.if_match.split(",")}
    if present not in wanted and "*" not in wanted:
        raise PreconditionFailed(f"The metadata of volume {volume_id} has changed; its Etag is {present}.")
