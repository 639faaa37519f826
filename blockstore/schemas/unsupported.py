"""The body of what is not offered yet: anything."""

from __future__ import annotations

from marshmallow import INCLUDE

from blockstore.schemas.base import Schema


class AnythingBody(Schema):
    class Meta:
        unknown = INCLUDE
