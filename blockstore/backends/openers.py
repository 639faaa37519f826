"""Counts the volumes that this process has open, for storage that cannot tell.

Used by plugins. The counts end with the process, as its open files do.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Openers:
    """Open volumes of one pool, by name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    @contextmanager
    def counted(self, name: str) -> Iterator[None]:
        """Count a volume as open while the block runs."""
        with self._lock:
            self._counts[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._counts[name] -= 1
                if not self._counts[name]:
                    del self._counts[name]

    def is_open(self, name: str) -> bool:
        """Return True if this process has the volume open."""
        with self._lock:
            return name in self._counts
