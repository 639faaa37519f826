"""Callers between callers, and a pool whose size changes while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from blockstore.server import threads as pool
from blockstore.server import token_projects as lines_module
from blockstore.server.threads import Callers, Threads
from blockstore.server.token_projects import MOST, TokenProjects


def order_of(turns: Callers) -> list[str]:
    """Take everything; tasks here are bound methods that tell their name."""
    names: list[str] = []
    while turns:
        task = turns.take()
        names.append(task.__doc__ or "")
    return names


def named(name: str):  # type: ignore[no-untyped-def]
    def task() -> None:
        pass

    task.__doc__ = name
    return task


def test_projects_take_turns_and_so_do_the_addresses_of_one_project() -> None:
    turns = Callers()
    for number in range(3):
        for address in ("a", "b"):
            turns.put(address, "loud", named(f"loud {address}{number}"))
    turns.put("a", "quiet", named("quiet"))
    assert order_of(turns) == ["loud a0", "quiet", "loud b0", "loud a1", "loud b1", "loud a2", "loud b2"]


def test_addresses_of_strangers_take_turns() -> None:
    turns = Callers()
    for number in range(3):
        turns.put("loud", "", named(f"loud {number}"))
    turns.put("quiet", "", named("quiet"))
    assert order_of(turns) == ["loud 0", "quiet", "loud 1", "loud 2"]


def test_a_project_with_many_addresses_has_one_turn() -> None:
    turns = Callers()
    for number in range(100):
        turns.put(f"{number}", "loud", named("loud"))
    turns.put("0", "quiet", named("quiet"))
    assert order_of(turns).index("quiet") == 1


def test_strangers_at_any_number_of_addresses_have_every_second_turn_at_most() -> None:
    turns = Callers()
    for number in range(100):
        turns.put(f"{number}", "", named("stranger"))
    for number in range(3):
        turns.put("0", "project", named(f"known {number}"))
    operation = order_of(turns)
    assert [name for name in operation if name != "stranger"] == ["known 0", "known 1", "known 2"]
    assert operation.index("known 2") <= 5


def test_one_caller_is_served_in_order() -> None:
    turns = Callers()
    for number in range(5):
        turns.put("a", "t", named(str(number)))
    assert order_of(turns) == ["0", "1", "2", "3", "4"]
    assert not turns


@pytest.fixture
def threads() -> Iterator[Threads]:
    pool = Threads(1, "test")
    yield pool
    pool.close()


class Held:
    """A task that runs until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go, self.ended = threading.Event(), threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.go.wait(120)
        self.ended.set()


def test_no_more_than_the_count_work_at_once_and_a_higher_count_lets_the_next_begin(threads: Threads) -> None:
    first, second = Held(), Held()
    threads.submit("a", "", first)
    threads.submit("b", "", second)
    assert first.begun.wait(60)
    assert not second.begun.wait(0.05)
    threads.set_count(2)
    assert second.begun.wait(60)
    threads.set_count(1)
    second.go.set()
    assert second.ended.wait(60)
    third = Held()
    threads.submit("c", "", third)
    assert not third.begun.wait(0.05)
    first.go.set()
    assert third.begun.wait(60)
    third.go.set()


def test_every_task_is_run_once_under_many_threads(threads: Threads) -> None:
    threads.set_count(8)
    done, all_done, lock = [], threading.Event(), threading.Lock()

    def task(number: int) -> None:
        with lock:
            done.append(number)
            if len(done) == 2000:
                all_done.set()

    def feed(start: int) -> None:
        for number in range(start, start + 500):
            while not threads.submit(f"a{start}", f"t{number % 3}", lambda n=number: task(n)):
                time.sleep(0.001)

    feeders = [threading.Thread(target=feed, args=(start,)) for start in range(0, 2000, 500)]
    for feeder in feeders:
        feeder.start()
    for feeder in feeders:
        feeder.join()
    assert all_done.wait(60)
    assert sorted(done) == list(range(2000))


def test_a_project_with_many_tokens_has_one_line_and_tokens_that_nobody_knows_share_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = TokenProjects()
    for number in range(60):
        lines.note(f"token {number}", "loud")
    lines.note("other", "quiet")
    known = [lines.of({"x-auth-token": f"token {number}"}) for number in range(60)]
    assert set(known) == {"loud"}
    assert lines.of({"x-auth-token": "other"}) == "quiet"
    assert {lines.of({"x-auth-token": "made up"}), lines.of({})} == {""}
    lines.note("other", None)
    assert lines.of({"x-auth-token": "other"}) == "", "it has ended"
    lines.note("other", "quiet")
    monkeypatch.setattr(lines_module, "KEPT_S", 0)
    lines.note("idle", "quiet")
    assert lines.of({"x-auth-token": "idle"}) == "", "nobody has looked at it for a while"
    for number in range(MOST + 1):
        lines.note(f"more {number}", "p")
    assert lines.of({"x-auth-token": "other"}) == "", "the number of tokens that are remembered is bounded"


def test_a_bounded_number_waits_of_one_address_and_of_all(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MOST_WAITING_OF_ONE", 3)
    monkeypatch.setattr(pool, "MOST_STRANGERS_WAITING", 5)
    first = Held()
    assert threads.submit("a", "", first)
    assert first.begun.wait(60)
    assert [threads.submit("a", "", int) for _ in range(4)] == [True, True, True, False]
    assert [threads.submit("b", "", int) for _ in range(3)] == [True, True, False]
    assert threads.submit("b", "project", int), "strangers take no places of projects"
    first.go.set()


def test_a_bounded_number_waits_of_one_project(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MOST_WAITING_OF_ONE", 2)
    first = Held()
    assert threads.submit("a", "loud", first)
    assert first.begun.wait(60)
    assert [threads.submit(str(number), "loud", int) for number in range(3)] == [True, True, False]
    assert threads.submit("0", "quiet", int)
    monkeypatch.setattr(pool, "MOST_WAITING", 4)
    assert [threads.submit("0", line, int) for line in ("third", "fourth")] == [True, False]
    assert threads.submit("0", "", int)
    first.go.set()


def test_an_address_that_fills_its_projects_line_gives_way_to_another_of_it(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MOST_WAITING_OF_ONE", 4)
    first, told, ran = Held(), list[str](), list[str]()
    assert threads.submit("x", "other", first)
    assert first.begun.wait(60)

    def ask(address: str, name: str) -> bool:
        return threads.submit(address, "loud", lambda: ran.append(name), lambda: told.append(name))

    assert [ask("a", f"a{number}") for number in range(5)] == [True] * 4 + [False]
    assert [ask("b", f"b{number}") for number in range(3)] == [True, True, False]
    assert told == ["a3", "a2"], "the newest first, until both have as many"
    last = Held()
    assert threads.submit("x", "other", last)
    first.go.set()
    last.go.set()
    assert last.ended.wait(60)
    for _ in range(6000):
        if len(ran) == 4:
            break
        time.sleep(0.01)
    assert sorted(ran) == ["a0", "a1", "b0", "b1"]
    assert not threads._give_way


def test_among_strangers_the_address_with_the_most_gives_way(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MOST_STRANGERS_WAITING", 6)
    first, told = Held(), list[str]()
    assert threads.submit("x", "other", first)
    assert first.begun.wait(60)

    def ask(address: str, name: str) -> bool:
        return threads.submit(address, "", lambda: None, lambda: told.append(name))

    for number in range(4):
        assert ask("a", f"a{number}")
    for number in range(2):
        assert ask("b", f"b{number}")
    assert [ask("login", f"login{number}") for number in range(3)] == [True, True, False]
    assert told == ["a3", "a2"]
    first.go.set()


def test_among_strangers_a_network_with_many_addresses_has_one_turn_and_gives_way(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MOST_STRANGERS_WAITING", 6)
    first, told, ran = Held(), list[str](), list[str]()
    assert threads.submit("x", "other", first)
    assert first.begun.wait(60)

    def ask(address: str) -> bool:
        return threads.submit(address, "", lambda: ran.append(address), lambda: told.append(address))

    crowd = [f"2001:db8:7:{number:x}::/64" for number in range(6)]
    assert all(ask(address) for address in crowd)
    assert not ask("2001:db8:7:6::/64"), "of the same network, and nobody there has more"
    for address in "2001:db8:8::/64", "198.51.100.1":
        assert ask(address)
    assert told == [crowd[0], crowd[1]]
    last = Held()
    assert threads.submit("203.0.113.1", "other", last)
    first.go.set()
    last.go.set()
    for _ in range(6000):
        if len(ran) == 6:
            break
        time.sleep(0.01)
    assert {"2001:db8:8::/64", "198.51.100.1"} <= set(ran[:3])


def test_a_task_that_nobody_waits_for_is_not_run(threads: Threads) -> None:
    first, left, stays = Held(), Held(), Held()
    threads.submit("a", "", first)
    assert first.begun.wait(60)
    threads.submit("a", "t", left)
    threads.submit("a", "t", stays)
    assert threads.withdraw("a", "t", left)
    assert not threads.withdraw("a", "", first), "it runs already"
    stays.go.set()
    first.go.set()
    assert stays.ended.wait(60)
    assert not left.begun.is_set()
