"""Limits the bytes that the server holds for callers: in total, and for each caller.

Used on the event loop only.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass


class Budget:
    """Bytes held, by caller."""

    def __init__(self, total: int, share: int) -> None:
        """``total`` bytes may be held for all callers, ``share`` for one caller."""
        self.total, self.share = total, share
        self._held: Counter[str] = Counter()
        self._sum = 0

    def has_space(self, caller: str, size: int) -> bool:
        """Return True if ``size`` more bytes of a caller fit."""
        return self._held[caller] + size <= self.share and self._sum + size <= self.total

    def is_over_share(self, caller: str, size: int) -> bool:
        """Return True if ``size`` more bytes exceed the caller's share, whatever the others hold."""
        return self._held[caller] + size > self.share

    def is_over_total(self, size: int) -> bool:
        """Return True if ``size`` more bytes exceed the total."""
        return self._sum + size > self.total

    def largest(self) -> tuple[str, int]:
        """Return the caller who holds the most, and the number of bytes."""
        return max(self._held.items(), key=lambda held: held[1], default=("", 0))

    def callers(self) -> int:
        """Return the number of callers who hold bytes."""
        return len(self._held)

    def take(self, caller: str, size: int) -> None:
        """Count bytes as held by a caller."""
        self._held[caller] += size
        self._sum += size

    def give_back(self, caller: str, size: int) -> None:
        """Count bytes as no longer held by a caller."""
        self._sum -= size
        self._held[caller] -= size
        if self._held[caller] <= 0:
            del self._held[caller]


@dataclass(eq=False)
class SendingReply:
    """A reply that its caller has not taken completely."""

    task: asyncio.Task[None]
    caller: str
    size: int
    since: float
    taken: int = 0
    """Bytes that the caller has acknowledged."""

    def rate(self, now: float) -> float:
        """Return the bytes per second at which the caller takes it."""
        return self.taken / max(now - self.since, 0.001)


class Replies:
    """The long replies that are being sent. Replies that are taken too slowly are cut to make space for others."""

    GRACE_S = 2.0
    """Seconds before a slow reply may be cut to make space."""
    SLOW_RATE = 64 << 10
    """Bytes per second below which a reply may be cut to make space; the slowest first."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._sending: set[SendingReply] = set()

    def admit(self, task: asyncio.Task[None], caller: str, size: int, *, must: bool) -> SendingReply | None:
        """Reserve space for a reply, and cut slow replies if there is none. Return None if that makes no space.

        ``must``: send the reply in any case, because the request has changed something.
        """
        while not self._budget.has_space(caller, size):
            over_share = self._budget.is_over_share(caller, size)
            if not (self._cut_slow(caller if over_share else None) or (not over_share and self._cut_largest(caller))):
                break
        if not must and not self._budget.has_space(caller, size):
            # A reply that is larger than the share is sent all the same, if no other reply of its caller waits.
            is_first = not any(one.caller == caller for one in self._sending)
            if not is_first or (self._sending and self._budget.is_over_total(size)):
                return None
        self._budget.take(caller, size)
        sending = SendingReply(task, caller, size, time.monotonic())
        self._sending.add(sending)
        return sending

    def end(self, sending: SendingReply) -> None:
        """Release the space of a reply."""
        if sending in self._sending:
            self._sending.remove(sending)
            self._budget.give_back(sending.caller, sending.size)

    def _cut_largest(self, caller: str) -> bool:
        """Cut a reply of the caller who holds the most; return False if that is within its part of the total."""
        largest, held = self._budget.largest()
        those = [one for one in self._sending if one.caller == largest]
        if largest == caller or not those or held <= self._budget.total / (self._budget.callers() + 1):
            return False
        self._cut(min(those, key=lambda one: one.rate(time.monotonic())))
        return True

    def _cut_slow(self, caller: str | None) -> bool:
        """Cut the slowest reply of a caller, or of all for None; return False if none is slow."""
        now = time.monotonic()
        slow = [
            one
            for one in self._sending
            if caller in (None, one.caller) and one.since <= now - self.GRACE_S and one.rate(now) < self.SLOW_RATE
        ]
        if not slow:
            return False
        self._cut(min(slow, key=lambda one: one.rate(now)))
        return True

    def _cut(self, victim: SendingReply) -> None:
        victim.task.cancel()
        self.end(victim)
