"""Messages: why an operation failed after it was accepted."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, select

from blockstore.api.http import listing
from blockstore.api.http.call import Call
from blockstore.api.http.lookup import find
from blockstore.api.http.routes import Routes
from blockstore.db.models import Message
from blockstore.microversions import MESSAGES, MESSAGES_PAGING
from blockstore.schemas.base import timestamp

routes = Routes()

_FILTERS = ("resource_uuid", "resource_type", "event_id", "request_id", "message_level")

LISTING = listing.Listing(
    model=Message,
    noun="Message",
    collection="messages",
    links_key="messages_links",
    columns=listing.columns_of(Message),
    sortable=frozenset(
        {
            "id", "event_id", "resource_type", "resource_uuid", "request_id", "message_level", "created_at",
            "expires_at",
        }
    ),
    public=frozenset(_FILTERS),
    since=dict.fromkeys(_FILTERS, MESSAGES_PAGING),
)  # fmt: skip


@routes.get("/messages", policy="message:get_all", since=MESSAGES)
def index(call: Call) -> dict[str, Any]:
    """List the project's messages."""
    if call.version < MESSAGES_PAGING:
        call.query = {}
    page = listing.page(call, LISTING, _visible(call))
    return {"messages": [_render(call, row) for (row,) in page.rows], **page.envelope}


@routes.get("/messages/<message_id>", policy="message:get", since=MESSAGES)
def show(call: Call, message_id: str) -> dict[str, Any]:
    """Show one message."""
    return {"message": _render(call, find(call, Message, message_id))}


@routes.delete("/messages/<message_id>", policy="message:delete", status=204, since=MESSAGES)
def remove(call: Call, message_id: str) -> None:
    """Remove one message."""
    call.session.delete(find(call, Message, message_id))


def _visible(call: Call) -> Select[Any]:
    return select(Message).where(Message.project_id == call.ctx.project_id)


def _render(call: Call, row: Message) -> dict[str, Any]:
    item = {
        "id": row.id,
        "event_id": row.event_id,
        # The API has one field for the text: administrators get the operator's text in it.
        "user_message": (row.operator_message if call.ctx.is_admin else None) or row.user_message,
        "message_level": row.message_level,
        "created_at": timestamp(row.created_at),
        "guaranteed_until": timestamp(row.expires_at),
        "request_id": row.request_id,
        "links": call.links.of_resource("messages", row.id),
    }
    if row.resource_type:
        item["resource_type"] = row.resource_type
    if row.resource_uuid:
        item["resource_uuid"] = row.resource_uuid
    return item
