"""The messages about operations that failed after they were accepted: the rows behind GET /messages.

Written in the transaction that records the failure. The API defines the action and detail ids.
"""

from __future__ import annotations

import datetime
from enum import Enum

from sqlalchemy.orm import Session

from blockstore.db.models import Message, now
from blockstore.errors import Reason
from blockstore.operations.catalogue import Operation


class Action(Enum):
    """The action that failed: its id and text in the API."""

    SCHEDULE = ("001", "schedule allocate volume")
    ATTACH = ("002", "attach volume")
    EXTEND = ("007", "extend volume")
    CREATE = ("008", "create volume from backend storage")
    SNAPSHOT_CREATE = ("009", "create snapshot")
    SNAPSHOT_DELETE = ("010", "delete snapshot")
    # The API has no ids for the following actions; these are above the ids it uses.
    DELETE = ("101", "delete volume")
    REVERT = ("102", "revert volume to snapshot")
    DETACH = ("103", "detach volume")
    RETYPE = ("104", "retype volume")
    MIGRATE = ("105", "migrate volume")
    MANAGE = ("106", "manage volume")
    STORE = ("107", "store data")


class Detail(Enum):
    """Why it failed."""

    UNKNOWN_ERROR = "001"
    BACKEND_UNREACHABLE = "002"
    NO_BACKEND_AVAILABLE = "003"
    BACKEND_REFUSED = "010"
    CANCELLED = "101"


def tell(
    session: Session, operation: Operation, action: Action, detail: Detail, reason: Reason, keep_days: int
) -> None:
    """Leave a message for the project that owns the resource; administrators see the operator's text."""
    action_id, words = action.value
    kind = operation.resource_type.upper()
    session.add(
        Message(
            project_id=operation.project_id,
            request_id=operation.request_id,
            resource_type=kind,
            resource_uuid=operation.resource_id,
            event_id=f"VOLUME_{kind}_{action_id}_{detail.value}",
            action_id=action_id,
            detail_id=detail.value,
            user_message=f"{words}: {reason.public} (request id {operation.request_id})",
            operator_message=f"{words}: {reason.operator}",
            expires_at=now() + datetime.timedelta(days=keep_days),
        )
    )


def tell_lost(session: Session, kind: str, project_id: str, row_id: str, keep_days: int) -> None:
    """Leave a message for the project whose volume or snapshot was on storage that an administrator replaced."""
    action_id, words = Action.STORE.value
    detail_id = Detail.BACKEND_UNREACHABLE.value
    session.add(
        Message(
            project_id=project_id,
            resource_type=kind.upper(),
            resource_uuid=row_id,
            event_id=f"VOLUME_{kind.upper()}_{action_id}_{detail_id}",
            action_id=action_id,
            detail_id=detail_id,
            user_message=f"{words}: The storage of this {kind.lower()} was replaced. Its data is not on the new"
            " storage. Ask your administrator for the data, or delete it.",
            expires_at=now() + datetime.timedelta(days=keep_days),
        )
    )
