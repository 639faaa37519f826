"""The threads that hash: how many run, who waits, whose turn it is, and who is told to come back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from blockstore.errors import Busy
from blockstore.identity import hashing
from blockstore.identity.hashing import HashingPool


class Gate:
    """A pool of one thread that is busy until it is told, and what it did since."""

    def __init__(self, most_waiting: int, kept: int = 0) -> None:
        self.pool = HashingPool(threads=1, most_waiting=most_waiting, kept=kept)
        self.callers = ThreadPoolExecutor(64)
        self.done: list[str] = []
        self._go = threading.Event()
        begun = threading.Event()

        def busy() -> None:
            begun.set()
            assert self._go.wait(120)

        self.first = self.callers.submit(self.pool.run, busy, address="first", account="first")
        assert begun.wait(60)

    def ask(
        self, name: str, address: str, account: str = "", *, familiar: bool = False, standing: tuple[int, ...] = ()
    ) -> Future[str]:
        """Ask for one more and return when it waits, or was refused."""

        def work() -> str:
            self.done.append(name)
            return name

        before = self.waiting()
        asked = self.callers.submit(
            self.pool.run,
            work,
            address=address,
            account=account or name,
            familiar=familiar,
            standing=standing,
        )
        while not asked.done() and self.waiting() == before:
            threading.Event().wait(0.001)
        return asked

    def waiting(self) -> list[object]:
        """Return what waits."""
        return [*self.pool._waiting]

    def open(self) -> None:
        """Let the first one end."""
        self._go.set()
        self.first.result(60)

    def close(self) -> None:
        """End all."""
        self._go.set()
        self.pool.close()
        self.callers.shutdown()


@pytest.fixture
def gate() -> Iterator[Callable[..., Gate]]:
    """Make pools that are busy."""
    made: list[Gate] = []

    def make(most_waiting: int, kept: int = 0) -> Gate:
        made.append(Gate(most_waiting, kept))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_addresses_take_turns(gate: Callable[[int], Gate]) -> None:
    pool = gate(16)
    asked = [pool.ask(f"a{number}", "a") for number in range(4)] + [pool.ask("b", "b"), pool.ask("c", "c")]
    pool.open()
    assert [one.result(60) for one in asked] == ["a0", "a1", "a2", "a3", "b", "c"]
    assert pool.done == ["a0", "b", "c", "a1", "a2", "a3"]


def test_who_has_not_failed_takes_the_place_of_one_who_has(gate: Callable[[int], Gate]) -> None:
    """As many addresses as there are places, with one login each: a login from another address has a place."""
    pool = gate(4)
    guessers = [pool.ask(f"g{number}", f"g{number}", standing=(4, 4, number)) for number in range(4)]
    user = pool.ask("user", "home", standing=(4, 0, 0))  # a neighbour has guessed
    with pytest.raises(Busy):
        guessers[3].result(60)
    with pytest.raises(Busy):
        pool.ask("another", "g4", standing=(4, 4, 9)).result(60)
    pool.open()
    assert [one.result(60) for one in (*guessers[:3], user)] == ["g0", "g1", "g2", "user"]


def test_a_place_is_given_by_chance_among_equals(gate: Callable[[int], Gate]) -> None:
    pool = gate(4)
    asked = [pool.ask(f"a{number}", f"a{number}") for number in range(40)]
    while len(refused := [number for number, one in enumerate(asked) if one.done()]) < 36:
        threading.Event().wait(0.001)
    assert refused != [*range(4, 40)]


def test_the_queue_of_one_account_has_a_place_for_who_has_not_failed(
    gate: Callable[[int], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "MOST_WAITING_PER_ACCOUNT", 2)
    pool = gate(8)
    guesses = [pool.ask(f"g{number}", f"g{number}", "x", standing=(1, 1, number)) for number in range(2)]
    user = pool.ask("user", "home", "x", standing=(0, 0, 0))
    with pytest.raises(Busy):
        guesses[1].result(60)
    pool.open()
    assert [one.result(60) for one in (guesses[0], user)] == ["g0", "user"]


def test_strangers_displace_nobody_who_logged_in_lately(gate: Callable[..., Gate]) -> None:
    pool = gate(4, kept=2)
    known = [pool.ask(f"k{number}", "home", familiar=True, standing=(9, 9, 9)) for number in range(2)]
    strangers = [pool.ask(f"s{number}", f"s{number}", standing=(number,)) for number in (2, 1, 0)]
    with pytest.raises(Busy):
        strangers[0].result(60)
    pool.open()
    assert [one.result(60) for one in (*known, *strangers[1:])] == ["k0", "k1", "s1", "s0"]


def test_a_full_queue_refuses_with_the_time_to_come_back(gate: Callable[[int], Gate]) -> None:
    pool = gate(4)
    kept = [pool.ask(f"a{number}", "a") for number in range(4)]
    with pytest.raises(Busy) as refused:
        pool.ask("a4", "a").result(60)
    assert refused.value.wait_s == hashing.RETRY_AFTER_S
    pool.open()
    assert [one.result(60) for one in kept] == ["a0", "a1", "a2", "a3"]


def test_strangers_from_many_addresses_leave_places_for_those_who_logged_in_lately(gate: Callable[..., Gate]) -> None:
    pool = gate(6, kept=2)
    strangers = [pool.ask(f"s{number}", f"a{number}") for number in range(4)]
    with pytest.raises(Busy):
        pool.ask("one more", "a9", standing=(1,)).result(60)
    known = [pool.ask(f"k{number}", f"home{number}", familiar=True) for number in range(2)]
    with pytest.raises(Busy):
        pool.ask("too many", "home9", familiar=True, standing=(1,)).result(60)
    pool.open()
    assert [one.result(60) for one in (*strangers, *known)] == ["s0", "s1", "s2", "s3", "k0", "k1"]


def test_an_address_that_fills_the_queue_gives_up_its_newest_for_another(gate: Callable[[int], Gate]) -> None:
    pool = gate(4)
    flood = [pool.ask(f"a{number}", "a") for number in range(4)]
    first, second = pool.ask("b0", "b"), pool.ask("b1", "b")
    with pytest.raises(Busy):
        pool.ask("b2", "b", standing=(1,)).result(60)  # both have two now
    for given_up in flood[2:]:
        with pytest.raises(Busy):
            given_up.result(60)
    pool.open()
    assert [one.result(60) for one in (*flood[:2], first, second)] == ["a0", "a1", "b0", "b1"]


def test_one_account_takes_half_of_the_queue_from_wherever_it_is_tried(
    gate: Callable[[int], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "MOST_WAITING_PER_ACCOUNT", 2)
    pool = gate(4)
    kept = [pool.ask(f"x{number}", f"address-{number}", "x") for number in range(2)]
    with pytest.raises(Busy):
        pool.ask("x2", "address-2", "x", standing=(1,)).result(60)
    other = pool.ask("y", "address-3")
    pool.open()
    assert [one.result(60) for one in (*kept, other)] == ["x0", "x1", "y"]


def test_a_user_who_fills_the_queue_from_many_addresses_gives_up_a_place_for_another(
    gate: Callable[..., Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several credentials, all right: nobody has failed, and everybody is familiar."""
    monkeypatch.setattr(hashing, "MOST_WAITING_PER_ACCOUNT", 100)
    for familiar in False, True:
        pool = gate(8, kept=2)
        for number in range(8):
            pool.ask(f"a{number}", f"address-{number}", "user alice", familiar=True)
        for user in "bob", "carol":
            waits = pool.ask(user, f"address of {user}", f"user {user}", familiar=familiar)
            for number in range(50):
                pool.ask(f"again {number}", f"new-{number}", "user alice", familiar=True)
            assert not waits.done()
            assert len(pool.waiting()) == 8
        pool.open()
        for _ in range(8):
            pool.pool.run(int, address="last", account="last")
        assert {"bob", "carol"} <= {*pool.done}


def test_whose_password_is_tried_from_everywhere_keeps_the_first_place_of_the_account(
    gate: Callable[..., Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "MOST_WAITING_PER_ACCOUNT", 4)
    pool = gate(8)
    for number in range(4):
        pool.ask(f"guess {number}", f"address-{number}", "user bob")
        pool.ask(f"other {number}", f"other-{number}", f"user {number}")
    own = pool.ask("bob", "home", "user bob", familiar=True)
    for number in range(30):
        pool.ask(f"more {number}", f"more-{number}", "user bob")
    assert not own.done()


def test_a_failure_is_its_callers_own() -> None:
    pool = HashingPool(threads=1)

    def fails() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pool.run(fails, address="a", account="a")
    assert pool.run(lambda: 5, address="a", account="a") == 5
    pool.close()


def test_a_stop_turns_away_who_waits_and_who_comes(gate: Callable[[int], Gate]) -> None:
    pool = gate(4)
    waits = pool.ask("a", "a")
    pool.pool.close()
    with pytest.raises(Busy):
        waits.result(60)
    with pytest.raises(Busy):
        pool.pool.run(lambda: None, address="a", account="a")
