"""Everything that can be put on a queue, on one page.

An order is cast by one room and handled by exactly one handler in another. It is stored as JSON in the ``orders``
table in the same transaction as the status change it stands for, so it survives a crash: treat field names as a wire
format. It carries ids and small scalars only. Handlers are idempotent.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

KINDS: dict[str, type[Order]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one room asks of another."""

    room: ClassVar[str]
    resource_type: ClassVar[str]
    """The noun whose row is in a transitional status while this order is unfinished."""
    status: ClassVar[str]
    """That transitional status; when the row has another, something else has taken over."""
    cancellable: ClassVar[bool] = False
    """Whether an operator may stop it; what half-destroys data may not be stopped."""

    order_id: str
    request_id: str
    project_id: str
    attempt: int = 1
    """The how-manieth beginning this is; above 1 only after the process died while it was open."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # slots=True makes each class twice; the second, final one wins.
        KINDS[cls.__name__] = cls

    @property
    def kind(self) -> str:
        """Return the name stored with the order."""
        return type(self).__name__

    @property
    def chain(self) -> str:
        """Return what this order has in common with those that it follows and that follow it."""
        return self.order_id.partition(".")[0]

    @property
    def resource_id(self) -> str:
        """Return the id of the row this order will settle."""
        return str(getattr(self, f"{self.resource_type}_id"))

    @property
    def place(self) -> str:
        """Return the pool on which the order works; empty if that has to be looked up in the database."""
        return str(getattr(self, "pool", ""))

    def keys(self) -> tuple[str, ...]:
        """Return the resources held while it runs: no two orders that share one run at once."""
        return (f"{self.resource_type}:{self.resource_id}",)

    def covers(self) -> tuple[tuple[str, str, str], ...]:
        """Return type, id and transitional status of every row this order settles."""
        return ((self.resource_type, self.resource_id, self.status),)

    def body(self) -> dict[str, Any]:
        """Return the fields to store, without those that have a column."""
        plain = dataclasses.asdict(self)
        for name in ("order_id", "request_id", "project_id", "attempt"):
            del plain[name]
        return plain


_newest_ns = 0
_newest_lock = threading.Lock()


def new_order_id() -> str:
    """Return an id that sorts behind all that were made before, by time as long as the clock does not go back."""
    global _newest_ns
    with _newest_lock:
        _newest_ns = max(_newest_ns + 1, time.time_ns())
        return f"{_newest_ns:016x}-{os.urandom(4).hex()}"


def make_ids_after(order_id: str) -> None:
    """Let new ids sort behind one that a former life has made, though the clock has gone back since."""
    global _newest_ns
    with _newest_lock:
        _newest_ns = max(_newest_ns, int(order_id[:16], 16))


def following_id(order_id: str) -> str:
    """Return the id of the order that goes on where this one ends: it sorts right behind it, before any later one."""
    chain, _, step = order_id.partition(".")
    return f"{chain}.{int(step or 0) + 1:02d}"


def from_stored(
    kind: str, order_id: str, request_id: str, project_id: str, body: Mapping[str, Any], *, attempt: int = 1
) -> Order:
    """Return the order that a row of the orders table stands for. Raises KeyError or TypeError for an unknown one."""
    made = {name: tuple(value) if isinstance(value, list) else value for name, value in body.items()}
    return KINDS[kind](order_id=order_id, request_id=request_id, project_id=project_id, attempt=attempt, **made)


# --- scheduler: decide where ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceVolume(Order):
    """Choose a pool for a new volume and claim its capacity."""

    room: ClassVar[str] = "scheduler"
    resource_type: ClassVar[str] = "volume"
    status: ClassVar[str] = "creating"
    cancellable: ClassVar[bool] = True
    volume_id: str
    snapshot_id: str | None = None
    source_volume_id: str | None = None
    hints: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tried: tuple[str, ...] = ()
    """Pools that accepted it and then failed, oldest first."""
    failure: str = ""
    """What the last of them said."""

    def keys(self) -> tuple[str, ...]:
        """Hold the source already: what is asked of it from now on waits for the copy."""
        return _with_source(self.volume_id, self.snapshot_id, self.source_volume_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceSnapshot(Order):
    """Check that the volume's pool has room for a snapshot and claim it."""

    room: ClassVar[str] = "scheduler"
    resource_type: ClassVar[str] = "snapshot"
    status: ClassVar[str] = "creating"
    cancellable: ClassVar[bool] = True
    snapshot_id: str
    volume_id: str
    reference: str = ""
    """What one that is taken over is called now; a new one is made where there is none."""

    def keys(self) -> tuple[str, ...]:
        """Hold the volume too, as the order that follows does."""
        return (f"snapshot:{self.snapshot_id}", f"volume:{self.volume_id}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceExtension(Order):
    """Check that the volume's pool has room for its growth and claim it."""

    room: ClassVar[str] = "scheduler"
    resource_type: ClassVar[str] = "volume"
    status: ClassVar[str] = "extending"
    cancellable: ClassVar[bool] = True
    volume_id: str
    new_size_gib: int
    growth_gib: int
    """What quota was charged for; given back when it fails."""

    def keys(self) -> tuple[str, ...]:
        """Hold the volume's exports too, as the order that follows does."""
        return (f"volume:{self.volume_id}", exports_of(self.volume_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class RetypeVolume(Order):
    """Give a volume another type, when its pool serves that one, too."""

    room: ClassVar[str] = "scheduler"
    resource_type: ClassVar[str] = "volume"
    status: ClassVar[str] = "retyping"
    cancellable: ClassVar[bool] = True
    volume_id: str
    type_id: str
    """The new one; its quota was charged for the volume."""
    counted: int
    """1, or 0 for a volume that does not count."""
    size_gib: int
    """What it counts for."""
    may_move: bool = False
    """Whether it may go to another pool when its own does not serve the type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceMigration(Order):
    """Choose the pool that a volume is moved to, and claim it."""

    room: ClassVar[str] = "scheduler"
    resource_type: ClassVar[str] = "volume"
    status: ClassVar[str] = "maintenance"
    cancellable: ClassVar[bool] = True
    volume_id: str
    destination: str
    """NODE@BACKEND, or NODE@BACKEND#POOL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceManaged(Order):
    """Check that a pool serves the type of a volume that is to be taken over."""

    room: ClassVar[str] = "scheduler"
    resource_type: ClassVar[str] = "volume"
    status: ClassVar[str] = "managing"
    cancellable: ClassVar[bool] = True
    volume_id: str
    pool: str
    reference: str
    """What it is called there now."""


# --- manager: let a backend do it ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateVolume(Order):
    """Make a volume on its pool: empty, from a snapshot, or from a volume."""

    room: ClassVar[str] = "manager"
    resource_type: ClassVar[str] = "volume"
    status: ClassVar[str] = "creating"
    cancellable: ClassVar[bool] = True
    volume_id: str
    snapshot_id: str | None = None
    source_volume_id: str | None = None
    hints: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tried: tuple[str, ...] = ()
    pool: str = ""

    def keys(self) -> tuple[str, ...]:
        """Hold the source too, so that nobody deletes or reverts it meanwhile."""
        return _with_source(self.volume_id, self.snapshot_id, self.source_volume_id)


def _with_source(volume_id: str, snapshot_id: str | None, source_volume_id: str | None) -> tuple[str, ...]:
    held = [f"volume:{volume_id}"]
    if snapshot_id:
        held.append(f"snapshot:{snapshot_id}")
    if source_volume_id:
        held.append(f"volume:{source_volume_id}")
    return tuple(held)


@dataclass(frozen=True, slots=True, kw_only=True)
class ManageVolume(Order):
    """Take over a volume that is on a pool already."""

    room: ClassVar[str] = "manager"
    resource_type: ClassVar[str] = "volume"
    status: ClassVar[str] = "managing"
    volume_id: str
    pool: str
    reference: str

    def keys(self) -> tuple[str, ...]:
        """Hold the reference too: one row gets it."""
        return (f"volume:{self.volume_id}", f"reference:{self.pool}/{self.reference}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteVolume(Order):
    """Remove a volume. Snapshots that go with it have orders of their own, cast before."""

    room: ClassVar[str] = "manager"
    resource_type: ClassVar[str] = "volume"
    status: ClassVar[str] = "deleting"
    volume_id: str
    pool: str = ""
    """Where it was when the delete was accepted; a move that was under way may have taken it elsewhere."""

    def keys(self) -> tuple[str, ...]:
        """Hold the volume's exports too: what is left of them goes first."""
        return (f"volume:{self.volume_id}", exports_of(self.volume_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendVolume(Order):
    """Grow a volume."""

    room: ClassVar[str] = "manager"
    resource_type: ClassVar[str] = "volume"
    status: ClassVar[str] = "extending"
    volume_id: str
    new_size_gib: int
    growth_gib: int
    pool: str
    """Where the growth was claimed."""

    def keys(self) -> tuple[str, ...]:
        """Hold the volume's exports too: initiators are told of the new size."""
        return (f"volume:{self.volume_id}", exports_of(self.volume_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class RevertVolume(Order):
    """Give a volume the bytes of its newest snapshot."""

    room: ClassVar[str] = "manager"
    resource_type: ClassVar[str] = "volume"
    status: ClassVar[str] = "reverting"
    volume_id: str
    snapshot_id: str

    def keys(self) -> tuple[str, ...]:
        """Hold the snapshot too."""
        return (f"volume:{self.volume_id}", f"snapshot:{self.snapshot_id}")

    def covers(self) -> tuple[tuple[str, str, str], ...]:
        """Settle the snapshot too."""
        return (("volume", self.volume_id, self.status), ("snapshot", self.snapshot_id, "restoring"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateSnapshot(Order):
    """Freeze a volume's bytes."""

    room: ClassVar[str] = "manager"
    resource_type: ClassVar[str] = "snapshot"
    status: ClassVar[str] = "creating"
    snapshot_id: str
    volume_id: str
    reference: str = ""

    def keys(self) -> tuple[str, ...]:
        """Hold the volume too: one snapshot, revert or delete of it at a time."""
        return (f"snapshot:{self.snapshot_id}", f"volume:{self.volume_id}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteSnapshot(Order):
    """Remove a snapshot."""

    room: ClassVar[str] = "manager"
    resource_type: ClassVar[str] = "snapshot"
    status: ClassVar[str] = "deleting"
    snapshot_id: str
    volume_id: str
    came_from: str = ""
    """The status that the snapshot had; orders of a former version do not say it."""

    def keys(self) -> tuple[str, ...]:
        """Hold the volume too: deleting merges or touches it on some backends."""
        return (f"snapshot:{self.snapshot_id}", f"volume:{self.volume_id}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveVolume(Order):
    """Copy a volume to another pool, and go on with the copy."""

    room: ClassVar[str] = "mover"
    resource_type: ClassVar[str] = "volume"
    status: ClassVar[str] = "maintenance"
    cancellable: ClassVar[bool] = True
    volume_id: str
    destination: str
    """The pool, where room for it is claimed."""
    name_id: str
    """What the copy is called there."""
    volume_gib: int

    @property
    def copy_name(self) -> str:
        """Return the copy's name on its pool."""
        return f"volume-{self.name_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveToType(MoveVolume):
    """Move a volume to a pool that serves its new type."""

    status: ClassVar[str] = "retyping"
    type_id: str
    counted: int
    size_gib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeType(Order):
    """Give a volume its new type on the pool where it is, which keeps it within that type's limits."""

    room: ClassVar[str] = "manager"
    resource_type: ClassVar[str] = "volume"
    status: ClassVar[str] = "retyping"
    volume_id: str
    type_id: str
    counted: int
    size_gib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveCopy(Order):
    """Remove from a pool what is not the volume: left behind by a move, or by one that failed. Covers no row."""

    room: ClassVar[str] = "manager"
    resource_type: ClassVar[str] = "volume"
    status: ClassVar[str] = ""
    volume_id: str
    pool: str
    name: str
    size_gib: int

    def keys(self) -> tuple[str, ...]:
        """Hold up nothing else."""
        return (f"copy:{self.name}",)

    def covers(self) -> tuple[tuple[str, str, str], ...]:
        """Settle no row."""
        return ()


def exports_of(volume_id: str) -> str:
    """Return the key of a volume's exports, which are not held up by a long copy of the volume."""
    return f"exports:{volume_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectAttachment(Order):
    """Export a volume to the initiator of an attachment."""

    room: ClassVar[str] = "manager"
    resource_type: ClassVar[str] = "attachment"
    status: ClassVar[str] = "connecting"
    attachment_id: str
    volume_id: str

    def keys(self) -> tuple[str, ...]:
        """Hold the volume's exports: one of them begins or ends at a time."""
        return (f"attachment:{self.attachment_id}", exports_of(self.volume_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class DisconnectAttachment(Order):
    """End the export of an attachment, then the attachment."""

    room: ClassVar[str] = "manager"
    resource_type: ClassVar[str] = "attachment"
    status: ClassVar[str] = "disconnecting"
    attachment_id: str
    volume_id: str
    came_from: str
    """The attachment's status before, to which it goes back when something on this node holds the volume."""
    follow: bool = True
    """Whether the volume's status follows; not when an administrator has set it."""

    def keys(self) -> tuple[str, ...]:
        """Hold the volume's exports: one of them begins or ends at a time."""
        return (f"attachment:{self.attachment_id}", exports_of(self.volume_id))
