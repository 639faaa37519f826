"""What logical volumes are called and how they are marked; shared by thin and thick.

The names of the contract have no dot, so a name with one is never the service's: it is something unfinished. A
snapshot carries a tag with its volume's name, because LVM forgets the origin of a thin snapshot when that is removed.
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
"""Being filled; takes its name by a rename when it is whole."""
OLD = "old."
"""Deleted; its bytes are being cleared. Only where ``old`` has no shorter name."""
WAS = "was."
"""What a volume was before a revert that is not finished."""
GROW = "grow."
"""Extents being zeroed before a volume gets them."""
COPY = "copy."
"""The snapshot from which a clone is copied."""
_MARKS = (NEW, OLD, WAS, GROW, COPY)

OWNER = "blockstore.owner="
"""What the tag of a volume group begins with that names the installation using it."""
POOL = "blockstore.pool="
"""What the tag of a volume group begins with that names a thin pool which holds, or held, volumes of ours."""
_SNAPSHOT_OF = "blockstore.snapshot-of="
_RESIZING = "blockstore.resizing-to="

Lvs = Mapping[str, Lv]


def snapshot_tag(volume: str) -> str:
    """Return the tag of a volume's snapshots."""
    return _SNAPSHOT_OF + volume


def resizing_tag(size: int) -> str:
    """Return the tag of a volume whose snapshots are detached while it is cut to this many bytes."""
    return f"{_RESIZING}{size}"


def resizing_to(volume: Lv | None) -> int | None:
    """Return the size to which a volume is being cut, if it is."""
    for tag in volume.tags if volume else ():
        if tag.startswith(_RESIZING):
            return int(tag.removeprefix(_RESIZING))
    return None


def is_unfinished(lv: Lv) -> bool:
    """Say whether it is a piece of something that was not finished."""
    return "." in lv.name


def old(name: str) -> str:
    """Return what a deleted volume is called: no longer than before, since a full metadata area takes no more."""
    begin, hyphen, end = name.partition("-")
    return f"{begin}.{end}" if hyphen and f"{begin}." not in _MARKS else OLD + name


def is_old(lv: Lv) -> bool:
    """Say whether it is deleted, and its bytes are being cleared."""
    return is_unfinished(lv) and (lv.name.startswith(OLD) or not lv.name.startswith(_MARKS))


def pieces(name: str) -> tuple[str, ...]:
    """Return what unfinished actions on a volume or snapshot may have left."""
    return (NEW + name, old(name), OLD + name, GROW + name, COPY + name)


MOST_DEVICE_NAME = 127
"""Characters that device-mapper takes."""
_LONGEST = COPY + "volume-" + str(uuid.UUID(int=0))


def longest_device_name(vg: str, pool: str) -> int:
    """Return the length of the longest name that device-mapper would get for the service's volumes, and the pool."""
    # A hyphen is doubled there. Below a thick snapshot and its volume LVM makes devices with endings of their own.
    lengths = [len(pool.replace("-", "--")) + len("_tdata")] if pool else []
    lengths.append(len(_LONGEST.replace("-", "--")) + (0 if pool else len("-cow")))
    return len(vg.replace("-", "--")) + 1 + max(lengths)


def snapshot_of(lv: Lv) -> str | None:
    """Return the volume that this is a snapshot of, also if that is gone; None if it is no snapshot."""
    for tag in lv.tags:
        if tag.startswith(_SNAPSHOT_OF):
            return tag.removeprefix(_SNAPSHOT_OF)
    return lv.origin if lv.kind == "cow" else None


def dependants(lvs: Lvs, volume: str) -> list[str]:
    """Return what would be lost or orphaned if the volume went; ``lvremove`` would not ask."""
    return [lv.name for lv in lvs.values() if snapshot_of(lv) == volume]


def find_volume(lvs: Lvs, name: str, kind: Kind, pool: str) -> Lv:
    """Return a volume. Raises VolumeMissing."""
    lv = lvs.get(name)
    if lv is None or lv.kind != kind or lv.pool != pool or snapshot_of(lv) is not None:
        raise VolumeMissing(f"The volume {name} is not there.")
    return lv


def find_snapshot(lvs: Lvs, volume: str, snapshot: str, kind: Kind) -> Lv:
    """Return a snapshot of this volume. Raises VolumeMissing."""
    lv = lvs.get(snapshot)
    if lv is None or lv.kind != kind or snapshot_of(lv) != volume:
        raise VolumeMissing(f"The snapshot {snapshot} of volume {volume} is not there.")
    return lv


def is_made(lvs: Lvs, name: str, gib: int, kind: Kind, pool: str) -> Lv | None:
    """Return the volume if it is there already. Raises NameTaken when the name is another thing."""
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
    """Raise BackendError if a copy would not fit."""
    if gib * GIB < source.size:
        raise BackendError(f"{gib} GiB are too few for a copy of {source.name}, which has {source.size / GIB:g} GiB.")


def refuse_dependants(lvs: Lvs, volume: str) -> None:
    """Raise InUse if the volume has snapshots."""
    if names := dependants(lvs, volume):
        raise InUse(f"The volume {volume} has snapshots: {', '.join(sorted(names)[:5])}.")


def refuse_open(lvm: Lvm, name: str, lvs: Lvs) -> None:
    """Raise InUse if the device stays open: udev looks into each device for a moment after it was written."""
    for _ in range(4):
        lv = lvs.get(name)
        if lv is None or not lv.open:
            return
        time.sleep(0.25)
        lvs = lvm.lvs()
    raise InUse(f"The device of {name} is open: {holders.of(lvm.path(name))}.")
