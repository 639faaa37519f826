"""The logical block size of disks, which is the sector size of volumes on them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from blockstore.backends.contract import BLOCK_SIZE

_SYSFS = Path("/sys/dev/block")


def of_disks(paths: Iterable[str]) -> int | None:
    """Return the largest logical block size of the disks, as LVM uses it for volumes; None if no disk exists."""
    found = [size for path in paths if (size := _of_disk(path)) is not None]
    return max(found, default=None)


def _of_disk(path: str) -> int | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - what LVM prints is text, such as [unknown]
        if not stat.S_ISBLK(status.st_mode):
            return None
        device = _SYSFS / f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        for holder in (device, device / ".."):  # a partition has the block size of its disk
            queue = holder / "queue" / "logical_block_size"
            if queue.exists():
                return int(queue.read_text())
    except (OSError, ValueError):
        return None
    return BLOCK_SIZE
