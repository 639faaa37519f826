"""What must be true of database and storage whenever nothing runs: one function, used after every kill.

``check`` looks at rows and files only, from any process, and names everything that is wrong at once.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blockstore_plugins.directory.file_backend import FileBackend
from blockstore_plugins.local import LocalTarget
from blockstore_plugins.nfs import NfsBackend
from sqlalchemy import select

from blockstore.backends.contract import GIB, Backend
from blockstore.db.models import Attachment, Message, OperationRow, PoolUsage, QuotaUsage, Snapshot, Volume
from blockstore.db.session import Database
from blockstore.keys.keyring import Keyring
from blockstore.manager.context import snapshot_name, volume_name
from blockstore.operations import states
from blockstore.operations.catalogue import (
    ChangeType,
    ExtendVolume,
    MigrateToType,
    MigrateVolume,
    Operation,
    PlaceExtension,
    RemoveCopy,
    RetypeVolume,
    from_stored,
)
from blockstore.operations.states import A
from blockstore.targets.contract import Target

MAY_BE_ABSENT = frozenset({"creating", "error", "deleting", "error_deleting", "managing", "error_managing"})
"""Statuses of rows whose bytes need not be on the backend: they never got there, or are half-way out."""
DIRECT = frozenset({"nfs", "rbd"})
"""How initiators reach the storage itself; no target exports it."""
FOREIGN = "foreign"
"""How the names of what others made begin; it belongs to no row until it is taken over."""
MAY_BE_LARGER = frozenset({"extending", "error_extending"})


def check(
    db: Database,
    backends: Mapping[str, Backend],
    *,
    targets: Mapping[str, Target] | None = None,
    idle: bool = True,
    explained: bool = True,
) -> None:
    """Raise AssertionError with every disagreement.

    ``targets``: looked at, too, where they are given.

    ``idle``: nothing waits or runs, so no operation may be open. ``explained``: no administrator has set a status, so
    whatever is in error has a story.
    """
    with db.read() as session:
        rows: dict[str, list[Any]] = {
            "volume": list(session.scalars(select(Volume))),
            "snapshot": list(session.scalars(select(Snapshot))),
            "attachment": list(session.scalars(select(Attachment))),
        }
        stored = list(session.scalars(select(OperationRow)))
        quota = {(u.project_id, u.resource): u.in_use for u in session.scalars(select(QuotaUsage))}
        pools = {u.pool: (u.volumes, u.volume_gib, u.snapshot_gib) for u in session.scalars(select(PoolUsage))}
        told = {m.resource_uuid for m in session.scalars(select(Message))}
    opened = [from_stored(r.kind, r.id, r.request_id, r.project_id, r.body) for r in stored if r.state == "open"]
    wrong = [
        *_operations(rows, stored, opened, idle),
        *(_reasons(rows, stored, told) if explained else ()),
        *_usage("quota", quota, _quota(rows, opened)),
        *_usage("pool", pools, _pools(rows, opened)),
        *_attachments(rows),
        *_owners(rows),
        *(_statuses(rows) if explained else ()),
        *_secrets(db, {row.id for row in rows["attachment"]} | {o.resource_id for o in stored}),
    ]
    for name, target in (targets or {}).items():
        wrong += _exports(name, target, rows["attachment"])
    for pool, backend in backends.items():
        on_pool = {kind: [row for row in rows[kind] if row.host == pool] for kind in ("volume", "snapshot")}
        wrong += _volumes(pool, backend, on_pool["volume"])
        names = {row.id: volume_name(row) for row in rows["volume"]}
        wrong += _snapshots(pool, backend, on_pool["snapshot"], names)
        if isinstance(backend, FileBackend):
            wrong += _strays(backend, on_pool["volume"], on_pool["snapshot"], names)
    wrong += [
        f"{row.id} is on the unknown pool {row.host}"
        for kind in ("volume", "snapshot")
        for row in rows[kind]
        if row.host not in pools_of(backends)
    ]
    assert not wrong, "\n".join(wrong)


def pools_of(backends: Mapping[str, Backend]) -> set[str | None]:
    """Return what ``host`` may be: a pool, or nothing."""
    return {None, *backends}


def _operations(
    rows: Mapping[str, list[Any]], stored: list[OperationRow], opened: list[Operation], idle: bool
) -> Iterator[str]:
    covered = {cover for operation in opened for cover in operation.covers()}
    for kind, machine in states.MACHINES.items():
        for row in rows[kind]:
            if row.status in machine.failure and (kind, row.id, row.status) not in covered:
                yield f"{kind} {row.id} is {row.status} and no open operation covers it"
    present = {(kind, row.id, row.status) for kind, found in rows.items() for row in found}
    for operation in opened:
        if idle:
            yield (
                f"{operation.kind} {operation.operation_id} of {operation.resource_type} {operation.resource_id}"
                f" is still open"
            )
        for cover in operation.covers():
            if cover not in present:
                yield f"{operation.kind} {operation.operation_id} is open, but there is no {' '.join(cover)}"
    for row in stored:
        if (row.finished_at is None) != (row.state == "open"):
            yield f"{row.kind} {row.id} is {row.state}, finished at {row.finished_at}"
        if row.state in ("failed", "cancelled") and not row.reason:
            yield f"{row.kind} {row.id} is {row.state} without a reason"


def _reasons(rows: Mapping[str, list[Any]], stored: list[OperationRow], told: set[str | None]) -> Iterator[str]:
    """Whatever is in error has a story: a message for its owner, or at least an operation that ended with a reason."""
    explained = told | {operation.resource_id for operation in stored if operation.reason}
    for kind, found in rows.items():
        for row in found:
            if row.status.startswith("error") and row.id not in explained:
                yield f"{kind} {row.id} is {row.status} and nothing tells why"


def _attachments(rows: Mapping[str, list[Any]]) -> Iterator[str]:
    """Whoever is exported to knows how to connect, and nobody else; what is stored of that is no secret."""
    for row in rows["attachment"]:
        if row.status == A.ATTACHING or (row.status == A.ATTACHED and row.target):
            if row.connection is None:
                yield f"attachment {row.id} is {row.status} and knows no connection"
        elif row.connection is not None and (
            row.status in (A.RESERVED, A.ERROR_ATTACHING)
            or (row.status == A.ATTACHED and row.connection["driver_volume_type"] not in DIRECT)
        ):
            yield f"attachment {row.id} is {row.status} by {row.target} and has a connection"
        if row.connection and row.connection["secret_as"] in row.connection["data"]:
            yield f"attachment {row.id} has its secret stored"


def _owners(rows: Mapping[str, list[Any]]) -> Iterator[str]:
    """Whoever is exported to has the volume: an attachment's project is its volume's. ``_exports`` finds the rest."""
    owner = {volume.id: volume.project_id for volume in rows["volume"]}
    for row in rows["attachment"]:
        if row.project_id != owner.get(row.volume_id):
            yield f"attachment {row.id} is of {row.project_id}, its volume {row.volume_id} of {owner[row.volume_id]}"


SAYS = {
    A.RESERVED: "reserved",
    A.CONNECTING: "attaching",
    A.ATTACHING: "attaching",
    A.ATTACHED: "attached",
    A.DISCONNECTING: "detaching",
    A.ERROR_DETACHING: "attached",
}
"""What an attachment's status says of its volume; of several words the alphabetically first counts."""


def _statuses(rows: Mapping[str, list[Any]]) -> Iterator[str]:
    """Both statuses of a volume are what its attachments say, where nothing else goes on with it."""
    for volume in rows["volume"]:
        own = [row.status for row in rows["attachment"] if row.volume_id == volume.id and not row.legacy]
        word = min((SAYS[status] for status in own if status in SAYS), default="detached")
        named = {"attached": "in-use", "detached": "available"}.get(word, word)
        may_be = {(named, word)}
        if A.RESERVED in own:
            may_be |= {(status, said) for status in (named, "reserved") for said in (word, "detached")}
        if A.ERROR_ATTACHING in own:  # which leaves both as they were
            may_be |= {(status, said) for status in ("reserved", "attaching") for said in ("detached", "attaching")}
        found = (volume.status, volume.attach_status)
        if volume.status in {"available", "reserved", "attaching", "in-use", "detaching"}:
            if found not in may_be:
                yield f"volume {volume.id} is {' and '.join(found)}, its attachments are {own}"
        elif not own and volume.attach_status != "detached":
            yield f"volume {volume.id} has no attachment and is {volume.attach_status}"


def _secrets(db: Database, ids: set[str]) -> Iterator[str]:
    """No file of the database holds the secret of an attachment, be it one that is gone."""
    if not db.is_sqlite:
        return
    database = Path(str(db.url.database))
    key = database.with_name("attachments.key")
    if not key.exists():
        return
    keyring = Keyring(key)
    for file in database.parent.glob(f"{database.name}*"):
        held = file.read_bytes()
        for attachment_id in sorted(ids):
            if keyring.secret(attachment_id).encode() in held:
                yield f"{file} holds the secret of attachment {attachment_id}"


def _exports(name: str, target: Target, rows: list[Any]) -> Iterator[str]:
    """What is exported is what is attached, nothing less and nothing more."""
    there = target.list_exports()
    ours = {row.id: row.status for row in rows if row.target == name}
    for attachment_id, status in ours.items():
        if status in (A.ATTACHING, A.ATTACHED) and attachment_id not in there:
            yield f"attachment {attachment_id} is {status}, and {name} does not export it"
    for export_id in there:
        if ours.get(export_id) not in states.EXPORTED:
            yield f"{name} exports {export_id}, whose attachment is {ours.get(export_id, 'gone')}"
    if isinstance(target, LocalTarget) and target.state_dir.exists():
        for path in target.state_dir.iterdir():
            if path.name not in there:
                yield f"{path} belongs to no export"


def _usage(what: str, noted: Mapping[Any, Any], counted: Mapping[Any, Any]) -> Iterator[str]:
    for key in sorted({*noted, *counted}):
        nothing = (0, 0, 0) if what == "pool" else 0
        if noted.get(key, nothing) != counted.get(key, nothing):
            yield f"{what} usage of {key} is {noted.get(key, nothing)}; the rows make {counted.get(key, nothing)}"


def _quota(rows: Mapping[str, list[Any]], opened: list[Operation]) -> Counter[tuple[str, str]]:
    count: Counter[tuple[str, str]] = Counter()
    type_of = {row.id: row.volume_type_id for row in rows["volume"]}

    def add(project: str, volume_id: str, resource: str, amount: int) -> None:
        """Everything counts twice: for the project, and for the type in it."""
        count[project, resource] += amount
        count[project, f"{resource}_{type_of[volume_id]}"] += amount

    for row in rows["volume"]:
        if row.consumes_quota:
            add(row.project_id, row.id, "volumes", 1)
            add(row.project_id, row.id, "gigabytes", row.size)
    for row in rows["snapshot"]:
        if row.consumes_quota:
            add(row.project_id, row.volume_id, "snapshots", 1)
            add(row.project_id, row.volume_id, "gigabytes", row.volume_size)
    for operation in opened:
        if isinstance(operation, PlaceExtension | ExtendVolume) and operation.volume_id in type_of:
            add(operation.project_id, operation.volume_id, "gigabytes", operation.growth_gib)
        if isinstance(operation, RetypeVolume | ChangeType | MigrateToType):
            count[operation.project_id, f"volumes_{operation.type_id}"] += operation.counted
            count[operation.project_id, f"gigabytes_{operation.type_id}"] += operation.size_gib
    return count


def _pools(rows: Mapping[str, list[Any]], opened: list[Operation]) -> dict[str, tuple[int, int, int]]:
    count: dict[str, list[int]] = {}
    for row in rows["volume"]:
        if row.host is not None:
            used = count.setdefault(row.host, [0, 0, 0])
            used[0] += 1
            used[1] += row.size
    for row in rows["snapshot"]:
        if row.host is not None:
            count.setdefault(row.host, [0, 0, 0])[2] += row.volume_size
    for operation in opened:
        if isinstance(operation, ExtendVolume):
            count.setdefault(operation.pool, [0, 0, 0])[1] += operation.growth_gib
        if isinstance(operation, MigrateVolume | RemoveCopy):
            migrating = isinstance(operation, MigrateVolume)
            used = count.setdefault(operation.destination if migrating else operation.pool, [0, 0, 0])
            used[0] += 1
            used[1] += operation.volume_gib if migrating else operation.size_gib
    return {pool: (used[0], used[1], used[2]) for pool, used in count.items()}


# --- the storage -------------------------------------------------------------------------------------------


def _volumes(pool: str, backend: Backend, rows: list[Any]) -> Iterator[str]:
    there = dict(backend.list_volumes())
    for row in rows:
        size = there.pop(volume_name(row), None)
        if size is None:
            if row.status not in MAY_BE_ABSENT:
                yield f"volume {row.id} is {row.status}, and not on {pool}"
        elif size != row.size and not (row.status in MAY_BE_LARGER and size > row.size):
            yield f"volume {row.id} is {row.status} with {row.size} GiB, on {pool} with {size:g} GiB"
    for name, size in _ours(there):
        yield f"{name}, {size:g} GiB, is on {pool} and in no row"


def _snapshots(pool: str, backend: Backend, rows: list[Any], names: Mapping[str, str]) -> Iterator[str]:
    there = dict(backend.list_snapshots())
    for row in rows:
        origin = there.pop(snapshot_name(row.id), None)
        if origin is None:
            if row.status not in MAY_BE_ABSENT:
                yield f"snapshot {row.id} is {row.status}, and not on {pool}"
            continue
        if origin != names[row.volume_id]:
            yield f"snapshot {row.id} of volume {row.volume_id} is one of {origin} on {pool}"
            continue
        if row.status == "available":
            with backend.open_snapshot(origin, snapshot_name(row.id)) as file:
                size = file.seek(0, os.SEEK_END) / GIB
            if size != row.volume_size:
                yield f"snapshot {row.id} has {row.volume_size} GiB, on {pool} {size:g} GiB"
    for name, origin in _ours(there):
        yield f"{name} of {origin or 'nothing'} is on {pool} and in no row"


def _ours(there: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, what) for name, what in there.items() if not name.startswith(FOREIGN)]


def _strays(backend: FileBackend, volumes: list[Any], snapshots: list[Any], names: Mapping[str, str]) -> Iterator[str]:
    """Yield every file and directory that belongs to no row: unfinished ones, claims of names, empty directories.

    A layer belongs to what lies on it.
    """
    known = {"snapshots"}
    for row in volumes:
        name = volume_name(row)
        known |= {f"{name}.raw", f"{name}.qcow2", f"snapshots/{name}"}
        if row.status in MAY_BE_ABSENT:
            known |= {f".{name}.tmp", f".{name}.open"}
    for row in snapshots:
        name = snapshot_name(row.id)
        below = f"snapshots/{names[row.volume_id]}"
        known |= {f"snapshots/{name}.of", f"{below}/{name}.raw", f"{below}/{name}.qcow2"}
        if row.status in MAY_BE_ABSENT:
            known |= {f"snapshots/.{name}.tmp", f"{below}/.{name}.tmp"}
    if isinstance(backend, NfsBackend):
        with backend.store.root() as root:
            graph = backend._merger._read_graph(root)
        known |= {".tender", *graph.on_top()}
    for path in sorted(backend.path.rglob("*")):
        if path.name.startswith((".blockstore-", ".owner-", ".identity-")):
            continue  # the mark of the installation, and what a kill leaves of writing it
        if str(path.relative_to(backend.path)) not in known and not path.name.startswith(FOREIGN):
            yield f"{path} belongs to no row"
