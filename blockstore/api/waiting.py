"""A request that waits for an order to end has another thread answer meanwhile.

With SQLite one thread answers quickest (docs/architecture.md), and one that only waits must not keep the others from
being answered. ``endpoint.py`` waits here; ``service.py`` connects the server's threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MOST = 32
"""Requests that may wait at once."""


class WaitingRoom:
    """Where requests wait; the server has one thread more for each."""

    def __init__(self, threads: int) -> None:
        """``threads``: how many answer when nobody waits."""
        self._threads = threads
        self._waiting = 0
        self._lent = 0
        self._lock = threading.Lock()
        self.set_thread_count: Callable[[int], None] = lambda _count: None
        """What changes the number of the server's threads; nothing, where there is no server."""

    @contextmanager
    def entered(self) -> Iterator[bool]:
        """Have somebody else answer meanwhile. Gives whether there was room; who finds none must not wait."""
        with self._lock:
            room = self._waiting < MOST
            if room:
                self._waiting += 1
                self._tell()
        try:
            yield room
        finally:
            if room:
                with self._lock:
                    self._waiting -= 1
                    self._tell()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Have somebody else answer meanwhile, without taking a place: for waits that have a bound of their own."""
        with self._lock:
            self._lent += 1
            self._tell()
        try:
            yield
        finally:
            with self._lock:
                self._lent -= 1
                self._tell()

    def _tell(self) -> None:
        self.set_thread_count(self._threads + self._waiting + self._lent)
