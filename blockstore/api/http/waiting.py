"""While a request waits for an operation to end, another thread answers.

With SQLite one thread answers fastest (docs/architecture.md), and a request that only waits must not delay the others.
``pipeline.py`` waits here; ``app/service.py`` connects the server's threads.

A place is a thread. Each project may use a limited share of the places, so that it cannot use up those of others. A few
places are kept for each project. There is no second queue in front of the places: a request there would hold a thread
as well.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

SHARE = 64
"""Requests of one project that may wait at once: as many attaches as one client sends in parallel."""
MOST = 256
"""Requests of all projects that may wait at once, besides the places kept for each project."""
KEPT = 4
"""Requests of each project that may wait regardless of other projects; only administrators create projects."""


class ThreadReserve:
    """The places of waiting requests; the server has one more thread for each waiting request."""

    def __init__(self, threads: int, released: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """``threads``: the number of the server's threads while no request waits.

        ``released`` is entered by each thread that waits (``interpreter.py``).
        """
        self._threads, self._released = threads, released
        self._waiting: Counter[str] = Counter()
        """Waiting requests by project."""
        self._lent_threads = 0
        self._lock = threading.Lock()
        self.set_thread_count: Callable[[int], None] = lambda _count: None
        """Sets the number of the server's threads; does nothing without a server."""

    @contextmanager
    def waiting_place(self, project: str = "") -> Iterator[bool]:
        """Let another thread answer meanwhile. Yield True if there was a place; without one the caller must not wait.

        ``project``: the owner of the place. Requests of no project, such as logins, share the places of "".
        """
        with self._lock:
            present = self._waiting[project]
            place = present < KEPT or (present < SHARE and self._waiting.total() < MOST)
            if place:
                self._waiting[project] += 1
                self._change_threads()
        try:
            with self._released() if place else nullcontext():
                yield place
        finally:
            with self._lock:
                if place:
                    self._waiting[project] -= 1
                    self._change_threads()
                if not self._waiting[project]:
                    del self._waiting[project]

    @contextmanager
    def lend_thread(self) -> Iterator[None]:
        """Let another thread answer meanwhile, without taking a place: for waits with a limit of their own."""
        with self._lock:
            self._lent_threads += 1
            self._change_threads()
        try:
            with self._released():
                yield
        finally:
            with self._lock:
                self._lent_threads -= 1
                self._change_threads()

    def _change_threads(self) -> None:
        self.set_thread_count(self._threads + self._waiting.total() + self._lent_threads)
