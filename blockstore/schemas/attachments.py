"""Shapes of attachments, and of the older attach actions of a volume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError, fields, validates_schema

from blockstore.microversions import ATTACHMENT_MODE
from blockstore.schemas.base import AnyValue, BoolLike, Part, Reply, Schema, TextField, Uuid, field, timestamp

MAX_CONNECTOR_TEXT = 4096
MAX_CONNECTOR_KEYS = 100
MODES = ("rw", "ro")


class Connector(fields.Field[dict[str, Any]]):
    """An initiator's description of itself: a bounded object of plain values and lists, stored unchanged."""

    def __init__(self, *, least: int = 0, **kw: Any):
        super().__init__(**kw)
        self.least = least

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ValidationError("It must be an object.")
        if not self.least <= len(value) <= MAX_CONNECTOR_KEYS:
            raise ValidationError(f"It has {len(value)} keys; {self.least} to {MAX_CONNECTOR_KEYS} are allowed.")
        for key, inner in value.items():
            _check_plain(key, key)
            for one in inner if isinstance(inner, list) else (inner,):
                _check_plain(key, one)
        if value.get("mode") not in (None, *MODES):
            raise ValidationError({"mode": [f"It must be one of {', '.join(MODES)}."]})
        return dict(value)


def _check_plain(key: str, value: Any) -> None:
    if isinstance(value, dict | list):
        raise ValidationError({key: ["It must be a plain value or a list of plain values."]})
    if not isinstance(value, str):
        return
    if len(value) > MAX_CONNECTOR_TEXT:
        raise ValidationError({key: [f"It has {len(value)} characters; at most {MAX_CONNECTOR_TEXT} are allowed."]})
    if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise ValidationError({key: ["It must hold neither the character NUL nor half of a surrogate pair."]})


# --- attachments -------------------------------------------------------------------------------------------


class NewAttachmentBody(Schema):
    volume_uuid = field(Uuid, required=True)
    instance_uuid = field(Uuid)
    connector = field(Connector, allow_none=True)
    mode = field(TextField, since=ATTACHMENT_MODE, choices=MODES)


class CreateAttachmentBody(Schema):
    attachment = field(Part, required=True, schema=NewAttachmentBody)


class AttachmentChangeBody(Schema):
    connector = field(Connector, required=True, least=1)


class UpdateAttachmentBody(Schema):
    attachment = field(Part, required=True, schema=AttachmentChangeBody)


class CompleteBody(Schema):
    complete = field(AnyValue, required=True, allow_none=True, data_key="os-complete")


# --- older actions of a volume -----------------------------------------------------------------------------


class ReserveBody(Schema):
    reserve = field(AnyValue, required=True, allow_none=True, data_key="os-reserve")


class UnreserveBody(Schema):
    unreserve = field(AnyValue, required=True, allow_none=True, data_key="os-unreserve")


class BeginDetachingBody(Schema):
    begin_detaching = field(AnyValue, required=True, allow_none=True, data_key="os-begin_detaching")


class RollDetachingBody(Schema):
    roll_detaching = field(AnyValue, required=True, allow_none=True, data_key="os-roll_detaching")


class UseBody(Schema):
    instance_uuid = field(Uuid)
    host_name = field(TextField)
    mountpoint = field(TextField, required=True, min_length=1)
    mode = field(TextField, choices=MODES)

    @validates_schema
    def _says_who(self, data: Any, **_kw: Any) -> None:
        if "instance_uuid" not in data and "host_name" not in data:
            raise ValidationError("At least one of instance_uuid and host_name is needed.")


class AttachBody(Schema):
    attach = field(Part, required=True, schema=UseBody, data_key="os-attach")


class UsedBody(Schema):
    attachment_id = field(Uuid, allow_none=True)


class DetachBody(Schema):
    detach = field(Part, required=True, schema=UsedBody, allow_none=True, data_key="os-detach")


class ConnectingBody(Schema):
    connector = field(Connector, required=True)


class InitializeConnectionBody(Schema):
    connection = field(Part, required=True, schema=ConnectingBody, data_key="os-initialize_connection")


class DisconnectingBody(Schema):
    connector = field(Connector, required=True, allow_none=True)


class TerminateConnectionBody(Schema):
    connection = field(Part, required=True, schema=DisconnectingBody, data_key="os-terminate_connection")


class ForcedBody(Schema):
    connector = field(Connector, allow_none=True)
    attachment_id = field(Uuid, allow_none=True)


class ForceDetachBody(Schema):
    detach = field(Part, required=True, schema=ForcedBody, data_key="os-force_detach")


class ExtendCompletionBody(Schema):
    error = field(BoolLike, allow_none=True)


class ExtendVolumeCompletionBody(Schema):
    completion = field(Part, required=True, schema=ExtendCompletionBody, data_key="os-extend_volume_completion")


# --- replies -----------------------------------------------------------------------------------------------

SHOWN_AS = {"connecting": "attaching", "disconnecting": "detaching"}

ATTACHMENT = Reply(
    ("id", lambda a: a.row.id),
    ("status", lambda a: SHOWN_AS.get(a.row.status, a.row.status)),
    ("instance", lambda a: a.row.instance_uuid),
    ("volume_id", lambda a: a.row.volume_id),
)
DETAILED_ATTACHMENT = Reply(
    ("id", lambda a: a.row.id),
    ("status", lambda a: SHOWN_AS.get(a.row.status, a.row.status)),
    ("instance", lambda a: a.row.instance_uuid),
    ("volume_id", lambda a: a.row.volume_id),
    # compat: empty, not null
    ("attached_at", lambda a: timestamp(a.row.attached_at) or ""),
    ("detached_at", lambda a: ""),
    # compat: the string null
    ("attach_mode", lambda a: a.row.attach_mode or "null"),
    ("connection_info", lambda a: a.connection_info),
)
