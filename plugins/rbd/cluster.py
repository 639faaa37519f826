"""What the backend asks of a Ceph cluster, and in which errors the answer comes; the same for both ways to ask.

``commands.py`` asks through the programs of ceph-common, ``librbd.py`` through Ceph's own Python bindings.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from blockstore.backends.contract import Progress
from blockstore.errors import BackendError, InUse, NameTaken, NoSpace, ToolTimeout, Unreachable, VolumeMissing

LONG_S = 7 * 24 * 3600
"""Time for what copies all data of an image; each single step of it is bounded by the cluster's own limits."""


OWNER = "blockstore-owner"
"""The object of a pool that holds the id of the installation using it."""


class HasSnapshots(InUse):
    """An image that cannot go, because of its snapshots, be they only what clones still need."""


class Stuck(ToolTimeout):
    """The cluster did not answer in time, or has shut us out: what was asked may have happened or not."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Whom to ask, about which pool."""

    pool: str
    namespace: str
    conf: Path
    cluster_name: str
    user: str
    keyring: Path | None
    timeout_s: int

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


class Cluster(Protocol):
    """One pool of a cluster. Every method may block, for as long as ``Place.timeout_s`` at most for each step."""

    def prove(self) -> None:
        """Raise Unreachable unless the pool, and its namespace, can be used."""

    def figures(self) -> Figures:
        """Return what the pool has."""

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

    def rename_snapshot(self, image: str, snapshot: str, to: str) -> None:
        """Rename a snapshot. Raises: VolumeMissing; NameTaken."""

    def rollback(self, image: str, snapshot: str, progress: Progress) -> None:
        """Give an image the bytes and size of its snapshot. Raises: VolumeMissing."""

    def clone(self, image: str, snapshot: str, to: str) -> None:
        """Make an image of a snapshot, which it needs from then on. Raises: VolumeMissing; NameTaken."""

    def parents(self) -> Mapping[str, str]:
        """Return the clones, those in the trash included, and the image below each; no name: one of another pool."""

    def flatten(self, image: str, progress: Progress) -> None:
        """Copy into a clone what it still has of its parent. Raises: VolumeMissing."""

    def trash(self) -> Mapping[str, str]:
        """Return id and name of what is in the trash."""

    def info_in_trash(self, image_id: str) -> Info:
        """Return what is known of an image in the trash. Raises: VolumeMissing."""

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


def below(infos: Mapping[str, Info]) -> Mapping[str, str]:
    """Return the clones among images, and the image below each."""
    return {name: info.parent[0] if info.parent else "" for name, info in infos.items() if info.is_clone}


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
        return NoSpace(f"There is no room for {what}{told}.")
    if code in _SHUT_OUT:
        return Stuck(f"The Ceph cluster does not answer: {os.strerror(code)}, with {what}{told}.")
    if code in (errno.EACCES, errno.EPERM):
        return Unreachable(f"The Ceph user may not do that: {os.strerror(code)}, with {what}{told}. Look at its caps.")
    return BackendError(f"Ceph refused, with {what}: {os.strerror(code) if code > 1 else 'error'}{told}.")


def need_conf(place: Place) -> None:
    """Raise Unreachable unless the cluster's configuration is there."""
    if not place.conf.is_file():
        raise Unreachable(f"{place.conf} is not there; the option ceph_conf names the cluster's configuration.")


def no_pool(place: Place) -> Unreachable:
    """Return the error for a pool or namespace that is not there."""
    make = f"ceph osd pool create {place.pool}; rbd pool init {place.pool}"
    if place.namespace:
        make += f"; rbd namespace create {place.spec}"
    return Unreachable(f"The pool {place.spec} is not there. Make it: {make}")
