"""Shapes of services, their switches and their logs."""

from __future__ import annotations

import re
from typing import Any

from marshmallow import ValidationError, validates_schema

from blockstore.schemas.base import Schema, TextField, field
from blockstore.schemas.volumes import Word
from blockstore.service_names import API_SERVICE, BACKUP_SERVICE, SCHEDULER_SERVICE, VOLUME_SERVICE

HOST = re.compile(r"[a-zA-Z0-9\-._#@:/+\[\]]*")
BINARIES = (SCHEDULER_SERVICE, VOLUME_SERVICE, BACKUP_SERVICE, API_SERVICE, "", "*")
LEVELS = ("debug", "info", "warning", "warn", "error", "critical")


class SwitchBody(Schema):
    binary = field(TextField, min_length=1)
    service = field(TextField, min_length=1)
    host = field(TextField, min_length=1, pattern=HOST, allow_none=True)
    cluster = field(TextField, allow_none=True)

    @validates_schema
    def _names_a_service(self, data: Any, **_kw: Any) -> None:
        if "binary" not in data and "service" not in data:
            raise ValidationError("binary is needed.")
        if not data.get("host"):
            raise ValidationError({"host": ["It is needed."]})


class SwitchOffBody(SwitchBody):
    disabled_reason = field(TextField, required=True, min_length=1, strip=True)


class FreezeBody(Schema):
    host = field(TextField, min_length=1, pattern=HOST, allow_none=True)
    cluster = field(TextField, allow_none=True)

    @validates_schema
    def _names_a_backend(self, data: Any, **_kw: Any) -> None:
        if not data.get("host"):
            raise ValidationError({"host": ["It is needed; this service has no clusters."]})


class LogBody(Schema):
    binary = field(TextField, choices=BINARIES)
    server = field(TextField, allow_none=True)
    prefix = field(TextField, allow_none=True)


class SetLogBody(LogBody):
    level = field(Word, *LEVELS, required=True)
