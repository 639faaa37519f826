"""Attachments: export a volume to an initiator, and withdraw the export.

Handlers of the operations that the API enqueues while its caller waits. Each is idempotent. Permissions are checked
elsewhere.
"""

from __future__ import annotations

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from blockstore.db.models import Attachment, Volume
from blockstore.errors import InUse, VolumeMissing
from blockstore.manager.context import ManagerContext, name_of
from blockstore.operations import transitions
from blockstore.operations.catalogue import AttachmentOperation, ConnectAttachment, DisconnectAttachment
from blockstore.operations.messages import Action
from blockstore.operations.runner import Failure, KeepsStatus, handles
from blockstore.operations.states import A


def _note_reason(session: Session, operation: AttachmentOperation, failure: Failure) -> None:
    transitions.lock(session, operation.volume_id)
    reason = None if failure.to else failure.reason.operator
    session.execute(update(Attachment).where(Attachment.id == operation.attachment_id).values(reason=reason))


def _undo_connection(session: Session, operation: ConnectAttachment, failure: Failure) -> None:
    _note_reason(session, operation, failure)
    transitions.fail_rows(session, operation, to=failure.to)
    # No list shows attachments of os-initialize_connection, so users could not find and remove failed ones.
    session.execute(
        delete(Attachment).where(
            Attachment.id == operation.attachment_id, Attachment.legacy, Attachment.status == A.ERROR_ATTACHING
        )
    )


@handles(ConnectAttachment, action=Action.ATTACH, undo=_undo_connection)
def connect_attachment(context: ManagerContext, operation: ConnectAttachment, attachment: Attachment) -> None:
    """Export the volume to the attachment's initiator, and store the connection."""
    with context.db.read() as session:
        pool = session.execute(select(Volume.host).where(Volume.id == attachment.volume_id)).scalar()
    if pool is None:
        raise VolumeMissing.for_everybody(f"The volume {attachment.volume_id} is on no pool.")
    backend = context.backend(pool)
    connection = context.exports.make(attachment, pool, backend, name_of(context.db, attachment.volume_id))
    with context.db.write() as session:
        transitions.lock(session, attachment.volume_id)
        session.execute(
            update(Attachment).where(Attachment.id == attachment.id).values(connection=connection, reason=None)
        )
        transitions.complete(session, operation, A.ATTACHING)
        if not attachment.legacy:
            transitions.sync_volume_status(session, attachment.volume_id)


def _keep_attachment(session: Session, operation: DisconnectAttachment, failure: Failure) -> None:
    _note_reason(session, operation, failure)
    transitions.fail_rows(session, operation, to=failure.to)  # first, because the volume's status follows
    if operation.follow:
        transitions.sync_volume_status(session, operation.volume_id)


@handles(DisconnectAttachment, action=Action.DETACH, undo=_keep_attachment)
def disconnect_attachment(context: ManagerContext, operation: DisconnectAttachment, attachment: Attachment) -> None:
    """Withdraw the export, then delete the attachment; with the last one, also those of os-initialize_connection."""
    left_over = _left_over(context, attachment)
    try:
        with context.exports.withdrawn([*left_over, attachment]), context.db.write() as session:
            transitions.lock(session, attachment.volume_id)
            session.execute(delete(Attachment).where(Attachment.id.in_([one.id for one in left_over])))
            transitions.complete_and_delete(session, operation)
            if operation.follow:
                transitions.sync_volume_status(session, attachment.volume_id)
    except InUse as exc:
        raise KeepsStatus(exc, operation.came_from) from exc


def end_all(context: ManagerContext, volume_id: str) -> None:
    """Withdraw every export of a volume that is being deleted, and delete the export's attachment."""
    here = select(Attachment).where(Attachment.volume_id == volume_id, Attachment.target.is_not(None))
    with context.db.read() as session:
        rows = session.scalars(here).all()
    for attachment in rows:
        with context.exports.withdrawn([attachment]), context.db.write() as session:
            transitions.lock(session, volume_id)
            session.execute(delete(Attachment).where(Attachment.id == attachment.id))
            transitions.sync_volume_status(session, volume_id)


def _left_over(context: ManagerContext, attachment: Attachment) -> list[Attachment]:
    """Return the volume's legacy attachments if this attachment is its last regular one."""
    if attachment.legacy:
        return []
    here = Attachment.volume_id == attachment.volume_id
    with context.db.read() as session:
        others = session.execute(
            select(func.count()).where(here, Attachment.legacy.is_(False), Attachment.id != attachment.id)
        ).scalar()
        return [] if others else list(session.scalars(select(Attachment).where(here, Attachment.legacy)))
