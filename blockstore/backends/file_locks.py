"""Locks and leases of the kernel on open files: tells whether others have a file open or lock a part of it.

Used by plugins and ``holders.py``. The only place that knows the kernel's struct flock and its leases.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
from errno import EAGAIN

_FLOCK = struct.Struct("hhqqi4x")
"""The kernel's struct flock: type, whence, start, length, pid."""


def is_sole_opener(fd: int) -> bool | None:
    """Return True if nothing else on this machine has a file open; None if the file system cannot tell.

    The kernel grants a write lease only on a file that is open once. A process that opens the file during the lease
    waits until it ends. This process then gets SIGURG, which has no effect, instead of SIGIO, which would kill it.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as exc:
        return False if exc.errno == EAGAIN else None
    return True


def is_locked(fd: int, start: int, length: int) -> bool:
    """Return True if another open file holds a lock on some of these bytes, on this machine or through NFS."""
    kind, _pid = _conflict(fd, fcntl.F_OFD_GETLK, start, length)
    return kind != fcntl.F_UNLCK


def locking_process(fd: int) -> int | None:
    """Return the process that holds a lock on any byte of a file; None if there is none."""
    kind, pid = _conflict(fd, fcntl.F_GETLK, 0, 0)
    return pid if kind != fcntl.F_UNLCK and pid > 0 else None


def lock(fd: int, kind: int, start: int, length: int) -> None:
    """Lock or unlock bytes until the open file is closed; ``kind``: F_RDLCK, F_WRLCK or F_UNLCK.

    Raise OSError with EAGAIN or EACCES if another open file holds a lock on them.
    """
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def _conflict(fd: int, command: int, start: int, length: int) -> tuple[int, int]:
    """Return type and process of the first lock that conflicts with a write lock."""
    request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    kind, _whence, _start, _length, pid = _FLOCK.unpack(fcntl.fcntl(fd, command, request))
    return kind, pid
