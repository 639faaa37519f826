"""Snapshots on their backends: create, delete.

Handlers of operations. Each is idempotent.
"""

from __future__ import annotations

from sqlalchemy import select

from blockstore.accounting import quotas, reservations
from blockstore.db.models import Snapshot, Volume
from blockstore.errors import InUse
from blockstore.manager.context import ManagerContext, name_of, snapshot_name
from blockstore.manager.manageable import refuse_unsafe, snapshots_on
from blockstore.operations import transitions
from blockstore.operations.catalogue import CreateSnapshot, DeleteSnapshot
from blockstore.operations.messages import Action
from blockstore.operations.runner import first_change, handles, progress_of
from blockstore.operations.states import S


@handles(CreateSnapshot, action=Action.SNAPSHOT_CREATE)
def create_snapshot(context: ManagerContext, operation: CreateSnapshot, snapshot: Snapshot) -> None:
    """Create a snapshot of the volume, or manage an existing snapshot."""
    volume, backend = name_of(context.db, operation.volume_id), context.backend(snapshot.host)
    if operation.reference:
        for found in snapshots_on(context.db, backend):
            if found.reference == operation.reference:
                refuse_unsafe(found)
        backend.manage_snapshot(volume, operation.reference, snapshot_name(snapshot.id))
    else:
        backend.create_snapshot(volume, snapshot_name(snapshot.id))
    with context.db.write() as session:
        transitions.complete(session, operation, S.AVAILABLE, progress="100%")


@handles(DeleteSnapshot, action=Action.SNAPSHOT_DELETE)
def delete_snapshot(context: ManagerContext, operation: DeleteSnapshot, snapshot: Snapshot) -> None:
    """Delete the snapshot from its backend, then its row, quota and reservation in one transaction."""
    if snapshot.host is not None:
        with first_change(operation, whenever=(InUse,)):  # compat: a busy snapshot is available again
            context.backend(snapshot.host).delete_snapshot(
                name_of(context.db, operation.volume_id), snapshot_name(snapshot.id), progress_of(context, operation)
            )
    with context.db.write() as session:
        reservations.release_capacity(session, snapshot.host, snapshot_gib=snapshot.volume_size)
        if snapshot.consumes_quota:
            type_id = session.execute(select(Volume.volume_type_id).where(Volume.id == snapshot.volume_id)).scalar_one()
            quotas.refund(session, snapshot.project_id, type_id, snapshots=1, gigabytes=snapshot.volume_size)
        transitions.complete_and_delete(session, operation)
