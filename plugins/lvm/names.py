"""Names and tags of logical volumes; shared by thin and thick.

Names of the contract have no dot: a name with a dot is not a volume or snapshot, but part of an unfinished operation. A
snapshot has a tag with its volume's name, because LVM forgets the origin of a thin snapshot when the origin is removed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping

from blockstore.backends import holders
from blockstore.backends.contract import GIB
from blockstore.errors import BackendError, InUse, NameTaken, VolumeMissing

from .commands import Kind, Lv, Lvm

NEW = "new."
"""Prefix of a volume that is being filled; it is renamed when it is complete."""
OLD = "old."
"""Prefix of a deleted volume whose bytes are being cleared, if ``old`` finds no shorter name."""
WAS = "was."
"""Prefix of the former volume during an unfinished revert."""
GROW = "grow."
"""Prefix of extents that are zeroed before a volume gets them."""
COPY = "copy."
"""Prefix of the snapshot from which a clone is copied."""
_MARKS = (NEW, OLD, WAS, GROW, COPY)

OWNER = "blockstore.owner="
"""Prefix of the volume group's tag with the installation that uses it."""
POOL = "blockstore.pool="
"""Prefix of the volume group's tag with a thin pool that holds, or held, volumes of the service."""
_SNAPSHOT_OF = "blockstore.snapshot-of="
_RESIZING = "blockstore.resizing-to="

Lvs = Mapping[str, Lv]


def snapshot_tag(volume: str) -> str:
    """Return the tag of a volume's snapshots."""
    return _SNAPSHOT_OF + volume


def resizing_tag(size: int) -> str:
    """Return the tag of a volume whose snapshots are detached while it is reduced to ``size`` bytes."""
    return f"{_RESIZING}{size}"


def resizing_to(volume: Lv | None) -> int | None:
    """Return the size to which a volume is being reduced; None if it is not."""
    for tag in volume.tags if volume else ():
        if tag.startswith(_RESIZING):
            return int(tag.removeprefix(_RESIZING))
    return None


def is_unfinished(lv: Lv) -> bool:
    """Return True if a logical volume belongs to an unfinished operation."""
    return "." in lv.name


def old(name: str) -> str:
    """Return the name of a deleted volume. It is not longer than ``name`` if possible: a full metadata area takes no
    more."""
    begin, hyphen, end = name.partition("-")
    return f"{begin}.{end}" if hyphen and f"{begin}." not in _MARKS else OLD + name


def is_old(lv: Lv) -> bool:
    """Return True if a logical volume is deleted and its bytes are being cleared."""
    return is_unfinished(lv) and (lv.name.startswith(OLD) or not lv.name.startswith(_MARKS))


def pieces(name: str) -> tuple[str, ...]:
    """Return the names that unfinished operations on a volume or snapshot may have left."""
    return (NEW + name, old(name), OLD + name, GROW + name, COPY + name)


MOST_DEVICE_NAME = 127
"""Longest device name that device-mapper accepts."""
_LONGEST = COPY + "volume-" + str(uuid.UUID(int=0))


def longest_device_name(vg: str, pool: str) -> int:
    """Return the length of the longest device-mapper name for the service's volumes and the pool."""
    # Device-mapper names double hyphens. LVM adds suffixes to devices below a thick snapshot and its volume.
    lengths = [len(pool.replace("-", "--")) + len("_tdata")] if pool else []
    lengths.append(len(_LONGEST.replace("-", "--")) + (0 if pool else len("-cow")))
    return len(vg.replace("-", "--")) + 1 + max(lengths)


def snapshot_of(lv: Lv) -> str | None:
    """Return the volume of a snapshot, even if the volume is gone; None if ``lv`` is no snapshot."""
    for tag in lv.tags:
        if tag.startswith(_SNAPSHOT_OF):
            return tag.removeprefix(_SNAPSHOT_OF)
    return lv.origin if lv.kind == "cow" else None


def dependants(lvs: Lvs, volume: str) -> list[str]:
    """Return the snapshots that would be lost or orphaned without the volume; ``lvremove`` would not ask."""
    return [lv.name for lv in lvs.values() if snapshot_of(lv) == volume]


def find_volume(lvs: Lvs, name: str, kind: Kind, pool: str) -> Lv:
    """Return a volume. Raise VolumeMissing if there is none."""
    lv = lvs.get(name)
    if lv is None or lv.kind != kind or lv.pool != pool or snapshot_of(lv) is not None:
        raise VolumeMissing(f"The volume {name} does not exist.")
    return lv


def find_snapshot(lvs: Lvs, volume: str, snapshot: str, kind: Kind) -> Lv:
    """Return a snapshot of a volume. Raise VolumeMissing if there is none."""
    lv = lvs.get(snapshot)
    if lv is None or lv.kind != kind or snapshot_of(lv) != volume:
        raise VolumeMissing(f"The snapshot {snapshot} of volume {volume} does not exist.")
    return lv


def is_made(lvs: Lvs, name: str, gib: int, kind: Kind, pool: str) -> Lv | None:
    """Return the volume if it exists; None if not. Raise NameTaken if something else has the name."""
    lv = lvs.get(name)
    if lv is None:
        return None
    if snapshot_of(lv) is not None:
        raise NameTaken(f"The name {name} is taken by a snapshot.")
    if lv.kind != kind or lv.pool != pool:
        raise NameTaken(f"The name {name} is taken by a logical volume of another kind.")
    if lv.size != gib * GIB:
        raise NameTaken(f"The volume {name} exists and has {lv.size / GIB:g} GiB, not {gib}.")
    return lv


def refuse_smaller(gib: int, source: Lv) -> None:
    """Raise BackendError if a copy of the source would not fit."""
    if gib * GIB < source.size:
        raise BackendError(
            f"{gib} GiB are not enough for a copy of {source.name}, which has {source.size / GIB:g} GiB."
        )


def refuse_dependants(lvs: Lvs, volume: str) -> None:
    """Raise InUse if the volume has snapshots."""
    if names := dependants(lvs, volume):
        raise InUse(f"The volume {volume} has snapshots: {', '.join(sorted(names)[:5])}.")


def refuse_open(lvm: Lvm, name: str, lvs: Lvs) -> None:
    """Raise InUse if a device stays open. udev opens each device for a moment after it was written."""
    for _ in range(4):
        lv = lvs.get(name)
        if lv is None or not lv.open:
            return
        time.sleep(0.25)
        lvs = lvm.lvs()
    raise InUse(f"The device of {name} is open: {holders.of(lvm.path(name))}.")
