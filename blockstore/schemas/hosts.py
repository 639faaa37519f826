"""Shapes of hosts, clusters and workers."""

from __future__ import annotations

import re
from typing import Any

from marshmallow import ValidationError, fields

from blockstore.schemas.base import BoolLike, Schema, TextField, Uuid, field
from blockstore.schemas.services import HOST
from blockstore.service_names import SCHEDULER_SERVICE, VOLUME_SERVICE


class SwitchHostBody(Schema):
    class Meta:
        unknown = "exclude"

    status = field(TextField, required=True, choices=("enable", "disable"))


class ClusterBody(Schema):
    name = field(TextField, required=True, min_length=1)
    binary = field(TextField, allow_none=True)


class DisableClusterBody(ClusterBody):
    disabled_reason = field(TextField, min_length=1, allow_none=True)


class ServiceId(fields.Field[int]):
    """Number of a service."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> int:
        if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,11}", str(value), re.ASCII):
            raise ValidationError("It must be a number of at most 11 digits.")
        return int(value)


class Kind(fields.Field[str]):
    """Volume or Snapshot, in any case."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> str:
        if not isinstance(value, str) or value.lower() not in ("volume", "snapshot"):
            raise ValidationError("It must be Volume or Snapshot.")
        return value.lower()


class CleanupBody(Schema):
    cluster_name = field(TextField, min_length=1, pattern=HOST, allow_none=True)
    disabled = field(BoolLike)
    host = field(TextField, min_length=1, pattern=HOST, allow_none=True)
    is_up = field(BoolLike)
    binary = field(TextField, choices=(VOLUME_SERVICE, SCHEDULER_SERVICE))
    resource_id = field(Uuid, allow_none=True)
    resource_type = field(Kind, allow_none=True)
    service_id = field(ServiceId, allow_none=True)
