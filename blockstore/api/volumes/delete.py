"""Accept the deletion of a volume, or refuse it with the reason."""

from __future__ import annotations

from sqlalchemy import (
    ColumnElement,
    and_,
    exists,
    func,
    or_,
    select,
)

from blockstore.accounting import quotas
from blockstore.api.admin.services import refuse_frozen
from blockstore.api.http.call import Call
from blockstore.api.http.routes import Routes
from blockstore.api.snapshots import DELETABLE as SNAPSHOT_DELETABLE
from blockstore.api.volumes.volumes import find_volume
from blockstore.db.models import (
    Attachment,
    OperationRow,
    Snapshot,
    Volume,
    not_migrating,
)
from blockstore.errors import InvalidStatus, StateConflict
from blockstore.microversions import (
    DELETE_FORCE,
)
from blockstore.operations import journal, states, transitions
from blockstore.operations.catalogue import DeleteSnapshot, DeleteVolume
from blockstore.operations.states import S, V
from blockstore.schemas.base import query_flag

routes = Routes()

DELETABLE = (V.AVAILABLE, V.ERROR, V.ERROR_RESTORING, V.ERROR_EXTENDING, V.ERROR_MANAGING)


@routes.delete("/volumes/<volume_id>", policy="volume:delete")
def remove(call: Call, volume_id: str) -> None:
    """Accept the deletion of a volume; with ``cascade``, of its snapshots too."""
    force = call.version >= DELETE_FORCE and query_flag(call.query, "force")
    if force:
        call.enforce("volume:force_delete")
    delete_volume(call, volume_id, force=force, cascade=query_flag(call.query, "cascade"))


def delete_volume(call: Call, volume_id: str, *, force: bool, cascade: bool = False) -> None:
    """Enqueue the operations that delete a volume. Raise InvalidStatus with the reason; then nothing is changed."""
    volume = find_volume(call, volume_id, lock=True)  # no snapshot can be created while the conditions are checked
    refuse_frozen(call, volume.host, "deleted")
    if force and volume.status == V.DELETING and journal.is_covered(call.session, DeleteVolume, volume_id):
        return  # the volume is being deleted already
    if cascade:
        _delete_snapshots(call, volume, force=force)
    operation = call.operation(DeleteVolume, volume, pool=volume.host or "")
    conditions = removable(force=force, cascade=cascade)
    at_once = _is_nowhere(call, volume)
    try:
        transitions.move(
            call.session,
            states.VOLUME,
            volume_id,
            V.DELETING,
            where=conditions,
            operation=None if at_once else operation,
        )
    except StateConflict:
        raise InvalidStatus(why_not_removable(call, volume, cascade=cascade)) from None
    if at_once:
        if volume.consumes_quota:
            quotas.refund(call.session, volume.project_id, volume.volume_type_id, volumes=1, gigabytes=volume.size)
        transitions.delete_now(call.session, operation)


def _is_nowhere(call: Call, volume: Volume) -> bool:
    """Return True if a volume is on no backend, idle and unused. compat: such a volume is deleted at once."""
    if volume.host is not None:
        return False
    idle = ~exists().where(OperationRow.resource_id == volume.id, OperationRow.state == "open")
    unused = ~exists().where(Attachment.volume_id == volume.id)
    without_snapshots = ~exists().where(Snapshot.volume_id == volume.id)
    return bool(call.session.execute(select(and_(idle, unused, without_snapshots))).scalar())


def removable(*, force: bool, cascade: bool) -> list[ColumnElement[bool]]:
    """Return the conditions under which a volume may be deleted."""
    conditions: list[ColumnElement[bool]] = [
        Volume.attach_status != "attached",
        not_migrating(),
        Volume.group_id.is_(None),
    ]
    if not force:
        conditions.append(Volume.status != V.DELETING)
        # compat: a volume that was never placed can be deleted in any status
        conditions.append(or_(Volume.status.in_(DELETABLE), and_(Volume.host.is_(None))))
    if not cascade:
        conditions.append(~exists().where(Snapshot.volume_id == Volume.id))
    return conditions


def why_not_removable(call: Call, volume: Volume, *, cascade: bool, done: str = "deleted") -> str:
    """Return the sentence that says why a volume cannot be deleted; ``done`` may name another action."""
    prefix = f"Invalid volume: volume {volume.id} cannot be {done}: "
    if volume.attach_status == "attached":
        return prefix + "it is attached."
    if volume.is_migrating:
        return prefix + f"it is being migrated ({volume.migration_status})."
    if volume.group_id:
        return prefix + f"it belongs to group {volume.group_id}."
    count = call.session.execute(
        select(func.count()).select_from(Snapshot).where(Snapshot.volume_id == volume.id)
    ).scalar_one()
    if count and not cascade:
        way = "delete them first, or with cascade" if done == "deleted" else "unmanage or delete them first"
        return prefix + f"it has {count} snapshot{'s' if count > 1 else ''}; {way}."
    return prefix + f"its status is {volume.status}; it must be {', '.join(DELETABLE[:-1])} or {DELETABLE[-1]}."


def _delete_snapshots(call: Call, volume: Volume, *, force: bool) -> None:
    snapshots = call.session.scalars(
        select(Snapshot).where(Snapshot.volume_id == volume.id).order_by(Snapshot.number.desc())
    ).all()
    for snapshot in snapshots:
        if snapshot.group_snapshot_id is not None:
            raise InvalidStatus(f"Invalid volume: its snapshot {snapshot.id} belongs to a group snapshot.")
        if not call.ctx.may_see(snapshot.project_id):
            raise InvalidStatus(f"Invalid volume: volume {volume.id} has snapshots of another project.")
        if snapshot.status == S.DELETING:
            continue
        if not force and snapshot.status not in SNAPSHOT_DELETABLE:
            raise InvalidStatus(
                f"Invalid volume: its snapshot {snapshot.id} is {snapshot.status};"
                f" it must be {' or '.join(SNAPSHOT_DELETABLE)}."
            )
        operation = call.operation(DeleteSnapshot, snapshot, volume_id=volume.id, came_from=snapshot.status)
        transitions.move(
            call.session, states.SNAPSHOT, snapshot.id, S.DELETING, only_from=(snapshot.status,), operation=operation
        )
