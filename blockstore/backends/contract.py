"""The contract between blockstore and a storage plugin; this module is the plugin author's manual.

A plugin is a subclass of ``Backend`` registered under the entry-point group ``blockstore.backends``. One instance is
one pool of storage. It sees names and sizes, never rows, requests or tenants.

A plugin imports this module, ``blockstore.errors``, ``blockstore.private_files``, and of ``blockstore.backends``
``process`` (commands), ``options`` (its own options), ``background`` (background tasks), ``openers`` (open volumes),
``file_locks`` and ``holders`` (users of a file); nothing else of blockstore.

Rules for every method:

* **Idempotent.** The service may be killed at any instant, and repeats the call after the restart. A call for
  something that is already done succeeds and changes nothing. The unfinished work of a former call is completed or
  replaced.
* **All or nothing.** A method that raises leaves nothing behind that it made.
* **A refusal changes nothing.** ``InUse``, ``NotSupported`` and ``RefusedForSpace`` are raised before the first change:
  the volume keeps its status. A later failure raises another ``BackendError``.
* **Blocking and thread-safe.** Called from several threads at once; never twice at once for the same name.
* **Raises only** subclasses of ``errors.BackendError``.
* **Never shows old bytes.** A new volume, the grown part of a volume, and a snapshot read as the bytes written to them,
  else as zeros: never as bytes of deleted data.

Sizes are GiB (2**30 bytes) and exact. Names are ASCII, at most 63 characters, start with a letter and hold letters,
digits, ``-`` and ``_``; ``check_name`` checks this. The service uses ``volume-UUID`` and ``snap-UUID``.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

from blockstore.config import option as option
from blockstore.errors import BackendError, NotRecognised, NotSupported

GIB = 2**30

BLOCK_SIZE = 512
"""The usual logical block size: of files, images and most disks."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")

Progress = Callable[[int], None]
"""Reports the progress of a long action in percent. May raise ``OperationCancelled``, which the plugin passes on."""


def no_progress(_percent: int) -> None:
    """Ignore progress."""


def check_name(name: str) -> str:
    """Return the name if it is safe in a path and on a command line, else raise BackendError."""
    if not _NAME.fullmatch(name):
        raise BackendError(f"{name!r} is not a valid name on a backend: a letter, then letters, digits, - and _.")
    return name


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """Options of a plugin; subclass it and add fields made by ``option``.

    Field types understood by the configuration reader: str, int, float, bool, Path, each also ``| None``.
    """


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What this configured instance can do. Methods of undeclared capabilities raise NotSupported."""

    snapshots: bool = False
    clone: bool = False
    """Volumes from snapshots and from volumes, without the service copying bytes."""
    revert: bool = False
    online_extend: bool = False
    """A volume may grow while it is open."""
    multiattach: bool = False
    thin: bool = False
    """Space is allocated on write, so the pool may be over-subscribed."""
    thick: bool = False
    """Space is allocated when a volume is created."""
    group_snapshots: bool = False
    """Snapshots of several volumes are taken at one instant, also while they are written."""
    qos: bool = False
    """The storage itself enforces the limits that ``limit_volume`` sets."""
    manage: bool = False
    """Volumes and snapshots of other origin can be managed."""
    owner_mark: bool = False
    """The storage keeps the mark of the installation that uses it, so that two installations detect each other."""
    block_size: int = BLOCK_SIZE
    """The logical block size that a consumer of a volume sees, in bytes. Partition tables depend on it."""
    storage_protocol: str = "local"
    """The API's word for how a consumer reaches a volume: iSCSI, nfs, ceph, file, local."""
    vendor_name: str = "Open Source"
    version: str = "1.0"


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The present capacity of the pool in GiB, read from the storage itself."""

    total_gib: float
    free_gib: float
    provisioned_gib: float | None = None
    """Sum of virtual sizes on the pool, including volumes of other origin; None if the backend cannot tell."""
    deepest_chain: int | None = None
    """Largest number of layers below a volume or snapshot; None if there are no layers or they are not counted."""
    metadata_filled_percent: float | None = None
    """Fill of the space for the storage's own metadata; None if that space cannot run out."""
    closed_because: str | None = None
    """Why the pool takes no new volumes, whatever space is free; sentences. Present volumes can be used, migrated and
deleted."""


@dataclass(frozen=True)
class BackgroundTask:
    """A task that the plugin does in the background."""

    what: str
    """The action and its object, as text for a person."""
    percent: int


@dataclass(frozen=True)
class VolumeLocation:
    """Where a volume's bytes lie on this node."""

    path: Path
    format: str = "raw"
    """The name of the format for ``qemu-img``. Recorded when the file was made, never detected from its content."""
    layers: Sequence[Path] = ()
    """Files of the same format below it, the nearest first: they are read where it was not written."""


@dataclass(frozen=True)
class DirectConnection:
    """How a consumer that speaks the storage's own protocol reaches a volume, without a target on this node."""

    driver_volume_type: str
    """The os-brick connector to use: rbd, nfs."""
    data: Mapping[str, Any]
    """The data for that connector. Must be JSON without secrets, because it is stored and shown."""
    beside: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the connection beside ``data``, such as ``mount_point_base``."""


@dataclass(frozen=True, kw_only=True)
class Manageable:
    """A volume or snapshot on the storage that could be managed."""

    reference: str
    """Its name on the storage, which is passed to ``manage_volume`` or ``manage_snapshot``."""
    size_bytes: int
    name: str = ""
    """Its name in the contract's other methods, if that differs from ``reference``."""
    volume: str = ""
    """For a snapshot, the ``reference`` of its volume."""
    reason: str | None = None
    """Why it cannot be managed now; a sentence."""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.reference)


Mode = Literal["rb", "r+b"]


class Backend(ABC):
    """One configured pool of storage."""

    Options: ClassVar[type[BackendOptions]] = BackendOptions
    is_direct: ClassVar[bool] = False
    """Consumers reach the storage itself, as ``direct`` describes, unless the section names a target."""

    @property
    def file_format(self) -> str:
        """The format that ``locate`` returns for new volumes; it decides which targets can serve this instance."""
        return "raw"

    def __init__(self, name: str, options: BackendOptions, state_dir: Path):
        """Keep the configuration; change nothing. ``state_dir``: a private directory that this backend may use."""
        self.name = name
        self.pool = name
        self.options = options
        self.state_dir = state_dir
        self.is_attached: Callable[[str], bool] = lambda _volume: False
        """Returns True if an initiator was told how to reach a volume, and may have it open. Set by the service."""
        self.recognised = ""
        """The identity that was last passed to ``recognise``; empty: none is recorded."""

    @classmethod
    def open_pools(cls, name: str, options: BackendOptions, state_dir: Path) -> Sequence[Backend]:
        """Return an instance for each pool of a configuration section; most plugins have one, named as the section."""
        return (cls(name, options, state_dir),)

    # --- health and capacity -----------------------------------------------------------------------------

    @abstractmethod
    def check(self) -> None:
        """Check that the pool is usable and safe: tools present, pool reachable, rights sufficient, zeroing on.

        Called at start, every report interval, and by ``blockstore backend check``. May create what the pool needs
        (its directory, its thin pool). Raise Unreachable, with a sentence that says what to do, if it is not usable.
        If an identity is recorded, the service has checked it before this call, and ``check`` must not make again what
        existed before.
        """

    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Return what this instance can do. Cheap, and valid after ``check``."""

    @abstractmethod
    def capacity(self) -> Capacity:
        """Return the pool's capacity, read from the storage."""

    def background_tasks(self) -> Sequence[BackgroundTask]:
        """Return the running and the waiting background tasks. Cheap: does not access the storage."""
        return ()

    @abstractmethod
    def list_volumes(self) -> Mapping[str, float]:
        """Return name and size in GiB of every volume on the pool, without snapshots and unfinished volumes."""

    @abstractmethod
    def list_snapshots(self) -> Mapping[str, str]:
        """Return name and volume name of every snapshot on the pool; the volume may be gone (empty string)."""

    # --- identity and owner of the storage ---------------------------------------------------------------

    def recognise(self, identity: str) -> None:
        """Keep the identity that is recorded for this pool; empty: none is. Do not access the storage.

        Called before any other method and before every health check, because the record may change while the service
        runs.
        """
        self.recognised = identity

    def identity(self) -> str:
        """Return the identity of this storage, whatever its name: permanent, and different for every other storage.

        Two disks, volume groups, shares or pools that succeed each other under one name have different identities. 1 to
        200 printable ASCII characters without spaces. Empty: the storage carries no identity yet (``change_owner``
        gives it one), or this plugin cannot tell, and declares no ``owner_mark``.
        Changes nothing on the storage, which may be the wrong one.
        """
        return ""

    def prove_identity(self) -> None:
        """Raise Unreachable unless this is the recorded storage.

        The service calls this at every health check. A plugin calls it before it takes a missing volume for a deleted
        one, unless it knows by other means that the storage has not changed since the health check.
        """
        if self.recognised and (found := self.identity()) != self.recognised:
            raise self.not_recognised(found)

    def not_recognised(self, found: str) -> NotRecognised:
        """Return the error for storage that is not the recorded one; to be raised before the first change."""
        section = self.name if self.pool == self.name else f"{self.name}#{self.pool}"
        return NotRecognised(
            f"The storage of {self.pool} is not the recorded one: {self.recognised or 'none'} is recorded, and"
            f" {found or 'none'} was found. Bring the recorded storage back: is it mounted, and is the place right?"
            " Nothing is created or deleted meanwhile. To use the new storage for good: blockstore backend accept"
            f" {section} --found {found or 'none'}"
        )

    def owner(self) -> str | None:
        """Return the id of the installation whose mark the storage carries; None if it carries none."""
        raise self._not_supported("owner_mark")

    def change_owner(self, former: str | None, owner: str | None) -> None:
        """Replace the mark ``former`` by ``owner``; None means no mark. Leave any mark but ``former`` alone.

        If the storage has no identity, give it one with the mark, even if ``owner`` equals ``former``.
        The mark is on the storage itself, is no volume, and stays when volumes are deleted. An id has 1 to 64 letters,
        digits and ``-``. If two installations write at the same moment, ``owner`` afterwards returns the same id to
        both.
        """
        raise self._not_supported("owner_mark")

    # --- volumes -----------------------------------------------------------------------------------------

    @abstractmethod
    def create_volume(self, name: str, size_gib: int) -> None:
        """Make a volume that reads as zeros.

        Raises: NoSpace; NameTaken when the name exists with another size or is a snapshot.
        """

    @abstractmethod
    def delete_volume(self, name: str, progress: Progress = no_progress) -> None:
        """Remove a volume, so that none of its bytes can be read again. A missing volume is a success.

        Also removes the remains of an unfinished creation. Raises: InUse when it has snapshots or is open.
        """

    @abstractmethod
    def extend_volume(self, name: str, size_gib: int) -> None:
        """Grow a volume; the new part reads as zeros. A volume that already has the size is a success.

        Raises: VolumeMissing; NoSpace; BackendError when it is already larger; InUse when it is open and
        ``online_extend`` is not declared.
        """

    @abstractmethod
    def open_volume(self, name: str, mode: Mode) -> AbstractContextManager[BinaryIO]:
        """Open the volume's bytes as its consumer sees them: exactly its size, seekable, unbuffered writes flushed
        at the end. Every generic copy uses this method. A file that several threads may use at once also has
        ``pread(length, offset)`` and ``pwrite(data, offset)``. Raises: VolumeMissing."""

    def locate(self, name: str) -> VolumeLocation | None:
        """Return the file or device that holds the volume on this node, ready to be opened; None if there is none.

        Raises: VolumeMissing.
        """
        return None

    def direct(self, name: str) -> DirectConnection | None:
        """Return how consumers reach the volume on the storage itself; None if they need a target.

        Raises: VolumeMissing.
        """
        return None

    def regions(self, name: str, size_bytes: int) -> Iterable[tuple[int, int]]:
        """Yield offset and length of every region of a volume that may hold non-zero bytes, in ascending order.

        A copy skips all other regions. It has the volume open, and nothing writes to the volume meanwhile.
        """
        yield 0, size_bytes

    # --- optional: declare it in capabilities() ----------------------------------------------------------

    def create_snapshot(self, volume: str, snapshot: str) -> None:
        """Freeze the volume's present bytes under a name. The volume may be in use.

        Raises: VolumeMissing; NoSpace; NameTaken when the name belongs to another volume's snapshot or to a volume.
        """
        raise self._not_supported("snapshots")

    def create_group_snapshot(self, snapshots: Mapping[str, str]) -> None:
        """Freeze several volumes at one instant, each under the name of its snapshot. If a write was confirmed before
        another one began, no set of snapshots holds the second without the first. The volumes may be in use. Either all
        snapshots are made, or none.

        Raises: as ``create_snapshot``.
        """
        raise self._not_supported("group_snapshots")

    def delete_snapshot(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        """Remove a snapshot; volumes made from it stay. A missing snapshot is a success."""
        raise self._not_supported("snapshots")

    def open_snapshot(self, volume: str, snapshot: str) -> AbstractContextManager[BinaryIO]:
        """Open a snapshot's bytes for reading. Raises: VolumeMissing."""
        raise self._not_supported("snapshots")

    def create_volume_from_snapshot(
        self, name: str, size_gib: int, volume: str, snapshot: str, progress: Progress = no_progress
    ) -> None:
        """Make a volume with a snapshot's bytes, independent of both; the part beyond the snapshot reads as zeros.

        Raises: VolumeMissing when the snapshot is gone; NoSpace; NameTaken.
        """
        raise self._not_supported("clone")

    def clone_volume(self, name: str, size_gib: int, source: str, progress: Progress = no_progress) -> None:
        """Make a volume with another volume's present bytes, independent of it. The source may be in use.

        Leaves no helper snapshot behind. Raises: VolumeMissing when the source is gone; NoSpace; NameTaken.
        """
        raise self._not_supported("clone")

    def revert_volume(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        """Give the volume the bytes and size of its snapshot; the snapshot stays. After a kill, a repeated call
        completes it: after success the volume equals the snapshot, and is never a mixture."""
        raise self._not_supported("revert")

    def limit_volume(self, name: str, limits: Mapping[str, int]) -> None:
        """Set the limits within which the storage keeps a volume, in place of the former ones; empty removes them all.

        Keys are those of QoS specs: total, read or write, then ``_iops_sec`` or ``_bytes_sec``, each also with
        ``_max`` for bursts. Limits that the storage does not support are ignored. Raises: VolumeMissing.
        """
        raise self._not_supported("qos")

    def list_manageable(self) -> Sequence[Manageable]:
        """Return every volume on the pool that could be managed, including the volumes of this service."""
        raise self._not_supported("manage")

    def list_manageable_snapshots(self) -> Sequence[Manageable]:
        """Return every snapshot of such volumes, including the snapshots of this service."""
        raise self._not_supported("manage")

    def manage_volume(self, reference: str, name: str) -> int:
        """Manage a volume under a new name: grow it to whole GiB and return its size. Keeps its bytes.

        A volume that already has the name is a success. Raises: VolumeMissing; NameTaken; InUse when it is open;
        BackendError when it cannot be managed.
        """
        raise self._not_supported("manage")

    def manage_snapshot(self, volume: str, reference: str, snapshot: str) -> None:
        """Manage a snapshot of a managed volume under a new name. A snapshot that already has the name is a success.

        Raises: VolumeMissing; NameTaken; BackendError when its size is not the volume's or no whole GiB.
        """
        raise self._not_supported("manage")

    def _not_supported(self, capability: str) -> NotSupported:
        return NotSupported(f"Backend {self.name} does not offer {capability}.")
