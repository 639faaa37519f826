"""Image metadata of a volume, that is, of the image that it was made from: set, unset, show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockstore.api.http.call import Call
from blockstore.api.http.routes import Routes
from blockstore.api.metadata import OF_IMAGES
from blockstore.api.volumes.volumes import ACTION, METADATA_LOCKED, find_volume, touch
from blockstore.schemas import image_metadata as schemas

routes = Routes()


@routes.action(
    ACTION, "os-set_image_metadata", policy="volume_extension:volume_image_metadata:set",
    body=schemas.SetImageMetadataBody, status=200,
)  # fmt: skip
def change(call: Call, volume_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Add pairs to the existing ones."""
    volume = find_volume(call, volume_id, lock=True)
    call.enforce("volume:update_volume_metadata")
    OF_IMAGES.merge(call.session, volume_id, body["given"]["metadata"])
    pairs = OF_IMAGES.of(call.session, volume_id)
    touch(call, volume, not_while=METADATA_LOCKED, has_image_metadata=bool(pairs))
    return {"metadata": pairs}


@routes.action(
    ACTION, "os-unset_image_metadata", policy="volume_extension:volume_image_metadata:remove",
    body=schemas.UnsetImageMetadataBody, status=200,
)  # fmt: skip
def unset(call: Call, volume_id: str, body: Mapping[str, Any]) -> None:
    """Remove one pair."""
    volume = find_volume(call, volume_id, lock=True)
    call.enforce("volume:delete_volume_metadata")
    OF_IMAGES.remove(call.session, volume_id, body["given"]["key"])
    touch(call, volume, not_while=METADATA_LOCKED, has_image_metadata=bool(OF_IMAGES.of(call.session, volume_id)))


@routes.action(
    ACTION,
    "os-show_image_metadata",
    policy="volume:get_volume_metadata",
    body=schemas.ShowImageMetadataBody,
    status=200,
)
def show(call: Call, volume_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Show all pairs."""
    find_volume(call, volume_id)
    return {"metadata": OF_IMAGES.of(call.session, volume_id)}
