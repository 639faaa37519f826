"""Volumes on their backends: create, delete, extend, retype, revert.

Handlers of the operations that the scheduler and the API enqueue. Each is idempotent: after a crash it runs again from
the start. Permissions and placement are decided elsewhere.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from blockstore.accounting import quotas, reservations
from blockstore.backends.contract import Backend
from blockstore.db.models import Snapshot, Volume, VolumeType
from blockstore.errors import BackendError, InUse, StateConflict, ToolTimeout, VolumeMissing, is_out_of_files
from blockstore.manager.attachments import end_all
from blockstore.manager.context import ManagerContext, name_of, snapshot_name, volume_name
from blockstore.manager.qos import apply_qos
from blockstore.operations import journal, states, transitions
from blockstore.operations.catalogue import (
    ChangeType,
    CreateVolume,
    DeleteVolume,
    ExtendVolume,
    PlaceVolume,
    RevertVolume,
)
from blockstore.operations.messages import Action
from blockstore.operations.runner import Failure, first_change, handles, progress_of
from blockstore.operations.states import V

log = logging.getLogger(__name__)


@handles(CreateVolume, action=Action.CREATE)
def create_volume(context: ManagerContext, operation: CreateVolume, volume: Volume) -> None:
    """Create the volume. If its pool fails, send the volume back to the scheduler for the next pool."""
    backend = None
    try:
        backend = context.backend(volume.host)
        _make(context, operation, volume, backend)
    except BackendError as exc:
        if not _may_try_elsewhere(context, operation, exc) or not _left_nothing(backend, operation, volume, exc):
            raise
        _send_back(context, operation, volume, exc)
        return
    with context.db.write() as session:
        transitions.complete(session, operation, V.AVAILABLE)


def _make(context: ManagerContext, operation: CreateVolume, volume: Volume, backend: Backend) -> None:
    name = volume_name(volume)
    progress = progress_of(context, operation)
    if operation.snapshot_id is not None:
        with context.db.read() as session:
            origin = session.execute(select(Snapshot.volume_id).where(Snapshot.id == operation.snapshot_id)).scalar()
        if origin is None:
            raise VolumeMissing.for_everybody(f"The snapshot {operation.snapshot_id} is gone.")
        backend.create_volume_from_snapshot(
            name, volume.size, name_of(context.db, origin), snapshot_name(operation.snapshot_id), progress
        )
    elif operation.source_volume_id is not None:
        backend.clone_volume(name, volume.size, name_of(context.db, operation.source_volume_id), progress)
    else:
        backend.create_volume(name, volume.size)
    apply_qos(context, volume.host or "", name, volume.volume_type_id, volume.size)


def _may_try_elsewhere(context: ManagerContext, operation: CreateVolume, exc: BackendError) -> bool:
    bound_to_source = operation.snapshot_id is not None or operation.source_volume_id is not None
    attempts = len(operation.tried) + 1
    if is_out_of_files(exc):
        return False  # no pool would do better
    return exc.retry_elsewhere and not bound_to_source and attempts < context.config.scheduler.max_attempts


def _left_nothing(backend: Backend | None, operation: CreateVolume, volume: Volume, exc: BackendError) -> bool:
    """Return True if the failed pool holds nothing of the volume. Otherwise the row must keep naming that pool.

    A call that raises leaves nothing behind. But an earlier process, or a tool that timed out, may have made it.
    """
    if operation.attempt == 1 and not isinstance(exc, ToolTimeout):
        return True
    if backend is None:
        return False
    try:
        backend.delete_volume(volume_name(volume))
    except BackendError:
        return False
    return True


def _send_back(context: ManagerContext, operation: CreateVolume, volume: Volume, exc: BackendError) -> None:
    log.warning(
        "pool %s failed to create volume %s, trying the next: %s",
        volume.host,
        volume.id,
        exc,
        extra={"request_id": operation.request_id},
    )
    following = operation.then(
        PlaceVolume, hints=operation.hints, tried=(*operation.tried, volume.host or ""), failure=str(exc)
    )
    with context.db.write() as session:
        reservations.release_capacity(session, volume.host, volumes=1, volume_gib=volume.size)
        session.execute(update(Volume).where(Volume.id == volume.id).values(host=None))
        journal.complete_and_continue(session, operation, following, failure=str(exc))


@handles(DeleteVolume, action=Action.DELETE)
def delete_volume(context: ManagerContext, operation: DeleteVolume, volume: Volume) -> None:
    """Delete the volume from its backend, then its row, quota and reservation in one transaction."""
    with context.db.read() as session:
        left = session.execute(select(Snapshot.id).where(Snapshot.volume_id == volume.id).limit(1)).scalar()
    # compat: a busy volume keeps its former status, and a message has the reason
    with first_change(operation, whenever=(InUse,)):
        if left is not None:
            raise InUse.for_everybody(f"Its snapshot {left} could not be deleted.")
        backend = context.backend(volume.host) if volume.host is not None else None
        end_all(context, volume.id)
        if backend is not None:
            backend.delete_volume(volume_name(volume), progress_of(context, operation))
    with context.db.write() as session:
        reservations.release_capacity(session, volume.host, volumes=1, volume_gib=volume.size)
        if volume.consumes_quota:
            quotas.refund(session, volume.project_id, volume.volume_type_id, volumes=1, gigabytes=volume.size)
        transitions.complete_and_delete(session, operation)


def _release_growth(session: Session, operation: ExtendVolume, _failure: Failure) -> None:
    reservations.release_capacity(session, operation.pool, volume_gib=operation.growth_gib)
    quotas.refund_growth(session, operation.project_id, operation.volume_id, operation.growth_gib)


@handles(ExtendVolume, action=Action.EXTEND, undo=_release_growth)
def extend_volume(context: ManagerContext, operation: ExtendVolume, volume: Volume) -> None:
    """Grow the volume; the reservation and the quota were taken when the operation was accepted."""
    with first_change(operation):
        context.backend(operation.pool).extend_volume(volume_name(volume), operation.new_size_gib)
    apply_qos(context, operation.pool, volume_name(volume), volume.volume_type_id, operation.new_size_gib)
    context.exports.resize(volume.id)
    with context.db.write() as session:
        # The volume has grown, even if an administrator reset its status meanwhile.
        session.execute(update(Volume).where(Volume.id == volume.id).values(size=operation.new_size_gib))
        if transitions.complete(session, operation, V.AVAILABLE):
            transitions.sync_volume_status(session, volume.id)


def _refund_type(session: Session, operation: ChangeType, _failure: Failure) -> None:
    quotas.refund_type(
        session, operation.project_id, operation.type_id, volumes=operation.counted, gigabytes=operation.size_gib
    )


@handles(ChangeType, action=Action.RETYPE, undo=_refund_type, restores=True)
def change_type(context: ManagerContext, operation: ChangeType, volume: Volume) -> None:
    """Apply the limits of the new type on the pool, and give the volume that type."""
    apply_qos(context, volume.host or "", volume_name(volume), operation.type_id, volume.size, lift=True)
    with context.db.write() as session:
        volume_type = session.get(VolumeType, operation.type_id)
        if volume_type is None:
            raise BackendError.for_everybody(f"The volume type {operation.type_id} is gone.")
        changed = {"volume_type_id": volume_type.id, "multiattach": volume_type.multiattach}
        session.execute(update(Volume).where(Volume.id == volume.id).values(changed))
        counts = {"volumes": operation.counted, "gigabytes": operation.size_gib}
        quotas.refund_type(session, volume.project_id, volume.volume_type_id, **counts)
        _recount_snapshots(session, volume, volume_type.id)
        if transitions.complete(session, operation, V.AVAILABLE):
            transitions.sync_volume_status(session, volume.id)


def _recount_snapshots(session: Session, volume: Volume, type_id: str) -> None:
    """Charge the volume's snapshots to its new type, without a limit, because they exist already."""
    rows = session.execute(
        select(Snapshot.project_id, func.count(), func.sum(Snapshot.volume_size))
        .where(Snapshot.volume_id == volume.id, Snapshot.consumes_quota)
        .group_by(Snapshot.project_id)
    )
    for project, count, gib in rows.all():
        quotas.refund_type(session, project, volume.volume_type_id, snapshots=count, gigabytes=int(gib))
        quotas.refund_type(session, project, type_id, snapshots=-count, gigabytes=-int(gib))


@handles(RevertVolume, action=Action.REVERT)
def revert_volume(context: ManagerContext, operation: RevertVolume, volume: Volume) -> None:
    """Give the volume the bytes of its snapshot; the snapshot is available again afterwards."""
    with first_change(operation):
        context.backend(volume.host).revert_volume(
            volume_name(volume), snapshot_name(operation.snapshot_id), progress_of(context, operation)
        )
    with context.db.write() as session:
        transitions.complete(session, operation, V.AVAILABLE)
        with suppress(StateConflict):  # an administrator has reset the snapshot's status meanwhile
            transitions.move(
                session, states.SNAPSHOT, operation.snapshot_id, states.S.AVAILABLE, only_from=(states.S.RESTORING,)
            )
