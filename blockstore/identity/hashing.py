"""The threads that hash passwords, and the short queue in front of them.

A hash takes some 20 ms of a processor and 19 MiB. However many people log in at once, no more than ``THREADS`` hashes
run; some wait, in turns over the addresses they come from; and who finds the queue full is told when to come back.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from blockstore.errors import Busy

T = TypeVar("T")

# One core is left to those who only look; a hash takes more memory bandwidth than anything else here.
THREADS = 1 if (os.cpu_count() or 1) <= 2 else 2
MOST_WAITING = 32
KEPT = MOST_WAITING // 4
"""Places of those that are kept for callers who have logged in from their address lately."""
MOST_WAITING_PER_ACCOUNT = MOST_WAITING // 2
RETRY_AFTER_S = 2
"""By then a full queue has been worked off, also on a slow machine."""

_M_MMAP_THRESHOLD = -3
"""The number by which mallopt(3) knows the option."""
_MMAP_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    work: Callable[[], Any]
    address: str
    account: str
    familiar: bool
    result: Future[Any] = field(default_factory=Future)


class HashingPool:
    """Runs hashes; each caller waits for its own."""

    def __init__(self, threads: int = THREADS, most_waiting: int = MOST_WAITING, kept: int = KEPT) -> None:
        """Start no thread yet: a service that nobody logs in to needs none."""
        give_memory_back()
        self._threads, self._most_waiting, self._kept = threads, most_waiting, kept
        self._changed = threading.Condition()
        self._lines: OrderedDict[str, deque[_Job]] = OrderedDict()
        """What waits, by address; the first address has its turn."""
        self._accounts: Counter[str] = Counter()
        self._running: list[threading.Thread] = []
        self._closed = False

    def run(self, work: Callable[[], T], *, address: str, account: str, familiar: bool = False) -> T:
        """Return what ``work`` returns. Raises Busy when too many wait, and what ``work`` raises.

        ``familiar``: the caller has proved lately who it is, and has places that strangers cannot fill.

        A full queue has room for an address that has less in it than another: the other gives up its newest.
        """
        job = _Job(work=work, address=address, account=account, familiar=familiar)
        with self._changed:
            self._admit(job)
            if len(self._running) < self._threads:
                self._running.append(threading.Thread(target=self._work, name="hashing", daemon=True))
                self._running[-1].start()
            self._changed.notify()
        return job.result.result()  # type: ignore[no-any-return]

    def close(self) -> None:
        """Refuse what waits and what comes; what runs ends by itself in a moment."""
        with self._changed:
            self._closed = True
            for line in self._lines.values():
                for job in line:
                    job.result.set_exception(too_many_logins())
            self._lines.clear()
            self._accounts.clear()
            self._changed.notify_all()

    def _admit(self, job: _Job) -> None:
        if self._closed or self._accounts[job.account] >= min(MOST_WAITING_PER_ACCOUNT, self._most_waiting):
            raise too_many_logins()
        if self._accounts.total() >= self._most_waiting - (0 if job.familiar else self._kept):
            longest = max(self._lines, key=lambda address: len(self._lines[address]))
            if len(self._lines[longest]) <= len(self._lines.get(job.address, ())) + 1:
                raise too_many_logins()
            given_up = self._lines[longest].pop()
            self._leave(given_up)
            given_up.result.set_exception(too_many_logins())
        self._lines.setdefault(job.address, deque()).append(job)
        self._accounts[job.account] += 1

    def _leave(self, job: _Job) -> None:
        self._accounts[job.account] -= 1
        if not self._accounts[job.account]:
            del self._accounts[job.account]

    def _next(self) -> _Job | None:
        with self._changed:
            while not self._lines:
                if self._closed:
                    return None
                self._changed.wait()
            address, line = next(iter(self._lines.items()))
            job = line.popleft()
            self._leave(job)
            if line:
                self._lines.move_to_end(address)
            else:
                del self._lines[address]
            return job

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                result = job.work()
            except BaseException as exc:
                job.result.set_exception(exc)
            else:
                job.result.set_result(result)
            del job


def give_memory_back() -> None:
    """Have the C library return large blocks to the system as soon as they are free.

    By itself glibc does so only until it has freed one: then it takes such sizes from its arenas, and each arena keeps
    the 19 MiB of a hash. An allocator without this option (musl) returns them anyway.
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)


def too_many_logins() -> Busy:
    """Return the refusal of who finds every place taken."""
    return Busy(f"Too many logins wait at this moment. Try again in {RETRY_AFTER_S} s.", RETRY_AFTER_S)
