"""Describes images for qemu-nbd: a volume's file or device in the recorded format. Files named in headers are not
opened.

Called by ``NbdTarget`` before a server starts. It never guesses a format from bytes (CVE-2014-3641), and never writes.
"""

from __future__ import annotations

import json
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blockstore.errors import BackendError, NotSupported, Unreachable, VolumeMissing

_HEADER = struct.Struct(">4sIQ56xQ")
"""Fields of a qcow2 header: magic, version, offset of the backing file's name, incompatible features."""
_MAGIC = b"QFI\xfb"
_EXTERNAL_DATA_FILE = 1 << 2


def blockdev(path: Path, image_format: str, layers: Sequence[Path] = ()) -> str:
    """Return the description by which QEMU opens a volume, as JSON, since a path may have any character.

    ``layers`` are the images below the volume, the nearest first. They are opened by these paths; names in headers are
    ignored.

    Raises: VolumeMissing; BackendError for an image that names an unexpected other file for its bytes.
    """
    described: dict[str, Any] | None = None
    for file, on in zip((*reversed(layers), path), (None, *reversed(layers)), strict=True):
        described = _node(file, image_format, described, below=on)
    return f"json:{json.dumps(described)}"


def _node(path: Path, image_format: str, backing: dict[str, Any] | None, *, below: Path | None) -> dict[str, Any]:
    try:
        mode = path.stat().st_mode
        if image_format == "qcow2":
            _prove(path, below)
    except FileNotFoundError:
        raise VolumeMissing(f"{path} is gone.") from None
    except OSError as exc:
        raise Unreachable(f"{path} cannot be opened: {exc.strerror}.") from exc
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise BackendError(f"{path} is neither a file nor a block device, and is not exported.")
    protocol = {"driver": "host_device" if stat.S_ISBLK(mode) else "file", "filename": str(path)}
    image: dict[str, Any] = {"driver": image_format, "file": protocol}
    if image_format == "qcow2":
        image["backing"] = backing
    elif image_format != "raw":
        raise NotSupported(f"{path} has the format {image_format}; raw and qcow2 can be exported over NBD.")
    return image


def _prove(path: Path, below: Path | None) -> None:
    """Raise BackendError if a header names a file although no layer is expected, lacks one, or has an external data
    file."""
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or header[:4] != _MAGIC:
        raise BackendError(f"{path} is not a qcow2 image; it was damaged or replaced.")
    _magic, version, backing, features = _HEADER.unpack(header)
    if bool(backing) != (below is not None) or (version >= 3 and features & _EXTERNAL_DATA_FILE):
        raise BackendError(f"{path} refers to another file for its data, which images of blockstore never do.")
