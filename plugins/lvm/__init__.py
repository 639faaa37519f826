"""Volumes as logical volumes of an LVM volume group, in a thin pool or thick.

This file implements the backend and chooses thin or thick. ``thin.py`` and ``thick.py`` implement the operations,
``commands.py`` runs LVM's commands, ``devices.py`` clears and copies bytes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from blockstore.backends.contract import (
    BLOCK_SIZE,
    GIB,
    Backend,
    BackendOptions,
    Capabilities,
    Capacity,
    Manageable,
    Mode,
    Progress,
    VolumeLocation,
    check_name,
    no_progress,
    option,
)
from blockstore.backends.options import of_type
from blockstore.errors import (
    BackendError,
    ConfigError,
    NameTaken,
    NoSpace,
    NotRecognised,
    RefusedForSpace,
    Unreachable,
    VolumeMissing,
)

from . import block_size, devices, names
from .commands import Group, Lv, Lvm, NoThinTarget, check_group_name, check_pool_size
from .members import Replaced
from .thick import Thick
from .thin import Thin

log = logging.getLogger(__name__)

METADATA_RESERVE_PERCENT = 5
"""Part of a group's metadata area that is kept for deletes: nothing new is accepted if less is free."""
LEAST_METADATA_FREE = 2048
"""In bytes: the metadata of about four logical volumes."""


@dataclass(frozen=True, kw_only=True)
class LvmOptions(BackendOptions):
    """Options of an LVM backend."""

    volume_group: str = option("Volume group that holds the volumes. It must exist.", "cinder-volumes")
    lvm_type: str = option(
        "thin, thick, or auto: thin if the pool exists or the volume group is empty, else thick.",
        "auto",
        choices=("auto", "thin", "thick"),
    )
    thin_pool: str = option("Name of the thin pool; by default VOLUME_GROUP-pool. Created if it does not exist.", "")
    thin_pool_size: str = option(
        "Size of a created thin pool, such as 500G, or a percentage of the free space.", "95%FREE"
    )
    volume_clear: str = option(
        "Whether to overwrite the bytes of a deleted thick volume or snapshot. New volumes read as zeros either way.",
        "zero",
        choices=("zero", "none"),
    )
    volume_clear_size: int = option("MiB to clear at the start of a deleted thick volume; 0 means all of it.", 0)
    discard: bool = option("Discard unused space on disks that support it.", True)
    use_sudo: bool = option("Run LVM with sudo -n. The user of the service must be in the group disk.", False)
    timeout_s: float = option("Time limit of one LVM command in seconds.", 120.0)


class LvmBackend(Backend):
    """One volume group, or one thin pool in it."""

    Options = LvmOptions

    def __init__(self, name: str, options: BackendOptions, state_dir: Path):
        super().__init__(name, options, state_dir)
        options = of_type(LvmOptions, options, f"[backend:{name}]")
        self._options = options
        where = f"[backend:{name}]"
        vg = check_group_name(options.volume_group, f"{where} volume_group")
        self._pool = check_group_name(options.thin_pool or f"{vg}-pool", f"{where} thin_pool")
        check_pool_size(options.thin_pool_size, f"{where} thin_pool_size")
        if options.volume_clear_size < 0:
            raise ConfigError(f"{where} volume_clear_size is {options.volume_clear_size}; it must be 0 or more.")
        self._lvm = Lvm(vg, use_sudo=options.use_sudo, timeout_s=options.timeout_s)
        self._thin = Thin(self._lvm, self._pool, discard=options.discard)
        self._thick = Thick(
            self._lvm,
            clear=options.volume_clear == "zero",
            clear_bytes=options.volume_clear_size * 2**20,
            discard=options.discard,
        )
        self._block_size: int | None = None
        self._chosen: Thin | Thick | None = None
        self._choosing = threading.Lock()
        self._group_read: Group | None = None
        """The group found by ``identity``, for the ``check`` that follows."""
        self._replaced_on = ""

    # --- health and capacity --------------------------------------------------------------------------------

    def check(self) -> None:
        """Check that the volume group can be used, that LVM may activate its volumes, and that its thin pool zeroes new
        blocks."""
        group_read, self._group_read = self._group_read, None
        group = group_read or self._lvm.group()
        vg = self._lvm.vg
        if group.exported:
            raise Unreachable(f"The volume group {vg} is exported: vgimport {vg}")
        if GIB % group.extent:
            raise Unreachable(f"The extents of {vg} have {group.extent} bytes; 1 GiB must be a multiple of that.")
        self._check_activation(group)
        if self._kind() is self._thin:
            self._check_pool(group)
        if self._block_size is None:  # LVM adds no disk with another block size
            self._block_size = block_size.of_disks(self._lvm.disks())

    def _check_activation(self, group: Group) -> None:
        """Raise Unreachable if lvm.conf keeps LVM from activating the group's volumes; LVM itself does not report
        this."""
        lists = self._lvm.activation_lists()
        vg = self._lvm.vg
        if "volume_list" in lists and not _is_listed(group, vg, lists["volume_list"]):
            raise Unreachable(
                f"volume_list in lvm.conf does not let LVM activate the volumes of {vg}: it is"
                f" {', '.join(lists['volume_list']) or 'empty'}. Add {vg} to it."
            )
        if _is_listed(group, vg, lists.get("read_only_volume_list", ())):
            raise Unreachable(f"read_only_volume_list in lvm.conf makes the volumes of {vg} read-only. Take {vg} out.")

    def _check_pool(self, group: Group) -> None:
        what = f"{self._lvm.vg}/{self._pool}"
        pool = self._lvm.lvs().get(self._pool)
        mark = names.POOL + self._pool
        if pool is None and mark in group.tags:
            raise Unreachable(
                f"The thin pool {what}, which holds the volumes, no longer exists. Bring it back. To create a new one:"
                f" lvcreate --type thin-pool -l 95%FREE -Zy -n {self._pool} {self._lvm.vg}. To make this backend"
                " thick: lvm_type = thick."
            )
        if pool is None:
            pool = self._made_pool()
        if pool is None:
            return
        if pool.kind != "pool":
            raise Unreachable(f"{what} is not a thin pool. Rename it, or set thin_pool to another name.")
        if not pool.zeroes:
            raise Unreachable(
                f"The thin pool {what} does not zero new blocks, so tenants would read each other's old data. Switch"
                f" zeroing on: lvchange -Zy {what}"
            )
        if pool.health == "partial":
            raise Unreachable(f"The thin pool {what} is on a missing disk. {self._missing(self._lvm.group())}")
        if pool.health in ("failed", "metadata_read_only", "check needed"):
            raise Unreachable(f"The thin pool {what} is not usable ({pool.health}). See lvconvert --repair {what}")
        if not pool.active:
            self._lvm.activate(self._pool)
        if mark not in group.tags:
            with suppress(BackendError):  # the group has no space for the tag
                self._lvm.tag_group(add=[mark], remove=[])
        if self._options.discard and pool.discards and pool.discards != "passdown":
            log.info(
                "thin pool %s does not pass discards to the disk below it; to change that: --discards passdown", what
            )

    def _made_pool(self) -> Lv | None:
        """Make the pool and return it; return None if ``auto`` falls back to thick because there is no thin target."""
        try:
            self._lvm.create_pool(self._pool, self._options.thin_pool_size)
        except NameTaken:
            pass  # another process made it meanwhile
        except NoThinTarget:
            if self._options.lvm_type != "auto":
                raise
            log.warning("backend %s is thick, since the kernel has no thin provisioning", self.name)
            self._chosen = self._thick
            return None
        pool = self._lvm.lvs().get(self._pool)
        if pool is None:
            raise Unreachable(f"The thin pool {self._lvm.vg}/{self._pool} vanished while it was being created.")
        return pool

    def _kind(self) -> Thin | Thick:
        """Return the thin or thick operations. ``auto`` is decided once: otherwise an emptied volume group would become
        thin."""
        with self._choosing:
            if self._chosen is None:
                self._chosen = self._thin if self._is_to_be_thin() else self._thick
            return self._chosen

    def _is_to_be_thin(self) -> bool:
        if self._options.lvm_type != "auto":
            return self._options.lvm_type == "thin"
        lvs = self._lvm.lvs()
        pool = lvs.get(self._pool)
        return not lvs or (pool is not None and pool.kind == "pool")

    def capabilities(self) -> Capabilities:
        """Return the capabilities; they differ between thin and thick."""
        thin = self._kind() is self._thin
        return Capabilities(
            snapshots=True,
            clone=True,
            revert=True,
            online_extend=True,
            multiattach=True,
            manage=True,
            owner_mark=True,
            thin=thin,
            thick=not thin,
            block_size=self._block_size or BLOCK_SIZE,
        )

    def capacity(self) -> Capacity:
        """Return the capacity of the pool or volume group, and the reason if nothing new is accepted."""
        group = self._lvm.group()
        capacity = self._kind().capacity(group)
        filled = 100 * (1 - group.metadata_free / group.metadata_size) if group.metadata_size else 0.0
        return replace(
            capacity,
            metadata_filled_percent=max(filled, capacity.metadata_filled_percent or 0.0),
            closed_because=self._closed_because(group),
        )

    def _closed_because(self, group: Group) -> str | None:
        vg = self._lvm.vg
        if group.missing:
            return self._missing(group)
        if group.metadata_size and group.metadata_free < max(
            LEAST_METADATA_FREE, group.metadata_size * METADATA_RESERVE_PERCENT // 100
        ):
            return (
                f"The metadata area of volume group {vg} is full: {group.metadata_free} of {group.metadata_size} bytes"
                " are free, and these are reserved for deletions. Delete volumes or snapshots, or add a disk with a"
                f" larger area: vgextend --metadatasize 64m {vg} DEVICE, and then pvchange --metadataignore y on the"
                " others."
            )
        longest = names.longest_device_name(vg, self._pool if self._kind() is self._thin else "")
        if longest > names.MOST_DEVICE_NAME:
            return (
                f"The name of volume group {vg} is too long: devices of its volumes would have names of {longest}"
                f" characters, and the kernel allows {names.MOST_DEVICE_NAME}. Rename it with vgrename; each hyphen in"
                " it counts twice."
            )
        return None

    def _missing(self, group: Group) -> str:
        """Return the message for a group with a missing disk."""
        vg = self._lvm.vg
        disks = ", ".join(f"{uuid} (last on {last or 'an unknown device'})" for uuid, last in group.missing.items())
        return (
            f"The volume group {vg} lacks the physical volume {disks}. Complete volumes can be used, moved and"
            f" deleted. Bring the disk back; if LVM still reports it as missing: vgextend --restoremissing {vg}"
            " DEVICE. If the disk is lost, delete or move the complete volumes, then vgreduce --removemissing --force"
            f" {vg} gives up the others."
        )

    def list_volumes(self) -> Mapping[str, float]:
        """Return the volumes, also those that the service did not make."""
        lvs, kind = self._lvm.lvs(), self._kind()
        listed = {
            lv.name: lv.size / GIB
            for lv in lvs.values()
            if kind.owns(lv) and names.snapshot_of(lv) is None and not names.is_unfinished(lv)
        }
        for lv in lvs.values():
            if lv.name.startswith(names.WAS) and kind.owns(lv):
                # The volume is being reverted; it still exists.
                listed.setdefault(lv.name.removeprefix(names.WAS), lv.size / GIB)
        return listed

    def list_snapshots(self) -> Mapping[str, str]:
        """Return the snapshots and their volumes."""
        lvs, kind = self._lvm.lvs(), self._kind()
        listed = {}
        for lv in lvs.values():
            volume = names.snapshot_of(lv)
            if volume is None or not kind.owns(lv) or names.is_unfinished(lv):
                continue
            has_volume = volume in lvs or names.WAS + volume in lvs
            half_made = lv.kind == "plain" and names.resizing_to(lvs.get(volume)) is None
            if not half_made:
                listed[lv.name] = volume if has_volume else ""
        return listed

    # --- identity and owner -----------------------------------------------------------------------------------

    def recognise(self, identity: str) -> None:
        """Identify the volume group by its UUID from now on."""
        super().recognise(identity)
        self._lvm.recognise(identity or None)

    def identity(self) -> str:
        """Return the UUID of the volume group, or that of another group with its name if only that one exists."""
        try:
            self._group_read = self._lvm.group()
        except Replaced as exc:
            self._replaced_on = ", ".join(sorted(pv.device for pv in exc.pvs))
            return next(pv.vg_uuid for pv in exc.pvs)
        return self._group_read.uuid

    def not_recognised(self, found: str) -> NotRecognised:
        """Return the error; it also names the devices of the other volume group."""
        error = super().not_recognised(found)
        if not self._replaced_on:
            return error
        return NotRecognised(
            f"{error.message} (The volume group {self._lvm.vg} that was found is on {self._replaced_on}. It may be in"
            " the disk of a guest: accept it only if you created it.)"
        )

    def owner(self) -> str | None:
        """Return the installation in the tag of the volume group."""
        return min(self._owners(), default=None)  # after two concurrent writes, both installations see the same owner

    def change_owner(self, former: str | None, owner: str | None) -> None:
        """Replace the tag of the volume group."""
        owners = self._owners()
        if min(owners, default=None) == former:
            wanted = {owner} if owner else set()
            self._lvm.tag_group(
                add=[names.OWNER + each for each in wanted - owners],
                remove=[names.OWNER + each for each in owners - wanted],
            )

    def _owners(self) -> set[str]:
        tags = self._lvm.group().tags
        return {tag.removeprefix(names.OWNER) for tag in tags if tag.startswith(names.OWNER)}

    # --- volumes --------------------------------------------------------------------------------------------

    def create_volume(self, name: str, size_gib: int) -> None:
        """Make a volume that reads as zeros."""
        self._kind().create_volume(check_name(name), _size(size_gib))

    def delete_volume(self, name: str, progress: Progress = no_progress) -> None:
        """Remove a volume and the remains of unfinished operations on it."""
        self._kind().delete_volume(check_name(name), progress)

    def extend_volume(self, name: str, size_gib: int) -> None:
        """Grow a volume; the new part reads as zeros."""
        try:
            self._kind().extend_volume(check_name(name), _size(size_gib))
        except NoSpace as exc:  # LVM grows a volume completely or not at all
            raise RefusedForSpace(str(exc)) from exc

    @contextmanager
    def open_volume(self, name: str, mode: Mode) -> Iterator[BinaryIO]:
        """Open the volume's device."""
        path = self._kind().open_volume(check_name(name))
        with devices.opened(path, mode) as file:
            yield file

    def locate(self, name: str) -> VolumeLocation:
        """Return the volume's device."""
        return VolumeLocation(self._kind().open_volume(check_name(name)))

    # --- snapshots and clones -------------------------------------------------------------------------------

    def create_snapshot(self, volume: str, snapshot: str) -> None:
        """Snapshot the volume's present bytes."""
        self._kind().create_snapshot(check_name(volume), check_name(snapshot))

    def delete_snapshot(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        """Remove a snapshot."""
        self._kind().delete_snapshot(check_name(volume), check_name(snapshot), progress)

    @contextmanager
    def open_snapshot(self, volume: str, snapshot: str) -> Iterator[BinaryIO]:
        """Open the snapshot's device for reading."""
        path = self._kind().open_snapshot(check_name(volume), check_name(snapshot))
        with devices.opened(path, "rb") as file:
            yield file

    def create_volume_from_snapshot(
        self, name: str, size_gib: int, volume: str, snapshot: str, progress: Progress = no_progress
    ) -> None:
        """Make a volume with a snapshot's bytes."""
        self._kind().create_volume_from_snapshot(
            check_name(name), _size(size_gib), check_name(volume), check_name(snapshot), progress
        )

    def clone_volume(self, name: str, size_gib: int, source: str, progress: Progress = no_progress) -> None:
        """Make a volume with another volume's bytes."""
        self._kind().clone_volume(check_name(name), _size(size_gib), check_name(source), progress)

    def revert_volume(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        """Restore the bytes and size of a volume from its snapshot."""
        self._kind().revert_volume(check_name(volume), check_name(snapshot), progress)

    # --- managing existing volumes --------------------------------------------------------------------------

    def list_manageable(self) -> Sequence[Manageable]:
        """Return the volumes, including thin snapshots that the service did not make."""
        lvs, kind = self._lvm.lvs(), self._kind()
        return [
            Manageable(reference=lv.name, size_bytes=lv.size, reason="Its device is open." if lv.open else None)
            for lv in lvs.values()
            if kind.owns(lv) and names.snapshot_of(lv) is None and not names.is_unfinished(lv)
        ]

    def list_manageable_snapshots(self) -> Sequence[Manageable]:
        """Return the snapshots whose volume exists."""
        lvs, kind = self._lvm.lvs(), self._kind()
        found = []
        for lv in lvs.values():
            volume = names.snapshot_of(lv) or lv.origin
            if volume in lvs and lv.kind != "plain" and kind.owns(lv) and not names.is_unfinished(lv):
                found.append(Manageable(reference=lv.name, size_bytes=lv.size, volume=volume))
        return found

    def manage_volume(self, reference: str, name: str) -> int:
        """Rename a logical volume, then grow it to whole GiB."""
        check_name(name)
        lvs, kind = self._lvm.lvs(), self._kind()
        if name in lvs:
            if reference != name and reference in lvs:
                raise NameTaken(f"The name {name} is taken.")
            return self._grown(lvs[name], name)
        lv = lvs.get(reference)
        if lv is None or not kind.owns(lv) or names.snapshot_of(lv) is not None or names.is_unfinished(lv):
            raise VolumeMissing(f"There is no volume {reference} in {self._lvm.vg} that can be managed.")
        names.refuse_open(self._lvm, reference, lvs)
        for snapshot in names.dependants(lvs, reference):
            self._lvm.tag(snapshot, names.snapshot_tag(name))
            self._lvm.untag(snapshot, names.snapshot_tag(reference))
        self._lvm.rename(reference, name)
        try:
            return self._grown(lv, name)
        except BackendError:
            self._lvm.rename(name, reference)
            for snapshot in names.dependants(lvs, reference):
                self._lvm.tag(snapshot, names.snapshot_tag(reference))
                self._lvm.untag(snapshot, names.snapshot_tag(name))
            raise

    def _grown(self, lv: Lv, name: str) -> int:
        whole = max(1, -(-lv.size // GIB))
        if lv.size != whole * GIB:
            self._kind().extend_volume(name, whole)
        return whole

    def manage_snapshot(self, volume: str, reference: str, snapshot: str) -> None:
        """Rename a snapshot and tag it as a snapshot."""
        check_name(volume)
        check_name(snapshot)
        lvs, kind = self._lvm.lvs(), self._kind()
        origin = lvs.get(volume)
        if origin is None:
            raise VolumeMissing(f"The volume {volume} does not exist.")
        lv = lvs.get(snapshot) or lvs.get(reference)
        if lv is None or not kind.owns(lv) or lv.kind == "plain" or names.is_unfinished(lv):
            raise VolumeMissing(f"There is no snapshot {reference} in {self._lvm.vg}.")
        if (names.snapshot_of(lv) or lv.origin) != volume:
            if lv.name == snapshot:
                raise NameTaken(f"The name {snapshot} is taken.")
            raise BackendError(f"{reference} is not a snapshot of {volume}.")
        if lv.size != origin.size:
            raise BackendError(f"Snapshot {reference} has another size than {volume}.")
        if names.snapshot_of(lv) is None:
            self._lvm.tag(lv.name, names.snapshot_tag(volume))
        if lv.name != snapshot:
            self._lvm.rename(lv.name, snapshot)


def _is_listed(group: Group, vg: str, entries: Sequence[str]) -> bool:
    """Return True if an entry of a list of lvm.conf covers the whole group; ``@*`` counts as covering it."""
    return any(entry in (vg, "@*") or entry.removeprefix("@") in group.tags for entry in entries)


def _size(gib: int) -> int:
    if gib < 1:
        raise BackendError(f"A volume has at least 1 GiB, not {gib}.")
    return gib
