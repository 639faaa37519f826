"""Shapes of default types."""

from __future__ import annotations

from blockstore.schemas.base import Part, Schema, TextField, field


class TypeNameBody(Schema):
    volume_type = field(TextField, required=True, min_length=1, strip=True)


class SetDefaultTypeBody(Schema):
    class Meta:
        unknown = "exclude"

    default_type = field(Part, required=True, schema=TypeNameBody)
