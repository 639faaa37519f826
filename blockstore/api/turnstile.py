"""How many requests are worked on at once, and how one steps aside while it waits for an order to end.

With SQLite one at a time is quickest (docs/architecture.md); one that only waits must not keep the others from being
answered. ``create_app`` puts it in front of the application; ``endpoint.py`` steps aside.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turnstile:
    """Lets a bounded number of requests through."""

    def __init__(self, at_once: int) -> None:
        self._free = threading.BoundedSemaphore(at_once)

    @contextmanager
    def passed(self) -> Iterator[None]:
        """Wait for one's turn, and have it."""
        with self._free:
            yield

    @contextmanager
    def stepped_aside(self) -> Iterator[None]:
        """Let somebody else through meanwhile; called by a request that is being answered."""
        self._free.release()
        try:
            yield
        finally:
            self._free.acquire()
