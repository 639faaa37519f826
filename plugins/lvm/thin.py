"""Volumes in a thin pool: snapshots and clones share blocks, and the pool zeroes each newly allocated block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blockstore.backends.contract import GIB, Capacity, Progress
from blockstore.errors import BackendError, InUse, NameTaken

from . import devices, names
from .commands import Group, Lv, Lvm, PoolFull
from .names import NEW, WAS, Lvs


class Thin:
    """Operations on one thin pool."""

    def __init__(self, lvm: Lvm, pool: str, *, discard: bool):
        self._lvm = lvm
        self._pool = pool
        self._discard = discard

    def owns(self, lv: Lv) -> bool:
        """Return True if a logical volume is a volume or snapshot of this pool."""
        return lv.kind == "thin" and lv.pool == self._pool

    def capacity(self, _group: Group) -> Capacity:
        """Return the capacity of the pool."""
        lvs = self._lvm.lvs()
        pool = lvs.get(self._pool)
        size = pool.stored if pool else 0
        used = pool.data_percent if pool else 0
        return Capacity(
            total_gib=size / GIB,
            free_gib=size * (100 - min(used, 100)) / 100 / GIB,
            provisioned_gib=sum(lv.size for lv in lvs.values() if self.owns(lv)) / GIB,
            metadata_filled_percent=pool.metadata_percent if pool else None,
        )

    # --- volumes --------------------------------------------------------------------------------------------

    def create_volume(self, name: str, gib: int) -> None:
        """Make a volume with one process; only if the name is taken, check which logical volume has it."""
        try:
            with self._fullness():
                self._lvm.create_thin(name, gib, self._pool)
        except NameTaken:
            if not self._is_made(self._lvm.lvs(), name, gib):
                raise

    def delete_volume(self, name: str, progress: Progress) -> None:
        """Remove a volume; its blocks are zeroed when they are allocated again."""
        lvs = self._recovered(name)
        lv = lvs.get(name)
        if lv is None or not self.owns(lv) or names.snapshot_of(lv) is not None:
            return
        names.refuse_dependants(lvs, name)
        names.refuse_open(self._lvm, name, lvs)
        progress(0)
        self._remove(lv)

    def extend_volume(self, name: str, gib: int) -> None:
        """Grow a volume, also while open."""
        with self._fullness():
            self._lvm.extend(name, gib)

    def open_volume(self, name: str) -> Path:
        """Activate a volume and return its device."""
        lv = names.find_volume(self._lvm.lvs(), name, "thin", self._pool)
        return self._active(lv)

    # --- snapshots and clones -------------------------------------------------------------------------------

    def create_snapshot(self, volume: str, snapshot: str) -> None:
        """Snapshot a volume with one process; LVM suspends the volume meanwhile, so that the snapshot is consistent."""
        tag = names.snapshot_tag(volume)
        try:
            with self._fullness():
                self._lvm.snapshot_thin(volume, snapshot, tag=tag, active=False)
        except NameTaken:
            taken = self._lvm.lvs().get(snapshot)
            if taken is None or not self.owns(taken) or tag not in taken.tags:
                raise

    def delete_snapshot(self, volume: str, snapshot: str, progress: Progress) -> None:
        """Remove a snapshot; its clones keep the shared blocks."""
        lvs = self._lvm.lvs()
        lv = lvs.get(snapshot)
        if lv is None or not self.owns(lv) or names.snapshot_of(lv) != volume:
            return
        names.refuse_open(self._lvm, snapshot, lvs)
        progress(0)
        self._lvm.remove(snapshot, discard=self._discard)

    def open_snapshot(self, volume: str, snapshot: str) -> Path:
        """Activate a snapshot, which is inactive until its first use, and return its device."""
        return self._active(names.find_snapshot(self._lvm.lvs(), volume, snapshot, "thin"))

    def create_volume_from_snapshot(self, name: str, gib: int, volume: str, snapshot: str, progress: Progress) -> None:
        """Make a volume that shares the snapshot's blocks."""
        lvs = self._lvm.lvs()
        if not self._is_made(lvs, name, gib):
            self._derive(lvs, name, gib, names.find_snapshot(lvs, volume, snapshot, "thin"), progress)

    def clone_volume(self, name: str, gib: int, source: str, progress: Progress) -> None:
        """Make a volume that shares another volume's blocks; no snapshot is needed."""
        lvs = self._lvm.lvs()
        if not self._is_made(lvs, name, gib):
            self._derive(lvs, name, gib, names.find_volume(lvs, source, "thin", self._pool), progress)

    def _derive(self, lvs: Lvs, name: str, gib: int, source: Lv, progress: Progress) -> None:
        names.refuse_smaller(gib, source)
        progress(0)
        self._sweep(lvs, NEW + name)
        if gib * GIB == source.size:
            with self._fullness():
                self._lvm.snapshot_thin(source.name, name, active=True)
            return
        try:
            with self._fullness():
                self._lvm.snapshot_thin(source.name, NEW + name, active=True)
                self._lvm.extend(NEW + name, gib)
                self._lvm.rename(NEW + name, name)
        except BackendError:
            self._lvm.remove(NEW + name, discard=False)
            raise

    # --- revert ---------------------------------------------------------------------------------------------

    def revert_volume(self, volume: str, snapshot: str, progress: Progress) -> None:
        """Replace the volume by a new snapshot of the snapshot.

        ``lvconvert --merge`` would remove the snapshot, and a kill before it is made again would lose it. Here the
        snapshot is never changed. After a kill ``_recovered`` undoes the remains, and the revert is repeated.
        """
        lvs = self._recovered(volume)
        present = names.find_volume(lvs, volume, "thin", self._pool)
        source = names.find_snapshot(lvs, volume, snapshot, "thin")
        names.refuse_open(self._lvm, volume, lvs)
        progress(0)
        try:
            with self._fullness():
                self._lvm.snapshot_thin(source.name, NEW + volume, active=True)
            self._lvm.rename(volume, WAS + volume)
            self._lvm.rename(NEW + volume, volume)
        except BackendError:
            self._recovered(volume)
            raise
        try:
            self._remove(present, WAS + volume)
        except InUse as exc:  # opened meanwhile; InUse would mean that nothing was changed
            raise BackendError(f"{volume} was reverted, and its former device cannot be removed: {exc}") from exc
        progress(100)

    def _recovered(self, volume: str) -> Lvs:
        """Undo the remains of unfinished operations on the volume, and return the logical volumes."""
        lvs = dict(self._lvm.lvs())
        if was := lvs.pop(WAS + volume, None):
            if volume in lvs:
                self._remove(was)
            else:
                self._lvm.rename(was.name, volume)
                lvs = dict(self._lvm.lvs())
        if self._sweep(lvs, NEW + volume):
            del lvs[NEW + volume]
        return lvs

    # --- helpers --------------------------------------------------------------------------------------------

    def _is_made(self, lvs: Lvs, name: str, gib: int) -> bool:
        lv = names.is_made(lvs, name, gib, "thin", self._pool)
        if lv is None:
            return False
        self._sweep(lvs, NEW + name)
        self._active(lv)
        return True

    def _sweep(self, lvs: Lvs, piece: str) -> bool:
        if piece not in lvs:
            return False
        self._lvm.remove(piece, discard=False)
        return True

    def _remove(self, lv: Lv, name: str = "") -> None:
        """Discard a volume's blocks on the disk, then remove the volume: ``lvremove`` frees them only in the pool."""
        name = name or lv.name
        if self._discard and lv.active:
            devices.discard(self._lvm.path(name), lv.size)
        self._lvm.remove(name, discard=False)

    def _active(self, lv: Lv) -> Path:
        if not lv.active:
            self._lvm.activate(lv.name)
        return self._lvm.path(lv.name)

    @contextmanager
    def _fullness(self) -> Iterator[None]:
        """Add to PoolFull which space is missing, and how to extend it."""
        try:
            yield
        except PoolFull as exc:
            pool = self._lvm.lvs().get(self._pool)
            if pool is None:
                raise
            metadata_full = pool.metadata_percent > pool.data_percent
            what, grow = ("metadata", "--poolmetadatasize +1G") if metadata_full else ("data", "-L +100G")
            raise PoolFull(
                f"The thin pool {self._lvm.vg}/{self._pool} is full: data {pool.data_percent:g} %, metadata"
                f" {pool.metadata_percent:g} %. Delete volumes or snapshots, or add more {what}: lvextend {grow}"
                f" {self._lvm.vg}/{self._pool}"
            ) from exc
