"""Work in the background: in order, once, told, given up when asked, and never the end of the thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from blockstore.backends.background import BackgroundTasks
from blockstore.backends.contract import BackgroundTask, Progress
from blockstore.errors import Unreachable

PATIENCE_S = 60


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
def background_tasks() -> Iterator[BackgroundTasks]:
    made = BackgroundTasks("pool")
    yield made
    assert made.wait_idle(PATIENCE_S)


@pytest.fixture
def held(background_tasks: BackgroundTasks) -> Iterator[Held]:
    work = Held()
    background_tasks.add("one", "the first", work)
    assert work.began.wait(PATIENCE_S)
    yield work
    work.go_on.set()


def test_one_after_the_other_in_order(background_tasks: BackgroundTasks, held: Held) -> None:
    done: list[str] = []
    for subject in ("two", "three"):
        # type: ignore[misc]
        background_tasks.add(subject, subject, lambda _tell, subject=subject: done.append(subject))
    held.go_on.set()
    assert background_tasks.wait_idle(PATIENCE_S)
    assert held.ended
    assert done == ["two", "three"]
    assert background_tasks.now() == []
    background_tasks.add("four", "four", lambda _tell: done.append("four"))  # on a new thread
    assert background_tasks.wait_idle(PATIENCE_S)
    assert done[-1] == "four"


def test_what_is_done_and_what_waits_is_told(background_tasks: BackgroundTasks, held: Held) -> None:
    background_tasks.add("two", "the second", lambda _tell: None)
    assert background_tasks.now() == [BackgroundTask("the first", 40), BackgroundTask("the second", 0)]
    assert not background_tasks.wait_idle(0.01)


def test_what_waits_already_is_done_once_and_what_is_being_done_again(
    background_tasks: BackgroundTasks, held: Held
) -> None:
    done: list[str] = []
    for _ in range(3):
        background_tasks.add("one", "again", lambda _tell: done.append("again"))
    held.go_on.set()
    assert background_tasks.wait_idle(PATIENCE_S)
    assert done == ["again"]


def test_progress_never_falls_and_is_logged_by_tens(
    background_tasks: BackgroundTasks, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []

    def work(progress: Progress) -> None:
        for percent in (3, 12, 15, 7, 30):
            progress(percent)
            seen.append(background_tasks.now()[0].percent)

    with caplog.at_level(logging.INFO, "blockstore.backends.background"):
        background_tasks.add("one", "slow work", work)
        assert background_tasks.wait_idle(PATIENCE_S)
    assert seen == [3, 12, 15, 15, 30]
    assert [record.message for record in caplog.records] == ["pool: slow work: 12 %", "pool: slow work: 30 %"]


def test_leaving_gives_up_what_is_done_and_what_waits_for_a_subject(
    background_tasks: BackgroundTasks, held: Held
) -> None:
    done: list[str] = []
    for subject in ("one", "two"):
        # type: ignore[misc]
        background_tasks.add(subject, subject, lambda _tell, subject=subject: done.append(subject))
    threading.Timer(0.1, held.go_on.set).start()
    with background_tasks.leaving("one"):
        assert not held.ended
        assert all(task.what != "the first" for task in background_tasks.now())
    assert background_tasks.wait_idle(PATIENCE_S)
    assert not held.ended
    assert done == ["two"]


def test_leaving_another_subject_does_not_wait(background_tasks: BackgroundTasks, held: Held) -> None:
    with background_tasks.leaving("two"):
        assert not held.ended
    held.go_on.set()
    assert background_tasks.wait_idle(PATIENCE_S)
    assert held.ended


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Unreachable("The pool is away."), "postponed: failing: The pool is away."),
        (ValueError(), "failed: failing"),
    ],
)
def test_a_failure_is_logged_and_the_next_is_done(
    background_tasks: BackgroundTasks, error: Exception, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []

    def fail(_progress: Progress) -> None:
        raise error

    with caplog.at_level(logging.INFO, "blockstore.backends.background"):
        background_tasks.add("one", "failing", fail)
        background_tasks.add("two", "next", lambda _tell: done.append("two"))
        assert background_tasks.wait_idle(PATIENCE_S)
    assert done == ["two"]
    assert says in caplog.text
