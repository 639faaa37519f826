"""Work in the background: in order, once, told, given up when asked, and never the end of the thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from blockstore.backends.chores import Chores
from blockstore.backends.contract import Chore, Progress
from blockstore.errors import Unreachable

PATIENCE_S = 10


class Held:
    """Work that goes on when it is let, and remembers what was done."""

    def __init__(self) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        self.ended = False

    def __call__(self, progress: Progress) -> None:
        progress(40)
        self.began.set()
        assert self.go_on.wait(PATIENCE_S)
        progress(90)
        self.ended = True


@pytest.fixture
def chores() -> Iterator[Chores]:
    made = Chores("pool")
    yield made
    assert made.wait_idle(PATIENCE_S)


@pytest.fixture
def held(chores: Chores) -> Iterator[Held]:
    work = Held()
    chores.add("one", "the first", work)
    assert work.began.wait(PATIENCE_S)
    yield work
    work.go_on.set()


def test_one_after_the_other_in_order(chores: Chores, held: Held) -> None:
    done: list[str] = []
    for subject in ("two", "three"):
        chores.add(subject, subject, lambda _tell, subject=subject: done.append(subject))  # type: ignore[misc]
    held.go_on.set()
    assert chores.wait_idle(PATIENCE_S)
    assert held.ended
    assert done == ["two", "three"]
    assert chores.now() == []
    chores.add("four", "four", lambda _tell: done.append("four"))  # on a new thread
    assert chores.wait_idle(PATIENCE_S)
    assert done[-1] == "four"


def test_what_is_done_and_what_waits_is_told(chores: Chores, held: Held) -> None:
    chores.add("two", "the second", lambda _tell: None)
    assert chores.now() == [Chore("the first", 40), Chore("the second", 0)]
    assert not chores.wait_idle(0.01)


def test_what_waits_already_is_done_once_and_what_is_being_done_again(chores: Chores, held: Held) -> None:
    done: list[str] = []
    for _ in range(3):
        chores.add("one", "again", lambda _tell: done.append("again"))
    held.go_on.set()
    assert chores.wait_idle(PATIENCE_S)
    assert done == ["again"]


def test_progress_never_falls_and_is_logged_by_tens(chores: Chores, caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    def work(progress: Progress) -> None:
        for percent in (3, 12, 15, 7, 30):
            progress(percent)
            seen.append(chores.now()[0].percent)

    with caplog.at_level(logging.INFO, "blockstore.backends.chores"):
        chores.add("one", "slow work", work)
        assert chores.wait_idle(PATIENCE_S)
    assert seen == [3, 12, 15, 15, 30]
    assert [record.message for record in caplog.records] == ["pool: slow work: 12 %", "pool: slow work: 30 %"]


def test_leaving_gives_up_what_is_done_and_what_waits_for_a_subject(chores: Chores, held: Held) -> None:
    done: list[str] = []
    for subject in ("one", "two"):
        chores.add(subject, subject, lambda _tell, subject=subject: done.append(subject))  # type: ignore[misc]
    threading.Timer(0.1, held.go_on.set).start()
    with chores.leaving("one"):
        assert not held.ended
        assert all(chore.what != "the first" for chore in chores.now())
    assert chores.wait_idle(PATIENCE_S)
    assert not held.ended
    assert done == ["two"]


def test_leaving_another_subject_does_not_wait(chores: Chores, held: Held) -> None:
    with chores.leaving("two"):
        assert not held.ended
    held.go_on.set()
    assert chores.wait_idle(PATIENCE_S)
    assert held.ended


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Unreachable("The pool is away."), "left for later: failing: The pool is away."),
        (ValueError(), "failed: failing"),
    ],
)
def test_a_failure_is_logged_and_the_next_is_done(
    chores: Chores, error: Exception, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []

    def fail(_progress: Progress) -> None:
        raise error

    with caplog.at_level(logging.INFO, "blockstore.backends.chores"):
        chores.add("one", "failing", fail)
        chores.add("two", "next", lambda _tell: done.append("two"))
        assert chores.wait_idle(PATIENCE_S)
    assert done == ["two"]
    assert says in caplog.text
