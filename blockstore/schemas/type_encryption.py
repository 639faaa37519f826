"""Shapes of the encryption of volume types."""

from __future__ import annotations

import re
from typing import Any

from marshmallow import EXCLUDE, ValidationError, fields

from blockstore.schemas.base import MAX_SIZE_GIB, Part, Schema, TextField, field

LOCATIONS = ("front-end", "back-end")


class KeySize(fields.Field[int]):
    """Bits of a key: an integer or a string of digits."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,20}", value, re.ASCII):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SIZE_GIB:
            raise ValidationError(f"It must be a whole number from 0 to {MAX_SIZE_GIB}.")
        return value


class NewEncryptionBody(Schema):
    class Meta:
        unknown = EXCLUDE

    provider = field(TextField, required=True)
    control_location = field(TextField, required=True, choices=LOCATIONS)
    cipher = field(TextField, allow_none=True)
    key_size = field(KeySize, allow_none=True)


class CreateEncryptionBody(Schema):
    encryption = field(Part, required=True, schema=NewEncryptionBody)


class EncryptionChangeBody(NewEncryptionBody):
    provider = field(TextField)
    control_location = field(TextField, choices=LOCATIONS)


class ChangeEncryptionBody(Schema):
    encryption = field(Part, required=True, schema=EncryptionChangeBody)
