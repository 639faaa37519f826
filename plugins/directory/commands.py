"""Calls of qemu-img, the only tool for qcow2: its argv, its errors and the headers of its files.

Every call names the format, so that qemu never guesses it from bytes that a guest wrote (CVE-2014-3641). Files are
passed as open descriptors, so that no name in the directory is looked up twice.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from blockstore.backends.process import follow, have, missing_tool, run
from blockstore.errors import BackendError, NoSpace, ToolFailed, Unreachable

PACKAGE = "qemu-utils"

HEADER_LENGTH = 4096
"""The number of bytes that ``read_header`` needs."""
_LEAST = 80
_MAGIC = b"QFI\xfb"
_EXTERNAL_DATA_FILE = 1 << 2
_BACKING_FORMAT = 0xE2792ACA
_COPY_TIMEOUT_S = 24 * 3600


def need_qemu_img() -> None:
    """Raise Unreachable, naming the package, unless qemu-img is installed."""
    if not have("qemu-img"):
        raise Unreachable(missing_tool("qemu-img", PACKAGE))


def create_qcow2(fd: int, size_gib: int) -> None:
    """Make an empty qcow2 image in a new file."""
    _qemu_img("create", "-q", "-f", "qcow2", path_of(fd), f"{size_gib}G")


def create_overlay(fd: int, backing: str, size: int) -> None:
    """Make an image of ``size`` bytes in a new file; unwritten parts read from the image ``backing``."""
    _qemu_img("create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing, path_of(fd), str(size))


def resize_qcow2(path: str, size_gib: int) -> None:
    """Grow a qcow2 image."""
    _qemu_img("resize", "-q", "-f", "qcow2", path, f"{size_gib}G")


def qcow2_to_raw(path: str, target: int) -> None:
    """Unpack a qcow2 image into a new file."""
    _qemu_img("convert", "-q", "-f", "qcow2", "-O", "raw", path, path_of(target))


def raw_to_qcow2(source: int, target: int) -> None:
    """Pack bytes into a new qcow2 image."""
    _qemu_img("convert", "-q", "-f", "raw", "-O", "qcow2", path_of(source), path_of(target))


def rebase(path: str, backing: str, tell: Callable[[int], None]) -> None:
    """Change the backing file of an image, and copy the missing bytes so that it reads the same. Empty: no backing
    file."""
    named = ("-F", "qcow2", "-b", backing) if backing else ("-b", "")
    _qemu_img("rebase", "-p", "-f", "qcow2", *named, path, tell=tell)


def prove_equal(path: str, other: str) -> None:
    """Raise BackendError unless two images have equal bytes."""
    _qemu_img("compare", "-q", "-f", "qcow2", "-F", "qcow2", path, other)


class Header(NamedTuple):
    """Fields of the header of a qcow2 image."""

    size: int
    """Size in bytes, as seen by a reader."""
    backing: str | None
    """Name of the backing file; None if there is none."""
    backing_format: str | None
    map_offset: int
    map_length: int
    """Length in bytes of the table at ``map_offset``, which is all zeros until the image is written."""


def read_header(start: bytes, label: str) -> Header:
    """Parse a header from the first bytes of a file. Raise BackendError if it is damaged or has an external data
    file."""
    if len(start) < _LEAST or start[:4] != _MAGIC:
        raise BackendError(f"{label} is not a qcow2 image; it was damaged or replaced.")
    version, backing_offset, backing_length = struct.unpack_from(">IQI", start, 4)
    size, _crypt, map_entries, map_offset = struct.unpack_from(">QIIQ", start, 24)
    (features,) = struct.unpack_from(">Q", start, 72)
    if version >= 3 and features & _EXTERNAL_DATA_FILE:
        raise names_another(label)
    backing = backing_format = None
    if backing_offset:
        name = start[backing_offset : backing_offset + backing_length]
        if not name.isascii() or len(name) != backing_length:
            raise names_another(label)
        backing, backing_format = name.decode(), _backing_format(start, version)
    return Header(size, backing, backing_format, map_offset, map_entries * 8)


def _backing_format(start: bytes, version: int) -> str | None:
    at = struct.unpack_from(">I", start, 100)[0] if version >= 3 and len(start) >= 104 else 72
    while at + 8 <= len(start):
        kind, length = struct.unpack_from(">II", start, at)
        if not kind:
            break
        if kind == _BACKING_FORMAT:
            return start[at + 8 : at + 8 + length].decode("ascii", "replace")
        at += 8 + (length + 7) // 8 * 8
    return None


def names_another(label: str) -> BackendError:
    """Return the error for a header that names another file."""
    return BackendError(f"{label} refers to another file for its data, which images of blockstore never do.")


def path_of(fd: int) -> str:
    """Return a path by which a child process can open exactly this file; it has no characters that are special to
    qemu."""
    return f"/proc/{os.getpid()}/fd/{fd}"


def _qemu_img(*words: str, tell: Callable[[int], None] | None = None) -> None:
    argv: Sequence[str] = ("qemu-img", *words)
    timeout_s = _COPY_TIMEOUT_S if words[0] in ("convert", "rebase", "compare") else 60
    try:
        if tell:
            follow(argv, tell, timeout_s=timeout_s, package=PACKAGE)
        else:
            run(argv, timeout_s=timeout_s, package=PACKAGE)
    except ToolFailed as exc:
        if "No space left on device" in exc.stderr or "Disk quota exceeded" in exc.stderr:
            raise NoSpace(str(exc)) from exc
        raise
