"""Opens, zeroes and copies block devices. Never starts a process.

The kernel zeroes: by commands of the device if it has them (write-zeroes, unmap), otherwise by writing zeros. A discard
alone is never trusted to produce zeros.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from blockstore.backends import holders
from blockstore.backends.contract import Mode, Progress, no_progress
from blockstore.errors import BackendError, InUse, NoSpace, Unreachable

COPY_BYTES = 4 * 2**20
CLEAR_BYTES = 256 * 2**20
"""Large enough to be fast, small enough to report progress on a slow disk."""

_ZEROS = bytes(COPY_BYTES)
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10
_BLKDISCARD = 0x1277
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def opened(path: Path, mode: Mode) -> Iterator[BinaryIO]:
    """Open a device as a raw file; at the end all writes are flushed to the device."""
    with _explained(path):
        file = path.open(mode, buffering=0)
    with file:
        with suppress(OSError):
            # Others, such as an iSCSI target, may have written past our page cache.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield file
        if mode != "rb":
            with _explained(path):
                os.fsync(file.fileno())


class Exclusive:
    """A device opened exclusively: not mounted, not exported, no part of another device."""

    def __init__(self, fd: int):
        self.fd = fd

    def clear(self, start: int, end: int, progress: Progress = no_progress) -> None:
        """Zero a region, and flush it to the device."""
        for at in range(start, end, CLEAR_BYTES):
            progress((at - start) * 100 // (end - start))
            _zero(self.fd, at, min(CLEAR_BYTES, end - at))
        os.fsync(self.fd)
        progress(100)


@contextmanager
def exclusive(path: Path) -> Iterator[Exclusive]:
    """Open a device for writing past the page cache. Raise InUse if something holds the device."""
    with _explained(path), _direct(path, os.O_RDWR | os.O_EXCL) as fd:
        yield Exclusive(fd)


def clear(path: Path, start: int, end: int, progress: Progress = no_progress) -> None:
    """Zero a region of a device. Raise InUse if something holds the device."""
    with exclusive(path) as device:
        device.clear(start, end, progress)


def discard(path: Path, size: int) -> None:
    """Tell the underlying storage that these bytes are unused; ignore errors."""
    with suppress(OSError, BackendError), exclusive(path) as device:
        fcntl.ioctl(device.fd, _BLKDISCARD, struct.pack("QQ", 0, size))


def copy(source: Path, target: Path, length: int, progress: Progress = no_progress, *, compare: bool = False) -> None:
    """Copy the start of a device to another device.

    Zeros are not skipped but zeroed on the target, which may have other bytes. With ``compare`` only differing parts
    are written, because each write to the origin of a snapshot causes a copy.
    """
    with _explained(source), _direct(source, os.O_RDONLY) as src, exclusive(target) as device:
        dst = device.fd
        new, old = mmap.mmap(-1, COPY_BYTES), mmap.mmap(-1, COPY_BYTES)
        for at in range(0, length, COPY_BYTES):
            if at % (16 * COPY_BYTES) == 0:
                progress(at * 100 // length)
            size = min(COPY_BYTES, length - at)
            _read(src, new, size, at)
            data = new[:size]
            if compare:
                _read(dst, old, size, at)
                if old[:size] == data:
                    continue
            if data == _ZEROS[:size]:
                _zero(dst, at, size)
            else:
                _write(dst, new, size, at)
        os.fsync(dst)
    progress(100)


def _zero(fd: int, at: int, size: int) -> None:
    """Zero a region by the device's own commands, which may free the space; otherwise by zeros that the kernel
    writes."""
    # Both modes guarantee zeros afterwards; the first fails if the device cannot guarantee them.
    for mode in (_PUNCH_HOLE | _KEEP_SIZE, _ZERO_RANGE | _KEEP_SIZE):
        if _libc.fallocate(fd, mode, ctypes.c_longlong(at), ctypes.c_longlong(size)) == 0:
            return
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))


def _read(fd: int, buffer: mmap.mmap, size: int, at: int) -> None:
    with memoryview(buffer) as view:
        got = 0
        while got < size:
            part = os.preadv(fd, [view[got:size]], at + got)
            if part == 0:
                raise OSError(errno.EIO, f"the device ends at byte {at + got}")
            got += part


def _write(fd: int, buffer: mmap.mmap, size: int, at: int) -> None:
    with memoryview(buffer) as view:
        done = 0
        while done < size:
            done += os.pwrite(fd, view[done:size], at + done)


@contextmanager
def _direct(path: Path, flags: int) -> Iterator[int]:
    """Open a device past the page cache: copying a whole disk would evict everything else from it."""
    fd = os.open(path, flags | os.O_DIRECT | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


_NO_NODE = (
    "is missing, although its logical volume exists: LVM did not activate the volume (see volume_list in lvm.conf),"
    " or udev created no node for it"
)
_ERRORS = {
    errno.ENOENT: (Unreachable, _NO_NODE),
    errno.ENXIO: (Unreachable, _NO_NODE),
    errno.EBUSY: (InUse, "is held by something else"),
    errno.ENOSPC: (NoSpace, "has no space left"),
    errno.EACCES: (Unreachable, "may not be opened by this user, who must be root or in the group disk"),
    errno.EPERM: (Unreachable, "may not be opened by this user, who must be root or in the group disk"),
}


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        error, message = _ERRORS.get(exc.errno or 0, (BackendError, f"failed: {exc.strerror}"))
        if error is InUse:
            message = f"{message}: {holders.of(path)}"
        raise error(f"The device {path} {message}.") from exc
