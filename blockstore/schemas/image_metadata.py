"""Shapes of the image metadata of volumes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError, fields

from blockstore.schemas.base import METADATA_KEY, AnyValue, Part, Schema, TextField, field

MOST_PAIRS = 1000
MOST_BYTES = 65535


class ImagePairs(fields.Field[dict[str, str]]):
    """A map of strings to strings; the values may be long."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> dict[str, str]:
        if not isinstance(value, Mapping) or len(value) > MOST_PAIRS:
            raise ValidationError(f"It must be an object of at most {MOST_PAIRS} keys.")
        for key, text in value.items():
            if not METADATA_KEY.fullmatch(key):
                raise ValidationError({key: ["The key must be 1 to 255 characters of [a-zA-Z0-9-_:. /]."]})
            if not isinstance(text, str) or "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
                raise ValidationError({key: ["The value must be a string without NUL."]})
            if len(text.encode()) > MOST_BYTES:
                raise ValidationError({key: [f"The value may have at most {MOST_BYTES} bytes of UTF-8."]})
        return dict(value)


class GivenBody(Schema):
    metadata = field(ImagePairs, required=True)


class SetImageMetadataBody(Schema):
    given = field(Part, required=True, schema=GivenBody, data_key="os-set_image_metadata")


class OneKeyBody(Schema):
    key = field(TextField, required=True, min_length=1)


class UnsetImageMetadataBody(Schema):
    given = field(Part, required=True, schema=OneKeyBody, data_key="os-unset_image_metadata")


class ShowImageMetadataBody(Schema):
    given = field(AnyValue, required=True, allow_none=True, data_key="os-show_image_metadata")
