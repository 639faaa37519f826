"""Limits repeated log lines: the first in an interval is logged, the others are counted.

Used where one fault affects every request and every operation: an unreachable database, no free file descriptor, a bug.
"""

from __future__ import annotations

import logging
import threading
import time

INTERVAL_S = 10.0


class LogLimiter:
    """The repeated log lines of one module."""

    def __init__(self, log: logging.Logger, interval_s: float = INTERVAL_S) -> None:
        self._log = log
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._next: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def log(
        self, level: int, subject: str, message: str, *arguments: object, exc_info: BaseException | None = None
    ) -> None:
        """Log a line, unless a line on the same subject was logged within the interval."""
        with self._lock:
            now = time.monotonic()
            if now < self._next.get(subject, 0.0):
                self._left_out[subject] = self._left_out.get(subject, 0) + 1
                return
            self._next[subject] = now + self._interval_s
            left_out = self._left_out.pop(subject, 0)
        if left_out:
            message += " (%d more like this were not logged)"
            arguments = (*arguments, left_out)
        self._log.log(level, message, *arguments, exc_info=exc_info)
