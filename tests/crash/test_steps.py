"""The harness of crash tests: where it fails an action, and what happens afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.crash.steps import Crash, Steps


def three(steps: Steps, done: list[int], *, after: bool = False) -> Callable[[], None]:
    """Return an action of three steps, of which each is noted when it is done."""
    note = steps.wrap(done.append, after=after)

    def act() -> None:
        for number in (1, 2, 3):
            note(number)

    return act


@pytest.mark.parametrize(("after", "done"), [(False, [[], [1], [1, 2]]), (True, [[1], [1, 2], [1, 2, 3]])])
def test_an_action_crashes_before_or_after_each_step(after: bool, done: list[list[int]]) -> None:
    for fatal, wanted in enumerate(done, 1):
        steps, noted = Steps(), list[int]()
        assert steps.crashed(fatal, three(steps, noted, after=after))
        assert noted == wanted


def test_an_action_that_ends_before_the_step_has_not_crashed() -> None:
    steps, done = Steps(), list[int]()
    assert not steps.crashed(4, three(steps, done))
    assert done == [1, 2, 3]
    assert steps.crashed(3, three(steps, done))


def test_a_crashed_process_does_nothing_more() -> None:
    steps, done = Steps(2), list[int]()
    for _ in range(2):
        with pytest.raises(Crash):
            three(steps, done)()
    with pytest.raises(Crash):
        steps.take()
    assert (done, steps.reached) == ([1], True)


@pytest.mark.parametrize(("after", "done"), [(False, [1, 1, 2, 3]), (True, [1, 2, 1, 2, 3])])
def test_another_failure_happens_once(after: bool, done: list[int]) -> None:
    steps, noted = Steps(2, OSError("no")), list[int]()
    with pytest.raises(OSError, match="no"):
        three(steps, noted, after=after)()
    three(steps, noted, after=after)()
    assert (noted, steps.reached) == (done, True)
