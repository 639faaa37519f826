"""List and manage existing volumes and snapshots of a pool, and unmanage them without touching their data."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import exists, or_, select

from blockstore.accounting import quotas, reservations
from blockstore.accounting.pool_reports import PoolReport
from blockstore.api.admin.services import refuse_disabled
from blockstore.api.holds import keep_project
from blockstore.api.http.call import Call, WithoutSession
from blockstore.api.http.routes import Routes
from blockstore.api.metadata import OF_VOLUMES
from blockstore.api.snapshots import ACTION as SNAPSHOT_ACTION
from blockstore.api.snapshots import DELETABLE as SNAPSHOT_DELETABLE
from blockstore.api.snapshots import find_snapshot
from blockstore.api.snapshots import insert_with_operation as insert_snapshot
from blockstore.api.snapshots import render as render_snapshots
from blockstore.api.types.types import default_type, find_type
from blockstore.api.volumes.delete import DELETABLE, removable, why_not_removable
from blockstore.api.volumes.volumes import ACTION, VolumeView, find_volume
from blockstore.db.models import Attachment, Snapshot, Volume, VolumeType, new_id, now
from blockstore.errors import (
    BackendError,
    BadRequest,
    InvalidInput,
    InvalidStatus,
    NotFound,
    ServiceUnavailable,
    StateConflict,
)
from blockstore.microversions import MANAGEABLE, MANAGEABLE_CLUSTER, MINIMUM, Version
from blockstore.operations import states, transitions
from blockstore.operations.catalogue import PlaceManaged
from blockstore.schemas import manageable as schemas
from blockstore.schemas.base import load
from blockstore.schemas.listing import PageQuery
from blockstore.schemas.volumes import VOLUME as VOLUME_REPLY

routes = Routes()

_OUR_NAME = re.compile(r"(?:.*/)?(?:volume|snap)-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:\.\w+)?", re.DOTALL)
_SORT_KEYS = ("reference", "size")

# --- lists -------------------------------------------------------------------------------------------------


def _declare_lists(path: str, since: Version, kind: str, policy: str) -> None:
    @routes.get(path, policy=policy, since=since)
    def index(call: Call) -> WithoutSession:
        """List the volumes or snapshots on a pool, including those already managed."""
        return _listing(call, kind, detailed=False)

    @routes.get(f"{path}/detail", policy=policy, since=since)
    def detail(call: Call) -> WithoutSession:
        """List the volumes or snapshots on a pool, with the reason if one cannot be managed."""
        return _listing(call, kind, detailed=True)


for _path, _since, _kind, _policy in (
    ("/manageable_volumes", MANAGEABLE, "volumes", "volume_extension:list_manageable"),
    ("/os-volume-manage", MINIMUM, "volumes", "volume_extension:list_manageable"),
    ("/manageable_snapshots", MANAGEABLE, "snapshots", "snapshot_extension:list_manageable"),
    ("/os-snapshot-manage", MINIMUM, "snapshots", "snapshot_extension:list_manageable"),
):
    _declare_lists(_path, _since, _kind, _policy)


def _listing(call: Call, kind: str, *, detailed: bool) -> WithoutSession:
    query = load(PageQuery, dict(call.query), call.version)
    keys = _sort_keys(query)
    cluster = call.query.get("cluster") if call.version >= MANAGEABLE_CLUSTER else None
    pool = _pool(call, call.query.get("host"), cluster).name

    def reply(timeout_s: float) -> dict[str, Any]:
        try:
            found = call.core.manageable(pool, kind, timeout_s)
        except BackendError as exc:
            raise BadRequest(f"Invalid host: {pool} cannot list its {kind}: {exc}") from exc
        except TimeoutError:
            raise ServiceUnavailable(
                f"{pool} has not answered within {timeout_s:g} s which {kind} it has; does its storage hang?"
                if timeout_s
                else f"Too many requests are already waiting; ask again later for the {kind} on {pool}."
            ) from None
        page = _page(found, query, keys, call.core.config.service.max_limit)
        return {f"manageable-{kind}": [_item(found_item, kind, detailed=detailed) for found_item in page]}

    return WithoutSession(reply=reply)


def _page(found: Sequence[Any], query: Mapping[str, Any], keys: Sequence[tuple[str, bool]], most: int) -> Sequence[Any]:
    found = sorted(found, key=lambda found_item: found_item.reference)
    for key, down in reversed(keys):
        found.sort(key=lambda found_item: found_item.size_gib if key == "size" else found_item.reference, reverse=down)
    if query.get("marker"):
        marker = _marker(query["marker"])
        places = [place for place, found_item in enumerate(found) if found_item.reference == marker]
        if not places:
            raise BadRequest(f"Invalid input received: marker not found: {marker}")
        found = found[places[0] + 1 :]
    start = query.get("offset") or 0
    return found[start : start + min(query.get("limit", most), most)]


def _item(found_item: Any, kind: str, *, detailed: bool) -> dict[str, Any]:
    item = {
        "reference": {"source-name": found_item.reference},
        "size": found_item.size_gib,
        "safe_to_manage": found_item.reason is None,
    }
    if kind == "snapshots":
        item["source_reference"] = {"source-name": found_item.volume}
    if detailed:
        item |= {"reason_not_safe": found_item.reason, "cinder_id": found_item.managed_as, "extra_info": None}
    return item


def _sort_keys(query: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Return the sort keys, each with True if descending. compat: reference (default, descending) and size only."""
    words = [word.strip().partition(":") for word in query.get("sort", "").split(",") if word.strip()]
    given = [(key, direction or "desc") for key, _, direction in words] or [
        (query.get("sort_key") or "reference", query.get("sort_dir") or "desc")
    ]
    for key, direction in given:
        if key not in _SORT_KEYS:
            raise BadRequest(
                f"Invalid input received: {key!r} is not a sort key; the sort keys are {' and '.join(_SORT_KEYS)}."
            )
        if direction not in ("asc", "desc"):
            raise BadRequest("Invalid input received: Unknown sort direction, must be 'desc' or 'asc'.")
    return [(key, direction == "desc") for key, direction in given]


def _marker(text: str) -> str:
    """Return the reference in a marker: an object in JSON or Python syntax, or the name alone."""
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            value = read(text)
            if isinstance(value, dict):
                return str(value.get("source-name"))
    return text


def _pool(call: Call, host: str | None, cluster: str | None) -> PoolReport:
    """Return the pool NODE@BACKEND#POOL, or the only pool of NODE@BACKEND. Raises BadRequest."""
    if (host is None) == (cluster is None):
        raise InvalidInput("host", host, "Exactly one of host and cluster is needed.")
    if cluster is not None:
        raise BadRequest(f"There is no cluster {cluster}; name a host, NODE@BACKEND or NODE@BACKEND#POOL.")
    reports = call.core.pool_reports.of_host(host or "")
    if len(reports) != 1:
        names = ", ".join(sorted(call.core.pool_reports.reports()))
        what = f"{host} has several pools; name one" if reports else f"there is no pool {host}"
        raise BadRequest(f"Invalid host: {what}: {names}.")
    if not reports[0].up:
        raise BadRequest(f"Invalid host: {host} is down: {reports[0].reason}")
    refuse_disabled(call, reports[0].backend)
    return reports[0]


# --- manage ------------------------------------------------------------------------------------------------


def manage_volume(call: Call, body: Mapping[str, Any]) -> dict[str, Any]:
    """Accept an existing volume of a pool."""
    params = body["volume"]
    report = _pool(call, params.get("host"), params.get("cluster"))
    if not report.capabilities.manage:
        raise BadRequest(f"Invalid host: {report.name} does not support managing existing volumes.")
    keep_project(call, call.ctx.project_id)
    _refuse_managed(call, report.name, params["ref"], Volume)
    volume_type = _type(call, params.get("volume_type"))
    volume = Volume(
        id=new_id(),
        project_id=call.ctx.project_id,
        user_id=call.ctx.user_id,
        name=params.get("name"),
        description=params.get("description"),
        size=0,
        volume_type_id=volume_type.id,
        availability_zone=report.availability_zone,
        bootable=params.get("bootable") or False,
        multiattach=volume_type.multiattach,
        consumes_quota=False,  # until its size is known
        created_at=now(),
    )
    operation = call.operation(PlaceManaged, volume, pool=report.name, reference=params["ref"])
    transitions.insert_with_operation(call.session, volume, operation)
    pairs = params.get("metadata") or {}
    OF_VOLUMES.add(call.session, volume.id, pairs)
    # compat: at any microversion only the fields of 3.0, without those that need a policy
    view = VolumeView(volume, volume_type.name, pairs, [], call.links.of_resource("volumes", volume.id), None, {})
    return {"volume": {name: get(view) for name, get in VOLUME_REPLY.getters(MINIMUM, frozenset())}}


def _type(call: Call, ref: str | None) -> VolumeType:
    try:
        volume_type = find_type(call, ref) if ref else default_type(call)
    except NotFound as exc:
        raise BadRequest(f"Invalid volume type: {exc.message}") from None
    if volume_type.encryption is not None:
        raise BadRequest(
            f"Invalid volume type: volumes of type {volume_type.name} are encrypted; an existing volume cannot get"
            f" such a"
            " type."
        )
    return volume_type


def _refuse_managed(call: Call, pool: str, reference: str, kind: type[Volume | Snapshot]) -> None:
    """Raise BadRequest if the name is that of a managed volume or snapshot. The manager finds all other cases."""
    named = _OUR_NAME.fullmatch(reference)
    if named is None:
        return
    called = or_(Volume.id == named[1], Volume.name_id == named[1]) if kind is Volume else Snapshot.id == named[1]
    row_id = call.session.execute(select(kind.id).where(called, kind.host.is_not(None)).limit(1)).scalar()
    if row_id is not None:
        raise BadRequest(
            f"Invalid reference: {reference} on {pool} is already managed, as {kind.__name__.lower()} {row_id}."
        )


def manage_snapshot(call: Call, body: Mapping[str, Any]) -> dict[str, Any]:
    """Accept an existing snapshot of a managed volume."""
    params = body["snapshot"]
    call.enforce("volume:create_snapshot")
    volume = find_volume(call, params["volume_id"], lock=True)
    report = call.core.pool_reports.get(volume.host or "")
    if report is None or not report.capabilities.manage:
        raise BadRequest(f"Invalid volume: {volume.host} does not support managing existing snapshots.")
    _refuse_managed(call, report.name, params["ref"], Snapshot)
    snapshot = insert_snapshot(call, volume, {**params, "force": True}, reference=params["ref"])
    return {"snapshot": render_snapshots(call, [snapshot], kind="plain")[0]}


for _path, _since in (("/manageable_volumes", MANAGEABLE), ("/os-volume-manage", MINIMUM)):
    routes.post(
        _path, policy="volume_extension:volume_manage", body=schemas.ManageVolumeBody, since=_since, status=202
    )(manage_volume)
for _path, _since in (("/manageable_snapshots", MANAGEABLE), ("/os-snapshot-manage", MINIMUM)):
    routes.post(
        _path, policy="snapshot_extension:snapshot_manage", body=schemas.ManageSnapshotBody, since=_since, status=202
    )(manage_snapshot)


# --- unmanage ----------------------------------------------------------------------------------------------


@routes.action(ACTION, "os-unmanage", policy="volume_extension:volume_unmanage", body=schemas.UnmanageBody, frees=True)
def unmanage_volume(call: Call, volume_id: str, body: Mapping[str, Any]) -> None:
    """Unmanage a volume; it stays on its pool. It must be deletable and without attachments."""
    call.enforce("volume:delete")
    volume = find_volume(call, volume_id, lock=True)
    unused = ~exists().where(Attachment.volume_id == volume_id)
    conditions: Sequence[Any] = [*removable(force=False, cascade=False), unused]
    placed = {"volumes": 1, "volume_gib": volume.size}
    counted = {"volumes": 1, "gigabytes": volume.size} if volume.consumes_quota else {}
    host, project, type_id = volume.host, volume.project_id, volume.volume_type_id
    try:
        transitions.unmanage(call.session, states.VOLUME, volume_id, DELETABLE, conditions)
    except StateConflict:
        reserved = call.session.execute(select(Attachment.id).where(Attachment.volume_id == volume_id).limit(1)).first()
        raise InvalidStatus(
            f"Invalid volume: volume {volume_id} has attachments; delete them first."
            if reserved
            else why_not_removable(call, volume, cascade=False, done="unmanaged")
        ) from None
    reservations.release_capacity(call.session, host, **placed)
    quotas.refund(call.session, project, type_id, **counted)


@routes.action(SNAPSHOT_ACTION, "os-unmanage", policy="snapshot_extension:snapshot_unmanage", body=schemas.UnmanageBody)
def unmanage_snapshot(call: Call, snapshot_id: str, body: Mapping[str, Any]) -> None:
    """Unmanage a snapshot; it stays on its pool."""
    call.enforce("volume:delete_snapshot")
    snapshot = find_snapshot(call, snapshot_id, lock=True)
    if snapshot.group_snapshot_id is not None:
        raise InvalidStatus(f"Invalid snapshot: snapshot {snapshot_id} belongs to a group snapshot.")
    # Locked: the volume's type must not change before the snapshot's quota is given back.
    volume = call.session.get_one(Volume, snapshot.volume_id, with_for_update=True)
    host, project, size, counts = snapshot.host, snapshot.project_id, snapshot.volume_size, snapshot.consumes_quota
    try:
        transitions.unmanage(call.session, states.SNAPSHOT, snapshot_id, SNAPSHOT_DELETABLE)
    except StateConflict as conflict:
        raise InvalidStatus(
            f"Invalid snapshot: snapshot {snapshot_id} is {conflict.present}; it must be"
            f" {' or '.join(SNAPSHOT_DELETABLE)}."
        ) from None
    reservations.release_capacity(call.session, host, snapshot_gib=size)
    if counts:
        quotas.refund(call.session, project, volume.volume_type_id, snapshots=1, gigabytes=size)
