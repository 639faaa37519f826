"""Shapes of QoS specs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import INCLUDE, ValidationError, fields, post_load

from blockstore.schemas.base import METADATA_KEY, Pairs, Part, Schema, TextField, check_pairs, field

CONSUMERS = ("front-end", "back-end", "both")
MOST_KEYS = 100


class NewSpecsBody(Schema):
    class Meta:
        unknown = INCLUDE

    name = field(TextField, required=True, min_length=1, strip=True)
    consumer = field(TextField, choices=CONSUMERS)

    @post_load
    def _the_rest_is_specs(self, data: dict[str, Any], **_kw: Any) -> dict[str, Any]:
        own = {"name": data.pop("name"), "consumer": data.pop("consumer", "back-end")}
        # compat: numbers are accepted and stored as text
        plain = {key: str(value) if isinstance(value, int | float) else value for key, value in data.items()}
        return {**own, "specs": check_pairs(plain, METADATA_KEY, null_values=True)}


class CreateSpecsBody(Schema):
    qos_specs = field(Part, required=True, schema=NewSpecsBody)


class Changes(Pairs):
    """Specs, which may include the consumer."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> dict[str, Any]:
        if isinstance(value, Mapping) and value.get("consumer", "both") not in CONSUMERS:
            raise ValidationError({"consumer": [f"It must be one of {', '.join(CONSUMERS)}."]})
        return super()._deserialize(value, attr, data, **kw)


class ChangeSpecsBody(Schema):
    qos_specs = field(Changes, required=True, null_values=True)


class Keys(fields.Field[list[str]]):
    """A list of keys, each once."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> list[str]:
        if not isinstance(value, list) or len(value) > MOST_KEYS:
            raise ValidationError(f"It must be a list of at most {MOST_KEYS} keys.")
        if not all(isinstance(key, str) and 1 <= len(key) <= 255 for key in value) or len(set(value)) != len(value):
            raise ValidationError("Each key must be a string of 1 to 255 characters, and appear only once.")
        return value


class DeleteKeysBody(Schema):
    keys = field(Keys, required=True)
