"""Shapes of default types."""

from __future__ import annotations

from blockstore.schemas.base import Part, Schema, Text, field


class TypeName(Schema):
    volume_type = field(Text, required=True, min_length=1, strip=True)


class SetDefaultType(Schema):
    class Meta:
        unknown = "exclude"

    default_type = field(Part, required=True, schema=TypeName)
