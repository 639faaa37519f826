"""The whole promise between blockstore and a storage plugin; this page is the plugin author's manual.

A plugin is a subclass of ``Backend`` registered under the entry-point group ``blockstore.backends``. One instance is
one pool of storage. It sees names and sizes, never rows, requests or tenants.

A plugin imports this module, ``blockstore.errors``, ``blockstore.private_files``, and of ``blockstore.backends``
``process`` (commands), ``options`` (its own options), ``background_tasks`` (work in the background), ``openers`` (what
is open),
``file_locks`` and ``holders`` (who uses a file); nothing else of blockstore.

Rules for every method:

* **Idempotent.** The service may be killed at any instant and asks again after the restart. Doing a thing that is
  already done succeeds and changes nothing. A half-done thing of a former call is completed or replaced.
* **All or nothing.** A method that raises leaves nothing behind that it made.
* **A refusal touches nothing.** ``InUse``, ``NotSupported`` and ``RefusedForSpace`` are raised before the first change:
  the volume keeps the status that it had. What fails later is another ``BackendError``.
* **Blocking and thread-safe.** Called from several threads at once; never twice at once for the same name.
* **Raises only** subclasses of ``errors.BackendError``.
* **Never shows old bytes.** What a new volume, the grown part of a volume, or a snapshot reads is what was written
  to it, else zeros: never a byte of anything deleted before.

Sizes are GiB (2**30 bytes) and exact. Names are ASCII, at most 63 characters, start with a letter and hold letters,
digits, ``-`` and ``_``; ``check_name`` says so. The service uses ``volume-UUID`` and ``snap-UUID``.
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
"""The logical block size of everything that has no other: files, images, most disks."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")

Progress = Callable[[int], None]
"""Tells how far a long action is, in percent; may raise ``OperationCancelled``, which the plugin lets through."""


def no_progress(_percent: int) -> None:
    """Ignore progress."""


def check_name(name: str) -> str:
    """Return the name if it is safe in a path and on a command line, else raise BackendError."""
    if not _NAME.fullmatch(name):
        raise BackendError(f"{name!r} is not a name a backend accepts: a letter, then letters, digits, - and _.")
    return name


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """Options of a plugin; subclass it and add fields made by ``option``.

    Field types understood by the configuration reader: str, int, float, bool, Path, each also ``| None``.
    """


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What this configured instance can do. What is not declared raises NotSupported."""

    snapshots: bool = False
    clone: bool = False
    """Volumes from snapshots and from volumes, without the service copying bytes."""
    revert: bool = False
    online_extend: bool = False
    """A volume may grow while something has it open."""
    multiattach: bool = False
    thin: bool = False
    """Space is taken when written, so the pool may be over-subscribed."""
    thick: bool = False
    """Space is taken when created."""
    group_snapshots: bool = False
    """Snapshots of several volumes are taken at one instant, also while they are written."""
    qos: bool = False
    """The storage itself keeps the limits that ``limit_volume`` sets."""
    manage: bool = False
    """Volumes and snapshots that others made can be managed."""
    owner_mark: bool = False
    """The storage keeps the mark of the installation that uses it, so that two notice each other."""
    block_size: int = BLOCK_SIZE
    """What a consumer of a volume sees as its logical block size, in bytes. Partition tables depend on it."""
    storage_protocol: str = "local"
    """The API's word for how a consumer reaches it: iSCSI, nfs, ceph, file, local."""
    vendor_name: str = "Open Source"
    version: str = "1.0"


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What the pool has now, in GiB, read from the storage itself."""

    total_gib: float
    free_gib: float
    provisioned_gib: float | None = None
    """Sum of virtual sizes on the pool, also of volumes that are not ours; None when the backend cannot tell."""
    deepest_chain: int | None = None
    """Most layers that lie below a volume or snapshot; None where there are no layers, or nobody counts them."""
    metadata_filled_percent: float | None = None
    """How full the space is in which the storage describes what is on it; None where that does not run out."""
    closed_because: str | None = None
    """Why the pool takes nothing new, whatever is free; sentences. What is on it can be used, moved and deleted."""


@dataclass(frozen=True)
class BackgroundTask:
    """Something the plugin does in the background."""

    what: str
    """What is done to what; words for a person."""
    percent: int


@dataclass(frozen=True)
class Located:
    """Where a volume's bytes lie on this node."""

    path: Path
    format: str = "raw"
    """As ``qemu-img`` names it; recorded when the file was made, never found out by looking into it."""
    layers: Sequence[Path] = ()
    """Files of the same format that lie below it, the nearest first: they are read where it was not written."""


@dataclass(frozen=True)
class Direct:
    """How a consumer that speaks the storage's own protocol reaches a volume, without a target on this node."""

    driver_volume_type: str
    """Which of os-brick's connectors it takes: rbd, nfs."""
    data: Mapping[str, Any]
    """What that connector needs; stored and shown, so JSON and never a secret."""
    beside: Mapping[str, Any] = field(default_factory=dict)
    """What stands beside ``data`` on the API, such as ``mount_point_base``."""


@dataclass(frozen=True, kw_only=True)
class Manageable:
    """A volume or snapshot on the storage that could be managed."""

    reference: str
    """What it is called there; given back to ``manage_volume`` or ``manage_snapshot``."""
    size_bytes: int
    name: str = ""
    """The name that the contract gives it, when that is another word than Cinder."""
    volume: str = ""
    """Of a snapshot: the reference of its volume."""
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
    """Consumers reach the storage itself, as ``direct`` says, unless the section names a target."""

    @property
    def file_format(self) -> str:
        """Format of what ``locate`` gives for new volumes; decides which targets can serve this instance."""
        return "raw"

    def __init__(self, name: str, options: BackendOptions, state_dir: Path):
        """Keep the configuration; touch nothing. ``state_dir``: a private directory this backend may use."""
        self.name = name
        self.pool = name
        self.options = options
        self.state_dir = state_dir
        self.is_attached: Callable[[str], bool] = lambda _volume: False
        """Says whether somebody was told how to reach a volume, and may have it open; the service sets it."""
        self.recognised = ""
        """The identity that ``recognise`` was told last; empty: none is recorded."""

    @classmethod
    def open_pools(cls, name: str, options: BackendOptions, state_dir: Path) -> Sequence[Backend]:
        """Return an instance for each pool of a configuration section; most plugins have one, named as the section."""
        return (cls(name, options, state_dir),)

    # --- health and figures ------------------------------------------------------------------------------

    @abstractmethod
    def check(self) -> None:
        """Prove that the pool is usable and safe: tools present, pool reachable, rights sufficient, zeroing on.

        Called at start, every report interval, and by ``blockstore backend check``. May create what the pool needs
        (its directory, its thin pool). Raises Unreachable with a sentence that says what to do.
        When an identity is recorded, the service has proved it before, and nothing that was there before is made anew.
        """

    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Return what this instance can do. Cheap, and valid after ``check``."""

    @abstractmethod
    def capacity(self) -> Capacity:
        """Return the pool's figures, read from the storage."""

    def background_tasks(self) -> Sequence[BackgroundTask]:
        """Return what goes on in the background, and what waits for it. Cheap: asks no storage."""
        return ()

    @abstractmethod
    def list_volumes(self) -> Mapping[str, float]:
        """Return name and size in GiB of every volume on the pool, snapshots and unfinished things excluded."""

    @abstractmethod
    def list_snapshots(self) -> Mapping[str, str]:
        """Return name and volume name of every snapshot on the pool; the volume may be gone (empty string)."""

    # --- what the storage is, and whose ------------------------------------------------------------------

    def recognise(self, identity: str) -> None:
        """Learn which identity is recorded for this pool; an empty one: none is. Touch no storage.

        Called before anything else, and before every look, for the record may change while the service runs.
        """
        self.recognised = identity

    def identity(self) -> str:
        """Return what this storage is, whatever it is called: the same for ever, and another for every other storage.

        Two disks, groups, shares or pools that follow each other under one name differ. 1 to 200 printable ASCII
        characters without spaces. Empty: the storage carries no identity yet (``change_owner`` gives it one), or
        this plugin cannot tell, and declares no ``owner_mark``.
        Makes nothing on the storage: it may be another one than it should be.
        """
        return ""

    def prove_identity(self) -> None:
        """Raise Unreachable unless this is the storage that is recorded.

        The service asks at every look. A plugin asks before it takes a missing volume for a deleted one, unless it
        knows by other means that the storage has not changed since the look.
        """
        if self.recognised and (found := self.identity()) != self.recognised:
            raise self.not_recognised(found)

    def not_recognised(self, found: str) -> NotRecognised:
        """Return the error for storage that is another one than is recorded; to be raised before the first change."""
        section = self.name if self.pool == self.name else f"{self.name}#{self.pool}"
        return NotRecognised(
            f"The storage of {self.pool} is not the one that is known: {self.recognised or 'none'} is recorded, and"
            f" {found or 'none'} is there. Bring the known storage back: is it mounted, and is this its place? Nothing"
            f" is created or deleted meanwhile. If it is new for good, say so: blockstore backend accept {section}"
            f" --found {found or 'none'}"
        )

    def owner(self) -> str | None:
        """Return the id of the installation whose mark the storage carries; None when it carries none."""
        raise self._not_supported("owner_mark")

    def change_owner(self, former: str | None, owner: str | None) -> None:
        """Replace the mark ``former`` by ``owner``; None stands for no mark. Leave any mark but ``former`` alone.

        A mark is given with an identity, if the storage has none: also when ``owner`` is ``former``.
        The mark stays when volumes go, is on the storage itself, and is no volume. An id has 1 to 64 letters, digits
        and ``-``. When two installations write at the same moment, ``owner`` tells the same one to both afterwards.
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
        """Remove a volume, so that none of its bytes can be read again. A volume that is not there is a success.

        Also removes what an unfinished creation of it left. Raises: InUse when it has snapshots or is open.
        """

    @abstractmethod
    def extend_volume(self, name: str, size_gib: int) -> None:
        """Grow a volume; the new part reads as zeros. A volume that already has the size is a success.

        Raises: VolumeMissing; NoSpace; BackendError when it is larger already; InUse when it is open and
        ``online_extend`` is not declared.
        """

    @abstractmethod
    def open_volume(self, name: str, mode: Mode) -> AbstractContextManager[BinaryIO]:
        """Open the volume's bytes as its consumer sees them: exactly its size, seekable, unbuffered writes flushed
        at the end. The primitive under every generic copy. A file that several threads may use at once also has
        ``pread(length, offset)`` and ``pwrite(data, offset)``. Raises: VolumeMissing."""

    def locate(self, name: str) -> Located | None:
        """Return the file or device that holds the volume on this node, ready to be opened; None: there is no such.

        Raises: VolumeMissing.
        """
        return None

    def direct(self, name: str) -> Direct | None:
        """Return how consumers reach the volume on the storage itself; None: they need a target.

        Raises: VolumeMissing.
        """
        return None

    def regions(self, name: str, size_bytes: int) -> Iterable[tuple[int, int]]:
        """Yield offset and length of every region of a volume that may hold other bytes than zeros, rising.

        Spares a copy the rest. The volume is open for it, and nobody writes.
        """
        yield 0, size_bytes

    # --- optional: declare it in capabilities() ----------------------------------------------------------

    def create_snapshot(self, volume: str, snapshot: str) -> None:
        """Freeze the volume's present bytes under a name. The volume may be in use.

        Raises: VolumeMissing; NoSpace; NameTaken when the name belongs to another volume's snapshot or to a volume.
        """
        raise self._not_supported("snapshots")

    def create_group_snapshot(self, snapshots: Mapping[str, str]) -> None:
        """Freeze several volumes, each under the name of its snapshot, at one instant: no write that was confirmed
        before another one began is missing where the other is there. The volumes may be in use. All or none.

        Raises: as ``create_snapshot``.
        """
        raise self._not_supported("group_snapshots")

    def delete_snapshot(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        """Remove a snapshot; volumes made from it live on. A snapshot that is not there is a success."""
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
        """Give the volume the bytes and size of its snapshot; the snapshot stays. Killed half-way and called
        again, it completes: after success the volume equals the snapshot, never a mixture."""
        raise self._not_supported("revert")

    def limit_volume(self, name: str, limits: Mapping[str, int]) -> None:
        """Let the storage keep a volume within limits, in the place of those set before; none lifts them all.

        Keys are those of QoS specs: total, read or write, then ``_iops_sec`` or ``_bytes_sec``, each also with
        ``_max`` for bursts. What the storage cannot limit is passed over. Raises: VolumeMissing.
        """
        raise self._not_supported("qos")

    def list_manageable(self) -> Sequence[Manageable]:
        """Return every volume on the pool that could be a volume of ours, those that are included."""
        raise self._not_supported("manage")

    def list_manageable_snapshots(self) -> Sequence[Manageable]:
        """Return every snapshot of such volumes, those that are ours included."""
        raise self._not_supported("manage")

    def manage_volume(self, reference: str, name: str) -> int:
        """Take a volume over under a new name, grown to whole GiB; return its size. Keeps its bytes.

        One that has the name already is a success. Raises: VolumeMissing; NameTaken; InUse when something has it
        open; BackendError when it cannot be a volume of ours.
        """
        raise self._not_supported("manage")

    def manage_snapshot(self, volume: str, reference: str, snapshot: str) -> None:
        """Manage a snapshot of a volume of ours under a new name. One that has the name already is a success.

        Raises: VolumeMissing; NameTaken; BackendError when its size is not the volume's or no whole GiB.
        """
        raise self._not_supported("manage")

    def _not_supported(self, capability: str) -> NotSupported:
        return NotSupported(f"Backend {self.name} does not offer {capability}.")
