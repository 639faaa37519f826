"""Metadata of volumes and of snapshots: all pairs or one pair. That of a volume has an Etag, too."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from blockstore.api import snapshots
from blockstore.api.http.call import Call, PlainText
from blockstore.api.http.routes import Routes
from blockstore.api.metadata import OF_SNAPSHOTS, OF_VOLUMES, Metadata
from blockstore.api.volumes import volumes
from blockstore.errors import BadRequest, PreconditionFailed
from blockstore.microversions import METADATA_ETAG
from blockstore.schemas.base import Schema
from blockstore.schemas.snapshots import SnapshotMetadataBody, SnapshotMetadataItemBody
from blockstore.schemas.volumes import VolumeMetadataBody, VolumeMetadataItemBody

routes = Routes()


@dataclass(frozen=True, kw_only=True)
class MetadataEndpoints:
    """The endpoints for the metadata of one kind of resource."""

    noun: str
    pairs: Metadata
    find: Callable[..., Any]
    touch: Callable[..., None]
    """Note the time of the change, or raise InvalidStatus."""
    has_etag: bool

    def declare(
        self, *, get: str, create: str, update: str, delete: str, body: type[Schema], item_body: type[Schema]
    ) -> None:
        """Declare the six endpoints. ``get`` to ``delete`` name their policies; the schemas check their bodies."""
        path = f"/{self.noun}s/<{self.noun}_id>/metadata"
        one = f"{path}/<key>"
        routes.get(path, policy=get)(self._of_id(self.index))
        routes.post(path, policy=create, body=body, status=200)(self._of_id(self.merge))
        routes.put(path, policy=update, body=body)(self._of_id(self.replace))
        routes.get(one, policy=get)(self._of_id(self.show))
        routes.put(one, policy=update, body=item_body)(self._of_id(self.set_one))
        routes.delete(one, policy=delete, status=200)(self._of_id(self.remove))

    def _of_id(self, endpoint: Callable[..., Any]) -> Callable[..., Any]:
        """Return an endpoint function that takes the resource's id by the name that it has in the path."""

        @functools.wraps(endpoint)
        def function(call: Call, **arguments: Any) -> Any:
            return endpoint(call, arguments.pop(f"{self.noun}_id"), **arguments)

        return function

    def index(self, call: Call, resource_id: str) -> Any:
        """Show all pairs."""
        self.find(call, resource_id)
        render = self._render(call, resource_id)
        if not self.has_etag or call.version < METADATA_ETAG:
            return render
        body = _body(render)
        # compat: the media type that Cinder sends with an Etag
        return PlainText(body=body, mimetype="text/html", headers={"Etag": _etag(body)})

    def merge(self, call: Call, resource_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Add pairs to the existing ones."""
        self.touch(call, self.find(call, resource_id, lock=True))
        self.pairs.merge(call.session, resource_id, body["metadata"])
        return self._render(call, resource_id)

    def replace(self, call: Call, resource_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Replace all pairs."""
        resource = self.find(call, resource_id, lock=True)  # of two writers with one Etag, the second is refused
        self._check_if_match(call, resource_id)
        self.touch(call, resource)
        self.pairs.replace(call.session, resource_id, body["metadata"])
        return self._render(call, resource_id)

    def show(self, call: Call, resource_id: str, key: str) -> dict[str, Any]:
        """Show one pair."""
        self.find(call, resource_id)
        return {"meta": {key: self.pairs.value(call.session, resource_id, key)}}

    def set_one(self, call: Call, resource_id: str, key: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Set one pair."""
        resource = self.find(call, resource_id, lock=True)
        if key not in body["meta"]:
            raise BadRequest(f"The body must have one key, that of the URL: {key}.")
        self._check_if_match(call, resource_id)
        self.touch(call, resource)
        self.pairs.merge(call.session, resource_id, body["meta"])
        return {"meta": body["meta"]}

    def remove(self, call: Call, resource_id: str, key: str) -> None:
        """Remove one pair."""
        self.touch(call, self.find(call, resource_id, lock=True))
        self.pairs.remove(call.session, resource_id, key)

    def _render(self, call: Call, resource_id: str) -> dict[str, Any]:
        return {"metadata": self.pairs.of(call.session, resource_id)}

    def _check_if_match(self, call: Call, resource_id: str) -> None:
        if not self.has_etag or call.version < METADATA_ETAG or not call.if_match:
            return
        present = _etag(_body(self._render(call, resource_id)))
        wanted = {tag.strip().removeprefix("W/").strip('"') for tag in call.if_match.split(",")}
        if present not in wanted and "*" not in wanted:
            raise PreconditionFailed(f"The metadata of {self.noun} {resource_id} has changed; its Etag is {present}.")


def _body(render: Mapping[str, Any]) -> bytes:
    # compat: the Etag is the MD5 of the body written with these separators
    return json.dumps(render).encode()


def _etag(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


MetadataEndpoints(
    noun="volume",
    pairs=OF_VOLUMES,
    find=volumes.find_volume,
    touch=functools.partial(volumes.touch, not_while=volumes.METADATA_LOCKED),
    has_etag=True,
).declare(
    get="volume:get_volume_metadata",
    create="volume:create_volume_metadata",
    update="volume:update_volume_metadata",
    delete="volume:delete_volume_metadata",
    body=VolumeMetadataBody,
    item_body=VolumeMetadataItemBody,
)
MetadataEndpoints(
    noun="snapshot",
    pairs=OF_SNAPSHOTS,
    find=snapshots.find_snapshot,
    touch=snapshots.touch,
    has_etag=False,
).declare(
    get="volume:get_snapshot_metadata",
    create="volume:update_snapshot_metadata",
    update="volume:update_snapshot_metadata",
    delete="volume:delete_snapshot_metadata",
    body=SnapshotMetadataBody,
    item_body=SnapshotMetadataItemBody,
)
