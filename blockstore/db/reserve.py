"""Reserved space on the disk of a SQLite database for writes that free space: a full disk can always be emptied.

A file beside the database holds the space. It is deleted when the disk is full, and made again when there is space.
Meanwhile requests that create something are refused; deletions, logins and accepted operations may write.
The write-ahead log has the length for some deletions from the start, because other programs may take the space that
the file frees.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from blockstore import private_files
from blockstore.db.outages import FULL, LATER_S
from blockstore.errors import DatabaseAway

log = logging.getLogger(__name__)

MIB = 2**20
SIZE = 8 * MIB
PART = 16
"""At most 1/PART of a small disk is reserved."""
LEAST_PART = 8
"""Writes that free nothing need at least 1/LEAST_PART of the reserve's size as free space."""
LOG_SIZE = MIB
AGAIN_S = 1.0
"""Shortest time between two attempts to make the file again."""

_MAY_USE: ContextVar[bool] = ContextVar("may use the reserve", default=True)


@contextmanager
def usable(*, by: bool = True) -> Iterator[None]:
    """Allow or forbid writes inside the block to use the reserve."""
    token = _MAY_USE.set(by)
    try:
        yield
    finally:
        _MAY_USE.reset(token)


class Reserve:
    """The reserve of one database."""

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(f"{database.name}-reserve")
        self._log = database.with_name(f"{database.name}-wal")
        self._is_whole = False
        self._tried: float | None = None
        self._is_off = False
        """The file cannot be made, for another reason than a full disk."""

    def open(self) -> None:
        """Check whether the reserve exists. Call it before the database is opened, which needs space itself."""
        try:
            self._is_whole = private_files.check_file(self._path) and self._path.stat().st_size > 0
        except OSError as exc:
            self._give_up(exc)
            return
        with suppress(DatabaseAway):
            self.prove()

    def prove(self) -> None:
        """Ensure space for a write. Called before each write, by one thread at a time.

        Raise DatabaseAway if the disk is full and this thread may not use the reserve.
        """
        total, free = self._space()
        size = min(SIZE, total // PART)
        least = size // LEAST_PART
        if self._is_whole and free < least and _MAY_USE.get():
            self._release(free)
        elif not self._is_whole and not self._is_off and free >= size + 4 * least:
            self._make(size)
        if _MAY_USE.get() or (free >= least and (self._is_whole or self._is_off)):
            return
        raise DatabaseAway(
            FULL,
            f"{self._path.parent}: its disk has {free / MIB:.1f} of {total / MIB:.0f} MiB free. Only deletions are"
            f" accepted until it has {(size + 4 * least) / MIB:.1f} MiB. Delete volumes or snapshots, or make space.",
            LATER_S,
        )

    def lengthen_log(self) -> None:
        """Allocate blocks for the write-ahead log. SQLite reads zeros as its end, and never shortens it."""
        with suppress(OSError), closing(_File(self._log)) as log_file:
            if os.fstat(log_file.fd).st_size < LOG_SIZE:
                os.posix_fallocate(log_file.fd, 0, LOG_SIZE)

    def _space(self) -> tuple[int, int]:
        """Return total and free bytes as df does, without the space that file systems keep for root."""
        now = os.statvfs(self._path.parent)
        return now.f_blocks * now.f_frsize, now.f_bavail * now.f_frsize

    def _make(self, size: int) -> None:
        if self._tried is not None and time.monotonic() - self._tried < AGAIN_S:
            return
        was_released = self._tried is not None
        self._tried = time.monotonic()
        try:
            with closing(_File(self._path, os.O_CREAT)) as file:
                os.posix_fallocate(file.fd, 0, size)
        except OSError as exc:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                self._give_up(exc)
            return
        self._is_whole = True
        if was_released:
            log.warning("the disk of %s has space again: all requests are accepted", self._path.parent)

    def _release(self, free: int) -> None:
        self._is_whole, self._tried = False, time.monotonic()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        log.error(
            "the disk of %s is full (%.1f MiB free): only deletions are accepted, from the reserve, until it has space",
            self._path.parent,
            free / MIB,
        )

    def _give_up(self, exc: OSError) -> None:
        self._is_off = True
        log.warning("no space can be reserved for deletions on a full disk: %s: %s", self._path, exc.strerror or exc)


class _File:
    def __init__(self, path: Path, flags: int = 0) -> None:
        self.fd = private_files.open_file(path, os.O_WRONLY | flags)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)
