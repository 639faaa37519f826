"""LIO's storage objects: a volume's device or file, opened by the kernel once for all targets of the volume.

Used by ``__init__.py``. This module writes configfs itself, because rtslib

* finds a storage object's index by reading all of them; here the index follows from the name;
* removes the LUNs of all users together with a storage object, and reads all targets for that. Here the kernel's
refusal to remove a used storage object is the only record of its users;
* also sets the directory of the target database of the whole node.

The objects have the same form as those of rtslib, so that targetcli can show them. Nothing is ever saved to a file.
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
_MAX_PATH = 511  # SE_UDEV_PATH_LEN, including the terminating zero
_POLL_S = 0.02
_OURS = 1 << 31
"""The lowest index of this plugin's storage objects."""


class Backstore:
    """The storage object of one volume, which need not exist."""

    def __init__(self, owner: str, volume: str):
        self.volume = volume
        self.name = f"{beginning(owner)}{volume}"
        # Higher than the indexes that rtslib assigns. If two names have the same index, it holds both objects.
        self.index = zlib.crc32(self.name.encode()) | _OURS

    @property
    def serial(self) -> str:
        """The volume's identity for initiators, the same on every node: the uuid in its name, or one derived from the
        name."""
        found = _UUID.search(self.volume)
        return found[0] if found else str(uuid.uuid5(uuid.NAMESPACE_OID, self.volume))

    @property
    def places(self) -> tuple[Path, ...]:
        """The paths at which this plugin makes it. An object restored by another tool has another index."""
        return tuple(self._at(kind) for kind in (BLOCK, FILE))

    def _at(self, kind: str) -> Path:
        return CORE / f"{kind}_{self.index}" / self.name

    @property
    def kind(self) -> str:
        """Block or file; empty if there is no storage object."""
        return next((kind for kind in (BLOCK, FILE) if self._at(kind).is_dir()), "")

    @property
    def path(self) -> str:
        """The device or file that the kernel has open; empty if there is none."""
        kind = self.kind
        return _read(self._at(kind) / "udev_path") if kind else ""

    @property
    def discard(self) -> bool:
        """True if initiators may discard."""
        return _read(self._at(self.kind) / "attrib/emulate_tpu") == "1"

    # --- making ---------------------------------------------------------------------------------------------

    def make(self, path: Path) -> None:
        """Open the volume, or complete an incomplete storage object. Raises: VolumeMissing; InUse."""
        kind = kind_of(path)
        present_kind = self.kind
        if present_kind and (
            present_kind != kind or self.path != str(path) or _read(self._at(present_kind) / "enable") != "1"
        ):
            self.remove()
            if present_kind := self.kind:
                raise InUse(
                    f"{self.volume} is exported from {self.path}, and cannot be exported from {path} at the same time."
                )
        if not present_kind:
            self._open(kind, path)
        self._set_attributes(kind)

    def _open(self, kind: str, path: Path) -> None:
        at = self._at(kind)
        at.parent.mkdir(exist_ok=True)
        at.mkdir()
        if kind == BLOCK:
            _write(at / "control", f"udev_path={path}")
        else:
            # Act as a disk with a write cache that honours flush and FUA; otherwise each write would wait for the disk.
            _write(at / "control", f"fd_dev_name={path},fd_dev_size={path.stat().st_size}")
            _write(at / "control", "fd_buffered_io=1")
        _write(at / "udev_path", str(path))
        _write(at / "wwn/vpd_unit_serial", self.serial)  # before enabling, so that no enabled object lacks it
        try:
            _write(at / "enable", "1")
        except OSError as exc:
            self.remove()
            if exc.errno == errno.EBUSY:
                raise InUse(f"Something on this node holds {path} open: it is mounted, or in another target.") from exc
            raise

    def _set_attributes(self, kind: str) -> None:
        attributes = self._at(kind) / "attrib"
        # An export of one volume needs no copies between LUNs, which the kernel finds by serial on the whole node.
        _set(attributes / "emulate_3pc", "0")
        for name in ("emulate_tpu", "emulate_tpws"):
            with suppress(OSError):  # the kernel refuses if the device cannot discard
                _set(attributes / name, "1")

    def grow(self) -> None:
        """Update the size of a file. The kernel reads the size of a block device itself."""
        if self.kind == FILE:
            size = Path(self.path).stat().st_size
            _write(self._at(FILE) / "control", f"fd_dev_size={size}")

    # --- removing -------------------------------------------------------------------------------------------

    def remove(self) -> bool:
        """Close the volume unless another target uses it. Return True if no storage object is left."""
        if not all(remove_at(place) for place in self.places):
            return False
        # Persistent reservations that an initiator stored for power failures; no initiator can use them any more.
        with suppress(OSError):
            Path(_read(_PERSISTENT_RESERVATIONS), "pr", f"aptpl_{self.serial}").unlink()
        return True


def beginning(owner: str) -> str:
    """Return the prefix of the names of an owner's storage objects."""
    return f"blockstore.{owner}."


def storage_objects(owner: str, *, strays: bool = False) -> Iterator[Path]:
    """Yield this owner's storage objects; ``strays``: only those that another tool made with another index."""
    with suppress(FileNotFoundError):
        for adapter in CORE.iterdir():
            kind, _, index = adapter.name.rpartition("_")
            if kind in (BLOCK, FILE) and not (strays and int(index) >= _OURS):
                with suppress(FileNotFoundError):
                    yield from (place for place in adapter.iterdir() if place.name.startswith(beginning(owner)))


def opened_at(place: Path) -> str:
    """Return the device or file that a storage object has open; empty if the object is gone."""
    try:
        return _read(place / "udev_path")
    except FileNotFoundError:
        return ""


def remove_at(place: Path) -> bool:
    """Remove a storage object of any tool, and close its volume; return False if a target uses it."""
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
    """Return the kind of storage object for a volume. Raise VolumeMissing if the path is missing."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise VolumeMissing(f"{path} cannot be exported, because it does not exist.") from None
    if set(str(path)) & set(",\n") or len(str(path)) > _MAX_PATH:
        raise BackendError(f"LIO cannot export {path}: commas, newlines and more than {_MAX_PATH} bytes confuse it.")
    if stat.S_ISBLK(mode):
        return BLOCK
    if stat.S_ISREG(mode):
        return FILE
    raise BackendError(f"{path} is neither a block device nor a plain file, and cannot be exported.")


def closed(path: str, deadline: float) -> bool:
    """Return True once nothing holds a block device, so that the kernel's target has closed it; False on timeout.

    Files need no check: the kernel closes them before the removal returns.
    """
    while True:
        try:
            if stat.S_ISBLK(Path(path).stat().st_mode):
                os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
            return True
        except OSError as exc:
            if exc.errno != errno.EBUSY:  # the device is gone, so nothing holds it
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
