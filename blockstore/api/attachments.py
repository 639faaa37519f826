"""Attachments: reserve, connect, complete, list, show, delete.

This module accepts or refuses requests. The manager makes and ends the exports while the caller waits, because the API
wants the outcome in the reply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, select

from blockstore.api.attachment_quota import check_attachments
from blockstore.api.http import listing
from blockstore.api.http.call import Call, Deferred
from blockstore.api.http.routes import Routes
from blockstore.api.volumes.volumes import find_volume
from blockstore.db.models import Attachment, OperationRow, Volume, new_id, now
from blockstore.errors import (
    BackendError,
    BadRequest,
    BlockstoreError,
    Conflict,
    InvalidConnector,
    InvalidStatus,
    NotFound,
    ServiceUnavailable,
    StateConflict,
)
from blockstore.microversions import ATTACHMENT_COMPLETE, ATTACHMENTS
from blockstore.operations import states, transitions
from blockstore.operations.catalogue import ConnectAttachment, DisconnectAttachment, Operation
from blockstore.operations.states import A, V
from blockstore.schemas import attachments as schemas
from blockstore.schemas.base import is_uuid
from blockstore.targets.contract import ATTACH_LOCAL

routes = Routes()

ONE = "/attachments/<attachment_id>"


def _status(call: Call, value: str) -> ColumnElement[bool]:
    hidden = [status for status, shown_status in schemas.SHOWN_AS.items() if shown_status == value]
    return Attachment.status.in_([value, *hidden])


LISTING = listing.Listing(
    model=Attachment,
    noun="Volume attachment",
    collection="attachments",
    links_key="attachments_links",
    columns={
        "id": Attachment.id,
        "volume_id": Attachment.volume_id,
        "attach_status": Attachment.status,
        "instance_uuid": Attachment.instance_uuid,
        "instance_id": Attachment.instance_uuid,
        "attach_mode": Attachment.attach_mode,
        "attached_host": Attachment.host_name,
        "mountpoint": Attachment.mountpoint,
        "created_at": Attachment.created_at,
        "attach_time": Attachment.attached_at,
    },
    special={"status": _status, "attach_status": _status},
    sortable=frozenset(
        {
            "id", "volume_id", "attach_status", "instance_uuid", "instance_id", "attach_mode", "mountpoint",
            "created_at", "attach_time",
        }
    ),
    public=frozenset({"volume_id", "status", "instance_id", "attach_status"}),
)  # fmt: skip


# --- reading -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class AttachmentView:
    """An attachment as replies show it."""

    row: Attachment
    connection_info: Mapping[str, Any]


@routes.get("/attachments", policy="none", since=ATTACHMENTS)
def index(call: Call) -> dict[str, Any]:
    """List the plain fields."""
    page = listing.page(call, LISTING, _visible(call))
    return {"attachments": [summary(call, row) for (row,) in page.rows], **page.envelope}


@routes.get("/attachments/detail", policy="none", since=ATTACHMENTS)
def detail(call: Call) -> dict[str, Any]:
    """List every field, without secrets."""
    page = listing.page(call, LISTING, _visible(call), suffix="/detail")
    volumes = _volumes_of(call, [row for (row,) in page.rows])
    # If a volume was deleted after the page was read, its attachments have gone with it.
    items = [
        detailed(call, row, volumes[row.volume_id], with_secret=False)
        for (row,) in page.rows
        if row.volume_id in volumes
    ]
    return {"attachments": items, **page.envelope}


@routes.get(ONE, policy="none", since=ATTACHMENTS)
def show(call: Call, attachment_id: str) -> dict[str, Any]:
    """Show one attachment, with its secret if the caller may connect it."""
    return _render_one(call, attachment_id)


def find_attachment(call: Call, attachment_id: str, *, legacy: bool = False) -> Attachment:
    """Return an attachment that the caller may see. Raise NotFound for others, as for attachments that do not exist.

    ``legacy``: include attachments of os-initialize_connection, which no list of the API shows.
    """
    row = call.session.get(Attachment, attachment_id) if is_uuid(attachment_id) else None
    if row is None or (row.legacy and not legacy) or not call.ctx.may_see(row.project_id):
        raise NotFound(f"Volume attachment could not be found with filter: attachment_id = {attachment_id}.")
    return row


def find_locked(call: Call, attachment_id: str, *, legacy: bool = False) -> tuple[Attachment, Volume]:
    """Return an attachment and its volume, locked until this transaction ends. Raises NotFound."""
    row = find_attachment(call, attachment_id, legacy=legacy)
    volume = find_volume(call, row.volume_id, lock=True)
    call.session.expire(row)  # it was read before the lock was taken
    return find_attachment(call, attachment_id, legacy=legacy), volume


def summary(call: Call, row: Attachment) -> dict[str, Any]:
    """Return the plain fields."""
    view = AttachmentView(row, {})
    return {name: get(view) for name, get in schemas.ATTACHMENT.getters(call.version, frozenset())}


def detailed(call: Call, row: Attachment, volume: Volume, *, with_secret: bool) -> dict[str, Any]:
    """Return every field."""
    # Connection info is for callers who may connect the volume: a reader would only learn addresses and paths.
    may_connect = call.may("volume:attachment_update")
    view = AttachmentView(
        row, connection_info(call, row, volume, with_secret=with_secret, flat=True) if may_connect else {}
    )
    return {name: get(view) for name, get in schemas.DETAILED_ATTACHMENT.getters(call.version, frozenset())}


def connection_info(
    call: Call, row: Attachment, volume: Volume, *, with_secret: bool, flat: bool = False
) -> dict[str, Any]:
    """Return the connection info for the initiator; it is empty before the volume is exported."""
    if row.connection is None or row.status not in states.EXPORTED:
        return {}
    data = dict(row.connection["data"])
    if with_secret and row.connection["secret_as"]:
        data[row.connection["secret_as"]] = call.core.secret_of(row.id)
    mode = row.attach_mode or ("ro" if is_readonly(volume) else "rw")
    data |= {
        "volume_id": row.volume_id,
        "access_mode": mode,
        "qos_specs": None,
        "encrypted": volume.encryption_key_id is not None,
        "cacheable": False,
    }
    connector = row.connector or {}
    if connector.get(ATTACH_LOCAL) is True and call.ctx.is_admin:
        data["attached_here"] = connector.get("host")  # `blockstore detach` recognizes its own attachments by it
    facts = {
        "driver_volume_type": row.connection["driver_volume_type"],
        "enforce_multipath": bool(connector.get("enforce_multipath", False)),
        **row.connection.get("beside", {}),
    }
    return {**data, **facts, "attachment_id": row.id} if flat else {"data": data, **facts}


def is_readonly(volume: Volume) -> bool:
    """Return True if the volume may only be attached read-only."""
    return str(volume.admin_metadata.get("readonly")) == "True"


def _render_one(call: Call, attachment_id: str) -> dict[str, Any]:
    row = find_attachment(call, attachment_id, legacy=call.ctx.is_admin)
    volume = find_volume(call, row.volume_id)
    with_secret = call.may("volume:attachment_update")
    return {"attachment": detailed(call, row, volume, with_secret=with_secret)}


def _volumes_of(call: Call, rows: Sequence[Attachment]) -> dict[str, Volume]:
    ids = {row.volume_id for row in rows}
    return {volume.id: volume for volume in call.session.scalars(select(Volume).where(Volume.id.in_(ids)))}


def _visible(call: Call) -> Any:
    return select(Attachment).where(
        Attachment.legacy.is_(False), *listing.visible_projects(call, Attachment, strict=False)
    )


# --- attaching ---------------------------------------------------------------------------------------------


@routes.post(
    "/attachments", policy="volume:attachment_create", body=schemas.CreateAttachmentBody, since=ATTACHMENTS, status=200
)
def create(call: Call, body: Mapping[str, Any]) -> Any:
    """Reserve a volume, and connect it at once if a connector is given."""
    params = body["attachment"]
    volume = find_volume(call, params["volume_uuid"], lock=True)
    instance = params.get("instance_uuid")
    mode = params.get("mode") or ("ro" if is_readonly(volume) else None)
    _check_mode(volume, params.get("mode"))
    _reserve(call, volume, instance)
    check_attachments(call, volume)
    row = Attachment(
        id=new_id(), project_id=volume.project_id, volume_id=volume.id, instance_uuid=instance, attach_mode=mode
    )
    if not params.get("connector"):
        transitions.insert_row(call.session, row, A.RESERVED)
        return _render_one(call, row.id)
    set_connector(call, volume, row, params["connector"])
    operation = connect_operation(call, row)
    transitions.insert_with_operation(call.session, row, operation)
    return Deferred(
        operations=(operation.operation_id,),
        reply=lambda deferred_call: _connected_reply(deferred_call, row.id, operation),
    )


def _reserve(call: Call, volume: Volume, instance: str | None) -> None:
    if "error" in volume.status:
        raise InvalidStatus(f"Invalid volume: volume {volume.id} is {volume.status}; it cannot be attached.")
    if volume.multiattach and volume.bootable and volume.status == V.IN_USE:
        call.enforce("volume:multiattach_bootable_volume")
    # compat: a volume that is being filled from an image may be reserved
    allowed = [V.AVAILABLE, V.DOWNLOADING, *([V.IN_USE] if volume.multiattach else [])]
    try:
        transitions.move(call.session, states.VOLUME, volume.id, V.RESERVED, only_from=allowed)
    except StateConflict:
        # compat: the same server may reserve it again, because it is being migrated to another host
        again = instance is not None and volume.status in (V.IN_USE, V.RESERVED)
        if again and any(row.instance_uuid == instance for row in attachments_of(call, volume)):
            return
        raise InvalidStatus(
            f"Invalid volume: volume {volume.id} is {volume.status}; to be reserved it must be"
            f" {' or '.join(allowed)}. {who_holds(call, volume)}".rstrip()
        ) from None


def attachments_of(call: Call, volume: Volume) -> list[Attachment]:
    """Return the attachments of a volume, oldest first, without those of os-initialize_connection."""
    return list(
        call.session.scalars(
            select(Attachment)
            .where(Attachment.volume_id == volume.id, Attachment.legacy.is_(False))
            .order_by(Attachment.created_at, Attachment.id)
        )
    )


def who_holds(call: Call, volume: Volume) -> str:
    """Return the sentence that tells an administrator who holds the volume, and other callers that it is taken."""
    if volume.status not in (V.RESERVED, V.ATTACHING, V.IN_USE, V.DETACHING):
        return ""
    held = attachments_of(call, volume)
    if not held or not call.ctx.is_admin:
        return "It is reserved or attached already."
    row = held[0]
    server = f"server {row.instance_uuid}" if row.instance_uuid else "no server"
    return f"It is held by attachment {row.id} ({server}, host {row.host_name or 'unknown'})."


def set_connector(call: Call, volume: Volume, row: Attachment, connector: Mapping[str, Any]) -> None:
    """Store a connector in an attachment. Raise BadRequest if it cannot work or the caller may not use it."""
    if connector.get(ATTACH_LOCAL) is not None and not call.ctx.is_admin:
        raise BadRequest(f"Only administrators may set {ATTACH_LOCAL} in a connector.")
    if volume.host is None:
        raise InvalidStatus(f"Invalid volume: volume {volume.id} has not been placed on a pool.")
    _check_mode(volume, connector.get("mode"))
    try:
        call.core.check_connector(volume.host, connector)
    except InvalidConnector as exc:
        raise BadRequest(
            f"Invalid input received: {exc.message}", public=f"Invalid input received: {exc.public}"
        ) from None
    row.connector, row.connection = dict(connector), None
    row.by_service = call.ctx.is_service
    row.attach_mode = row.attach_mode or connector.get("mode") or ("ro" if is_readonly(volume) else "rw")
    row.host_name = _short(connector.get("host")) or row.host_name
    row.mountpoint = _short(connector.get("mountpoint")) or row.mountpoint


def _short(value: Any) -> str | None:
    return value[:255] if isinstance(value, str) else None


def _check_mode(volume: Volume, mode: str | None) -> None:
    if mode == "rw" and is_readonly(volume):
        raise BadRequest(f"Invalid attaching mode 'rw' for volume {volume.id}: it is read-only.")


def connect_operation(call: Call, row: Attachment) -> ConnectAttachment:
    """Return the operation that exports a volume to an attachment's initiator."""
    return call.operation(ConnectAttachment, row, volume_id=row.volume_id)


@routes.put(ONE, policy="volume:attachment_update", body=schemas.UpdateAttachmentBody, since=ATTACHMENTS)
def change(call: Call, attachment_id: str, body: Mapping[str, Any]) -> Any:
    """Connect a reserved volume."""
    row, volume = find_locked(call, attachment_id)
    refuse_while_a_server_uses(call, [row])
    if "error" in volume.status or volume.status in (V.DELETING, V.REVERTING, V.AWAITING_TRANSFER):
        raise Conflict(f"Volume {volume.id} is {volume.status}; it cannot be attached.")
    others = [other for other in attachments_of(call, volume) if other.id != row.id and other.status in states.EXPORTED]
    for other in () if volume.multiattach else others:
        # compat: a server that is being migrated has the volume on two hosts for a while
        same_server = row.instance_uuid is not None and other.instance_uuid == row.instance_uuid
        if not same_server or other.host_name == body["attachment"]["connector"].get("host"):
            raise Conflict(f"Volume {volume.id} is connected already. {who_holds(call, volume)}")
    set_connector(call, volume, row, body["attachment"]["connector"])
    operation = connect_operation(call, row)
    try:
        transitions.move(
            call.session,
            states.ATTACHMENT,
            row.id,
            A.CONNECTING,
            operation=operation,
            only_from=(A.RESERVED, A.ATTACHING, A.ERROR_ATTACHING),
        )
        if volume.status == V.AVAILABLE:  # an attachment in error does not hold the volume; from here on it does
            transitions.move(call.session, states.VOLUME, volume.id, V.RESERVED, only_from=(V.AVAILABLE,))
    except StateConflict as conflict:
        raise Conflict(conflict.message) from None
    return Deferred(
        operations=(operation.operation_id,),
        reply=lambda deferred_call: _connected_reply(deferred_call, attachment_id, operation),
    )


def _connected_reply(call: Call, attachment_id: str, operation: Operation) -> dict[str, Any]:
    check_outcome(call, operation)
    return _render_one(call, attachment_id)


def check_outcome(call: Call, operation: Operation) -> None:
    """Raise Conflict or ServiceUnavailable with the reason if an operation did not succeed."""
    ended = call.session.execute(
        select(OperationRow.state, OperationRow.reason, OperationRow.public_reason).where(
            OperationRow.id == operation.operation_id
        )
    ).one_or_none()
    if ended is None or ended.state == "done":
        return
    what = f"Attachment {operation.resource_id}"
    if ended.state == "open":
        raise ServiceUnavailable(
            f"{what} is still {operation.status}, and the operation continues; check the status of the attachment."
        )
    status = call.session.execute(select(Attachment.status).where(Attachment.id == operation.resource_id)).scalar()
    settled_as_before = status is not None and not status.startswith("error_")
    error_class: type[BlockstoreError] = (
        Conflict if settled_as_before or ended.state == "cancelled" else ServiceUnavailable
    )
    what = f"{what} is {status or 'gone'}"
    raise error_class(f"{what}: {ended.reason}", public=f"{what}: {ended.public_reason or BackendError.public_text}")


@routes.action(
    f"{ONE}/action",
    "os-complete",
    policy="volume:attachment_complete",
    body=schemas.CompleteBody,
    since=ATTACHMENT_COMPLETE,
    status=204,
)
def complete(call: Call, attachment_id: str, body: Mapping[str, Any]) -> None:
    """Record that the volume is in use."""
    row, _ = find_locked(call, attachment_id)
    try:
        transitions.move(
            call.session,
            states.ATTACHMENT,
            row.id,
            A.ATTACHED,
            only_from=(A.RESERVED, A.ATTACHING, A.ATTACHED),
            attached_at=row.attached_at or now(),
        )
    except StateConflict as conflict:
        raise InvalidStatus(conflict.message) from None
    transitions.sync_volume_status(call.session, row.volume_id)


# --- detaching ---------------------------------------------------------------------------------------------


@routes.delete(ONE, policy="volume:attachment_delete", since=ATTACHMENTS, status=200)
def remove(call: Call, attachment_id: str) -> Any:
    """End an attachment and its export. An administrator may also end those of os-initialize_connection."""
    row, volume = find_locked(call, attachment_id, legacy=call.ctx.is_admin)
    refuse_while_a_server_uses(call, [row])
    operation = disconnect(call, row)
    return Deferred(
        operations=(operation.operation_id,),
        reply=lambda deferred_call: _disconnected_reply(deferred_call, volume, operation),
    )


def _disconnected_reply(call: Call, volume: Volume, operation: Operation) -> dict[str, Any]:
    check_outcome(call, operation)
    return {"attachments": [summary(call, row) for row in attachments_of(call, volume)]}


def refuse_while_a_server_uses(call: Call, rows: Sequence[Attachment]) -> None:
    """Raise Conflict if a user would take a disk from a server, or hand the disk on (CVE-2023-2088).

    Services, such as the server's own, and administrators may do so.
    """
    if call.ctx.is_service or call.ctx.is_admin:
        return
    for row in rows:
        if (row.instance_uuid is not None or row.by_service) and row.status in states.EXPORTED:
            server = f"server {row.instance_uuid}" if row.instance_uuid else "a server's service"
            raise Conflict(
                f"Attachment {row.id} is in use by {server}; detach the volume through the server's own service."
            )


def disconnect(call: Call, row: Attachment, *, follow: bool = True) -> DisconnectAttachment:
    """Enqueue the operation that ends an attachment; with ``follow``, the volume's status follows.

    Raise Conflict if the attachment is being detached already.
    """
    operation = call.operation(
        DisconnectAttachment,
        row,
        volume_id=row.volume_id,
        # An attachment that was still being connected cannot be in use.
        came_from=A.ATTACHING if row.status == A.CONNECTING else row.status,
        follow=follow and not row.legacy,  # attachments of os-initialize_connection do not affect a volume's status
    )
    try:
        transitions.move(
            call.session,
            states.ATTACHMENT,
            row.id,
            A.DISCONNECTING,
            operation=operation,
            where=[Attachment.status != A.DISCONNECTING],
        )
    except StateConflict:
        raise Conflict(f"Attachment {row.id} is being detached already.") from None
    return operation
