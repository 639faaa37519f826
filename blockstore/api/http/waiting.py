"""A request that waits for an operation to end has another thread answer meanwhile.

With SQLite one thread answers quickest (docs/architecture.md), and one that only waits must not keep the others from
being answered. ``pipeline.py`` waits here; ``app/service.py`` connects the server's threads.

A place is a thread. Each project has a share of them, so that it can use up only its own. A few are its own whatever
the others hold. There is no second queue in front of the places: a request there would hold a thread as well.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHARE = 64
"""Requests of one project that may wait at once: as many attaches as one client sends in parallel."""
MOST = 256
"""Requests of all projects that may wait at once, beside those that are kept for each project."""
KEPT = 4
"""Requests of each project that may wait whatever the others do; only administrators make projects."""


class ThreadReserve:
    """Where requests wait; the server has one thread more for each."""

    def __init__(self, threads: int) -> None:
        """``threads``: how many answer when nobody waits."""
        self._threads = threads
        self._waiting: Counter[str] = Counter()
        """By project."""
        self._lent = 0
        self._lock = threading.Lock()
        self.set_thread_count: Callable[[int], None] = lambda _count: None
        """What changes the number of the server's threads; nothing, where there is no server."""

    @contextmanager
    def entered(self, project: str = "") -> Iterator[bool]:
        """Have somebody else answer meanwhile. Gives whether there was a place; who finds none must not wait.

        ``project``: whose place it is; those who wait for no project's sake, such as logins, share the places of "".
        """
        with self._lock:
            present = self._waiting[project]
            place = present < KEPT or (present < SHARE and self._waiting.total() < MOST)
            if place:
                self._waiting[project] += 1
                self._change_threads()
        try:
            yield place
        finally:
            with self._lock:
                if place:
                    self._waiting[project] -= 1
                    self._change_threads()
                if not self._waiting[project]:
                    del self._waiting[project]

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Have somebody else answer meanwhile, without taking a place: for waits that have a bound of their own."""
        with self._lock:
            self._lent += 1
            self._change_threads()
        try:
            yield
        finally:
            with self._lock:
                self._lent -= 1
                self._change_threads()

    def _change_threads(self) -> None:
        self.set_thread_count(self._threads + self._waiting.total() + self._lent)
