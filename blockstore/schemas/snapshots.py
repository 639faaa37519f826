"""Shapes of snapshots, their metadata and their actions."""

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, fields, post_load, validates_schema

from blockstore.microversions import CONSUMES_QUOTA, MINIMUM, SNAPSHOT_GROUP, SNAPSHOT_USER
from blockstore.schemas.base import (
    METADATA_KEY,
    SNAPSHOT_METADATA_KEY,
    AnyValue,
    BoolLike,
    Pairs,
    Part,
    Reply,
    Schema,
    TextField,
    Uuid,
    field,
    in_one_word,
    timestamp,
)
from blockstore.schemas.volumes import Word


class NewSnapshotBody(Schema):
    volume_id = field(Uuid, required=True, allow_none=True)
    # compat: null is accepted, and answered like a volume that does not exist
    name = field(TextField, strip=True, allow_none=True)
    display_name = field(TextField, strip=True, allow_none=True)
    description = field(TextField, printable=True, allow_none=True)
    force = field(BoolLike)
    metadata = field(Pairs, allow_none=True)

    @post_load
    def _one_word(self, data: dict[str, Any], **_kw: Any) -> dict[str, Any]:
        return in_one_word(data, display_name="name")


class CreateSnapshotBody(Schema):
    snapshot = field(Part, required=True, schema=NewSnapshotBody)


class SnapshotChangeBody(Schema):
    name = field(TextField, strip=True, allow_none=True)
    description = field(TextField, printable=True, allow_none=True)
    display_name = field(TextField, strip=True, allow_none=True)
    display_description = field(TextField, printable=True, allow_none=True)

    @validates_schema
    def _says_something(self, data: Any, **_kw: Any) -> None:
        if not data:
            raise ValidationError("At least one of name, description is needed.")

    @post_load
    def _one_word(self, data: dict[str, Any], **_kw: Any) -> dict[str, Any]:
        return in_one_word(data, display_name="name", display_description="description")


class UpdateSnapshotBody(Schema):
    snapshot = field(Part, required=True, schema=SnapshotChangeBody)


class SnapshotMetadataBody(Schema):
    class Meta:
        unknown = "exclude"

    metadata = field(Pairs, required=True, key=SNAPSHOT_METADATA_KEY)


class SnapshotMetadataItemBody(Schema):
    class Meta:
        unknown = "exclude"

    # Cinder allows a slash only when a snapshot is created, not here: such a pair could never be changed.
    meta = field(Pairs, required=True, key=METADATA_KEY, least=1, most=1)


STATUSES = (
    "creating", "available", "deleting", "deleted", "updating", "error", "error_deleting", "unmanaging", "backing-up",
    "restoring",
)  # fmt: skip


class StatusBody(Schema):
    status = field(Word, *STATUSES, required=True)


class ResetSnapshotStatusBody(Schema):
    reset = field(Part, required=True, schema=StatusBody, data_key="os-reset_status")


class ForceDeleteSnapshotBody(Schema):
    force_delete = field(AnyValue, required=True, allow_none=True, data_key="os-force_delete")


class Percent(fields.Field[str]):
    """A percentage such as 80%."""

    shows_value = True

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> str:
        number = value.removesuffix("%") if isinstance(value, str) and value.endswith("%") else ""
        if not (number.isascii() and number.isdigit() and int(number) <= 100 and len(number) <= 3):
            raise ValidationError("It must be a percentage from 0% to 100%.")
        return str(value)


class StatusUpdateBody(Schema):
    status = field(TextField, required=True)
    progress = field(Percent)


class UpdateStatusBody(Schema):
    update = field(Part, required=True, schema=StatusUpdateBody, data_key="os-update_snapshot_status")


# --- replies -----------------------------------------------------------------------------------------------

EXTENDED = "volume_extension:extended_snapshot_attributes"
DETAIL = "detail"
"""Not a policy rule: fields that the plain list does not have."""

SNAPSHOT = Reply(
    ("id", lambda s: s.row.id),
    ("created_at", lambda s: timestamp(s.row.created_at)),
    ("updated_at", lambda s: timestamp(s.row.updated_at)),
    ("name", lambda s: s.row.name),
    ("description", lambda s: s.row.description),
    ("volume_id", lambda s: s.row.volume_id),
    ("status", lambda s: s.row.status),
    ("size", lambda s: s.row.volume_size),
    ("metadata", lambda s: s.metadata),
    ("group_snapshot_id", lambda s: s.row.group_snapshot_id, SNAPSHOT_GROUP, DETAIL),
    ("user_id", lambda s: s.row.user_id, SNAPSHOT_USER, DETAIL),
    ("consumes_quota", lambda s: s.row.consumes_quota, CONSUMES_QUOTA, DETAIL),
    ("os-extended-snapshot-attributes:project_id", lambda s: s.row.project_id, MINIMUM, EXTENDED),
    ("os-extended-snapshot-attributes:progress", lambda s: s.row.progress, MINIMUM, EXTENDED),
)
