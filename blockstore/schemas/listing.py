"""Query parameters of every list."""

from __future__ import annotations

import re
from typing import Any

from marshmallow import INCLUDE, ValidationError, fields

from blockstore.schemas.base import BoolLike, Schema, TextField, field

LARGEST = 2**63 - 1


class Count(fields.Field[int]):
    """A whole number from 0, in digits."""

    shows_value = True

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> int:
        if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,19}", value, re.ASCII) or int(value) > LARGEST:
            raise ValidationError(f"It must be a whole number from 0 to {LARGEST}.")
        return int(value)


class PageQuery(Schema):
    """Paging and sorting; other keys are filters."""

    class Meta:
        unknown = INCLUDE

    limit = field(Count)
    offset = field(Count)
    marker = field(TextField)
    sort = field(TextField, max_length=1024)
    sort_key = field(TextField, max_length=255)
    sort_dir = field(TextField, max_length=255)


class CountedQuery(PageQuery):
    """A page query that may ask for the total number of items."""

    with_count = field(BoolLike)


SWITCHES = frozenset({"limit", "offset", "marker", "sort", "sort_key", "sort_dir", "all_tenants"})
"""Query keys that are never filters."""
