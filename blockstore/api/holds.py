"""Holds on a volume: its project, its connections, and the operations that read or change its data.

A volume is transferred to another project, or reverted to a snapshot, only while nothing holds it. The conditions
belong in the compare-and-swap of the status, under the lock on the volume: connecting or copying a volume takes that
lock first.
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
"""It deletes the leftover copy of a migration, which is not the volume any more."""


def is_connected(volume_id: str) -> ColumnElement[bool]:
    """Return the condition that a volume has an attachment, including those of os-initialize_connection."""
    return exists().where(Attachment.volume_id == volume_id)


def is_worked_on(volume_id: str) -> ColumnElement[bool]:
    """Return the condition that an operation on a volume, on its snapshots, or on a new clone of it is not finished.

    It checks operations, not a status: an administrator may have reset the status while the operation goes on.
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
    """Return what holds a volume and what to do about it, as the end of a sentence; None if nothing holds it."""
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
    """Prevent the deletion of a project until this transaction ends. Raise Unauthorized if it has been deleted.

    Called before a resource is created in the project. The token was valid when the request began. A project with
    resources cannot be deleted, but a concurrent deletion does not see resources that are not committed yet.
    """
    if call.core.config.service.auth == "builtin" and not accounts.hold_project(call.session, project_id):
        raise Unauthorized(UNAUTHENTICATED)
