"""What the backend asks of a Ceph cluster, and in which errors the answer comes; the same for both ways to ask.

``commands.py`` asks through the programs of ceph-common, ``librbd.py`` through Ceph's own Python bindings.
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
"""Time for what copies all data of an image; each single step of it is bounded by the cluster's own limits."""


TRASH = "rbd_trash"
"""The object that lists what is in the trash. Removing an image passes through it, and a full pool takes no new object:
so it is made while there is space."""
OWNER = "blockstore-owner"
"""The object of a pool that holds the id of the installation using it."""


class HasSnapshots(InUse):
    """An image that cannot go, because of its snapshots, be they only what clones still need."""


class Stuck(ToolTimeout):
    """The cluster did not answer in time, or has shut us out: what was asked may have happened or not."""


@dataclass(frozen=True, kw_only=True)
class PoolAccess:
    """Whom to ask, about which pool."""

    pool: str
    namespace: str
    conf: Path
    cluster_name: str
    user: str
    keyring: Path | None
    timeout_s: int
    data_pool: str = ""
    """Pool for the data of new images; without one, what the cluster's configuration or the pool's says."""

    @property
    def spec(self) -> str:
        """Return what stands before an image's name."""
        return f"{self.pool}/{self.namespace}" if self.namespace else self.pool

    def limits(self) -> dict[str, str]:
        """Return the cluster options by which a call that is not answered ends."""
        seconds = str(self.timeout_s)
        return {"rados_osd_op_timeout": seconds, "rados_mon_op_timeout": seconds, "client_mount_timeout": seconds}


@dataclass(frozen=True)
class Info:
    """What is known of an image or snapshot."""

    size: int
    """Bytes."""
    parent: tuple[str, str] | None
    """Image and snapshot of which it is a clone, within the same pool and namespace; the image may be in the trash."""
    is_clone: bool
    """Whether it has a parent, here or elsewhere."""


@dataclass(frozen=True)
class Figures:
    """What the pool has, in bytes, as its users may fill it: divided by the number of copies already."""

    total: int
    free: int
    pool: str = field(default="", compare=False)
    """The pool that has it, when that is the one for data."""


class Cluster(Protocol):
    """One pool of a cluster. Every method may block, for as long as ``Place.timeout_s`` at most for each step."""

    def prove(self) -> None:
        """Raise Unreachable unless the pool, its namespace and the pool for data can be used, and the user may
        blocklist clients that died. Prepare that a full pool can be emptied."""

    def figures(self) -> Figures:
        """Return what the pool has; if new images have their data in another pool, what that one has."""

    def identity(self) -> tuple[str, int]:
        """Return the cluster's id and the pool's: one that is removed and made anew gets another. Raises Unreachable.

        What is asked from then on goes to that pool.
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
        """Return what is known. Raises: VolumeMissing."""

    def resize(self, image: str, size: int) -> None:
        """Grow an image. Raises: VolumeMissing."""

    def remove(self, image: str) -> None:
        """Remove an image. Raises: VolumeMissing, which may be a lie when the pool is full; InUse; HasSnapshots."""

    def rename(self, image: str, to: str) -> None:
        """Rename an image. Raises: VolumeMissing; NameTaken."""

    def watchers(self, image: str) -> Sequence[str]:
        """Return the addresses of who has an image open for writing."""

    def snapshots(self, image: str) -> Sequence[str]:
        """Return the snapshots of an image, without those that only clones still need."""

    def snapshot(self, image: str, snapshot: str) -> None:
        """Make a snapshot. Raises: VolumeMissing; NameTaken."""

    def remove_snapshot(self, image: str, snapshot: str) -> None:
        """Remove a snapshot; clones keep what they need. Raises: VolumeMissing; InUse."""

    def ask_to_remove_snapshot(self, image: str, snapshot: str) -> None:
        """Remove a snapshot, as far as Ceph's answer is to be believed; as ``remove_snapshot``."""

    def is_protected(self, image: str, snapshot: str) -> bool:
        """Return True if a snapshot is protected: then it cannot be removed. Raises: VolumeMissing."""

    def unprotect(self, image: str, snapshot: str) -> None:
        """Take the protection from a snapshot. Raises: VolumeMissing; InUse, if a clone of format 1 needs it."""

    def old_clones(self, image: str, snapshot: str) -> Sequence[str]:
        """Return the clones of format 1 of a snapshot, as POOL/IMAGE. Raises: VolumeMissing."""

    def rename_snapshot(self, image: str, snapshot: str, to: str) -> None:
        """Rename a snapshot. Raises: VolumeMissing; NameTaken."""

    def rollback(self, image: str, snapshot: str, progress: Progress) -> None:
        """Give an image the bytes and size of its snapshot. Raises: VolumeMissing."""

    def clone(self, image: str, snapshot: str, to: str) -> None:
        """Make an image of a snapshot, which it needs from then on. Raises: VolumeMissing; NameTaken."""

    def parents(self) -> Mapping[str, str]:
        """Return the clones, those in the trash included, and the image below each; no name: one of another pool."""

    def parent(self, image: str) -> str | None:
        """Return the image below one, which may be in the trash, as ``parents`` does; None when there is none."""

    def flatten(self, image: str, progress: Progress) -> None:
        """Copy into a clone what it still has of its parent. Raises: VolumeMissing."""

    def trash(self) -> Mapping[str, str]:
        """Return id and name of what is in the trash."""

    def alone_in_trash(self) -> AbstractContextManager[None]:
        """Keep off who else removes what is in the trash. Raises: InUse."""

    def to_trash(self, image: str) -> None:
        """Move an image to the trash. Raises: VolumeMissing."""

    def remove_from_trash(self, image_id: str) -> None:
        """Remove an image that is in the trash. Raises: InUse; HasSnapshots."""

    def set_options(self, image: str, options: Mapping[str, str | None]) -> None:
        """Set options of an image; None takes one back. Raises: VolumeMissing."""

    def owner(self) -> str | None:
        """Return what the object OWNER holds; None when it is not there, or empty."""

    def set_owner(self, owner: str | None, *, replace: bool) -> None:
        """Write the object OWNER, or remove it; without ``replace`` one that holds something stays as it is."""

    def regions(self, image: str, size: int) -> Sequence[tuple[int, int]]:
        """Return offset and length of what may hold data."""

    def open(self, image: str, snapshot: str, *, write: bool) -> AbstractContextManager[BinaryIO]:
        """Open the bytes. Raises: VolumeMissing."""


def clone_name(pool: str, namespace: str, clone: Mapping[str, Any]) -> str:
    """Return how people know a clone, of what Ceph tells of the children of a snapshot."""
    name = "/".join(filter(None, (pool, namespace, str(clone["image"]))))
    return f"{name} (in the trash, as {clone['id']})" if clone["trash"] else name


def remove_for_good(cluster: Cluster, image: str, snapshot: str) -> None:
    """Ask for the removal of a snapshot until it is gone.

    While an image is flattened, its snapshots are removed by whoever flattens it; asked for one that it has not heard
    of yet, it answers that nothing is there, which librbd takes for a removal that was asked for twice.
    """
    for _ in range(_TRIES):
        cluster.ask_to_remove_snapshot(image, snapshot)
        if snapshot not in cluster.snapshots(image):
            return
        time.sleep(_PAUSE_S)
    raise InUse(f"Snapshot {snapshot} of {image} stays while {image} is made independent of its parents.")


_TRIES, _PAUSE_S = 8, 0.25
_MISSING = frozenset({errno.ENOENT})
_SHUT_OUT = frozenset({errno.ETIMEDOUT, errno.ESHUTDOWN, errno.ENOTCONN, errno.ECONNREFUSED, errno.EHOSTUNREACH})


def explain(code: int, what: str, said: str) -> BackendError:
    """Return the error for a number of errno.h, which is also what Ceph's programs exit with."""
    words = " ".join(said.split())[-300:]
    told = f" ({words})" if words else ""
    if code in _MISSING:
        return VolumeMissing(f"{what} is not there{told}.")
    if code == errno.EEXIST:
        return NameTaken(f"{what} exists already{told}.")
    if code == errno.ENOTEMPTY:
        return HasSnapshots(f"{what} has snapshots{told}.")
    if code in (errno.EBUSY, errno.EROFS):
        return InUse(f"{what} is in use{told}.")
    if code in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"There is no space for {what}{told}.")
    if code in _SHUT_OUT:
        return Stuck(f"The Ceph cluster does not answer: {os.strerror(code)}, with {what}{told}.")
    if code in (errno.EACCES, errno.EPERM):
        return Unreachable(f"The Ceph user may not do that: {os.strerror(code)}, with {what}{told}. Look at its caps.")
    return BackendError(f"Ceph refused, with {what}: {os.strerror(code) if code > 1 else 'error'}{told}.")
