"""Linear volumes, whose extents hold what their last owner wrote: here zeroing is our work.

The rule that keeps old bytes unreadable: extents get zeroed, or overwritten, under a name that is not the service's,
and become a volume or part of one only afterwards. That holds whatever else leaves bytes in the volume group.
Clearing what is deleted comes on top, so that the disk holds no bytes of anything that is gone.
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
        # Between giving zeroed extents back and growing onto them, no other thread may take them.
        self._allocating = threading.Lock()

    def owns(self, lv: Lv) -> bool:
        """Say whether a logical volume may be a volume or snapshot here."""
        return lv.kind in ("plain", "cow")

    def capacity(self, group: Group) -> Capacity:
        """Return the volume group's figures."""
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
        """Take the volume's name away, then clear its bytes and give the extents back."""
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
        """Grow a volume onto extents that were zeroed as a volume of their own."""
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
                # No discard: on some disks a discard gives old or random bytes back.
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
        """Return the device of a volume, active."""
        return self._active(names.find_volume(self._lvm.lvs(), name, "plain", ""))

    # --- snapshots ------------------------------------------------------------------------------------------

    def create_snapshot(self, volume: str, snapshot: str) -> None:
        """Freeze a volume, with space to copy all of it away, so that the snapshot can never be lost by overflow."""
        lvs = self._recovered(volume)
        origin = names.find_volume(lvs, volume, "plain", "")
        if taken := lvs.get(snapshot):
            if names.snapshot_of(taken) != volume:
                raise NameTaken(f"The name {snapshot} is taken.")
            if taken.kind == "cow":
                self._active(origin)
                return
            self._drop(taken)  # lvcreate was killed between making the space and attaching it
        with self._allocating:
            self._lvm.snapshot_thick(volume, snapshot, cow_bytes(origin.size), tag=names.snapshot_tag(volume))

    def delete_snapshot(self, volume: str, snapshot: str, progress: Progress) -> None:
        """Remove a snapshot and clear the area that holds what its volume overwrote since."""
        lvs = self._recovered(volume)
        for piece in sorted({names.old(snapshot), names.OLD + snapshot}):
            if piece in lvs:
                self._drop(lvs[piece], progress)
        lv = lvs.get(snapshot)
        if lv is not None and self.owns(lv) and names.snapshot_of(lv) == volume:
            names.refuse_open(self._lvm, snapshot, lvs)
            self._delete(lv, progress)

    def open_snapshot(self, volume: str, snapshot: str) -> Path:
        """Return the device of a snapshot; it is active whenever its volume is."""
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
        """Make a volume and copy the source onto it, by way of a snapshot because the source may be written."""
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
        """Make a volume that gets its name when the block ends well, and is cleared and removed when it does not."""
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
        """Copy back what differs from the snapshot.

        ``lvconvert --merge`` would take the snapshot away; between that and a new one a kill, or another thread that
        takes the extents, would lose it. The snapshot has space for all that this copying makes it keep, and can be
        copied again after a kill at any instant.
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
            except InUse as exc:  # opened since; it is no refusal any more
                raise BackendError(f"{volume} has its snapshot's bytes, and could not be cut: {exc}") from exc

    def _refuse_to_cut(self, lvs: Lvs, volume: str, source: Lv) -> None:
        """Raise InUse unless all snapshots fit the smaller volume, to which they will be attached again."""
        for half_made in self._snapshots(lvs, volume, "plain"):
            self._drop(lvs[half_made])
        for lv in lvs.values():
            if lv.kind == "cow" and lv.origin == volume and (lv.size != source.size or names.is_unfinished(lv)):
                what = "a copy of it is unfinished" if names.is_unfinished(lv) else "it has a snapshot of another size"
                raise InUse(
                    f"The volume {volume} cannot become as small as its snapshot {source.name} while {what}: {lv.name}."
                )

    def _recovered(self, volume: str) -> Lvs:
        """Return the logical volumes, after finishing to cut the volume if that was begun.

        LVM cuts a volume with snapshots only while they are detached. A tag on the volume says to which size, because
        a snapshot attached again to a volume that was not cut yet would take on that volume's size.
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
        """Return a volume's snapshots that are attached (cow) or not (plain)."""
        return [
            lv.name
            for lv in lvs.values()
            if lv.kind == kind and not names.is_unfinished(lv) and names.snapshot_of(lv) == volume
        ]

    # --- pieces ---------------------------------------------------------------------------------------------

    def _is_made(self, lvs: Lvs, name: str, gib: int) -> bool:
        lv = names.is_made(lvs, name, gib, "plain", "")
        if lv is None:
            return False
        if COPY + name in lvs:
            self._drop(lvs[COPY + name])
        self._active(lv)
        return True

    def _delete(self, lv: Lv, progress: Progress) -> None:
        """Take the name away and clear; whatever is refused is refused while all bytes are there."""
        progress(0)  # the last moment for a cancellation that keeps it whole
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
        """Rename what is deleted, and return its new name; the old one where LVM cannot rename now.

        That must not keep anything from being deleted: a row that says ``deleting`` finds it under either name.
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
        """Let an error of cleaning up not hide the one that made it necessary; what stays is swept by the next call."""
        try:
            yield
        except BackendError as exc:
            log.warning("cleaning up in volume group %s failed: %s", self._lvm.vg, exc)
