"""LIO's storage objects: a volume's device or file, opened by the kernel, once for all targets that lead to it.

Used by ``__init__.py``. Writes configfs itself, where rtslib

* looks for a storage object's index by reading all there are; here it follows from the name;
* removes with a storage object the LUNs of whoever uses it, and walks all targets for that; the kernel refuses to
  remove one that is used, and that refusal is the whole bookkeeping of who shares it;
* sets the directory of the whole node's target database in passing.

What it makes has the form that rtslib gives it, so that targetcli shows it as its own. Never saves anything.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from blockstore.errors import BackendError, InUse, VolumeMissing

CORE = Path("/sys/kernel/config/target/core")
BLOCK, FILE = "iblock", "fileio"

_PERSISTENT_RESERVATIONS = Path("/sys/kernel/config/target/dbroot")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAX_PATH = 511  # SE_UDEV_PATH_LEN, with its end
_POLL_S = 0.02
_OURS = 1 << 31
"""The lowest index of ours."""


class Backstore:
    """The storage object of one volume, made or not."""

    def __init__(self, owner: str, volume: str):
        self.volume = volume
        self.name = f"{beginning(owner)}{volume}"
        # Above all that rtslib counts up to; and should two names meet, one index simply holds both.
        self.index = zlib.crc32(self.name.encode()) | _OURS

    @property
    def serial(self) -> str:
        """The volume's identity towards initiators, the same on every node: the id in its name, or made from it."""
        found = _UUID.search(self.volume)
        return found[0] if found else str(uuid.uuid5(uuid.NAMESPACE_OID, self.volume))

    @property
    def places(self) -> tuple[Path, ...]:
        """Where it is, if it is, and was made by this plugin. What another tool restores gets another index."""
        return tuple(self._at(kind) for kind in (BLOCK, FILE))

    def _at(self, kind: str) -> Path:
        return CORE / f"{kind}_{self.index}" / self.name

    @property
    def kind(self) -> str:
        """Block or file; empty when there is no storage object."""
        return next((kind for kind in (BLOCK, FILE) if self._at(kind).is_dir()), "")

    @property
    def path(self) -> str:
        """The device or file that the kernel has open; empty when there is none."""
        kind = self.kind
        return _read(self._at(kind) / "udev_path") if kind else ""

    @property
    def discard(self) -> bool:
        """Say whether initiators may discard."""
        return _read(self._at(self.kind) / "attrib/emulate_tpu") == "1"

    # --- making ---------------------------------------------------------------------------------------------

    def make(self, path: Path) -> None:
        """Open the volume, or complete what was half made. Raises VolumeMissing, InUse."""
        kind = kind_of(path)
        there = self.kind
        if there and (there != kind or self.path != str(path) or _read(self._at(there) / "enable") != "1"):
            self.remove()
            if there := self.kind:
                raise InUse(f"{self.volume} is exported from {self.path}, and cannot be from {path} at the same time.")
        if not there:
            self._open(kind, path)
        self._set_attributes(kind)

    def _open(self, kind: str, path: Path) -> None:
        at = self._at(kind)
        at.parent.mkdir(exist_ok=True)
        at.mkdir()
        if kind == BLOCK:
            _write(at / "control", f"udev_path={path}")
        else:
            # As a disk with a write cache that heeds flush and FUA: without it each write would wait for the disk.
            _write(at / "control", f"fd_dev_name={path},fd_dev_size={path.stat().st_size}")
            _write(at / "control", "fd_buffered_io=1")
        _write(at / "udev_path", str(path))
        _write(at / "wwn/vpd_unit_serial", self.serial)  # first, so that none is ever enabled without
        try:
            _write(at / "enable", "1")
        except OSError as exc:
            self.remove()
            if exc.errno == errno.EBUSY:
                raise InUse(f"Something on this node holds {path} open: it is mounted, or in another target.") from exc
            raise

    def _set_attributes(self, kind: str) -> None:
        attributes = self._at(kind) / "attrib"
        # Copies between LUNs, found by their serial on the whole node, are nothing that an export of one volume needs.
        _set(attributes / "emulate_3pc", "0")
        for name in ("emulate_tpu", "emulate_tpws"):
            with suppress(OSError):  # the kernel refuses where the device cannot discard
                _set(attributes / name, "1")

    def grow(self) -> None:
        """Take notice of a new size. The kernel asks a block device itself, but was told the size of a file."""
        if self.kind == FILE:
            size = Path(self.path).stat().st_size
            _write(self._at(FILE) / "control", f"fd_dev_size={size}")

    # --- removing -------------------------------------------------------------------------------------------

    def remove(self) -> bool:
        """Close the volume unless another target leads to it; say whether no storage object is left."""
        if not all(remove_at(place) for place in self.places):
            return False
        # What an initiator wanted remembered over a power failure; nobody can claim it any more.
        with suppress(OSError):
            Path(_read(_PERSISTENT_RESERVATIONS), "pr", f"aptpl_{self.serial}").unlink()
        return True


def beginning(owner: str) -> str:
    """Return how the names of an owner's storage objects begin."""
    return f"blockstore.{owner}."


def storage_objects(owner: str, *, strays: bool = False) -> Iterator[Path]:
    """Yield this owner's storage objects; ``strays``: only those that another tool made, and gave another index."""
    with suppress(FileNotFoundError):
        for adapter in CORE.iterdir():
            kind, _, index = adapter.name.rpartition("_")
            if kind in (BLOCK, FILE) and not (strays and int(index) >= _OURS):
                with suppress(FileNotFoundError):
                    yield from (place for place in adapter.iterdir() if place.name.startswith(beginning(owner)))


def opened_at(place: Path) -> str:
    """Return the device or file that a storage object has open; empty when it is gone."""
    try:
        return _read(place / "udev_path")
    except FileNotFoundError:
        return ""


def remove_at(place: Path) -> bool:
    """Remove a storage object, whoever made it, and close its volume; False when a target leads to it."""
    try:
        place.rmdir()
    except FileNotFoundError:
        pass
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            return False
        raise
    with suppress(OSError):
        place.parent.rmdir()
    return True


def kind_of(path: Path) -> str:
    """Say how the kernel can open a volume. Raises VolumeMissing."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise VolumeMissing(f"There is no {path} that could be exported.") from None
    if set(str(path)) & set(",\n") or len(str(path)) > _MAX_PATH:
        raise BackendError(f"LIO cannot export {path}: commas, newlines and more than {_MAX_PATH} bytes confuse it.")
    if stat.S_ISBLK(mode):
        return BLOCK
    if stat.S_ISREG(mode):
        return FILE
    raise BackendError(f"{path} is neither a block device nor a plain file, and cannot be exported.")


def closed(path: str, deadline: float) -> bool:
    """Prove that nobody holds a block device, and so not the kernel's target; a file it closes while we wait."""
    while True:
        try:
            if stat.S_ISBLK(Path(path).stat().st_mode):
                os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
            return True
        except OSError as exc:
            if exc.errno != errno.EBUSY:  # the device is gone, and so is who held it
                return True
            if time.monotonic() >= deadline:
                return False
        time.sleep(_POLL_S)


def _read(path: Path) -> str:
    return path.read_text().strip()


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _set(path: Path, value: str) -> None:
    if path.exists() and _read(path) != value:
        _write(path, value)
