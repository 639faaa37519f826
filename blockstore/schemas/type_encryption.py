"""Shapes of the encryption of volume types."""

from __future__ import annotations

import re
from typing import Any

from marshmallow import EXCLUDE, ValidationError, fields

from blockstore.schemas.base import MAX_SIZE_GIB, Part, Schema, Text, field

LOCATIONS = ("front-end", "back-end")


class KeySize(fields.Field[int]):
    """Bits of a key: an integer or a string of digits."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,20}", value, re.ASCII):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SIZE_GIB:
            raise ValidationError(f"It must be a whole number from 0 to {MAX_SIZE_GIB}.")
        return value


class NewEncryption(Schema):
    class Meta:
        unknown = EXCLUDE

    provider = field(Text, required=True)
    control_location = field(Text, required=True, choices=LOCATIONS)
    cipher = field(Text, allow_none=True)
    key_size = field(KeySize, allow_none=True)


class CreateEncryption(Schema):
    encryption = field(Part, required=True, schema=NewEncryption)


class EncryptionChange(NewEncryption):
    provider = field(Text)
    control_location = field(Text, choices=LOCATIONS)


class ChangeEncryption(Schema):
    encryption = field(Part, required=True, schema=EncryptionChange)
