"""What holds a volume where it is: its project, its connections, and the operations that read or change its bytes.

A volume goes to another project, or back to a snapshot, only while nothing holds it. The conditions belong into the
compare-and-swap of the status, under the lock on the volume: whoever connects or copies a volume takes that lock first.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, exists, or_, select
from sqlalchemy.orm import aliased

from blockstore.api.http.authentication import UNAUTHENTICATED
from blockstore.api.http.call import Call
from blockstore.db.models import Attachment, OperationRow, Snapshot, Volume
from blockstore.errors import Unauthorized
from blockstore.identity import accounts
from blockstore.operations.catalogue import CreateVolume, PlaceVolume, RemoveCopy

_COPIES = [kind.__name__ for kind in (PlaceVolume, CreateVolume)]
_HARMLESS = [RemoveCopy.__name__]
"""Removes what a migration has left behind on the former pool, which is the volume no more."""


def is_connected(volume_id: str) -> ColumnElement[bool]:
    """Return the condition that a volume has an attachment, those of os-initialize_connection included."""
    return exists().where(Attachment.volume_id == volume_id)


def is_worked_on(volume_id: str) -> ColumnElement[bool]:
    """Return the condition that an operation on a volume or its snapshots, or a clone of it, is not finished.

    Asked of the operations and not of a status, which an administrator may have set while the operation goes on.
    """
    clone = aliased(Volume)
    snapshots = select(Snapshot.id).where(Snapshot.volume_id == volume_id)
    clones = select(clone.id).where(clone.source_volid == volume_id)
    return exists().where(
        OperationRow.state == "open",
        OperationRow.kind.not_in(_HARMLESS),
        or_(
            OperationRow.resource_id == volume_id,
            OperationRow.resource_id.in_(snapshots),
            and_(OperationRow.resource_id.in_(clones), OperationRow.kind.in_(_COPIES)),
        ),
    )


def what_holds(call: Call, volume_id: str) -> str | None:
    """Return what holds a volume, as the end of a sentence that says what to do; None if nothing does."""
    rows = call.session.execute(
        select(Attachment.legacy, Attachment.status).where(Attachment.volume_id == volume_id)
    ).all()
    if any(not row.legacy for row in rows):
        return "it has an attachment; delete the attachment first"
    if rows:
        return "it has a connection made by os-initialize_connection; end it with os-terminate_connection first"
    if call.session.execute(select(is_worked_on(volume_id))).scalar():
        return "an operation on it, on a snapshot or on a clone of it is not finished; wait for that first"
    return None


def keep_project(call: Call, project_id: str) -> None:
    """Keep a project, in which something is made, until this transaction ends. Raises Unauthorized when it has gone.

    The token was good when the request began. A project that has anything is not deleted, but what is not committed yet
    is not seen by whoever deletes it.
    """
    if call.core.config.service.auth == "builtin" and not accounts.hold_project(call.session, project_id):
        raise Unauthorized(UNAUTHENTICATED)
