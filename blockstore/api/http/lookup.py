"""Find a row by its id, for a caller who may see it."""

from __future__ import annotations

from typing import TypeVar

from blockstore.api.http.call import Call
from blockstore.db.models import Message, Snapshot, Transfer, Volume
from blockstore.errors import NotFound
from blockstore.schemas.base import is_uuid

Row = TypeVar("Row", Volume, Snapshot, Transfer, Message)


def find(call: Call, model: type[Row], row_id: str, *, rule: str | None = None, lock: bool = False) -> Row:
    """Return the row. Raise NotFound if it does not exist or the caller may not see it; the caller cannot tell which.

    ``rule``: a policy that the caller must satisfy as well. ``lock``: lock the row until the transaction ends.
    """
    row = call.session.get(model, row_id, with_for_update=lock or None) if is_uuid(row_id) else None
    if row is None or not call.ctx.may_see(row.project_id) or not (rule is None or call.may(rule)):
        raise NotFound.resource(model.__name__, row_id)
    return row
