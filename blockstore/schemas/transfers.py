"""Shapes of volume transfers."""

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, fields

from blockstore.microversions import TRANSFER_PROJECTS, TRANSFER_SNAPSHOTS
from blockstore.schemas.base import BoolLike, Part, Reply, Schema, TextField, Uuid, field, timestamp


class OldTransferBody(Schema):
    volume_id = field(Uuid, required=True)
    name = field(TextField, strip=True, allow_none=True)


class OldCreateTransferBody(Schema):
    transfer = field(Part, required=True, schema=OldTransferBody)


class NewTransferBody(OldTransferBody):
    no_snapshots = field(BoolLike, since=TRANSFER_SNAPSHOTS)


class CreateTransferBody(Schema):
    transfer = field(Part, required=True, schema=NewTransferBody)


class Key(fields.Field[str]):
    """The key of a transfer. compat: a key of digits only may be sent as a number."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int) or len(str(value)) > 255:
            raise ValidationError("It must be a string of at most 255 characters.")
        return str(value)


class TransferProofBody(Schema):
    auth_key = field(Key, required=True)


class AcceptTransferBody(Schema):
    accept = field(Part, required=True, schema=TransferProofBody)


TRANSFER = Reply(
    ("id", lambda t: t.row.id),
    ("created_at", lambda t: timestamp(t.row.created_at)),
    ("name", lambda t: t.row.name),
    ("volume_id", lambda t: t.row.volume_id),
    ("links", lambda t: t.links),
    ("no_snapshots", lambda t: t.row.no_snapshots, TRANSFER_SNAPSHOTS),
    ("source_project_id", lambda t: t.row.project_id, TRANSFER_PROJECTS),
    ("destination_project_id", lambda t: None, TRANSFER_PROJECTS),
    ("accepted", lambda t: False, TRANSFER_PROJECTS),
)
"""An accepted transfer no longer exists, so the last two fields never change."""
