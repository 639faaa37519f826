"""Snapshots: create, list, show, update, delete, and their actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, select, update

from blockstore.accounting import quotas
from blockstore.api.admin.services import refuse_frozen
from blockstore.api.holds import keep_project
from blockstore.api.http import listing
from blockstore.api.http.call import Call
from blockstore.api.http.lookup import find
from blockstore.api.http.routes import Routes
from blockstore.api.metadata import OF_IMAGES, OF_SNAPSHOTS
from blockstore.api.volumes.volumes import find_volume
from blockstore.db.models import Snapshot, SnapshotMetadata, Volume, new_id, now
from blockstore.errors import InvalidInput, InvalidStatus, StateConflict
from blockstore.microversions import CONSUMES_QUOTA, SNAPSHOT_FILTER_METADATA, SNAPSHOT_IN_USE, SNAPSHOT_SORT_NAME
from blockstore.operations import journal, states, transitions
from blockstore.operations.catalogue import CreateSnapshot, DeleteSnapshot, PlaceSnapshot
from blockstore.operations.states import S, V
from blockstore.schemas import snapshots as schemas

routes = Routes()

DELETABLE = (S.AVAILABLE, S.ERROR)

LISTING = listing.Listing(
    model=Snapshot,
    noun="Snapshot",
    collection="snapshots",
    links_key="snapshots_links",
    columns={
        name: column
        for name, column in listing.columns_of(
            Snapshot,
            display_name=Snapshot.name,
            display_description=Snapshot.description,
            size=Snapshot.volume_size,
        ).items()
        if name != "number"  # Cinder has none
    },
    special={
        "metadata": listing.pairs(Snapshot.id, SnapshotMetadata, SnapshotMetadata.snapshot_id, "metadata"),
        "availability_zone": lambda call, value: Snapshot.volume_id.in_(
            select(Volume.id).where(Volume.availability_zone == value)
        ),
    },
    sortable=frozenset(
        {
            "id", "name", "display_name", "description", "display_description", "status", "volume_id", "volume_size",
            "size", "created_at", "updated_at", "consumes_quota", "user_id", "project_id",
        }
    ),
    public=frozenset({"name", "status", "volume_id", "metadata", "availability_zone", "consumes_quota"}),
    since={"metadata": SNAPSHOT_FILTER_METADATA, "consumes_quota": CONSUMES_QUOTA},
    sorts_since={"name": SNAPSHOT_SORT_NAME},
    counted=True,
)  # fmt: skip


@dataclass(slots=True)
class SnapshotView:
    """A snapshot as replies show it."""

    row: Snapshot
    metadata: Mapping[str, str]


@routes.get("/snapshots", policy="volume:get_all_snapshots")
def index(call: Call) -> dict[str, Any]:
    """List the plain fields."""
    return _listed(call, kind="plain")


@routes.get("/snapshots/detail", policy="volume:get_all_snapshots")
def detail(call: Call) -> dict[str, Any]:
    """List every field."""
    return _listed(call, kind="detailed", suffix="/detail")


def _listed(call: Call, *, kind: str, suffix: str = "") -> dict[str, Any]:
    page = listing.page(call, LISTING, _visible(call), suffix=suffix)
    page, _ = listing.fitting(
        call, LISTING, page, lambda rows: OF_SNAPSHOTS.sizes(call.session, [row.id for (row,) in rows]), suffix=suffix
    )
    return {"snapshots": render(call, [row for (row,) in page.rows], kind=kind), **page.envelope}


@routes.get("/snapshots/<snapshot_id>", policy="volume:get_snapshot")
def show(call: Call, snapshot_id: str) -> dict[str, Any]:
    """Show one snapshot."""
    return {"snapshot": render(call, [find_snapshot(call, snapshot_id)], kind="detailed")[0]}


def find_snapshot(call: Call, snapshot_id: str, *, lock: bool = False) -> Snapshot:
    """Return a snapshot that the caller may see. Raise NotFound for others, as for snapshots that do not exist.

    ``lock``: lock its volume until this transaction ends, so that the snapshot stays the caller's. Every change of a
    snapshot takes this lock.
    """
    snapshot = find(call, Snapshot, snapshot_id, rule="volume:get_snapshot")
    if not lock:
        return snapshot
    transitions.lock(call.session, snapshot.volume_id)
    call.session.expire(snapshot)  # it was read before the lock was taken
    return find(call, Snapshot, snapshot_id, rule="volume:get_snapshot")


def render(call: Call, rows: Sequence[Snapshot], *, kind: str) -> list[dict[str, Any]]:
    """Return snapshots as replies show them: ``plain``, ``accepted`` (create, update) or ``detailed``."""
    visible = set()
    if kind != "plain":
        visible.add(schemas.DETAIL)
    if kind == "detailed" and call.may(schemas.EXTENDED):
        visible.add(schemas.EXTENDED)
    getters = schemas.SNAPSHOT.getters(call.version, frozenset(visible))
    metadata = OF_SNAPSHOTS.of_many(call.session, [row.id for row in rows])
    views = [SnapshotView(row, metadata.get(row.id, {})) for row in rows]
    return [{name: get(view) for name, get in getters} for view in views]


def touch(call: Call, snapshot: Snapshot, **values: Any) -> None:
    """Change columns of a snapshot."""
    call.session.execute(update(Snapshot).where(Snapshot.id == snapshot.id).values(updated_at=now(), **values))


def _visible(call: Call) -> Select[Any]:
    return select(Snapshot).where(*listing.visible_projects(call, Snapshot, strict=False))


# --- changing ----------------------------------------------------------------------------------------------


@routes.post("/snapshots", policy="volume:create_snapshot", body=schemas.CreateSnapshotBody)
def create(call: Call, body: Mapping[str, Any]) -> dict[str, Any]:
    """Accept a new snapshot."""
    params = body["snapshot"]
    volume = find_volume(call, str(params["volume_id"]), lock=True)  # its status must not change after the check
    return {"snapshot": render(call, [insert_with_operation(call, volume, params)], kind="accepted")[0]}


def insert_with_operation(call: Call, volume: Volume, params: Mapping[str, Any], *, reference: str = "") -> Snapshot:
    """Insert a snapshot and the operation that creates it, or manages it by ``reference``. Raises InvalidStatus."""
    _check_snapshot_of(call, volume, params)
    keep_project(call, volume.project_id)
    snapshot = Snapshot(
        id=new_id(),
        project_id=volume.project_id,
        user_id=call.ctx.user_id,
        volume_id=volume.id,
        name=params.get("name"),
        description=params.get("description"),
        volume_size=volume.size,
        volume_type_id=volume.volume_type_id,
        bootable=volume.bootable,
        image_metadata=OF_IMAGES.of(call.session, volume.id) if volume.has_image_metadata else None,
        progress="0%",
        number=_next_number(call, volume),
        created_at=now(),
    )
    limits = call.core.config.quota
    quotas.charge(call.session, limits, volume.project_id, volume.volume_type_id, snapshots=1, gigabytes=volume.size)
    operation = call.operation(PlaceSnapshot, snapshot, volume_id=volume.id, reference=reference)
    transitions.insert_with_operation(call.session, snapshot, operation)
    OF_SNAPSHOTS.add(call.session, snapshot.id, params.get("metadata") or {})
    return snapshot


def _next_number(call: Call, volume: Volume) -> int:
    """Return the number of a volume's next snapshot, above all existing numbers; the volume is locked."""
    newest = select(func.max(Snapshot.number)).where(Snapshot.volume_id == volume.id)
    return (call.session.execute(newest).scalar() or 0) + 1


def _check_snapshot_of(call: Call, volume: Volume, params: Mapping[str, Any]) -> None:
    """Refuse a volume whose status does not allow a snapshot."""
    if call.version >= SNAPSHOT_IN_USE:
        if params.get("force") is False:
            raise InvalidInput(
                "snapshot.force", False, "Since microversion 3.66, volumes in use do not need force; leave it out."
            )
        in_use_too = True
    else:
        in_use_too = bool(params.get("force"))
    allowed = (V.AVAILABLE, V.IN_USE) if in_use_too else (V.AVAILABLE,)
    if volume.status not in allowed:
        hint = "" if in_use_too or volume.status != V.IN_USE else ", or use force"
        raise InvalidStatus(
            f"Invalid volume: volume {volume.id} is {volume.status}; to take a snapshot it must be"
            f" {' or '.join(allowed)}{hint}."
        )
    if volume.is_migrating:
        raise InvalidStatus(f"Invalid volume: volume {volume.id} is being migrated ({volume.migration_status}).")
    if volume.host is None:
        raise InvalidStatus(f"Invalid volume: volume {volume.id} is on no backend.")
    refuse_frozen(call, volume.host, "made")


@routes.put("/snapshots/<snapshot_id>", policy="volume:update_snapshot", body=schemas.UpdateSnapshotBody)
def change(call: Call, snapshot_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Change name and description."""
    snapshot = find_snapshot(call, snapshot_id, lock=True)
    touch(call, snapshot, **body["snapshot"])
    call.session.refresh(snapshot)
    return {"snapshot": render(call, [snapshot], kind="accepted")[0]}


@routes.delete("/snapshots/<snapshot_id>", policy="volume:delete_snapshot")
def remove(call: Call, snapshot_id: str) -> None:
    """Accept the deletion of a snapshot."""
    delete_snapshot(call, snapshot_id, force=False)


def delete_snapshot(call: Call, snapshot_id: str, *, force: bool) -> None:
    """Enqueue the operation that deletes a snapshot. Raises InvalidStatus."""
    snapshot = find_snapshot(call, snapshot_id, lock=True)
    if snapshot.group_snapshot_id is not None:
        raise InvalidStatus(f"Invalid snapshot: snapshot {snapshot_id} belongs to a group snapshot.")
    operation = call.operation(DeleteSnapshot, snapshot, volume_id=snapshot.volume_id, came_from=snapshot.status)
    volume = call.session.get_one(Volume, snapshot.volume_id)
    refuse_frozen(call, volume.host, "deleted")
    if force and snapshot.status == S.DELETING and journal.is_covered(call.session, DeleteSnapshot, snapshot_id):
        return  # the snapshot is being deleted already
    conditions = [] if force else [Snapshot.status.in_(DELETABLE)]
    try:
        transitions.move(call.session, states.SNAPSHOT, snapshot_id, S.DELETING, where=conditions, operation=operation)
    except StateConflict as conflict:
        raise InvalidStatus(
            f"Invalid snapshot: snapshot {snapshot_id} is {conflict.present}; it must be {' or '.join(DELETABLE)}."
        ) from None


# --- actions -----------------------------------------------------------------------------------------------

ACTION = "/snapshots/<snapshot_id>/action"


@routes.action(
    ACTION,
    "os-reset_status",
    policy="volume_extension:snapshot_admin_actions:reset_status",
    body=schemas.ResetSnapshotStatusBody,
    frees=True,
)
def reset_status(call: Call, snapshot_id: str, body: Mapping[str, Any]) -> None:
    """Set the status of a snapshot by force."""
    find_snapshot(call, snapshot_id, lock=True)
    transitions.reset_status(call.session, states.SNAPSHOT, snapshot_id, body["reset"]["status"], by=call.ctx.user_id)


@routes.action(
    ACTION,
    "os-force_delete",
    policy="volume_extension:snapshot_admin_actions:force_delete",
    body=schemas.ForceDeleteSnapshotBody,
    frees=True,
)
def force_delete(call: Call, snapshot_id: str, body: Mapping[str, Any]) -> None:
    """Accept the deletion of a snapshot whatever its status."""
    delete_snapshot(call, snapshot_id, force=True)


OURS = (PlaceSnapshot, CreateSnapshot, DeleteSnapshot)
"""Operations whose snapshot no hypervisor creates or deletes: a report on it would leave it stuck."""
MAY_BECOME = {
    S.CREATING: (S.CREATING, S.AVAILABLE, S.ERROR),
    S.DELETING: (S.DELETING, S.ERROR_DELETING),
}


@routes.action(
    ACTION,
    "os-update_snapshot_status",
    policy="snapshot_extension:snapshot_actions:update_snapshot_status",
    body=schemas.UpdateStatusBody,
)
def update_status(call: Call, snapshot_id: str, body: Mapping[str, Any]) -> None:
    """Accept a hypervisor's report on a snapshot that it is creating or deleting."""
    snapshot = find_snapshot(call, snapshot_id, lock=True)
    params = body["update"]
    allowed = MAY_BECOME.get(S(snapshot.status), ())
    if params["status"] not in allowed:
        raise InvalidStatus(
            f"Invalid snapshot: snapshot {snapshot_id} is {snapshot.status}; a hypervisor may not make it"
            f" {params['status']}."
        )
    if params["status"] != snapshot.status and any(
        journal.is_covered(call.session, kind, snapshot_id) for kind in OURS
    ):
        raise InvalidStatus(
            f"Invalid snapshot: snapshot {snapshot_id} is {snapshot.status}, by an operation of this service; a"
            " hypervisor may not change that."
        )
    touch(call, snapshot, progress=params.get("progress", snapshot.progress))
    if params["status"] != snapshot.status:
        transitions.reset_status(call.session, states.SNAPSHOT, snapshot_id, params["status"], by=call.ctx.user_id)
