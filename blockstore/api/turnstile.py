"""How many requests are worked on at once, and how one steps aside while it waits for an order to end.

With SQLite one at a time is quickest (docs/architecture.md); one that only waits must not keep the others from being
answered. ``create_app`` puts it in front of the application; ``endpoint.py`` steps aside.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

WAITERS = 32
"""Requests that may wait at once; the server has a thread for each, beside those that are worked on."""


class Turnstile:
    """Lets a bounded number of requests through."""

    def __init__(self, at_once: int) -> None:
        self._free = threading.BoundedSemaphore(at_once)
        self._seats = threading.BoundedSemaphore(WAITERS)

    @contextmanager
    def passed(self) -> Iterator[None]:
        """Wait for one's turn, and have it."""
        with self._free:
            yield

    @contextmanager
    def stepped_aside(self) -> Iterator[bool]:
        """Let somebody else through meanwhile; called by a request that is being answered.

        Gives whether it may wait: else every thread could be waiting for a target that hangs, and none left to answer.
        """
        seated = self._seats.acquire(blocking=False)
        self._free.release()
        try:
            yield seated
        finally:
            self._free.acquire()
            if seated:
                self._seats.release()
