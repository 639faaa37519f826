"""The right to write a SQLite database: a turn in this process, and then the lock of the file.

SQLite has one writer. A thread that waits in this process is woken at once; SQLite's own busy handler would sleep.
Projects take turns, so that a project with many writers delays another project's writer by one. A thread waits for the
lock of the file only if another process holds it.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from typing import Any

from blockstore.db import wait_limits
from blockstore.db.outages import BUSY, SOON_S
from blockstore.errors import DatabaseAway
from blockstore.turns import Turns

AT_ONCE_S = 0.1
"""A writer that takes longer is not expected to end soon: most write for milliseconds."""

STEP_S = 0.02


class Writer:
    """The right to write one database file."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._guard = threading.Lock()
        self._held = False
        self._since = 0.0
        """When the present turn began."""
        self._is_file_locked = False
        """Another process has the lock of the file."""
        self._waiting: Turns[threading.Lock] = Turns()
        """By project. Each lock is held until the turn of its waiter."""
        self._deadline: float | None = None
        """The deadline of the thread that has the turn."""

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the turn of this process. Raise DatabaseAway if another thread keeps it for too long."""
        deadline = time.monotonic() + wait_limits.current().wait_s
        with self._guard:
            ticket = threading.Lock() if self._held else None
            if ticket is None:
                self._held, self._since = True, time.monotonic()
            else:
                ticket.acquire()
                self._waiting.put(wait_limits.project(), ticket)
        if ticket is not None and not self._waited(ticket, deadline):
            raise self._busy("another thread of this process writes to it")
        self._is_file_locked, self._deadline = False, deadline
        try:
            yield
        finally:
            self._is_file_locked, self._deadline = False, None
            self._pass_on()

    def _waited(self, ticket: threading.Lock, deadline: float) -> bool:
        """Wait for a turn; return False if it has not come in time and was given up."""
        while not self._is_stuck() and time.monotonic() < deadline:
            if ticket.acquire(timeout=AT_ONCE_S):
                return True
        with wait_limits.current().lend_thread() as may_wait:
            if ticket.acquire(timeout=max(deadline - time.monotonic(), 0) if may_wait else 0):
                return True
        with self._guard:
            return not self._waiting.remove(wait_limits.project(), ticket)  # it came at the last moment

    def _is_stuck(self) -> bool:
        return self._is_file_locked or time.monotonic() - self._since > AT_ONCE_S

    def _pass_on(self) -> None:
        with self._guard:
            next_one = self._waiting.take()
            self._since = time.monotonic()
            self._held = next_one is not None
            if next_one is not None:
                next_one[1].release()

    def begin(self, cursor: Any) -> None:
        """Begin a writing transaction. Raise DatabaseAway if another process locks the file for too long."""
        if _begun(cursor):
            return
        wait = wait_limits.current()
        self._is_file_locked = True
        with wait.lend_thread() as may_wait:
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
