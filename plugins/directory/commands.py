"""qemu-img, the one tool for qcow2: its argv, its errors, and the first bytes of its files.

Every call names the format, so that nothing is ever guessed from bytes a guest wrote (CVE-2014-3641). Files are given
as open descriptors, so that no name in the directory is looked up twice.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from blockstore.backends.process import have, missing_tool, run
from blockstore.errors import BackendError, NoSpace, ToolFailed, Unreachable

PACKAGE = "qemu-utils"

HEADER_LENGTH = 80
_MAGIC = b"QFI\xfb"
_EXTERNAL_DATA_FILE = 1 << 2
_COPY_TIMEOUT_S = 24 * 3600


def need_qemu_img() -> None:
    """Raise Unreachable, naming the package, unless qemu-img is installed."""
    if not have("qemu-img"):
        raise Unreachable(missing_tool("qemu-img", PACKAGE))


def create_qcow2(fd: int, size_gib: int) -> None:
    """Make an empty qcow2 image in a new file."""
    _qemu_img("create", "-q", "-f", "qcow2", _path(fd), f"{size_gib}G")


def resize_qcow2(fd: int, size_gib: int) -> None:
    """Grow a qcow2 image."""
    _qemu_img("resize", "-q", "-f", "qcow2", _path(fd), f"{size_gib}G")


def qcow2_to_raw(source: int, target: int) -> None:
    """Unpack a qcow2 image into a new file."""
    _qemu_img("convert", "-q", "-f", "qcow2", "-O", "raw", _path(source), _path(target))


def raw_to_qcow2(source: int, target: int) -> None:
    """Pack bytes into a new qcow2 image."""
    _qemu_img("convert", "-q", "-f", "raw", "-O", "qcow2", _path(source), _path(target))


def qcow2_size(header: bytes, shown: str) -> int:
    """Return the virtual size in bytes; refuse a header that sends its reader to another file."""
    if len(header) < HEADER_LENGTH or header[:4] != _MAGIC:
        raise BackendError(f"{shown} is not a qcow2 image; it was damaged or replaced.")
    version, backing_offset = struct.unpack_from(">IQ", header, 4)
    (size,) = struct.unpack_from(">Q", header, 24)
    (features,) = struct.unpack_from(">Q", header, 72)
    if backing_offset or (version >= 3 and features & _EXTERNAL_DATA_FILE):
        raise BackendError(f"{shown} names another file as the source of its bytes, which blockstore never does.")
    return int(size)


def _path(fd: int) -> str:
    """Return a path under which a child can open exactly this file; it holds nothing qemu gives a meaning to."""
    return f"/proc/{os.getpid()}/fd/{fd}"


def _qemu_img(*words: str) -> None:
    argv: Sequence[str] = ("qemu-img", *words)
    try:
        run(argv, timeout_s=_COPY_TIMEOUT_S if words[0] == "convert" else 60, package=PACKAGE)
    except ToolFailed as exc:
        if "No space left on device" in exc.stderr or "Disk quota exceeded" in exc.stderr:
            raise NoSpace(str(exc)) from exc
        raise
