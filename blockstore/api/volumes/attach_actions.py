"""The older attach API: actions on a volume that Nova and clients still send.

To attach: os-reserve, os-initialize_connection, os-attach. To detach: os-begin_detaching, os-terminate_connection,
os-detach. The export of os-initialize_connection belongs to an attachment that no list shows (``Attachment.legacy``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import select

from blockstore.api.attachment_quota import check_attachments
from blockstore.api.attachments import (
    attachments_of,
    check_outcome,
    connect_operation,
    connection_info,
    disconnect,
    is_readonly,
    refuse_while_a_server_uses,
    set_connector,
    who_holds,
)
from blockstore.api.http.call import Call, Deferred
from blockstore.api.http.routes import Routes
from blockstore.api.volumes.volumes import ACTION, find_volume
from blockstore.db.models import Attachment, Volume, new_id, not_migrating, now
from blockstore.errors import BadRequest, InvalidStatus, NotFound, StateConflict
from blockstore.operations import states, transitions
from blockstore.operations.catalogue import Operation
from blockstore.operations.states import A, V
from blockstore.schemas import attachments as schemas

routes = Routes()

# --- actions that only change the status -------------------------------------------------------------------


@routes.action(ACTION, "os-reserve", policy="volume_extension:volume_actions:reserve", body=schemas.ReserveBody)
def reserve(call: Call, volume_id: str, body: Mapping[str, Any]) -> None:
    """Reserve a volume for a server that is about to attach it."""
    volume = find_volume(call, volume_id, lock=True)
    allowed = [V.AVAILABLE, *([V.IN_USE] if volume.multiattach else [])]
    try:
        transitions.move(call.session, states.VOLUME, volume_id, V.ATTACHING, only_from=allowed)
    except StateConflict:
        raise InvalidStatus(
            f"Invalid volume: volume {volume_id} is {volume.status}; to be reserved it must be"
            f" {' or '.join(allowed)}. {who_holds(call, volume)}".rstrip()
        ) from None


@routes.action(
    ACTION, "os-unreserve", policy="volume_extension:volume_actions:unreserve", body=schemas.UnreserveBody, frees=True
)
def unreserve(call: Call, volume_id: str, body: Mapping[str, Any]) -> None:
    """Cancel the reservation by os-reserve."""
    _unreserve(call, find_volume(call, volume_id, lock=True))


def _unreserve(call: Call, volume: Volume) -> None:
    if volume.status == V.ATTACHING:  # compat: in other statuses nothing is done, without an error
        transitions.sync_volume_status(call.session, volume.id)


@routes.action(
    ACTION,
    "os-begin_detaching",
    policy="volume_extension:volume_actions:begin_detaching",
    body=schemas.BeginDetachingBody,
    frees=True,
)
def begin_detaching(call: Call, volume_id: str, body: Mapping[str, Any]) -> None:
    """Record that a server begins to detach the volume."""
    volume = find_volume(call, volume_id, lock=True)
    if volume.is_migrating:
        return  # compat: nothing is done while the volume is being migrated, without an error
    try:
        transitions.move(
            call.session,
            states.VOLUME,
            volume_id,
            V.DETACHING,
            only_from=(V.IN_USE,),
            where=[Volume.attach_status == "attached", not_migrating()],
        )
    except StateConflict:
        raise InvalidStatus(
            f"Invalid volume: volume {volume_id} is {volume.status} and {volume.attach_status}; to be detached it must"
            " be in-use and attached."
        ) from None


@routes.action(
    ACTION,
    "os-roll_detaching",
    policy="volume_extension:volume_actions:roll_detaching",
    body=schemas.RollDetachingBody,
    frees=True,
)
def roll_detaching(call: Call, volume_id: str, body: Mapping[str, Any]) -> None:
    """Cancel os-begin_detaching."""
    volume = find_volume(call, volume_id, lock=True)
    if volume.status == V.DETACHING:  # compat: in other statuses nothing is done, without an error
        transitions.move(call.session, states.VOLUME, volume_id, V.IN_USE, only_from=(V.DETACHING,))


# --- attach and detach -------------------------------------------------------------------------------------


@routes.action(ACTION, "os-attach", policy="volume_extension:volume_actions:attach", body=schemas.AttachBody)
def attach(call: Call, volume_id: str, body: Mapping[str, Any]) -> None:
    """Record that a server or a host uses the volume."""
    volume = find_volume(call, volume_id, lock=True)
    params = body["attach"]
    mode = params.get("mode", "rw")
    if mode != "ro" and is_readonly(volume):
        raise BadRequest(f"Invalid attaching mode '{mode}' for volume {volume_id}: it is read-only.")
    if volume.status not in states.FOLLOWS_ATTACHMENTS:
        raise InvalidStatus(f"Invalid volume: volume {volume_id} is {volume.status}; it cannot be attached.")
    present = attachments_of(call, volume)
    if not any(_is_of(row, params) for row in present):  # compat: a repeated os-attach makes no second attachment
        if volume.status == V.IN_USE and not volume.multiattach:
            raise InvalidStatus(
                f"Invalid volume: volume {volume_id} is in-use and can be attached only once. {who_holds(call, volume)}"
            )
        if not volume.multiattach:
            refuse_while_a_server_uses(call, present)
        check_attachments(call, volume, exported=False)
        row = Attachment(
            id=new_id(),
            project_id=volume.project_id,
            volume_id=volume_id,
            instance_uuid=params.get("instance_uuid"),
            host_name=params.get("host_name"),
            mountpoint=params["mountpoint"],
            attach_mode=mode,
            attached_at=now(),
        )
        transitions.insert_row(call.session, row, A.ATTACHED)
    transitions.sync_volume_status(call.session, volume_id)


def _is_of(row: Attachment, params: Mapping[str, Any]) -> bool:
    if row.status != A.ATTACHED:
        return False
    name = "instance_uuid" if params.get("instance_uuid") else "host_name"
    return bool(getattr(row, name) == params[name])


@routes.action(
    ACTION, "os-detach", policy="volume_extension:volume_actions:detach", body=schemas.DetachBody, frees=True
)
def detach(call: Call, volume_id: str, body: Mapping[str, Any]) -> Any:
    """End an attachment and its export."""
    volume = find_volume(call, volume_id, lock=True)
    _refuse_in_maintenance(volume)
    row = _attachment_to_end(call, volume, (body["detach"] or {}).get("attachment_id"))
    if row is None:
        transitions.sync_volume_status(call.session, volume_id)  # compat: a volume without attachments is no error
        return None
    refuse_while_a_server_uses(call, [row])
    return _when_ended([disconnect(call, row)])


def _refuse_in_maintenance(volume: Volume) -> None:
    if volume.status == V.MAINTENANCE:
        raise InvalidStatus(f"Invalid volume: volume {volume.id} is {volume.status}; it cannot be detached.")


def _attachment_to_end(call: Call, volume: Volume, attachment_id: str | None) -> Attachment | None:
    present = attachments_of(call, volume)
    if attachment_id is not None:
        for row in present:
            if row.id == attachment_id:
                return row
        raise NotFound(f"Volume attachment could not be found with filter: attachment_id = {attachment_id}.")
    if len(present) > 1:
        raise BadRequest(f"Invalid volume: volume {volume.id} has {len(present)} attachments; name the attachment_id.")
    return present[0] if present else None


# --- exports -----------------------------------------------------------------------------------------------


@routes.action(
    ACTION,
    "os-initialize_connection",
    policy="volume_extension:volume_actions:initialize_connection",
    body=schemas.InitializeConnectionBody,
    status=200,
)
def initialize_connection(call: Call, volume_id: str, body: Mapping[str, Any]) -> Any:
    """Export a volume to an initiator and return the connection info."""
    volume = find_volume(call, volume_id, lock=True)
    connector = body["connection"]["connector"]
    if volume.status in (V.MAINTENANCE, V.AWAITING_TRANSFER) or volume.status in states.VOLUME.failure:
        raise InvalidStatus(f"Invalid volume: volume {volume_id} is {volume.status}; it cannot be connected.")
    if not volume.multiattach:
        refuse_while_a_server_uses(call, [*attachments_of(call, volume), *_exports(call, volume_id, None)])
    for row in _exports(call, volume_id, connector):
        if row.status == A.ATTACHING and row.connector == connector:
            return _info(call, row)  # a repeated request makes no second export
    check_attachments(call, volume)
    row = Attachment(id=new_id(), project_id=volume.project_id, volume_id=volume_id, legacy=True)
    set_connector(call, volume, row, connector)
    operation = connect_operation(call, row)
    transitions.insert_with_operation(call.session, row, operation)

    def reply(deferred_call: Call) -> dict[str, Any]:
        check_outcome(deferred_call, operation)
        attachment = deferred_call.session.get(Attachment, row.id)
        if attachment is None:
            raise NotFound(f"The connection of volume {volume_id} was ended meanwhile.")
        return _info(deferred_call, attachment)

    return Deferred(operations=(operation.operation_id,), reply=reply)


def _info(call: Call, row: Attachment) -> dict[str, Any]:
    volume = find_volume(call, row.volume_id)
    return {"connection_info": connection_info(call, row, volume, with_secret=True)}


@routes.action(
    ACTION,
    "os-terminate_connection",
    policy="volume_extension:volume_actions:terminate_connection",
    body=schemas.TerminateConnectionBody,
    frees=True,
)
def terminate_connection(call: Call, volume_id: str, body: Mapping[str, Any]) -> Any:
    """End the exports to an initiator; without a connector, the exports to all initiators."""
    volume = find_volume(call, volume_id, lock=True)
    call.enforce("volume_extension:volume_actions:unreserve")
    ending = _exports(call, volume_id, body["connection"]["connector"])
    refuse_while_a_server_uses(call, [*attachments_of(call, volume), *ending])
    operations = [disconnect(call, row) for row in ending]
    _unreserve(call, volume)
    return _when_ended(operations)


@routes.action(
    ACTION,
    "os-force_detach",
    policy="volume_extension:volume_admin_actions:force_detach",
    body=schemas.ForceDetachBody,
    frees=True,
)
def force_detach(call: Call, volume_id: str, body: Mapping[str, Any]) -> Any:
    """End an attachment and its export, even if the initiator still uses them."""
    volume = find_volume(call, volume_id, lock=True)
    _refuse_in_maintenance(volume)
    for rule in ("terminate_connection", "unreserve", "detach"):
        call.enforce(f"volume_extension:volume_actions:{rule}")
    ending = _exports(call, volume_id, body["detach"].get("connector"))
    row = _attachment_to_end(call, volume, body["detach"].get("attachment_id"))
    operations = [disconnect(call, ended_row) for ended_row in (*ending, *([row] if row else []))]
    if row is None:
        transitions.sync_volume_status(call.session, volume_id)
    return _when_ended(operations)


def _exports(call: Call, volume_id: str, connector: Mapping[str, Any] | None) -> list[Attachment]:
    """Return the attachments that os-initialize_connection made for an initiator, or for all initiators."""
    rows = call.session.scalars(
        select(Attachment)
        .where(Attachment.volume_id == volume_id, Attachment.legacy, Attachment.status.not_in([A.DISCONNECTING]))
        .order_by(Attachment.created_at, Attachment.id)
    )
    return [row for row in rows if not connector or _same_initiator(row.connector or {}, connector)]


def _same_initiator(connector: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    keys = [key for key in ("initiator", "host") if key in connector or key in other]
    return all(connector.get(key) == other.get(key) for key in keys)


def _when_ended(operations: Iterable[Operation]) -> Any:
    filed = list(operations)

    def reply(deferred_call: Call) -> None:
        for operation in filed:
            check_outcome(deferred_call, operation)

    return Deferred(operations=[operation.operation_id for operation in filed], reply=reply) if filed else None


@routes.action(
    ACTION,
    "os-extend_volume_completion",
    policy="volume_extension:volume_admin_actions:extend_volume_completion",
    body=schemas.ExtendVolumeCompletionBody,
)
def extend_volume_completion(call: Call, volume_id: str, body: Mapping[str, Any]) -> None:
    """Refuse the request: in this service no extension waits for a compute service."""
    volume = find_volume(call, volume_id)
    raise InvalidStatus(
        f"Invalid volume: volume {volume_id} is {volume.status}; it has no extension to complete. This service extends"
        " volumes in use by itself."
    )
