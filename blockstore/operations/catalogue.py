"""All operations: the dataclasses that can be put on a queue.

An operation is enqueued by one component and handled by exactly one handler in another. It is stored as JSON in the
``operations`` table in the same transaction as the status change it stands for, so it survives a crash: treat field
names as a storage format. It carries ids and small scalars only. Handlers are idempotent.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

KINDS: dict[str, type[Operation]] = {}

Kind = TypeVar("Kind", bound="Operation")


@dataclass_transform(frozen_default=True, kw_only_default=True)
@dataclass(frozen=True, kw_only=True)
class Operation:
    """A request from one component to another. A subclass sets its component and status by class keywords."""

    component: ClassVar[str]
    resource_type: ClassVar[str]
    """The kind of row that is in a transitional status while this operation is unfinished."""
    status: ClassVar[str]
    """That transitional status. If the row has another status, something else has taken the row over."""
    cancellable: ClassVar[bool] = False
    """Whether an operator may cancel it. An operation that would leave data half destroyed may not be cancelled."""

    operation_id: str
    request_id: str
    project_id: str
    attempt: int = 1
    """Start count; above 1 only if the process died while the operation was open."""

    def __init_subclass__(
        cls,
        *,
        resource_type: str | None = None,
        component: str | None = None,
        status: str | None = None,
        cancellable: bool | None = None,
    ) -> None:
        """Make the class a dataclass and register it if it has a component. Omitted keywords are inherited."""
        facts = {"resource_type": resource_type, "component": component, "status": status, "cancellable": cancellable}
        for name, value in facts.items():
            if value is not None:
                setattr(cls, name, value)
        dataclass(frozen=True, kw_only=True)(cls)
        if hasattr(cls, "component"):
            KINDS[cls.__name__] = cls

    @classmethod
    def of(cls, row: Any, request_id: str, **fields: Any) -> Self:
        """Return a new operation for a row, in its project."""
        return cls._made(new_operation_id(), request_id, row.project_id, row.id, fields)

    def then(self, kind: type[Kind], **fields: Any) -> Kind:
        """Return an operation that continues this one's chain on the same row."""
        return kind._made(following_id(self.operation_id), self.request_id, self.project_id, self.resource_id, fields)

    def beside(self, kind: type[Kind], **fields: Any) -> Kind:
        """Return an independent operation of the same request on the same row."""
        return kind._made(new_operation_id(), self.request_id, self.project_id, self.resource_id, fields)

    @classmethod
    def _made(cls, operation_id: str, request_id: str, project_id: str, row_id: str, fields: Mapping[str, Any]) -> Self:
        ids: dict[str, Any] = {"operation_id": operation_id, "request_id": request_id, "project_id": project_id}
        ids[f"{cls.resource_type}_id"] = row_id
        return cls(**ids, **fields)

    @property
    def kind(self) -> str:
        """Return the name stored with the operation."""
        return type(self).__name__

    @property
    def chain(self) -> str:
        """Return the id shared by all operations of one chain."""
        return self.operation_id.partition(".")[0]

    @property
    def resource_id(self) -> str:
        """Return the id of the row whose status this operation ends."""
        return str(getattr(self, f"{self.resource_type}_id"))

    @property
    def place(self) -> str:
        """Return the pool on which the operation works; empty if that has to be looked up in the database."""
        return str(getattr(self, "pool", ""))

    def keys(self) -> tuple[str, ...]:
        """Return the resources held while it runs. Operations that share a resource run one after the other."""
        return (f"{self.resource_type}:{self.resource_id}",)

    def covers(self) -> tuple[tuple[str, str, str], ...]:
        """Return type, id and transitional status of every row whose status this operation ends."""
        return ((self.resource_type, self.resource_id, self.status),)

    def body(self) -> dict[str, Any]:
        """Return the fields to store, without those that have a column."""
        plain = dataclasses.asdict(self)
        for name in ("operation_id", "request_id", "project_id", "attempt"):
            del plain[name]
        return plain


_newest_ns = 0
_newest_lock = threading.Lock()


def new_operation_id() -> str:
    """Return an id that sorts after all earlier ids. It carries the time unless the clock has gone back."""
    global _newest_ns
    with _newest_lock:
        _newest_ns = max(_newest_ns + 1, time.time_ns())
        return f"{_newest_ns:016x}-{os.urandom(4).hex()}"


def make_ids_after(operation_id: str) -> None:
    """Make new ids sort after an id of an earlier process, even if the clock has gone back since."""
    global _newest_ns
    with _newest_lock:
        _newest_ns = max(_newest_ns, int(operation_id[:16], 16))


def following_id(operation_id: str) -> str:
    """Return the id of the operation that continues this one. It sorts directly after this id."""
    chain, _, step = operation_id.partition(".")
    return f"{chain}.{int(step or 0) + 1:02d}"


def from_stored(
    kind: str, operation_id: str, request_id: str, project_id: str, body: Mapping[str, Any], *, attempt: int = 1
) -> Operation:
    """Return the operation stored in a row of the operations table.

    Raise KeyError if its kind is unknown, TypeError if its fields do not fit.
    """
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in body.items()}
    return KINDS[kind](
        operation_id=operation_id, request_id=request_id, project_id=project_id, attempt=attempt, **fields
    )


class VolumeOperation(Operation, resource_type="volume"):
    """An operation on a volume."""

    volume_id: str


class SnapshotOperation(Operation, resource_type="snapshot"):
    """An operation on a snapshot."""

    snapshot_id: str
    volume_id: str

    def keys(self) -> tuple[str, ...]:
        """Hold the volume too: its snapshots, reverts and deletes run one at a time; some backends touch the volume."""
        return (f"snapshot:{self.snapshot_id}", f"volume:{self.volume_id}")


class AttachmentOperation(Operation, resource_type="attachment"):
    """An operation on an attachment."""

    attachment_id: str
    volume_id: str

    def keys(self) -> tuple[str, ...]:
        """Hold the volume's exports, so that they begin and end one at a time."""
        return (f"attachment:{self.attachment_id}", exports_of(self.volume_id))


def exports_of(volume_id: str) -> str:
    """Return the key of a volume's exports. It differs from the volume's key, which a long copy holds."""
    return f"exports:{volume_id}"


class NewVolumeOperation(VolumeOperation, status="creating", cancellable=True):
    """An operation on a volume that does not exist yet."""

    snapshot_id: str | None = None
    source_volume_id: str | None = None
    hints: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tried: tuple[str, ...] = ()
    """Pools that accepted it and then failed, oldest first."""

    def keys(self) -> tuple[str, ...]:
        """Hold the source too, so that it cannot be deleted or reverted before it is copied."""
        keys = [f"volume:{self.volume_id}"]
        if self.snapshot_id:
            keys.append(f"snapshot:{self.snapshot_id}")
        if self.source_volume_id:
            keys.append(f"volume:{self.source_volume_id}")
        return tuple(keys)


# --- scheduler: decide where ---------------------------------------------------------------------------------


class PlaceVolume(NewVolumeOperation, component="scheduler"):
    """Choose a pool for a new volume and reserve its capacity."""

    failure: str = ""
    """The error of the pool that was tried last."""


class PlaceSnapshot(SnapshotOperation, component="scheduler", status="creating", cancellable=True):
    """Check that the volume's pool has space for a snapshot and reserve it."""

    reference: str = ""
    """The present name of a snapshot to manage; empty for a new snapshot."""


class PlaceExtension(VolumeOperation, component="scheduler", status="extending", cancellable=True):
    """Check that the volume's pool has space for its growth and reserve it."""

    new_size_gib: int
    growth_gib: int
    """The growth charged to quota; refunded if the operation fails."""

    def keys(self) -> tuple[str, ...]:
        """Hold the volume's exports too, as the following ExtendVolume does."""
        return (f"volume:{self.volume_id}", exports_of(self.volume_id))


class RetypeVolume(VolumeOperation, component="scheduler", status="retyping", cancellable=True):
    """Give a volume another type, on its own pool or, if it may move, on another one."""

    type_id: str
    """The new type; its quota was charged for the volume."""
    counted: int
    """1, or 0 if the volume does not count towards quota."""
    size_gib: int
    """The gigabytes charged to the new type's quota; 0 if the volume does not count."""
    may_move: bool = False
    """Whether the volume may move to another pool if its own pool does not serve the type."""


class PlaceMigration(VolumeOperation, component="scheduler", status="maintenance", cancellable=True):
    """Choose the destination pool of a migration and reserve capacity on it."""

    destination: str
    """NODE@BACKEND, or NODE@BACKEND#POOL."""


class PlaceManaged(VolumeOperation, component="scheduler", status="managing", cancellable=True):
    """Check that a pool serves the type of a volume to manage."""

    pool: str
    reference: str
    """The volume's present name on the pool."""


# --- manager: let a backend do it ------------------------------------------------------------------------------


class CreateVolume(NewVolumeOperation, component="manager"):
    """Make a volume on its pool: empty, from a snapshot, or from a volume."""

    pool: str = ""


class ManageVolume(VolumeOperation, component="manager", status="managing"):
    """Manage a volume that exists on a pool."""

    pool: str
    reference: str

    def keys(self) -> tuple[str, ...]:
        """Hold the reference too, so that only one row gets it."""
        return (f"volume:{self.volume_id}", f"reference:{self.pool}/{self.reference}")


class DeleteVolume(VolumeOperation, component="manager", status="deleting"):
    """Delete a volume. Snapshots deleted with it have their own operations, enqueued earlier."""

    pool: str = ""
    """The pool when the delete was accepted; a migration running then may have moved the volume since."""

    def keys(self) -> tuple[str, ...]:
        """Hold the volume's exports too, because the remaining ones are ended first."""
        return (f"volume:{self.volume_id}", exports_of(self.volume_id))


class ExtendVolume(VolumeOperation, component="manager", status="extending"):
    """Grow a volume."""

    new_size_gib: int
    growth_gib: int
    pool: str
    """The pool on which the growth was reserved."""

    def keys(self) -> tuple[str, ...]:
        """Hold the volume's exports too, because initiators are told the new size."""
        return (f"volume:{self.volume_id}", exports_of(self.volume_id))


class RevertVolume(VolumeOperation, component="manager", status="reverting"):
    """Give a volume the bytes of its newest snapshot."""

    snapshot_id: str

    def keys(self) -> tuple[str, ...]:
        """Hold the snapshot too."""
        return (f"volume:{self.volume_id}", f"snapshot:{self.snapshot_id}")

    def covers(self) -> tuple[tuple[str, str, str], ...]:
        """Cover the snapshot too."""
        return (("volume", self.volume_id, self.status), ("snapshot", self.snapshot_id, "restoring"))


class CreateSnapshot(SnapshotOperation, component="manager", status="creating"):
    """Create a snapshot of a volume, or manage an existing one."""

    reference: str = ""


class DeleteSnapshot(SnapshotOperation, component="manager", status="deleting"):
    """Delete a snapshot."""

    came_from: str = ""
    """The snapshot's former status; empty in operations stored by older versions."""


class MigrateVolume(VolumeOperation, component="migration", status="maintenance", cancellable=True):
    """Copy a volume to another pool and switch to the copy."""

    destination: str
    """The destination pool, on which capacity is reserved."""
    name_id: str
    """The id in the copy's name on that pool."""
    volume_gib: int

    @property
    def copy_name(self) -> str:
        """Return the copy's name on its pool."""
        return f"volume-{self.name_id}"


class MigrateToType(MigrateVolume, status="retyping"):
    """Move a volume to a pool that serves its new type."""

    type_id: str
    counted: int
    size_gib: int


class ChangeType(VolumeOperation, component="manager", status="retyping"):
    """Give a volume its new type on its present pool, which applies the type's limits."""

    type_id: str
    counted: int
    size_gib: int


class RemoveCopy(VolumeOperation, component="manager", status=""):
    """Delete the unused copy after a migration succeeded or failed. Covers no row."""

    pool: str
    name: str
    size_gib: int

    def keys(self) -> tuple[str, ...]:
        """Hold only the copy, so that no other operation waits."""
        return (f"copy:{self.name}",)

    def covers(self) -> tuple[tuple[str, str, str], ...]:
        """Cover no row."""
        return ()


class ConnectAttachment(AttachmentOperation, component="manager", status="connecting"):
    """Export a volume to the initiator of an attachment."""


class DisconnectAttachment(AttachmentOperation, component="manager", status="disconnecting"):
    """End the export of an attachment, then the attachment."""

    came_from: str
    """The attachment's former status, restored if something on this node holds the volume."""
    follow: bool = True
    """Whether the volume's status follows; False if an administrator set it, or if the attachment is legacy."""
