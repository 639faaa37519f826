"""Migrates volumes between pools: copy, verify, switch, delete the unused copy. Exactly one copy is the volume.

The new copy has its own name, so that two sections may lead to the same storage. The row names the old copy until the
transaction of the switch, and from then on the new copy. A ``RemoveCopy`` deletes the other one; it is enqueued in the
transaction that decides which copy is the volume.
"""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from blockstore.accounting import quotas, reservations
from blockstore.backends.contract import GIB
from blockstore.db.models import Volume, VolumeType
from blockstore.errors import BackendError, OperationCancelled, StateConflict, TryAgain
from blockstore.manager.context import ManagerContext, volume_name
from blockstore.manager.copying import copy_volume
from blockstore.manager.qos import apply_qos
from blockstore.operations import journal, states, transitions
from blockstore.operations.catalogue import MigrateToType, MigrateVolume, RemoveCopy
from blockstore.operations.messages import Action
from blockstore.operations.runner import Failure, handles, handles_until_done, progress_of, refuse_cancelled
from blockstore.operations.states import V

log = logging.getLogger(__name__)


def _remove_the_copy(session: Session, operation: MigrateVolume, _failure: Failure) -> None:
    """Record that the migration failed, and enqueue the operation that deletes the copy."""
    session.execute(update(Volume).where(Volume.id == operation.volume_id).values(migration_status="error"))
    rest = operation.beside(
        RemoveCopy, pool=operation.destination, name=operation.copy_name, size_gib=operation.volume_gib
    )
    journal.enqueue(session, rest)


@handles(MigrateVolume, action=Action.MIGRATE, undo=_remove_the_copy)
def migrate_volume(context: ManagerContext, operation: MigrateVolume, volume: Volume) -> None:
    """Copy the volume to its destination and switch to the copy; the scheduler has reserved the capacity there."""
    _migrate(context, operation, volume, volume.volume_type_id)


def _remove_the_copy_and_keep_the_type(session: Session, operation: MigrateToType, failure: Failure) -> None:
    _remove_the_copy(session, operation, failure)
    quotas.refund_type(
        session, operation.project_id, operation.type_id, volumes=operation.counted, gigabytes=operation.size_gib
    )


@handles(MigrateToType, action=Action.RETYPE, undo=_remove_the_copy_and_keep_the_type)
def migrate_to_type(context: ManagerContext, operation: MigrateToType, volume: Volume) -> None:
    """Migrate the volume to a pool that serves its new type. The switch also changes the type."""
    _migrate(context, operation, volume, operation.type_id)


def _migrate(context: ManagerContext, operation: MigrateVolume, volume: Volume, type_id: str) -> None:
    source, target = context.backend(volume.host), context.backend(operation.destination)
    name = operation.copy_name
    reports = context.pool_reports.get(volume.host or ""), context.pool_reports.get(operation.destination)
    if reports[0] and reports[1] and (reason := reports[0].other_block_size(reports[1])):  # may be known only now
        raise BackendError(f"{operation.destination} cannot take the volume: {reason}.")
    if operation.attempt > 1:
        target.delete_volume(name)  # an incomplete copy of an earlier process
    target.create_volume(name, volume.size)
    apply_qos(context, operation.destination, name, type_id, volume.size)
    copy_volume(source, volume_name(volume), target, name, volume.size * GIB, progress_of(context, operation))
    with context.db.write() as session:
        values: dict[str, Any] = {
            "host": operation.destination,
            "name_id": operation.name_id,
            "migration_status": "success",
        }
        report = context.pool_reports.get(operation.destination)
        if report is not None:
            values["availability_zone"] = report.availability_zone
        if isinstance(operation, MigrateToType):
            volume_type = session.get(VolumeType, operation.type_id)
            if volume_type is None:
                raise BackendError.for_everybody(f"The volume type {operation.type_id} is gone.")
            values |= {"volume_type_id": volume_type.id, "multiattach": volume_type.multiattach}
            counts = {"volumes": operation.counted, "gigabytes": operation.size_gib}
            quotas.refund_type(session, volume.project_id, volume.volume_type_id, **counts)
        try:
            transitions.move(session, states.VOLUME, volume.id, V.AVAILABLE, only_from=(operation.status,), **values)
        except StateConflict as conflict:
            # The volume may have been written to since its status was set.
            raise OperationCancelled(f"the status was reset meanwhile: {conflict.message}") from None
        refuse_cancelled(session, operation)  # also if the status was reset and another migration has begun since
        journal.finish(session, operation)
        left_over = operation.beside(RemoveCopy, pool=volume.host or "", name=volume_name(volume), size_gib=volume.size)
        journal.enqueue(session, left_over)


@handles_until_done(RemoveCopy, action=Action.MIGRATE)
def remove_copy(context: ManagerContext, operation: RemoveCopy) -> None:
    """Delete a migration's leftover copy and release its capacity. Retried until it succeeds."""
    reason = None
    if operation.pool in context.backends:
        try:
            context.backend(operation.pool).delete_volume(operation.name)
        except BackendError as exc:
            raise TryAgain(f"{operation.name} cannot be removed from {operation.pool} yet: {exc}") from exc
    else:
        reason = f"the pool {operation.pool} is no longer in the configuration; {operation.name} may remain there"
        log.error("%s", reason, extra={"request_id": operation.request_id})
    with context.db.write() as session:
        reservations.release_capacity(session, operation.pool, volumes=1, volume_gib=operation.size_gib)
        journal.finish(session, operation, "failed" if reason else "done", reason)
