"""The right to write a SQLite database: a lock in this process, and then the lock of the file.

SQLite has one writer. Waiting for a lock in the process wakes at once, where SQLite's own busy handler sleeps. The lock
of the file is waited for only when another process holds it.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from typing import Any

from blockstore.db import patience
from blockstore.db.outages import BUSY, SOON_S
from blockstore.errors import DatabaseAway

AT_ONCE_S = 0.1
"""What a write may take of the only thread that answers: others in this process write for milliseconds."""

STEP_S = 0.02


class Writer:
    """The right to write of one database file."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._stuck = False
        """Who has the lock is not expected to give it back within ``AT_ONCE_S``."""
        self._deadline: float | None = None
        """Of the one who has the lock."""

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the lock of this process. Raises DatabaseAway when another thread keeps it for too long."""
        wait = patience.current()
        deadline = time.monotonic() + wait.wait_s
        if not self._lock.acquire(blocking=not self._stuck, timeout=-1 if self._stuck else AT_ONCE_S):
            self._stuck = True
            with wait.aside() as may_wait:
                if not self._lock.acquire(timeout=wait.wait_s if may_wait else 0):
                    raise self._busy("another thread of this process writes to it")
        self._stuck, self._deadline = False, deadline
        try:
            yield
        finally:
            self._stuck, self._deadline = False, None
            self._lock.release()

    def begin(self, cursor: Any) -> None:
        """Begin a transaction that writes. Raises DatabaseAway when another process keeps the file for too long."""
        if _begun(cursor):
            return
        wait = patience.current()
        self._stuck = True
        with wait.aside() as may_wait:
            deadline = self._deadline or time.monotonic() + wait.wait_s
            while may_wait and time.monotonic() < deadline:
                time.sleep(STEP_S)
                if _begun(cursor):
                    return
        raise self._busy("another process holds its lock")

    def _busy(self, why: str) -> DatabaseAway:
        return DatabaseAway(BUSY, f"{self._name}: database is locked: {why}", SOON_S)


def _begun(cursor: Any) -> bool:
    try:
        cursor.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return False
        raise
    return True
