"""How wrong secrets slow the next ones: whom they slow, for how long, and whom not; on a clock that stands still."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from blockstore.errors import Busy, TooManyRequests
from blockstore.identity import attempts
from blockstore.identity.attempts import EVERYWHERE, Attempts

FREE, LONGEST_S = 3, 8.0


class Clock:
    """Stands still; a wait lets as much of it pass."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waited: list[float] = []

    def monotonic(self) -> float:
        return self.now


class Slowed(Attempts):
    """Attempts on a clock of the test's."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(FREE, LONGEST_S)
        self.clock = clock
        self._changed.wait = self._pass  # type: ignore[method-assign]

    def _pass(self, seconds: float | None = None) -> bool:
        assert seconds is not None
        self.clock.waited.append(seconds)
        self.clock.now += seconds
        return False

    def tried(self, account: str, address: str, *, right: bool = False) -> float:
        """Try once; return how long that was held."""
        self.clock.waited.clear()
        with self.made(account, address) as attempt:
            attempt.right = right
        return sum(self.clock.waited)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of this module's attempts."""
    clock = Clock()
    monkeypatch.setattr(attempts, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def slowed(clock: Clock) -> Slowed:
    """Attempts that nobody has made yet."""
    return Slowed(clock)


def test_delays_grow_from_one_second_to_the_longest(slowed: Slowed) -> None:
    held = [slowed.tried("u", "192.0.2.1") for _ in range(FREE + 6)]
    assert held == [0] * FREE + [1, 2, 4, 8, 8, 8]


def test_the_right_secret_ends_the_delays(slowed: Slowed) -> None:
    for _ in range(FREE + 1):
        slowed.tried("u", "192.0.2.1")
    assert slowed.tried("u", "192.0.2.1", right=True) == 2
    assert [slowed.tried("u", "192.0.2.1") for _ in range(FREE)] == [0] * FREE


def test_quiet_time_ends_the_delays(slowed: Slowed) -> None:
    for _ in range(FREE + 3):
        slowed.tried("u", "192.0.2.1")
    slowed.clock.now += attempts.FORGOTTEN_S
    assert [slowed.tried("u", "192.0.2.1") for _ in range(FREE)] == [0] * FREE


def test_others_are_not_slowed_by_one_who_guesses(slowed: Slowed) -> None:
    for _ in range(FREE + 5):
        slowed.tried("u", "192.0.2.1")
    assert slowed.tried("u", "192.0.2.2", right=True) == 0
    assert slowed.tried("other", "192.0.2.1") == 0


def test_many_addresses_together_are_slowed_and_a_familiar_one_is_not(slowed: Slowed) -> None:
    slowed.tried("u", "198.51.100.7", right=True)
    for number in range(FREE * EVERYWHERE):
        assert slowed.tried("u", f"192.0.2.{number}") == 0
    assert [slowed.tried("u", f"203.0.113.{number}") for number in range(5)] == [1, 2, 4, 8, 8]
    assert slowed.tried("u", "198.51.100.7", right=True) == 0


def test_a_familiar_address_is_held_for_a_short_time_only(slowed: Slowed) -> None:
    slowed.tried("u", "192.0.2.1", right=True)
    assert [slowed.tried("u", "192.0.2.1") for _ in range(FREE + 5)] == [0] * FREE + [1, 2, 4, 4, 4]
    assert slowed.tried("u", "192.0.2.1", right=True) == 4


def test_an_attempt_that_is_not_compared_does_not_count(slowed: Slowed) -> None:
    for _ in range(FREE * 3):
        with pytest.raises(Busy), slowed.made("u", "192.0.2.1"):
            raise Busy("no place", 1)
    assert slowed.tried("u", "192.0.2.1") == 0
    assert not any(count.running for count in slowed._counts.values())


def test_parallel_attempts_are_counted_before_they_are_compared() -> None:
    """Of many at once no more than the free ones are compared; one by one they then fail, and the rest has to wait."""
    guesses = Attempts(FREE, 0.2)
    comparing, most, lock = 0, 0, threading.Lock()
    start = threading.Barrier(12)
    compared = []

    def guess(number: int) -> None:
        nonlocal comparing, most
        start.wait(20)
        with guesses.made("u", "192.0.2.1") as attempt:
            with lock:
                comparing += 1
                most = max(most, comparing)
            threading.Event().wait(0.02)
            with lock:
                comparing -= 1
                compared.append(number)
            attempt.right = False

    with ThreadPoolExecutor(12) as threads:
        ended = [threads.submit(guess, number) for number in range(12)]
        refused = [one.exception(30) for one in ended]
    assert most <= FREE
    assert FREE <= len(compared) <= FREE + 2
    assert {type(one) for one in refused if one is not None} <= {TooManyRequests, Busy}


def test_only_some_are_held_and_the_rest_are_told_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "MOST_HELD_PER_ADDRESS", 2)
    guesses = Attempts(1, 20.0)
    with guesses.made("u", "192.0.2.1") as attempt:
        attempt.right = False
    with ThreadPoolExecutor(2) as threads:
        held = [threads.submit(guesses.made("u", "192.0.2.1").__enter__) for _ in range(2)]
        while guesses._held.total() < 2:
            assert not any(one.done() for one in held)
        with pytest.raises(TooManyRequests) as refused, guesses.made("u", "192.0.2.1"):
            pass
        assert refused.value.wait_s == 1
        guesses.close()  # as a stop does
        assert {type(one.exception(20)) for one in held} == {Busy}
    assert not guesses._held


def test_what_is_remembered_is_bounded(slowed: Slowed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "MOST", 50)
    for number in range(200):
        slowed.tried(f"u{number}", "192.0.2.1")
        slowed.tried(f"v{number}", "192.0.2.1", right=True)
    assert len(slowed._counts) <= 51
    assert len(slowed._familiar) <= 50


def test_a_whole_64_counts_as_one(slowed: Slowed) -> None:
    held = [slowed.tried("u", f"2001:db8::{number:x}") for number in range(FREE + 2)]
    assert held == [0] * FREE + [1, 2]
