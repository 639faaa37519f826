"""Space on the disk of a SQLite database that only those may use who free some: a full disk can always be emptied.

A file beside the database holds the space. When the disk is full the file goes, and is made again when there is space.
Meanwhile requests that make something are refused; deletions, logins and operations that were accepted may write.
The write-ahead log is as long from the start as some deletions need: whoever fills the disk takes what the file frees.
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
"""Of a small disk at most the PART-th part is reserved."""
LEAST_PART = 8
"""Less than this part of the reserve is too little for a write by somebody who frees nothing."""
LOG_SIZE = MIB
AGAIN_S = 1.0
"""How often it is tried to make the file again."""

_MAY_USE: ContextVar[bool] = ContextVar("may use the reserve", default=True)


@contextmanager
def usable(*, by: bool = True) -> Iterator[None]:
    """Let what is written inside the block use the reserve, or not."""
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
        """Find out whether the reserve is there; before the database is opened, which needs space itself."""
        try:
            self._is_whole = private_files.check_file(self._path) and self._path.stat().st_size > 0
        except OSError as exc:
            self._give_up(exc)
            return
        with suppress(DatabaseAway):
            self.prove()

    def prove(self) -> None:
        """Make sure of space for a write; called before each, by one thread at a time.

        Raises DatabaseAway when the disk is full and this thread may not use the reserve.
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
        """Give the write-ahead log blocks of its own; SQLite takes zeros for its end, and never shortens it."""
        with suppress(OSError), closing(_File(self._log)) as log_file:
            if os.fstat(log_file.fd).st_size < LOG_SIZE:
                os.posix_fallocate(log_file.fd, 0, LOG_SIZE)

    def _space(self) -> tuple[int, int]:
        """Return total and free bytes, as df does: what file systems keep for root is not counted on."""
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
            log.warning("the disk of %s has space again: everything is accepted", self._path.parent)

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
        log.warning("no space is kept for deletions on a full disk: %s: %s", self._path, exc.strerror or exc)


class _File:
    def __init__(self, path: Path, flags: int = 0) -> None:
        self.fd = private_files.open_file(path, os.O_WRONLY | flags)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)
