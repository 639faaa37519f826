"""Actions on a volume: extend, revert, retype, reset_status, force_delete, set_bootable, update_readonly_flag."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select, update

from blockstore.accounting import quotas
from blockstore.api.attachments import disconnect
from blockstore.api.holds import is_connected, what_holds
from blockstore.api.http.call import Call
from blockstore.api.http.lookup import find
from blockstore.api.http.routes import Routes
from blockstore.api.types.types import find_type, size_bounds
from blockstore.api.volumes.delete import delete_volume
from blockstore.api.volumes.volumes import ACTION, find_volume, touch
from blockstore.db.models import Attachment, QosSpecs, Snapshot, Volume, VolumeType, not_migrating, now
from blockstore.errors import BadRequest, Conflict, InvalidInput, InvalidStatus, StateConflict
from blockstore.microversions import EXTEND_ATTACHED, VOLUME_REVERT
from blockstore.operations import states, transitions
from blockstore.operations.catalogue import PlaceExtension, RetypeVolume, RevertVolume
from blockstore.operations.states import A, S, V
from blockstore.schemas import volumes as schemas

routes = Routes()


@routes.action(ACTION, "os-extend", policy="volume:extend", body=schemas.ExtendBody)
def extend(call: Call, volume_id: str, body: Mapping[str, Any]) -> None:
    """Accept the extension of a volume."""
    volume = find_volume(call, volume_id, lock=True)
    new_size: int = body["extend"]["new_size"]
    growth = new_size - volume.size
    if growth <= 0:
        raise InvalidInput(
            "os-extend.new_size", new_size, f"It must be greater than the present size, {volume.size} GiB."
        )
    allowed = [V.AVAILABLE]
    if call.version >= EXTEND_ATTACHED:
        allowed.append(V.IN_USE)
        if volume.status == V.IN_USE:
            call.enforce("volume:extend_attached_volume")
            _check_online(call, volume)
    size_bounds(call.session.get_one(VolumeType, volume.volume_type_id), new_size)
    quotas.check_volume_size(call.session, call.core.config.quota, volume.project_id, new_size)
    operation = call.operation(PlaceExtension, volume, new_size_gib=new_size, growth_gib=growth)
    try:
        transitions.move(
            call.session,
            states.VOLUME,
            volume_id,
            V.EXTENDING,
            only_from=allowed,
            where=[Volume.size == volume.size, not_migrating()],
            operation=operation,
        )
    except StateConflict:
        raise InvalidStatus(
            f"Invalid volume: volume {volume_id} is {volume.status}; to be extended it must be"
            f" {' or '.join(allowed)} and not migrating."
        ) from None
    quotas.charge(call.session, call.core.config.quota, volume.project_id, volume.volume_type_id, gigabytes=growth)


def _check_online(call: Call, volume: Volume) -> None:
    report = call.core.pool_reports.get(volume.host or "")
    if report is not None and not report.capabilities.online_extend:
        raise InvalidStatus(
            f"Invalid volume: volume {volume.id} is in-use, and its backend or target cannot extend attached volumes;"
            " detach it first."
        )


@routes.action(ACTION, "revert", policy="volume:revert_to_snapshot", body=schemas.RevertBody, since=VOLUME_REVERT)
def revert(call: Call, volume_id: str, body: Mapping[str, Any]) -> None:
    """Accept the revert of a volume to its newest snapshot."""
    volume = find_volume(call, volume_id, lock=True)  # no newer snapshot can be created meanwhile
    snapshot_id = body["revert"].get("snapshot_id") or ""
    snapshot = find(call, Snapshot, snapshot_id)
    newest = call.session.execute(
        select(Snapshot.id)
        .where(Snapshot.volume_id == volume_id)
        .order_by(Snapshot.number.desc(), Snapshot.id.desc())
        .limit(1)
    ).scalar()
    if snapshot.volume_id != volume_id or newest != snapshot_id:
        raise BadRequest(
            f"Invalid input received: snapshot {snapshot_id} is not the newest snapshot of volume {volume_id}."
        )
    if snapshot.volume_size != volume.size:
        raise BadRequest(
            f"Invalid input received: the volume has {volume.size} GiB and its snapshot {snapshot.volume_size} GiB; a"
            " volume that was extended after its snapshot cannot be reverted."
        )
    operation = call.operation(RevertVolume, volume, snapshot_id=snapshot_id)
    try:
        transitions.move(call.session, states.SNAPSHOT, snapshot_id, S.RESTORING, only_from=(S.AVAILABLE,))
        unused = [not_migrating(), ~is_connected(volume_id)]
        transitions.move(call.session, states.VOLUME, volume_id, V.REVERTING, where=unused, operation=operation)
    except StateConflict as conflict:
        held = what_holds(call, volume_id) if volume.status == V.AVAILABLE else None
        if held and snapshot.status == S.AVAILABLE:
            raise Conflict(f"Volume {volume_id} cannot be reverted: {held}.") from None
        # compat: 409 here, where other actions answer 400
        raise Conflict(f"{conflict.message} Volume and snapshot must be available.") from None


@routes.action(ACTION, "os-retype", policy="volume:retype", body=schemas.RetypeBody)
def retype(call: Call, volume_id: str, body: Mapping[str, Any]) -> None:
    """Accept a new type for a volume: its pool must serve the type, or another pool to which the volume may move."""
    volume = find_volume(call, volume_id, lock=True)
    former = call.session.get_one(VolumeType, volume.volume_type_id)
    wanted = find_type(call, body["retype"]["new_type"], lock=True)
    _check_retype(call, volume, former, wanted)
    counted = int(volume.consumes_quota)
    operation = call.operation(
        RetypeVolume,
        volume,
        type_id=wanted.id,
        counted=counted,
        size_gib=volume.size * counted,
        may_move=body["retype"].get("migration_policy") == "on-demand",
    )
    try:
        transitions.move(
            call.session,
            states.VOLUME,
            volume_id,
            V.RETYPING,
            where=[not_migrating(), Volume.group_id.is_(None)],
            operation=operation,
        )
    except StateConflict:
        raise InvalidStatus(
            f"Invalid volume: volume {volume_id} is {volume.status}; to be retyped it must be available or in-use,"
            " in no group, and not migrating."
        ) from None
    if counted:
        limits = call.core.config.quota
        quotas.charge_type(call.session, limits, volume.project_id, wanted.id, volumes=1, gigabytes=volume.size)


def _check_retype(call: Call, volume: Volume, former: VolumeType, wanted: VolumeType) -> None:
    if wanted.id == former.id:
        raise InvalidInput("os-retype.new_type", wanted.name, f"Volume {volume.id} already has that type.")
    if wanted.encryption is not None:
        raise InvalidInput(
            "os-retype.new_type", wanted.name, "Its volumes must be encrypted, which this service does not support yet."
        )
    size_bounds(wanted, volume.size)
    shared = [volume_type.multiattach for volume_type in (former, wanted)]
    if shared[1]:
        call.enforce("volume:multiattach")
    if volume.status == V.IN_USE:
        if shared[0] != shared[1]:
            raise InvalidStatus(
                f"Invalid volume: volume {volume.id} is in-use; multiattach can be changed only while it is available."
            )
        if _limits_of_hypervisor(call, former) != _limits_of_hypervisor(call, wanted):
            raise InvalidStatus(
                f"Invalid volume: volume {volume.id} is in-use, and the types differ in QoS specs that its consumer"
                " enforces."
            )


def _limits_of_hypervisor(call: Call, volume_type: VolumeType) -> Mapping[str, str | None]:
    specs = call.session.get(QosSpecs, volume_type.qos_specs_id) if volume_type.qos_specs_id else None
    return {} if specs is None or specs.consumer == "back-end" else specs.specs


@routes.action(
    ACTION,
    "os-reset_status",
    policy="volume_extension:volume_admin_actions:reset_status",
    body=schemas.ResetVolumeStatusBody,
    frees=True,
)
def reset_status(call: Call, volume_id: str, body: Mapping[str, Any]) -> None:
    """Set the statuses of a volume by force."""
    volume = find_volume(call, volume_id, lock=True)
    params = body["reset"]
    if params.get("status") == V.IN_USE and volume.attach_status != "attached":
        raise InvalidStatus(f"Invalid volume: volume {volume_id} has no attachment, so it cannot be in-use.")
    values: dict[str, Any] = {}
    if params.get("attach_status"):
        values["attach_status"] = params["attach_status"]
    if params.get("attach_status") == "detached":
        _detach_all(call, volume)
    if params.get("migration_status"):
        values["migration_status"] = None if params["migration_status"] == "none" else params["migration_status"]
    if values:
        call.session.execute(update(Volume).where(Volume.id == volume_id).values(updated_at=now(), **values))
    if params.get("status"):
        transitions.reset_status(call.session, states.VOLUME, volume_id, params["status"], by=call.ctx.user_id)


def _detach_all(call: Call, volume: Volume) -> None:
    """compat: end every attachment. Unlike Cinder, this service also ends the exports."""
    rows = call.session.scalars(
        select(Attachment).where(Attachment.volume_id == volume.id, Attachment.status != A.DISCONNECTING)
    )
    for row in rows:
        disconnect(call, row, follow=False)


@routes.action(
    ACTION,
    "os-force_delete",
    policy="volume_extension:volume_admin_actions:force_delete",
    body=schemas.ForceDeleteVolumeBody,
    frees=True,
)
def force_delete(call: Call, volume_id: str, body: Mapping[str, Any]) -> None:
    """Accept the deletion of a volume whatever its status."""
    delete_volume(call, volume_id, force=True)


@routes.action(ACTION, "os-set_bootable", policy="volume:update", body=schemas.SetBootableBody, status=200)
def set_bootable(call: Call, volume_id: str, body: Mapping[str, Any]) -> None:
    """Mark a volume as bootable or not."""
    touch(call, find_volume(call, volume_id, lock=True), bootable=body["set_bootable"]["bootable"])


@routes.action(
    ACTION, "os-update_readonly_flag", policy="volume:update_readonly_flag", body=schemas.UpdateReadonlyFlagBody
)
def update_readonly_flag(call: Call, volume_id: str, body: Mapping[str, Any]) -> None:
    """Mark a volume as read-only or not, while it is available."""
    volume = find_volume(call, volume_id, lock=True)
    if volume.status != V.AVAILABLE:
        raise InvalidStatus(f"Invalid volume: volume {volume_id} is {volume.status}; it must be available.")
    readonly = str(body["flag"]["readonly"])
    touch(call, volume, admin_metadata={**volume.admin_metadata, "readonly": readonly})
