"""Shapes of quota sets and quota classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError, fields

from blockstore.schemas.base import MAX_SIZE_GIB, Schema, field

IGNORED = ("tenant_id", "project_id", "id", "force")
"""compat: older clients send these keys."""
MOST_KEYS = 5000


class Limits(fields.Field[dict[str, int]]):
    """A map of quota names to limits."""

    def __init__(self, *, least: int = 0, **kw: Any):
        super().__init__(**kw)
        self.least = least

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> dict[str, int]:
        if not isinstance(value, Mapping) or len(value) > MOST_KEYS:
            raise ValidationError(f"It must be an object of at most {MOST_KEYS} limits.")
        if len(value) < self.least:
            raise ValidationError("It is empty; name at least one limit.")
        limits = {}
        for name, limit in value.items():
            if name in IGNORED:
                continue
            if isinstance(limit, str) and re.fullmatch(r"-?[0-9]{1,20}", limit, re.ASCII):
                limit = int(limit)
            if isinstance(limit, bool) or not isinstance(limit, int) or not -1 <= limit <= MAX_SIZE_GIB:
                raise ValidationError({name: [f"It must be a whole number from -1 (no limit) to {MAX_SIZE_GIB}."]})
            limits[name] = limit
        return limits


class UpdateQuotaSetBody(Schema):
    quota_set = field(Limits, required=True, least=1)


class UpdateQuotaClassBody(Schema):
    quota_class_set = field(Limits, required=True)
