"""The interface of the backend to a Ceph cluster, and its errors. It has two implementations.

``commands.py`` runs the programs of ceph-common; ``librbd.py`` calls Ceph's own Python bindings.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from blockstore.backends.contract import Progress
from blockstore.errors import BackendError, InUse, NameTaken, NoSpace, ToolTimeout, Unreachable, VolumeMissing

LONG_S = 7 * 24 * 3600
"""Timeout of an operation that copies all data of an image; the cluster's own limits bound each single step."""


TRASH = "rbd_trash"
"""The object that lists the images in the trash. Removing an image needs it, and a full pool takes no new objects: so
it is made while the pool has space."""
OWNER = "blockstore-owner"
"""The object of a pool that holds the id of the installation using it."""


class HasSnapshots(InUse):
    """An image cannot be removed because it has snapshots; these may be snapshots that only clones still need."""


class Stuck(ToolTimeout):
    """The cluster did not answer in time, or shut this client out: the operation may have happened or not."""


@dataclass(frozen=True, kw_only=True)
class PoolAccess:
    """The address of a pool: its cluster, and the user and timeout to access it with."""

    pool: str
    namespace: str
    conf: Path
    cluster_name: str
    user: str
    keyring: Path | None
    timeout_s: int
    data_pool: str = ""
    """Pool for the data of new images; if empty, the configuration of the cluster or of the pool decides."""

    @property
    def spec(self) -> str:
        """Return the prefix of image names: POOL or POOL/NAMESPACE."""
        return f"{self.pool}/{self.namespace}" if self.namespace else self.pool

    def limits(self) -> dict[str, str]:
        """Return the cluster options that end unanswered calls."""
        seconds = str(self.timeout_s)
        return {"rados_osd_op_timeout": seconds, "rados_mon_op_timeout": seconds, "client_mount_timeout": seconds}


@dataclass(frozen=True)
class Info:
    """Size and parent of an image or snapshot."""

    size: int
    """Bytes."""
    parent: tuple[str, str] | None
    """Parent image and snapshot of a clone, if in the same pool and namespace; the image may be in the trash."""
    is_clone: bool
    """True if it has a parent, in this or another pool."""


@dataclass(frozen=True)
class PoolStats:
    """Capacity of a pool in bytes, as usable by clients: already divided by the number of copies."""

    total: int
    free: int
    pool: str = field(default="", compare=False)
    """The data pool, if the capacity is that of the data pool."""


class Cluster(Protocol):
    """One pool of a cluster. Every method may block for at most ``PoolAccess.timeout_s`` in each step."""

    def prove(self) -> None:
        """Raise Unreachable unless the pool, its namespace and the data pool can be used and the user may blocklist
        dead clients.

        Also make the objects that removing images from a full pool needs.
        """

    def stats(self) -> PoolStats:
        """Return the capacity of the pool, or of the data pool if new images have their data there."""

    def identity(self) -> tuple[str, int]:
        """Return the cluster's id and the pool's id; a pool made again gets a new id. Raises: Unreachable.

        Later calls go to the pool with this id.
        """

    def monitors(self) -> tuple[str, Sequence[tuple[str, str]]]:
        """Return the cluster's id, and host and port of each monitor."""

    def names(self) -> Sequence[str]:
        """Return the images."""

    def sizes(self) -> Mapping[str, int]:
        """Return the images with their sizes in bytes."""

    def all_snapshots(self) -> Sequence[tuple[str, str, int]]:
        """Return image, name and size in bytes of all snapshots."""

    def create(self, image: str, size: int) -> None:
        """Make an image. Raises: NameTaken."""

    def info(self, image: str, snapshot: str = "") -> Info:
        """Return size and parent. Raises: VolumeMissing."""

    def resize(self, image: str, size: int) -> None:
        """Grow an image. Raises: VolumeMissing."""

    def remove(self, image: str) -> None:
        """Remove an image. Raises: VolumeMissing, which may be wrong if the pool is full; InUse; HasSnapshots."""

    def rename(self, image: str, to: str) -> None:
        """Rename an image. Raises: VolumeMissing; NameTaken."""

    def watchers(self, image: str) -> Sequence[str]:
        """Return the addresses of the clients that have an image open for writing."""

    def snapshots(self, image: str) -> Sequence[str]:
        """Return the snapshots of an image, without those that only clones still need."""

    def snapshot(self, image: str, snapshot: str) -> None:
        """Make a snapshot. Raises: VolumeMissing; NameTaken."""

    def remove_snapshot(self, image: str, snapshot: str) -> None:
        """Remove a snapshot; clones keep what they need. Raises: VolumeMissing; InUse."""

    def ask_to_remove_snapshot(self, image: str, snapshot: str) -> None:
        """Ask Ceph once to remove a snapshot; a reported success may be wrong, see ``remove_for_good``.

        Raises: as ``remove_snapshot``.
        """

    def is_protected(self, image: str, snapshot: str) -> bool:
        """Return True if a snapshot is protected and so cannot be removed. Raises: VolumeMissing."""

    def unprotect(self, image: str, snapshot: str) -> None:
        """Unprotect a snapshot. Raises: VolumeMissing; InUse, if a clone of format 1 needs the snapshot."""

    def old_clones(self, image: str, snapshot: str) -> Sequence[str]:
        """Return the clones of format 1 of a snapshot, as POOL/IMAGE. Raises: VolumeMissing."""

    def rename_snapshot(self, image: str, snapshot: str, to: str) -> None:
        """Rename a snapshot. Raises: VolumeMissing; NameTaken."""

    def rollback(self, image: str, snapshot: str, progress: Progress) -> None:
        """Restore the bytes and size of an image from its snapshot. Raises: VolumeMissing."""

    def clone(self, image: str, snapshot: str, to: str) -> None:
        """Make an image from a snapshot; the image depends on the snapshot. Raises: VolumeMissing; NameTaken."""

    def parents(self) -> Mapping[str, str]:
        """Return the parent image of each clone, also of clones in the trash; empty for a parent in another pool or
        namespace."""

    def parent(self, image: str) -> str | None:
        """Return the parent of an image, which may be in the trash, as ``parents`` does; None if the image is no
        clone."""

    def flatten(self, image: str, progress: Progress) -> None:
        """Copy the data that a clone shares with its parent into the clone. Raises: VolumeMissing."""

    def trash(self) -> Mapping[str, str]:
        """Return id and name of each image in the trash."""

    def alone_in_trash(self) -> AbstractContextManager[None]:
        """Exclude other processes and threads from removing images from the trash. Raises: InUse."""

    def to_trash(self, image: str) -> None:
        """Move an image to the trash. Raises: VolumeMissing."""

    def remove_from_trash(self, image_id: str) -> None:
        """Remove an image that is in the trash. Raises: InUse; HasSnapshots."""

    def set_options(self, image: str, options: Mapping[str, str | None]) -> None:
        """Set options of an image; None removes an option. Raises: VolumeMissing."""

    def owner(self) -> str | None:
        """Return the content of the object OWNER; None if the object is missing or empty."""

    def set_owner(self, owner: str | None, *, replace: bool) -> None:
        """Write the object OWNER, or remove it if ``owner`` is None. Without ``replace``, keep an object that is not
        empty."""

    def regions(self, image: str, size: int) -> Sequence[tuple[int, int]]:
        """Return offset and length of the regions that may hold data."""

    def open(self, image: str, snapshot: str, *, write: bool) -> AbstractContextManager[BinaryIO]:
        """Open the bytes. Raises: VolumeMissing."""


def clone_name(pool: str, namespace: str, clone: Mapping[str, Any]) -> str:
    """Return a clone's name for messages; ``clone`` is Ceph's description of a snapshot's child."""
    name = "/".join(filter(None, (pool, namespace, str(clone["image"]))))
    return f"{name} (in the trash, as {clone['id']})" if clone["trash"] else name


def remove_for_good(cluster: Cluster, image: str, snapshot: str) -> None:
    """Remove a snapshot; retry until it is gone. Raise InUse if it stays.

    While an image is being flattened, the flattening client removes its snapshots. Asked for a snapshot that it does
    not know yet, that client answers ENOENT. librbd takes this for a repeated removal and reports success.
    """
    for _ in range(_TRIES):
        cluster.ask_to_remove_snapshot(image, snapshot)
        if snapshot not in cluster.snapshots(image):
            return
        time.sleep(_PAUSE_S)
    raise InUse(f"Snapshot {snapshot} of {image} cannot be removed while {image} is made independent of its parents.")


_TRIES, _PAUSE_S = 8, 0.25
_MISSING = frozenset({errno.ENOENT})
_SHUT_OUT = frozenset({errno.ETIMEDOUT, errno.ESHUTDOWN, errno.ENOTCONN, errno.ECONNREFUSED, errno.EHOSTUNREACH})


def explain(code: int, what: str, message: str) -> BackendError:
    """Return the error for a number of errno.h, which is also the exit code of Ceph's programs."""
    words = " ".join(message.split())[-300:]
    detail = f" ({words})" if words else ""
    if code in _MISSING:
        return VolumeMissing(f"{what} does not exist{detail}.")
    if code == errno.EEXIST:
        return NameTaken(f"{what} exists already{detail}.")
    if code == errno.ENOTEMPTY:
        return HasSnapshots(f"{what} has snapshots{detail}.")
    if code in (errno.EBUSY, errno.EROFS):
        return InUse(f"{what} is in use{detail}.")
    if code in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"There is no space for {what}{detail}.")
    if code in _SHUT_OUT:
        return Stuck(f"The Ceph cluster does not answer: {os.strerror(code)}, with {what}{detail}.")
    if code in (errno.EACCES, errno.EPERM):
        return Unreachable(f"The Ceph user may not do that: {os.strerror(code)}, with {what}{detail}. Check its caps.")
    return BackendError(f"Ceph refused, with {what}: {os.strerror(code) if code > 1 else 'error'}{detail}.")
