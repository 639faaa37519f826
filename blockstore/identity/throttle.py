"""Counts failed attempts at a secret, and makes callers wait after too many failures. Used for transfer keys.

Counts are kept in memory: a restart forgets them, and strangers cannot restart the service.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

from blockstore.errors import TooManyRequests

MOST = 10_000
"""Maximum number of subjects; the oldest are forgotten first."""


class Throttle:
    """The failures of each subject."""

    def __init__(self, failures: int, pause_s: float) -> None:
        """After ``failures`` in a row, a subject has to wait for ``pause_s``."""
        self._failures, self._pause_s = failures, pause_s
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str, ...], tuple[int, float]] = OrderedDict()

    def admit(self, *subject: str) -> None:
        """Raise TooManyRequests while a subject has to wait."""
        with self._lock:
            count, since = self._seen.get(subject, (0, 0.0))
        left = since + self._pause_s - time.monotonic()
        if count >= self._failures and left > 0:
            wait_s = int(left) + 1
            raise TooManyRequests(f"{count} attempts in a row have failed. Try again in {wait_s} s.", wait_s)

    def failed(self, *subject: str) -> None:
        """Count a failure."""
        with self._lock:
            count, since = self._seen.pop(subject, (0, 0.0))
            if time.monotonic() - since > self._pause_s:
                count = 0
            self._seen[subject] = (count + 1, time.monotonic())
            while len(self._seen) > MOST:
                self._seen.popitem(last=False)

    def succeeded(self, *subject: str) -> None:
        """Forget the failures."""
        with self._lock:
            self._seen.pop(subject, None)
