"""Linear volumes: their extents hold the bytes of a former owner, so this module must zero them.

One rule keeps old bytes unreadable: extents are zeroed or overwritten under a temporary name, and only then become a
volume or part of one. The rule holds no matter who left bytes in the volume group. In addition deleted volumes are
cleared, so that the disk keeps no bytes of deleted data.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blockstore.backends.contract import GIB, Capacity, Progress, no_progress
from blockstore.errors import BackendError, InUse, NameTaken

from . import devices, names
from .commands import Group, Incomplete, Kind, Lv, Lvm, MetadataFull, cow_bytes
from .names import COPY, GROW, NEW, Lvs

log = logging.getLogger(__name__)


class Thick:
    """Operations on a volume group without a pool."""

    def __init__(self, lvm: Lvm, *, clear: bool, clear_bytes: int, discard: bool):
        self._lvm = lvm
        self._clear = clear
        self._clear_bytes = clear_bytes
        self._discard = discard
        # No other thread may allocate zeroed extents between their release and the growth of the volume.
        self._allocating = threading.Lock()

    def owns(self, lv: Lv) -> bool:
        """Return True if a logical volume may be a thick volume or snapshot."""
        return lv.kind in ("plain", "cow")

    def capacity(self, group: Group) -> Capacity:
        """Return the capacity of the volume group."""
        return Capacity(
            total_gib=group.size / GIB, free_gib=group.free / GIB, provisioned_gib=(group.size - group.free) / GIB
        )

    # --- volumes --------------------------------------------------------------------------------------------

    def create_volume(self, name: str, gib: int) -> None:
        """Make a volume and zero it before it gets its name."""
        if self._is_made(lvs := self._lvm.lvs(), name, gib):
            return
        with self._unnamed(lvs, name, gib) as device:
            devices.clear(device, 0, gib * GIB)

    def delete_volume(self, name: str, progress: Progress) -> None:
        """Rename the volume, then clear its bytes and free its extents."""
        lvs = self._recovered(name)
        for lv in lvs.values():
            if lv.name in names.pieces(name) or (names.is_old(lv) and names.snapshot_of(lv) == name):
                self._drop(lv)
                lvs = self._lvm.lvs()
        volume = lvs.get(name)
        if volume is None or volume.kind != "plain" or names.snapshot_of(volume) is not None:
            return
        names.refuse_dependants(lvs, name)
        names.refuse_open(self._lvm, name, lvs)
        self._delete(volume, progress)

    def extend_volume(self, name: str, gib: int) -> None:
        """Grow a volume onto extents that were zeroed before in a separate logical volume."""
        lvs = self._recovered(name)
        lv = names.find_volume(lvs, name, "plain", "")
        if lv.size > gib * GIB:
            raise BackendError(f"The volume {name} has {lv.size / GIB:g} GiB already, more than {gib}.")
        if piece := lvs.get(GROW + name):
            self._drop(piece)
        if lv.size == gib * GIB:
            self._active(lv)
            return
        frozen = bool(names.dependants(lvs, name))
        if frozen:
            self._refuse_open_with_snapshots(name, lvs)
        self._grow(name, gib, gib * GIB - lv.size, offline=frozen)

    def _grow(self, name: str, gib: int, more: int, *, offline: bool) -> None:
        piece = GROW + name
        try:
            with self._allocating:
                self._lvm.create_plain(piece, more)
            devices.clear(self._lvm.path(piece), 0, more)
            extents = self._lvm.extents(piece)
            if offline:
                self._lvm.deactivate(name)
            with self._allocating:
                # No discard: on some disks discarded extents read as old or random bytes.
                self._lvm.remove(piece, discard=False)
                self._lvm.extend(name, gib, extents)
        except Exception:
            with self._logged():
                self._lvm.remove(piece, discard=False)
            raise
        finally:
            if offline:
                self._lvm.activate(name)

    def open_volume(self, name: str) -> Path:
        """Activate a volume and return its device."""
        return self._active(names.find_volume(self._lvm.lvs(), name, "plain", ""))

    # --- snapshots ------------------------------------------------------------------------------------------

    def create_snapshot(self, volume: str, snapshot: str) -> None:
        """Snapshot a volume, with space for a copy of all its chunks, so that the snapshot can never overflow."""
        lvs = self._recovered(volume)
        origin = names.find_volume(lvs, volume, "plain", "")
        if taken := lvs.get(snapshot):
            if names.snapshot_of(taken) != volume:
                raise NameTaken(f"The name {snapshot} is taken.")
            if taken.kind == "cow":
                self._active(origin)
                return
            self._drop(taken)  # lvcreate was killed before it attached the snapshot's space
        with self._allocating:
            self._lvm.snapshot_thick(volume, snapshot, cow_bytes(origin.size), tag=names.snapshot_tag(volume))

    def delete_snapshot(self, volume: str, snapshot: str, progress: Progress) -> None:
        """Remove a snapshot and clear its area, which holds the bytes that its volume has overwritten."""
        lvs = self._recovered(volume)
        for piece in sorted({names.old(snapshot), names.OLD + snapshot}):
            if piece in lvs:
                self._drop(lvs[piece], progress)
        lv = lvs.get(snapshot)
        if lv is not None and self.owns(lv) and names.snapshot_of(lv) == volume:
            names.refuse_open(self._lvm, snapshot, lvs)
            self._delete(lv, progress)

    def open_snapshot(self, volume: str, snapshot: str) -> Path:
        """Return the device of a snapshot; it is active if its volume is."""
        lvs = self._recovered(volume)
        lv = names.find_snapshot(lvs, volume, snapshot, "cow")
        self._active(names.find_volume(lvs, volume, "plain", ""))
        return self._lvm.path(lv.name)

    # --- copies ---------------------------------------------------------------------------------------------

    def create_volume_from_snapshot(self, name: str, gib: int, volume: str, snapshot: str, progress: Progress) -> None:
        """Make a volume and copy the snapshot onto it before it gets its name."""
        if self._is_made(lvs := self._recovered(volume), name, gib):
            return
        source = names.find_snapshot(lvs, volume, snapshot, "cow")
        names.refuse_smaller(gib, source)
        self._active(names.find_volume(lvs, volume, "plain", ""))
        with self._unnamed(lvs, name, gib) as device:
            self._fill(device, gib, source.name, source.size, progress)

    def clone_volume(self, name: str, gib: int, source: str, progress: Progress) -> None:
        """Make a volume and copy the source through a snapshot, because the source may be written meanwhile."""
        if self._is_made(lvs := self._recovered(source), name, gib):
            return
        origin = names.find_volume(lvs, source, "plain", "")
        names.refuse_smaller(gib, origin)
        self._active(origin)
        with self._unnamed(lvs, name, gib) as device, self._helper(source, COPY + name, origin.size) as frozen:
            self._fill(device, gib, frozen, origin.size, progress)

    def _fill(self, device: Path, gib: int, source: str, size: int, progress: Progress) -> None:
        if gib * GIB > size:
            devices.clear(device, size, gib * GIB)
        devices.copy(self._lvm.path(source), device, size, progress)

    @contextmanager
    def _helper(self, source: str, helper: str, size: int) -> Iterator[str]:
        with self._allocating:
            self._lvm.snapshot_thick(source, helper, cow_bytes(size))
        try:
            yield helper
        except Exception:
            with self._logged():
                self._drop_named(helper)
            raise
        self._drop_named(helper)

    @contextmanager
    def _unnamed(self, lvs: Lvs, name: str, gib: int) -> Iterator[Path]:
        """Make a volume that is renamed to ``name`` if the block succeeds, and cleared and removed if it fails."""
        for piece in (NEW + name, COPY + name):
            if piece in lvs:
                self._drop(lvs[piece])
        with self._allocating:
            self._lvm.create_plain(NEW + name, gib * GIB)
        try:
            yield self._lvm.path(NEW + name)
            self._lvm.rename(NEW + name, name)
        except Exception:
            with self._logged():
                self._drop_named(NEW + name)
            raise

    # --- revert ---------------------------------------------------------------------------------------------

    def revert_volume(self, volume: str, snapshot: str, progress: Progress) -> None:
        """Copy the differing bytes back from the snapshot.

        ``lvconvert --merge`` would remove the snapshot. It could not be made again after a kill, or if another thread
        took the extents. The snapshot has space for all bytes that the copying overwrites, and can be copied again
        after a kill at any time.
        """
        lvs = self._recovered(volume)
        present = names.find_volume(lvs, volume, "plain", "")
        source = names.find_snapshot(lvs, volume, snapshot, "cow")
        names.refuse_open(self._lvm, volume, lvs)
        self._active(present)
        if source.size < present.size:
            self._refuse_to_cut(lvs, volume, source)
        device = self._lvm.path(volume)
        devices.copy(self._lvm.path(snapshot), device, source.size, progress, compare=True)
        if source.size < present.size:
            self._lvm.tag(volume, names.resizing_tag(source.size))
            try:
                self._recovered(volume)
            except InUse as exc:  # opened meanwhile; InUse would mean that nothing was changed
                raise BackendError(
                    f"{volume} has the data of its snapshot, but could not be reduced to its size: {exc}"
                ) from exc

    def _refuse_to_cut(self, lvs: Lvs, volume: str, source: Lv) -> None:
        """Raise InUse unless all snapshots have the smaller size of the volume, to which they will be attached
        again."""
        for half_made in self._snapshots(lvs, volume, "plain"):
            self._drop(lvs[half_made])
        for lv in lvs.values():
            if lv.kind == "cow" and lv.origin == volume and (lv.size != source.size or names.is_unfinished(lv)):
                what = "a copy of it is unfinished" if names.is_unfinished(lv) else "it has a snapshot of another size"
                raise InUse(
                    f"The volume {volume} cannot be reduced to the size of its snapshot {source.name} while {what}:"
                    f" {lv.name}."
                )

    def _recovered(self, volume: str) -> Lvs:
        """Finish an unfinished reduction of the volume, and return the logical volumes.

        LVM reduces a volume with snapshots only while they are detached. A tag on the volume holds the new size. A
        snapshot must not be attached before the reduction, because it would take the size of the volume.
        """
        lvs = self._lvm.lvs()
        size = names.resizing_to(lvs.get(volume))
        if size is None:
            return lvs
        before = lvs[volume].size
        if before > size:
            for snapshot in self._snapshots(lvs, volume, "cow"):
                self._lvm.split(snapshot)
            if self._clear:
                devices.clear(self._active(lvs[volume]), size, before)
            self._lvm.reduce(volume, size, discard=self._discard)
        for snapshot in self._snapshots(self._lvm.lvs(), volume, "plain"):
            self._lvm.join(volume, snapshot)
        self._lvm.untag(volume, names.resizing_tag(size))
        return self._lvm.lvs()

    def _snapshots(self, lvs: Lvs, volume: str, kind: Kind) -> list[str]:
        """Return the attached (cow) or detached (plain) snapshots of a volume."""
        return [
            lv.name
            for lv in lvs.values()
            if lv.kind == kind and not names.is_unfinished(lv) and names.snapshot_of(lv) == volume
        ]

    # --- helpers --------------------------------------------------------------------------------------------

    def _is_made(self, lvs: Lvs, name: str, gib: int) -> bool:
        lv = names.is_made(lvs, name, gib, "plain", "")
        if lv is None:
            return False
        if COPY + name in lvs:
            self._drop(lvs[COPY + name])
        self._active(lv)
        return True

    def _delete(self, lv: Lv, progress: Progress) -> None:
        """Rename, clear and remove a logical volume; every refusal comes before the first byte is cleared."""
        progress(0)  # the last moment for a cancellation without loss of bytes
        if lv.kind == "plain" and self._clear:
            with devices.exclusive(self._active(lv)) as device:
                name = self._set_aside(lv.name)
                device.clear(0, self._clear_end(lv), progress)
            self._lvm.remove(name, discard=self._discard)
            return
        name = self._set_aside(lv.name)
        try:
            if lv.kind == "cow" and self._clear:
                self._lvm.split(name)
            else:
                self._lvm.remove(name, discard=self._discard)
        except InUse:
            if name != lv.name:
                with self._logged():
                    self._lvm.rename(name, lv.name)
            raise
        self._drop_named(name, progress)

    def _set_aside(self, name: str) -> str:
        """Rename a deleted volume and return its new name; return the old name if LVM cannot rename it now.

        A failed rename must not prevent the deletion: a retry of the delete finds the volume under either name.
        """
        try:
            self._lvm.rename(name, names.old(name))
        except (MetadataFull, Incomplete) as exc:
            log.info("%s is cleared under its own name: %s", name, exc)
            return name
        return names.old(name)

    def _drop_named(self, name: str, progress: Progress = no_progress) -> None:
        if lv := self._lvm.lvs().get(name):
            self._drop(lv, progress)

    def _drop(self, lv: Lv, progress: Progress = no_progress) -> None:
        """Clear a volume, or the copy-on-write area of a snapshot, and remove it."""
        if self._clear:
            if lv.kind == "cow":
                self._lvm.split(lv.name)
            elif not lv.active:
                self._lvm.activate(lv.name)
            devices.clear(self._lvm.path(lv.name), 0, self._clear_end(lv), progress)
        self._lvm.remove(lv.name, discard=self._discard)

    def _clear_end(self, lv: Lv) -> int:
        return min(lv.stored, self._clear_bytes or lv.stored)

    def _active(self, lv: Lv) -> Path:
        if not lv.active:
            self._lvm.activate(lv.name)
        return self._lvm.path(lv.name)

    def _refuse_open_with_snapshots(self, name: str, lvs: Lvs) -> None:
        try:
            names.refuse_open(self._lvm, name, lvs)
        except InUse as exc:
            raise InUse(
                f"The volume {name} is open and has snapshots; LVM grows a thick volume with snapshots only while it"
                " is closed. Detach it, or delete its snapshots."
            ) from exc

    @contextmanager
    def _logged(self) -> Iterator[None]:
        """Log errors of a clean-up, so that they do not hide the original error; the next call removes the remains."""
        try:
            yield
        except BackendError as exc:
            log.warning("cleaning up in volume group %s failed: %s", self._lvm.vg, exc)
