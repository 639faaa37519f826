"""Turns to run Python: one thread at a time, requests every second time, operations in turns over projects."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from blockstore.interpreter import REQUESTS, InterpreterTurns

WAIT_S = 60


def waiting(turns: InterpreterTurns, count: int) -> None:
    """Wait until so many threads wait for the turn."""
    until = time.monotonic() + WAIT_S
    while len(turns._requests) + len(turns._operations) < count:
        assert time.monotonic() < until
        time.sleep(0.001)


def queued(turns: InterpreterTurns, pool: ThreadPoolExecutor, lines: list[str], work: Callable[[str], None]) -> None:
    """Let a thread for each line wait for the turn, in this order."""

    def hold(line: str) -> None:
        with turns.held(line):
            work(line)

    for number, line in enumerate(lines, 1):
        pool.submit(hold, line)
        waiting(turns, number)


def test_one_thread_at_a_time_requests_every_second_time_and_projects_in_turns() -> None:
    turns, order, inside = InterpreterTurns(are_taken=True), list[str](), list[str]()

    def work(line: str) -> None:
        inside.append(line)
        assert len(inside) == 1
        order.append(line)
        time.sleep(0.001)
        inside.remove(line)

    with ThreadPoolExecutor(16) as pool, turns.held("busy"):
        queued(turns, pool, ["busy", "busy", "busy", REQUESTS, REQUESTS, REQUESTS, "quiet", "third"], work)
    assert order == [REQUESTS, "busy", REQUESTS, "quiet", REQUESTS, "third", "busy", "busy"]


def test_a_thread_for_which_others_wait_is_the_next() -> None:
    turns, order = InterpreterTurns(are_taken=True), list[str]()

    def write() -> None:
        with turns.held("writer", first=True):
            order.append("writer")

    with ThreadPoolExecutor(16) as pool, turns.held("busy"):
        queued(turns, pool, [REQUESTS, "quiet"], order.append)
        pool.submit(write)
        until = time.monotonic() + WAIT_S
        while not turns._first:
            assert time.monotonic() < until
            time.sleep(0.001)
    assert order == ["writer", REQUESTS, "quiet"]


def test_a_thread_takes_one_turn_however_often_it_asks() -> None:
    turns = InterpreterTurns(are_taken=True)
    with turns.held("a"), turns.held("b"), ThreadPoolExecutor(1) as pool:
        entered = threading.Event()
        queued(turns, pool, ["c"], lambda _line: entered.set())
        with turns.held("a"):
            pass
        assert not entered.wait(0.05)
        with turns.released():
            assert entered.wait(WAIT_S)
        assert turns._thread.has_turn


def test_a_released_turn_comes_back_in_its_line_and_may_be_taken_within() -> None:
    """A request that writes waits without a turn, takes it for its statements, and commits without."""
    turns, order = InterpreterTurns(are_taken=True), list[str]()
    with ThreadPoolExecutor(4) as pool:
        with turns.held(REQUESTS), turns.released():
            with turns.held("project"):
                assert turns._thread.line == REQUESTS
                queued(turns, pool, ["a", REQUESTS], order.append)
            assert not turns._thread.has_turn
        assert sorted(order) == sorted(["a", REQUESTS])
        with turns.released(), turns.held("project"):
            assert turns._thread.line == "project"


def test_an_error_passes_the_turn_on() -> None:
    turns = InterpreterTurns(are_taken=True)
    for context in (turns.held("a"), turns.released()):
        with pytest.raises(ValueError), turns.held("a"), context:
            raise ValueError
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: turns.held("b").__enter__()).result(WAIT_S) is None


def test_without_turns_nobody_waits() -> None:
    turns, both = InterpreterTurns(are_taken=False), threading.Barrier(2)

    def meet() -> None:
        with turns.held("a"), turns.released():
            both.wait(WAIT_S)

    with ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(meet) for _ in range(2)]:
            one.result(WAIT_S)
