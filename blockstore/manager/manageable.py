"""Manages existing volumes: measure, charge, rename. Lists the manageable volumes and snapshots of a pool.

The charge and the reservation are stored before the backend renames the volume, so that a restart after a crash finds
them and goes on. No session is held during a backend call. Rows are read after it, because a volume of ours has its
row before it exists on the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from blockstore.accounting import quotas, reservations
from blockstore.backends.contract import GIB, Backend, Manageable
from blockstore.db.models import OperationRow, Snapshot, Volume
from blockstore.db.session import Database
from blockstore.errors import BackendError, VolumeMissing
from blockstore.manager.context import ManagerContext, snapshot_name, volume_name
from blockstore.manager.qos import apply_qos
from blockstore.operations import transitions
from blockstore.operations.catalogue import ManageVolume, MigrateToType, MigrateVolume, RemoveCopy
from blockstore.operations.messages import Action
from blockstore.operations.runner import Failure, handles
from blockstore.operations.states import V

MANAGED = "already managed"
_COPYING = [kind.__name__ for kind in (MigrateVolume, MigrateToType, RemoveCopy)]


@dataclass(frozen=True)
class ManageableItem:
    """A volume or snapshot on a pool, and whether an administrator may manage it."""

    reference: str
    size_gib: int
    volume: str
    """Of a snapshot: the reference of its volume."""
    reason: str | None
    """Why it cannot be managed, or None."""
    managed_as: str | None
    """The id of the row that manages it already, or None."""


class ManageableLister:
    """Lists the volumes and snapshots of pools, each pool on a thread of its own.

    A pool that hangs does not delay the others, and gets no second request meanwhile.
    """

    def __init__(self, context: ManagerContext) -> None:
        self._context = context
        self._threads = {pool: ThreadPoolExecutor(1, thread_name_prefix="look") for pool in context.backends}
        self._asked: set[Future[list[ManageableItem]]] = set()

    def manageable(self, pool: str, kind: str, timeout_s: float) -> list[ManageableItem]:
        """Return the ``volumes``, or the ``snapshots``, on a pool. Raises BackendError, TimeoutError."""
        list_all = volumes_on if kind == "volumes" else snapshots_on
        future = self._threads[pool].submit(list_all, self._context.db, self._context.backend(pool))
        self._asked.add(future)
        future.add_done_callback(self._asked.discard)
        try:
            return future.result(timeout_s)
        finally:
            future.cancel()  # a request that has not begun by the timeout

    def stop(self) -> bool:
        """Send no more requests to pools; return True if every pool has answered."""
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)
        return not self._asked


def volumes_on(db: Database, backend: Backend) -> list[ManageableItem]:
    """Return the volumes on a pool, ours included. Raises BackendError."""
    listed = backend.list_manageable()
    with db.read() as session:
        # Rows of all pools, because two pools may lead to the same storage.
        rows = session.execute(select(Volume.id, Volume.name_id).where(Volume.host.is_not(None)))
        return _found(session, listed, {volume_name(row): row.id for row in rows})


def snapshots_on(db: Database, backend: Backend) -> list[ManageableItem]:
    """Return the snapshots on a pool, ours included. Raises BackendError."""
    listed = backend.list_manageable_snapshots()
    with db.read() as session:
        return _found(session, listed, {snapshot_name(one): one for one in session.scalars(select(Snapshot.id))})


def _found(session: Session, listed: Sequence[Manageable], ours: dict[str, str]) -> list[ManageableItem]:
    # No row names the copy that an unfinished migration makes or has left behind.
    copies = select(OperationRow.body).where(OperationRow.state == "open", OperationRow.kind.in_(_COPYING))
    busy = {body.get("name") or f"volume-{body['name_id']}" for body in session.scalars(copies)}
    found = []
    for volume in listed:
        row_id = ours.get(volume.name)
        reason = MANAGED if row_id else volume.reason
        if reason is None and volume.name in busy:
            reason = "an unfinished operation uses it"
        found.append(ManageableItem(volume.reference, -(-volume.size_bytes // GIB), volume.volume, reason, row_id))
    return found


def refuse_unsafe(found: ManageableItem) -> None:
    """Raise BackendError if a volume or snapshot must not be managed."""
    if found.reason is not None:
        whose = f", as {found.managed_as}" if found.managed_as else ""
        raise BackendError(f"{found.reference} cannot be managed: {found.reason}{whose}.")


def _take_back(session: Session, operation: ManageVolume, _failure: Failure) -> None:
    """Refund the quota and release the capacity of a volume that could not be managed. Clear its pool and size."""
    volume = session.execute(
        select(Volume.host, Volume.size, Volume.volume_type_id, Volume.project_id).where(
            Volume.id == operation.volume_id, Volume.status == operation.status
        )
    ).one_or_none()
    if volume is None or volume.host is None:
        return
    reservations.release_capacity(session, volume.host, volumes=1, volume_gib=volume.size)
    quotas.refund(session, volume.project_id, volume.volume_type_id, volumes=1, gigabytes=volume.size)
    session.execute(
        update(Volume).where(Volume.id == operation.volume_id).values(host=None, size=0, consumes_quota=False)
    )


@handles(ManageVolume, action=Action.MANAGE, undo=_take_back)
def manage_volume(context: ManagerContext, operation: ManageVolume, volume: Volume) -> None:
    """Charge the volume's size on the pool, and let the backend give the volume our name."""
    backend = context.backend(operation.pool)
    size = volume.size if volume.host is not None else _charge(context, operation, volume, backend)
    whole = backend.manage_volume(operation.reference, volume_name(volume))
    if whole != size:
        raise BackendError(f"{operation.reference} has grown from {size} to {whole} GiB while it was managed.")
    apply_qos(context, operation.pool, volume_name(volume), volume.volume_type_id, size)
    with context.db.write() as session:
        transitions.complete(session, operation, V.AVAILABLE)


def _charge(context: ManagerContext, operation: ManageVolume, volume: Volume, backend: Backend) -> int:
    """Find the volume's size, charge quota and reserve capacity for it. Return the size in GiB."""
    found = {one.reference: one for one in volumes_on(context.db, backend)}.get(operation.reference)
    if found is None:
        raise VolumeMissing(f"There is no volume {operation.reference} on {operation.pool}.")
    refuse_unsafe(found)
    size = max(1, found.size_gib)
    limits = context.config.quota
    with context.db.write() as session:
        quotas.check_volume_size(session, limits, volume.project_id, size)
        quotas.charge(session, limits, volume.project_id, volume.volume_type_id, volumes=1, gigabytes=size)
        reservations.reserve(session, operation.pool, volumes=1, volume_gib=size)
        report = context.pool_reports.get(operation.pool)
        session.execute(
            update(Volume)
            .where(Volume.id == volume.id)
            .values(
                host=operation.pool,
                size=size,
                consumes_quota=True,
                availability_zone=report.availability_zone if report else volume.availability_zone,
            )
        )
    return size
