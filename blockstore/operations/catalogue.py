"""Everything that can be put on a queue, on one page.

An operation is enqueued by one component and handled by exactly one handler in another. It is stored as JSON in the
``operations`` table in the same transaction as the status change it stands for, so it survives a crash: treat field
names as a wire format. It carries ids and small scalars only. Handlers are idempotent.
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
    """What one component asks of another. A subclass says where and in which status by the keywords of its class."""

    component: ClassVar[str]
    resource_type: ClassVar[str]
    """The noun whose row is in a transitional status while this operation is unfinished."""
    status: ClassVar[str]
    """That transitional status; when the row has another, something else has taken over."""
    cancellable: ClassVar[bool] = False
    """Whether an operator may stop it; what half-destroys data may not be stopped."""

    operation_id: str
    request_id: str
    project_id: str
    attempt: int = 1
    """The how-manieth beginning this is; above 1 only after the process died while it was open."""

    def __init_subclass__(
        cls,
        *,
        resource_type: str | None = None,
        component: str | None = None,
        status: str | None = None,
        cancellable: bool | None = None,
    ) -> None:
        """Make a dataclass of the class; what a keyword does not say is inherited. One with a component is a kind."""
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
        """Return the operation that goes on with the row where this one ends."""
        return kind._made(following_id(self.operation_id), self.request_id, self.project_id, self.resource_id, fields)

    def beside(self, kind: type[Kind], **fields: Any) -> Kind:
        """Return a new operation of the same request and for the same row, which goes its own way."""
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
        """Return what this operation has in common with those that it follows and that follow it."""
        return self.operation_id.partition(".")[0]

    @property
    def resource_id(self) -> str:
        """Return the id of the row this operation will settle."""
        return str(getattr(self, f"{self.resource_type}_id"))

    @property
    def place(self) -> str:
        """Return the pool on which the operation works; empty if that has to be looked up in the database."""
        return str(getattr(self, "pool", ""))

    def keys(self) -> tuple[str, ...]:
        """Return the resources held while it runs: no two operations that share one run at once."""
        return (f"{self.resource_type}:{self.resource_id}",)

    def covers(self) -> tuple[tuple[str, str, str], ...]:
        """Return type, id and transitional status of every row this operation settles."""
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
    """Return an id that sorts behind all that were made before, by time as long as the clock does not go back."""
    global _newest_ns
    with _newest_lock:
        _newest_ns = max(_newest_ns + 1, time.time_ns())
        return f"{_newest_ns:016x}-{os.urandom(4).hex()}"


def make_ids_after(operation_id: str) -> None:
    """Let new ids sort behind one that a former life has made, though the clock has gone back since."""
    global _newest_ns
    with _newest_lock:
        _newest_ns = max(_newest_ns, int(operation_id[:16], 16))


def following_id(operation_id: str) -> str:
    """Return the id of the operation that goes on where this one ends: it sorts right behind it,
    before any later one.
    """
    chain, _, step = operation_id.partition(".")
    return f"{chain}.{int(step or 0) + 1:02d}"


def from_stored(
    kind: str, operation_id: str, request_id: str, project_id: str, body: Mapping[str, Any], *, attempt: int = 1
) -> Operation:
    """Return the operation that a row of the operations table stands for.

    Raises KeyError or TypeError for an unknown one.
    """
    made = {name: tuple(value) if isinstance(value, list) else value for name, value in body.items()}
    return KINDS[kind](operation_id=operation_id, request_id=request_id, project_id=project_id, attempt=attempt, **made)


class VolumeOperation(Operation, resource_type="volume"):
    """What is asked for a volume."""

    volume_id: str


class SnapshotOperation(Operation, resource_type="snapshot"):
    """What is asked for a snapshot."""

    snapshot_id: str
    volume_id: str

    def keys(self) -> tuple[str, ...]:
        """Hold the volume too: one snapshot, revert or delete of it at a time, and some backends touch it."""
        return (f"snapshot:{self.snapshot_id}", f"volume:{self.volume_id}")


class AttachmentOperation(Operation, resource_type="attachment"):
    """What is asked for an attachment."""

    attachment_id: str
    volume_id: str

    def keys(self) -> tuple[str, ...]:
        """Hold the volume's exports: one of them begins or ends at a time."""
        return (f"attachment:{self.attachment_id}", exports_of(self.volume_id))


def exports_of(volume_id: str) -> str:
    """Return the key of a volume's exports, which are not held up by a long copy of the volume."""
    return f"exports:{volume_id}"


class NewVolumeOperation(VolumeOperation, status="creating", cancellable=True):
    """What is asked for a volume that is not there yet."""

    snapshot_id: str | None = None
    source_volume_id: str | None = None
    hints: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tried: tuple[str, ...] = ()
    """Pools that accepted it and then failed, oldest first."""

    def keys(self) -> tuple[str, ...]:
        """Hold the source too: nobody deletes or reverts it before it was copied."""
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
    """What the last of the pools that were tried said."""


class PlaceSnapshot(SnapshotOperation, component="scheduler", status="creating", cancellable=True):
    """Check that the volume's pool has space for a snapshot and reserve it."""

    reference: str = ""
    """What one that is taken over is called now; a new one is made where there is none."""


class PlaceExtension(VolumeOperation, component="scheduler", status="extending", cancellable=True):
    """Check that the volume's pool has space for its growth and reserve it."""

    new_size_gib: int
    growth_gib: int
    """What quota was charged for; given back when it fails."""

    def keys(self) -> tuple[str, ...]:
        """Hold the volume's exports too, as the operation that follows does."""
        return (f"volume:{self.volume_id}", exports_of(self.volume_id))


class RetypeVolume(VolumeOperation, component="scheduler", status="retyping", cancellable=True):
    """Give a volume another type, when its pool serves that one, too."""

    type_id: str
    """The new one; its quota was charged for the volume."""
    counted: int
    """1, or 0 for a volume that does not count."""
    size_gib: int
    """What it counts for."""
    may_move: bool = False
    """Whether it may go to another pool when its own does not serve the type."""


class PlaceMigration(VolumeOperation, component="scheduler", status="maintenance", cancellable=True):
    """Choose the pool that a volume is migrated to, and reserve it."""

    destination: str
    """NODE@BACKEND, or NODE@BACKEND#POOL."""


class PlaceManaged(VolumeOperation, component="scheduler", status="managing", cancellable=True):
    """Check that a pool serves the type of a volume that is to be taken over."""

    pool: str
    reference: str
    """What it is called there now."""


# --- manager: let a backend do it ------------------------------------------------------------------------------


class CreateVolume(NewVolumeOperation, component="manager"):
    """Make a volume on its pool: empty, from a snapshot, or from a volume."""

    pool: str = ""


class ManageVolume(VolumeOperation, component="manager", status="managing"):
    """Take over a volume that is on a pool already."""

    pool: str
    reference: str

    def keys(self) -> tuple[str, ...]:
        """Hold the reference too: one row gets it."""
        return (f"volume:{self.volume_id}", f"reference:{self.pool}/{self.reference}")


class DeleteVolume(VolumeOperation, component="manager", status="deleting"):
    """Remove a volume. Snapshots that go with it have operations of their own, enqueued before."""

    pool: str = ""
    """Where it was when the delete was accepted; a move that was under way may have taken it elsewhere."""

    def keys(self) -> tuple[str, ...]:
        """Hold the volume's exports too: what is left of them goes first."""
        return (f"volume:{self.volume_id}", exports_of(self.volume_id))


class ExtendVolume(VolumeOperation, component="manager", status="extending"):
    """Grow a volume."""

    new_size_gib: int
    growth_gib: int
    pool: str
    """Where the growth was reserved."""

    def keys(self) -> tuple[str, ...]:
        """Hold the volume's exports too: initiators are told of the new size."""
        return (f"volume:{self.volume_id}", exports_of(self.volume_id))


class RevertVolume(VolumeOperation, component="manager", status="reverting"):
    """Give a volume the bytes of its newest snapshot."""

    snapshot_id: str

    def keys(self) -> tuple[str, ...]:
        """Hold the snapshot too."""
        return (f"volume:{self.volume_id}", f"snapshot:{self.snapshot_id}")

    def covers(self) -> tuple[tuple[str, str, str], ...]:
        """Settle the snapshot too."""
        return (("volume", self.volume_id, self.status), ("snapshot", self.snapshot_id, "restoring"))


class CreateSnapshot(SnapshotOperation, component="manager", status="creating"):
    """Freeze a volume's bytes."""

    reference: str = ""


class DeleteSnapshot(SnapshotOperation, component="manager", status="deleting"):
    """Remove a snapshot."""

    came_from: str = ""
    """The status that the snapshot had; operations of a former version do not say it."""


class MigrateVolume(VolumeOperation, component="migration", status="maintenance", cancellable=True):
    """Copy a volume to another pool, and go on with the copy."""

    destination: str
    """The pool, where capacity for it is reserved."""
    name_id: str
    """What the copy is called there."""
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
    """Give a volume its new type on the pool where it is, which keeps it within that type's limits."""

    type_id: str
    counted: int
    size_gib: int


class RemoveCopy(VolumeOperation, component="manager", status=""):
    """Remove from a pool what is not the volume: left behind by a move, or by one that failed. Covers no row."""

    pool: str
    name: str
    size_gib: int

    def keys(self) -> tuple[str, ...]:
        """Hold up nothing else."""
        return (f"copy:{self.name}",)

    def covers(self) -> tuple[tuple[str, str, str], ...]:
        """Settle no row."""
        return ()


class ConnectAttachment(AttachmentOperation, component="manager", status="connecting"):
    """Export a volume to the initiator of an attachment."""


class DisconnectAttachment(AttachmentOperation, component="manager", status="disconnecting"):
    """End the export of an attachment, then the attachment."""

    came_from: str
    """The attachment's status before, to which it goes back when something on this node holds the volume."""
    follow: bool = True
    """Whether the volume's status follows; not when an administrator has set it."""
