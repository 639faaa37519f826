"""The threads that hash passwords, and the short queue in front of them.

A hash takes some 20 ms of a processor and 19 MiB. However many users log in at once, at most ``THREADS`` hashes run.
Others wait, in turns over their addresses. When the queue is full, one login is refused with a time to retry: one of
the address or the user with the most waiting logins, then one of the networks with the most recent failures.
"""

from __future__ import annotations

import ctypes
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from blockstore.errors import Busy
from blockstore.turns import Turns

T = TypeVar("T")

# One core is left to other requests; a hash takes more memory bandwidth than anything else here.
THREADS = 1 if (os.cpu_count() or 1) <= 2 else 2
MOST_WAITING = 32
KEPT = MOST_WAITING // 4
"""Number of these places reserved for callers who have logged in from their address lately."""
MOST_WAITING_PER_ACCOUNT = MOST_WAITING // 2
RETRY_AFTER_S = 2
"""Time in which a full queue is processed, also on a slow machine."""

_M_MMAP_THRESHOLD = -3
"""The number of the option in mallopt(3)."""
_MMAP_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    work: Callable[[], Any]
    address: str
    account: str
    familiar: bool
    standing: tuple[int, ...]
    luck: float = field(default_factory=random.random)
    """Random number that decides between equals."""
    result: Future[Any] = field(default_factory=Future)


class HashingPool:
    """Runs hashes; each caller waits for its own."""

    def __init__(self, threads: int = THREADS, most_waiting: int = MOST_WAITING, kept: int = KEPT) -> None:
        """Start no thread yet: a service without logins needs none."""
        give_memory_back()
        self._threads, self._most_waiting, self._kept = threads, most_waiting, kept
        self._changed = threading.Condition()
        self._turns: Turns[_Job] = Turns()
        """The waiting jobs, by address."""
        self._waiting: list[_Job] = []
        """The waiting jobs, in the order of their arrival."""
        self._running: list[threading.Thread] = []
        self._closed = False

    def run(
        self,
        work: Callable[[], T],
        *,
        address: str,
        account: str,
        familiar: bool = False,
        standing: tuple[int, ...] = (0, 0, 0),
    ) -> T:
        """Return the result of ``work``. Raise Busy if too many jobs wait, and any exception of ``work``.

        ``account``: the user of the login. ``familiar``: the caller has logged in from the address lately, and has
        places that strangers cannot take. ``standing``: recent failures of the networks around the address, as in
        ``attempts.Attempt``.
        """
        job = _Job(work=work, address=address, account=account, familiar=familiar, standing=standing)
        with self._changed:
            self._admit(job)
            if len(self._running) < self._threads:
                self._start(job)
            self._changed.notify()
        return job.result.result()  # type: ignore[no-any-return]

    def _start(self, job: _Job) -> None:
        thread = threading.Thread(target=self._work, name="hashing", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the limit of processes: the next login tries again
            if not self._running:
                self._give_up(job)
        else:
            self._running.append(thread)

    def close(self) -> None:
        """Refuse waiting and new jobs; running jobs end by themselves in a moment."""
        with self._changed:
            self._closed = True
            for job in [*self._waiting]:
                self._give_up(job)
            self._changed.notify_all()

    def _admit(self, job: _Job) -> None:
        rivals = self._rivals(job)
        if self._closed or (last := self._last(rivals, job)) is job:
            raise too_many_logins()
        if last is not None:
            self._give_up(last)
        self._turns.put(job.address, job)
        self._waiting.append(job)

    def _rivals(self, job: _Job) -> list[_Job] | None:
        """Return the waiting jobs that compete with a new job for its place; None if there is space."""
        same = [candidate for candidate in self._waiting if candidate.account == job.account]
        if len(same) >= min(MOST_WAITING_PER_ACCOUNT, self._most_waiting):
            return same
        strangers = [candidate for candidate in self._waiting if not candidate.familiar]
        if not job.familiar and len(strangers) >= self._most_waiting - self._kept:
            return strangers
        return self._waiting if len(self._waiting) >= self._most_waiting else None

    def _last(self, rivals: list[_Job] | None, job: _Job) -> _Job | None:
        """Return the job, of the rivals and the new one, with the least claim to wait; None if there is space."""
        if rivals is None:
            return None
        all_of_them = (*self._waiting, job)
        of_address = _numbers(all_of_them, lambda candidate: candidate.address)
        # Within an account by claim: a user whose password is guessed from everywhere comes first in it.
        by_claim = sorted(
            all_of_them, key=lambda candidate: (not candidate.familiar, candidate.standing, candidate.luck)
        )
        of_account = _numbers(by_claim, lambda candidate: candidate.account)
        return max(
            (*rivals, job),
            key=lambda candidate: (
                max(of_address[candidate], of_account[candidate]),
                candidate.standing,
                candidate.luck,
            ),
        )

    def _give_up(self, job: _Job) -> None:
        self._turns.remove(job.address, job)
        self._waiting.remove(job)
        job.result.set_exception(too_many_logins())

    def _next(self) -> _Job | None:
        with self._changed:
            while (turn := self._turns.take()) is None:
                if self._closed:
                    return None
                self._changed.wait()
            self._waiting.remove(turn[1])
            return turn[1]

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                result = job.work()
            except BaseException as exc:
                job.result.set_exception(exc)
            else:
                job.result.set_result(result)
            del job


def _numbers(jobs: Iterable[_Job], of: Callable[[_Job], str]) -> dict[_Job, int]:
    """Return the number of each job among the jobs of the same address, or account."""
    counts: Counter[str] = Counter()
    numbers = {}
    for candidate in jobs:
        counts[of(candidate)] += 1
        numbers[candidate] = counts[of(candidate)]
    return numbers


def give_memory_back() -> None:
    """Have the C library return large blocks to the system as soon as they are free.

    By default glibc does so only for the first such block: then it takes blocks of that size from its arenas, and each
    arena keeps the 19 MiB of a hash. An allocator without this option (musl) returns them anyway.
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)


def too_many_logins() -> Busy:
    """Return the refusal of a login for which there is no place."""
    return Busy(f"Too many logins are waiting. Try again in {RETRY_AFTER_S} s.", RETRY_AFTER_S)
