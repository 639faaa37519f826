"""How wrong secrets slow the next ones: whom they slow, for how long, and whom not; on a clock that stands still."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from blockstore.errors import Busy, TooManyRequests
from blockstore.identity import attempts
from blockstore.identity.attempts import EVERYWHERE, Attempt, Attempts

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
    assert [slowed.tried("u", f"203.0.113.{number}") for number in range(5)] == [2] * 5
    assert slowed.tried("u", "198.51.100.7", right=True) == 0


def test_an_address_waits_for_those_that_have_failed_as_often(slowed: Slowed) -> None:
    """However many others guess: the first attempt of an address is behind no second one."""
    for number in range(FREE * EVERYWHERE):
        slowed.tried("u", f"192.0.2.{number}")
    assert [slowed.tried("u", f"192.0.2.{number}") for number in range(5)] == [0, 4, 4, 4, 4]
    assert [slowed.tried("u", f"192.0.2.{number}") for number in range(5)] == [0, 8, 8, 8, 8]
    assert slowed.tried("u", "198.51.100.1", right=True) == 0


def test_the_guesses_at_an_account_are_bounded_from_however_many_addresses(slowed: Slowed) -> None:
    """Each lane by itself; here those of the addresses that have not failed, and of those that fail again and again."""
    began = slowed.clock.now
    for number in range(1000):
        slowed.tried("u", f"10.{number >> 8}.{number & 255}.1")
    assert slowed.clock.now - began >= (1000 - FREE * EVERYWHERE - 1) * attempts.FIRST_LANE_S
    for number in range(10 * FREE):
        slowed.tried("u", f"192.0.2.{number % 5}")
    began = slowed.clock.now
    for number in range(100):
        slowed.tried("u", f"192.0.2.{number % 5}")
    assert slowed.clock.now - began >= 99 * LONGEST_S


def held(guesses: Attempts, account: str, address: str, callers: ThreadPoolExecutor) -> Future[Attempt]:
    """Make an attempt whose secret is wrong; return when it is held, was refused, or was made."""

    def made() -> Attempt:
        with guesses.made(account, address) as attempt:
            attempt.right = False
        return attempt

    before = [*guesses._held]
    asked = callers.submit(made)
    while not asked.done() and guesses._held == before:
        threading.Event().wait(0.001)
    return asked


@pytest.fixture
def besieged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Attempts]:
    """Attempts after strangers of one network have guessed, while one that has not failed before is compared."""
    guesses = Attempts(1, 20.0)
    monkeypatch.setattr(attempts, "FIRST_LANE_S", 0.01)
    for number in range(EVERYWHERE):
        with guesses.made("u", f"192.0.2.{number}") as attempt:
            attempt.right = False
    with guesses.made("u", "192.0.2.99"):
        yield guesses
    assert not guesses._held


def test_the_next_is_of_the_network_that_has_not_failed(besieged: Attempts) -> None:
    with ThreadPoolExecutor(8) as callers:
        waits = [held(besieged, "u", f"192.0.2.{number}", callers) for number in range(100, 104)]
        waits.append(held(besieged, "u", "198.51.100.1", callers))
        operation = sorted(besieged._held, key=besieged._rank)
        assert operation[0].networks[0] == "198.51.100.1"
        assert [
            one for one in besieged._held if all(not besieged._goes_first(other, one) for other in besieged._held)
        ] == [operation[0]]
        besieged.close()
        assert {type(one.exception(60)) for one in waits} == {Busy}


def test_places_to_wait_are_given_to_who_has_not_failed(besieged: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "MOST_HELD", 3)
    with ThreadPoolExecutor(8) as callers:
        waits = [held(besieged, "u", f"192.0.2.{number}", callers) for number in range(100, 105)]
        while sum(one.done() for one in waits) < 2:
            threading.Event().wait(0.001)
        user = held(besieged, "u", "198.51.100.1", callers)
        assert [one.networks[0] for one in besieged._held].count("198.51.100.1") == 1
        assert len(besieged._held) == 3
        with besieged.made("u", "192.0.2.7"):
            # One who has failed once is alone in a lane, and has a place beside all those who have not failed yet.
            mistaken = held(besieged, "u", "192.0.2.8", callers)
            assert [one.networks[0] for one in besieged._held].count("192.0.2.8") == 1
            assert len(besieged._held) == 3
        assert mistaken.result(60).right is False
        besieged.close()
        assert {type(one.exception(60)) for one in (*waits, user)} == {Busy}


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
        start.wait(60)
        with guesses.made("u", "192.0.2.1") as attempt:
            with lock:
                comparing += 1
                most = max(most, comparing)
            threading.Event().wait(0.02)
            with lock:
                comparing -= 1
                compared.append(number)
            attempt.right = False

    began = time.monotonic()
    with ThreadPoolExecutor(12) as threads:
        ended = [threads.submit(guess, number) for number in range(12)]
        refused = [one.exception(60) for one in ended]
    assert most <= FREE
    assert FREE <= len(compared) <= FREE + (time.monotonic() - began) / 0.2
    assert {type(one) for one in refused if one is not None} <= {TooManyRequests, Busy}


def test_only_some_are_held_and_the_rest_are_told_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "MOST_HELD_PER_ADDRESS", 2)
    guesses = Attempts(1, 20.0)
    with guesses.made("u", "192.0.2.1") as attempt:
        attempt.right = False
    with ThreadPoolExecutor(3) as threads:
        waits = [held(guesses, "u", "192.0.2.1", threads) for _ in range(2)]
        assert not any(one.done() for one in waits)
        waits.append(held(guesses, "u", "192.0.2.1", threads))  # one of the three, by chance, gives way
        while not any(one.done() for one in waits):
            threading.Event().wait(0.001)
        refused = next(one for one in waits if one.done()).exception()
        assert isinstance(refused, TooManyRequests)
        assert refused.wait_s == 1
        guesses.close()  # as a stop does
        assert sorted(type(one.exception(60)).__name__ for one in waits) == ["Busy", "Busy", "TooManyRequests"]
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
