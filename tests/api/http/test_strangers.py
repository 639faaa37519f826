"""Turns of strangers before Keystone: nobody keeps another out, and no turn is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from blockstore.api.http.strangers import MOST_ASKED, MOST_WAITING, Place, Strangers
from blockstore.api.http.waiting import ThreadReserve
from blockstore.turns import FairQueue

WAIT_S = 60


class Crowd:
    """Requests that wait for turns, each on a thread."""

    def __init__(self, strangers: Strangers, pool: ThreadPoolExecutor) -> None:
        self._strangers, self._pool = strangers, pool
        self.served: list[str] = []
        self._may_end = threading.Semaphore(0)
        self._entered: list[tuple[Place, Future[bool]]] = []
        self._of_thread = threading.local()
        enter = strangers._enter

        def entered(address: str) -> tuple[Place, FairQueue[Place]]:
            place, line = enter(address)
            self._of_thread.place.set_result(place)
            return place, line

        strangers._enter = entered  # type: ignore[method-assign]

    def __len__(self) -> int:
        return len(self._strangers._line) + len(self._strangers._failed_line)

    def ask(self, address: str) -> Future[bool]:
        """Let a request come from an address, and return when it has a turn, waits, or is refused."""
        entered = Future[Place]()
        asked = self._pool.submit(self._ask, address, entered)
        self._entered.append((entered.result(WAIT_S), asked))
        until = time.monotonic() + WAIT_S
        while not self._is_settled():
            assert time.monotonic() < until
            time.sleep(0.001)
        return asked

    def _is_settled(self) -> bool:
        """Say whether all who were given a turn have begun, and all who were refused have ended."""
        told = [(place.result(), asked) for place, asked in self._entered if place.done()]
        turns = sum(turn for turn, _ in told)
        return len(self.served) == turns and all(asked.done() for turn, asked in told if not turn)

    def end(self, count: int) -> None:
        """Let so many requests end their turns."""
        for _ in range(count):
            before = len(self.served)
            self._may_end.release()
            until = time.monotonic() + WAIT_S
            while len(self.served) == before and len(self):
                assert time.monotonic() < until
                time.sleep(0.001)

    def _ask(self, address: str, entered: Future[Place]) -> bool:
        self._of_thread.place = entered
        with self._strangers.waiting_place(address) as has_turn:
            if has_turn:
                self.served.append(address)
                assert self._may_end.acquire(timeout=WAIT_S)
            return has_turn


@contextmanager
def crowded(wait_s: float = WAIT_S) -> Iterator[tuple[Strangers, Crowd]]:
    strangers = Strangers(ThreadReserve(1), wait_s)
    with ThreadPoolExecutor(MOST_ASKED + MOST_WAITING + 40) as pool:
        crowd = Crowd(strangers, pool)
        try:
            yield strangers, crowd
        finally:
            for _ in range(1000):
                crowd._may_end.release()
    assert (strangers._asked, len(crowd)) == (0, 0)  # no turn and no place is lost


def test_a_network_waits_for_one_turn_of_each_other() -> None:
    with crowded() as (_strangers, crowd):
        for number in range(MOST_ASKED + 10):
            crowd.ask(f"198.{18 + number % 2}.0.1")
        crowd.ask("203.0.113.5")
        crowd.end(3)
        assert "203.0.113.5" in crowd.served[MOST_ASKED:]


def test_a_full_line_gives_way_to_a_network_and_to_an_address_with_fewer() -> None:
    with crowded() as (_strangers, crowd):
        asked = [crowd.ask("198.18.0.1") for _ in range(MOST_ASKED + MOST_WAITING)]
        assert crowd.ask("198.18.0.1").result(WAIT_S) is False
        crowd.ask("203.0.113.5")
        crowd.ask("198.18.0.2")
        assert [one.result(WAIT_S) for one in asked if one.done()] == [False, False]
        crowd.end(3)
        assert {"203.0.113.5", "198.18.0.2"} <= set(crowd.served[MOST_ASKED:])


@pytest.mark.parametrize("step", [1, 256], ids=["addresses of one network", "networks"])
def test_whoever_failed_lately_gives_way_to_who_did_not(step: int) -> None:
    """As many addresses as there are places, one request each."""
    with crowded() as (strangers, crowd):
        addresses = [f"198.{n * step // 256 % 256}.{n * step % 256}.1" for n in range(MOST_ASKED + MOST_WAITING)]
        for address in addresses:
            strangers.note_failure(address)
        asked = [crowd.ask(address) for address in addresses]
        assert crowd.ask("198.0.7.7").done() is False
        assert len([one for one in asked if one.done()]) == 1
        crowd.end(1)
        assert crowd.served[-1] == "198.0.7.7"
        crowd.ask("198.0.7.8")
        crowd.end(2)
        assert crowd.served[-2:] != ["198.0.7.8", "198.0.7.8"]
        assert any(address in addresses for address in crowd.served[-2:])  # the others get every second turn


def test_a_failure_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    from blockstore.api.http import strangers as module

    monkeypatch.setattr(module, "FAILED_S", 0)
    monkeypatch.setattr(module, "MOST_FAILED", 3)
    with crowded() as (strangers, crowd):
        for number in range(5):
            strangers.note_failure(f"198.18.0.{number}")
        assert list(strangers._failures) == ["198.18.0.2", "198.18.0.3", "198.18.0.4"]
        for _ in range(MOST_ASKED):
            crowd.ask("198.18.0.4")
        crowd.ask("198.18.0.4")
        assert (len(strangers._line), len(strangers._failed_line)) == (1, 0)


def test_a_turn_that_does_not_come_in_time_is_not_left_behind() -> None:
    with crowded(wait_s=0.05) as (_strangers, crowd):
        for _ in range(MOST_ASKED):
            crowd.ask("198.18.0.1")
        assert crowd.ask("203.0.113.5").result(WAIT_S) is False
        assert len(crowd) == 0


def test_a_thread_that_cannot_be_lent_loses_no_turn() -> None:
    reserve = ThreadReserve(1)
    strangers = Strangers(reserve, WAIT_S)

    def refuse(_count: int) -> None:
        raise RuntimeError("can't start new thread")

    reserve.set_thread_count = refuse
    with pytest.raises(RuntimeError), strangers.waiting_place("198.18.0.1"):
        pass
    assert strangers._asked == 0
