"""Finds the devices of the volume group: by UUID, since a guest may make a volume group of the same name on its disk.

It uses the report of ``pvs`` and the kernel's data on devices. It runs no tool, and reads nothing from a disk.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blockstore.errors import Unreachable

_BLOCK_DEVICES = Path("/sys/dev/block")


@dataclass(frozen=True)
class Pv:
    """One device with a physical volume, or a physical volume whose device is missing."""

    device: str
    uuid: str
    vg: str
    vg_uuid: str
    missing: bool = False
    is_copy: bool = False
    """True if LVM found the same physical volume on another device and uses that device."""


@dataclass(frozen=True)
class Members:
    """The devices of a volume group, and the kernel's identity of each when it was found."""

    vg_uuid: str
    devices: Mapping[str, str]
    """By device: its identity as returned by ``standing``, which changes if another disk gets the device's name."""
    missing: Sequence[str]
    """UUIDs of physical volumes without a device."""

    def are_unchanged(self) -> bool:
        """Return True if each device name still belongs to the same disk."""
        return all(standing(device) == before for device, before in self.devices.items())


class Replaced(Unreachable):
    """The recorded group is missing, and another group has its name."""

    def __init__(self, message: str, pvs: Collection[Pv]):
        super().__init__(message)
        self.pvs = pvs


def choose(vg: str, recorded: str | None, pvs: Collection[Pv], *, no_group: str) -> tuple[Members, Sequence[Pv]]:
    """Return the group's devices, and the devices of other groups with its name.

    Raise Unreachable if the group is missing, if it cannot be told from another group, or if a device may be a copy.
    """
    named: dict[str, list[Pv]] = {}
    for pv in pvs:
        if pv.vg == vg or (recorded and pv.vg_uuid == recorded):
            named.setdefault(pv.vg_uuid, []).append(pv)
    if recorded is None and len(named) > 1:
        raise Unreachable(
            f"There are {len(named)} volume groups of the name {vg}, and no record shows which of them to use:"
            f" {_listed(named)}. One of them may be in the disk of a guest. Rename it: vgrename UUID NEW-NAME, or hide"
            " its device from LVM with the devices file or global_filter."
        )
    uuid = recorded or next(iter(named), "")
    ours = named.pop(uuid, [])
    if not ours:
        others = f" Other volume groups have that name, and are not used: {_listed(named)}." if named else ""
        which = f" The one that was used has the UUID {recorded}." if recorded else ""
        if len(named) == 1:
            raise Replaced(f"{no_group}{which}{others}", *named.values())
        raise Unreachable(f"{no_group}{which}{others}")
    if ours[0].vg != vg:
        raise Unreachable(
            f"The volume group {uuid}, which was named {vg}, is now named {ours[0].vg}. Rename it: vgrename {uuid}"
            f" {vg}, or correct volume_group."
        )
    _refuse_copies(uuid, ours)
    used = [pv for pv in ours if not pv.missing and not pv.is_copy]
    missing = sorted(pv.uuid for pv in ours if pv.missing)
    strangers = [pv for group in named.values() for pv in group]
    return Members(uuid, {pv.device: standing(pv.device) for pv in used}, missing), strangers


def _refuse_copies(uuid: str, ours: Collection[Pv]) -> None:
    """Raise Unreachable if one physical volume is on two devices and the kernel does not show which of them is in
    use."""
    for copy in ours:
        if copy.is_copy:
            chosen = next((pv for pv in ours if pv.uuid == copy.uuid and not pv.is_copy), copy)
            if not _carries(chosen.device, uuid) or _carries(copy.device, uuid):
                raise Unreachable(
                    f"The physical volume {copy.uuid} of volume group {copy.vg} is on two devices, {chosen.device} and"
                    f" {copy.device}; one is a copy, or another path to the same disk, and nothing shows which. Remove"
                    " one, or hide it from LVM with the devices file or global_filter."
                )


def standing(device: str) -> str:
    """Return the kernel's identity of a device; empty if there is no such device.

    ``diskseq`` increases with every disk that appears, so that a reused name or number is detected.
    """
    try:
        folder = _folder(device)
    except OSError:
        return ""
    for place in (folder, folder / ".."):  # a partition has the diskseq of its disk
        try:
            return f"{folder.name} {(place / 'diskseq').read_text().strip()}"
        except OSError:
            continue
    return folder.name  # Linux before 5.15


def _carries(device: str, vg_uuid: str) -> bool:
    """Return True if an active logical volume of the group lies on the device."""
    begin = f"LVM-{vg_uuid.replace('-', '')}"
    try:
        holders = [*(_folder(device) / "holders").iterdir()]
        return any((holder / "dm/uuid").read_text().startswith(begin) for holder in holders)
    except OSError:
        return False


def _folder(device: str) -> Path:
    number = Path(device).stat().st_rdev
    return _BLOCK_DEVICES / f"{os.major(number)}:{os.minor(number)}"


def _listed(groups: Mapping[str, Collection[Pv]]) -> str:
    return "; ".join(f"{uuid} on {', '.join(pv.device for pv in pvs)}" for uuid, pvs in sorted(groups.items()))
