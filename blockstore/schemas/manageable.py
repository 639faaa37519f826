"""Bodies of the requests that manage and unmanage existing volumes and snapshots."""

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, fields

from blockstore.microversions import MIGRATE_CLUSTER
from blockstore.schemas.base import AnyValue, BoolLike, Pairs, Part, Schema, TextField, Uuid, field


class Reference(fields.Field[str]):
    """The name of a volume on its backend: a string, or an object with ``source-name``.

    compat: other keys are ignored, as in Cinder's drivers that identify a volume by its name.
    """

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        name = value.get("source-name") if isinstance(value, dict) else value
        if not isinstance(name, str) or not name.strip() or len(name) > 255:
            raise ValidationError('It must be {"source-name": NAME}, NAME of 1 to 255 characters.')
        if not name.isprintable():
            raise ValidationError("It must hold printable characters only.")
        return name


class VolumeToManageBody(Schema):
    ref = field(Reference, required=True)
    host = field(TextField, min_length=1, allow_none=True)
    cluster = field(TextField, since=MIGRATE_CLUSTER, min_length=1, allow_none=True)
    name = field(TextField, strip=True, allow_none=True)
    description = field(TextField, printable=True, allow_none=True)
    availability_zone = field(TextField, allow_none=True)
    bootable = field(BoolLike, allow_none=True)  # compat: openstackclient sends null
    volume_type = field(TextField, allow_none=True)
    metadata = field(Pairs, allow_none=True)


class ManageVolumeBody(Schema):
    volume = field(Part, required=True, schema=VolumeToManageBody)


class SnapshotToManageBody(Schema):
    volume_id = field(Uuid, required=True)
    ref = field(Reference, required=True)
    name = field(TextField, strip=True, allow_none=True)
    description = field(TextField, printable=True, allow_none=True)
    metadata = field(Pairs, allow_none=True)


class ManageSnapshotBody(Schema):
    snapshot = field(Part, required=True, schema=SnapshotToManageBody)


class UnmanageBody(Schema):
    unmanage = field(AnyValue, required=True, allow_none=True, data_key="os-unmanage")
