"""Encryption settings of volume types, and the encryption of a volume.

This service stores no keys yet, so it refuses to create volumes of an encrypted type. An unencrypted volume of such a
type would break a promise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockstore.api.http.call import Call
from blockstore.api.http.routes import Routes
from blockstore.api.types.types import find_type, refuse_used
from blockstore.api.volumes.volumes import find_volume
from blockstore.db.models import TypeEncryption, VolumeType, new_id
from blockstore.errors import BadRequest, NotFound
from blockstore.schemas import type_encryption as schemas
from blockstore.schemas.base import timestamp

routes = Routes()

PLACE = "/types/<type_id>/encryption"
FIELDS = ("provider", "control_location", "cipher", "key_size")


@routes.get(PLACE, policy="volume_extension:volume_type_encryption:get")
def show(call: Call, type_id: str) -> dict[str, Any]:
    """Show the encryption of a type; an empty reply if it has none."""
    return _render(find_type(call, type_id, by_name=False))


@routes.get(f"{PLACE}/<key>", policy="volume_extension:volume_type_encryption:get")
def show_one(call: Call, type_id: str, key: str) -> dict[str, Any]:
    """Show one field of the encryption of a type."""
    item = _render(find_type(call, type_id, by_name=False))
    if key not in item:
        raise NotFound(f"The encryption of type {type_id} has no key {key}.")
    return {key: item[key]}


@routes.post(
    PLACE, policy="volume_extension:volume_type_encryption:create", body=schemas.CreateEncryptionBody, status=200
)
def create(call: Call, type_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Create the encryption of a type."""
    row = find_type(call, type_id, by_name=False, lock=True)
    refuse_used(call, row, "Cannot create encryption specs. Volume type in use.")
    if row.encryption is not None:
        raise BadRequest(f"Volume type encryption for type {type_id} already exists.")
    params = body["encryption"]
    row.encryption = TypeEncryption(id=new_id(), **{name: params.get(name) for name in FIELDS})
    return {"encryption": {**params, "volume_type_id": type_id, "encryption_id": row.encryption.id}}


@routes.put(
    f"{PLACE}/<encryption_id>",
    policy="volume_extension:volume_type_encryption:update",
    body=schemas.ChangeEncryptionBody,
)
def change(call: Call, type_id: str, encryption_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Change the encryption of a type."""
    row = find_type(call, type_id, by_name=False, lock=True)
    refuse_used(call, row, "Cannot update encryption specs. Volume type in use.")
    present = _present(row)
    for name, value in body["encryption"].items():
        setattr(present, name, value)
    return {"encryption": body["encryption"]}


@routes.delete(f"{PLACE}/<encryption_id>", policy="volume_extension:volume_type_encryption:delete")
def remove(call: Call, type_id: str, encryption_id: str) -> None:
    """Remove the encryption of a type."""
    row = find_type(call, type_id, by_name=False, lock=True)
    refuse_used(call, row, "Cannot delete encryption specs. Volume type in use.")
    call.session.delete(_present(row))


def _present(row: VolumeType) -> TypeEncryption:
    if row.encryption is None:
        raise NotFound(f"Volume type encryption for type {row.id} does not exist.")
    return row.encryption


def _render(row: VolumeType) -> dict[str, Any]:
    encryption = row.encryption
    if encryption is None:
        return {}
    return {
        "encryption_id": encryption.id,
        "volume_type_id": row.id,
        **{name: getattr(encryption, name) for name in FIELDS},
        "created_at": timestamp(encryption.created_at),
        "updated_at": timestamp(encryption.updated_at),
        "deleted_at": None,
        "deleted": False,
    }


# --- of a volume -------------------------------------------------------------------------------------------

OF_VOLUME = "/volumes/<volume_id>/encryption"


@routes.get(OF_VOLUME, policy="volume_extension:volume_encryption_metadata")
def of_volume(call: Call, volume_id: str) -> dict[str, Any]:
    """Show the encryption of a volume."""
    return {"encryption_key_id": find_volume(call, volume_id).encryption_key_id}


@routes.get(f"{OF_VOLUME}/<key>", policy="volume_extension:volume_encryption_metadata")
def one_of_volume(call: Call, volume_id: str, key: str) -> dict[str, Any]:
    """Show one field of the encryption of a volume."""
    item = of_volume(call, volume_id)
    if key not in item:
        raise NotFound(f"The encryption of volume {volume_id} has no key {key}.")
    return {key: item[key]}
