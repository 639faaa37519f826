"""The body of requests that are not supported yet: any object."""

from __future__ import annotations

from marshmallow import INCLUDE

from blockstore.schemas.base import Schema


class AnythingBody(Schema):
    class Meta:
        unknown = INCLUDE
