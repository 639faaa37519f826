"""The requests of strangers that wait for Keystone: a few tokens are validated at once, and networks take turns.

Each waiting request holds a thread, so their number is bounded.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from blockstore.address import wide_network_of
from blockstore.api.http.waiting import ThreadReserve
from blockstore.turns import FairQueue

MOST_ASKED, MOST_WAITING = 8, 56
"""Strangers' tokens that Keystone validates at once, and requests that may wait for that."""
FAILED_S = 60
"""Seconds for which an address that sent an invalid token has less claim to a place."""
MOST_FAILED = 4096

Place = Future[bool]
"""The place of a request in the line. Its result is True when its turn comes, and False if it is refused."""


class Strangers:
    """The turns of strangers, and the line in front of them."""

    def __init__(self, thread_reserve: ThreadReserve, wait_s: float) -> None:
        """``wait_s``: the longest wait for a turn."""
        self._thread_reserve, self._wait_s = thread_reserve, wait_s
        self._asked = 0
        self._line: FairQueue[Place] = FairQueue()
        self._failed_line: FairQueue[Place] = FairQueue()
        """The requests of addresses that failed lately. Both lines take turns."""
        self._was_failed = True
        """Whether the last turn was of an address that failed lately."""
        self._failures: OrderedDict[str, float] = OrderedDict()
        """By address, the time until which it has failed lately; the earliest first."""
        self._lock = threading.Lock()

    def note_failure(self, address: str) -> None:
        """Record that an address has sent an invalid token."""
        with self._lock:
            self._failures.pop(address, None)
            self._failures[address] = time.monotonic() + FAILED_S
            if len(self._failures) > MOST_FAILED:
                self._failures.popitem(last=False)

    @contextmanager
    def waiting_place(self, address: str) -> Iterator[bool]:
        """Wait for a turn, and hold it inside, while another thread answers other requests.

        Yield False if there is no place in the line, or no turn in time. Wide networks take turns, and addresses in
        each. If the line is full, the newest request of the network with the most gives way, first among the addresses
        that failed lately.
        """
        place, line = self._enter(address)
        try:
            if place.done() and not place.result():
                yield False
                return
            with self._thread_reserve.lend_thread():
                yield self._waited(place, line, address)
        finally:
            self._leave(place, line, address)

    def _enter(self, address: str) -> tuple[Place, FairQueue[Place]]:
        network, place = wide_network_of(address), Place()
        with self._lock:
            has_failed = time.monotonic() < self._failures.get(address, 0)
            line = self._failed_line if has_failed else self._line
            if self._asked < MOST_ASKED:
                self._asked += 1
                place.set_result(True)
            elif len(self._line) + len(self._failed_line) < MOST_WAITING or self._gave_way(network, address, line):
                line.put(network, address, place)
            else:
                place.set_result(False)
        return place, line

    def _gave_way(self, network: str, address: str, line: FairQueue[Place]) -> bool:
        """Refuse a waiting request that has less claim than a new one; return False if there is none."""
        last: tuple[str, Place] | None = None
        if line is self._line and self._failed_line:
            line, last = self._failed_line, self._failed_line.newest_of_most()
        elif line:
            last = line.last_of_most(network, address)
        if last is None:
            return False
        line.remove(wide_network_of(last[0]), *last)
        last[1].set_result(False)
        return True

    def _waited(self, place: Place, line: FairQueue[Place], address: str) -> bool:
        try:
            return place.result(timeout=self._wait_s)
        except TimeoutError:
            with self._lock:
                if line.remove(wide_network_of(address), address, place):
                    place.set_result(False)
            return place.result()  # the turn may have come at the last moment

    def _leave(self, place: Place, line: FairQueue[Place], address: str) -> None:
        """Pass the turn on, if there was one. Without a thread to wait on, the request may still be in the line."""
        with self._lock:
            if line.remove(wide_network_of(address), address, place) or not place.result():
                return
            is_failed = bool(self._failed_line) and not (self._was_failed and self._line)
            self._was_failed = is_failed
            if is_failed or self._line:
                (self._failed_line if is_failed else self._line).take().set_result(True)
            else:
                self._asked -= 1
