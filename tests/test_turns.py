"""Turns over projects: whatever comes in between, nobody waits for more than one turn of each other project."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from blockstore.turns import Turns

PROJECTS = st.sampled_from("abcd")


@given(st.lists(st.one_of(PROJECTS, st.none()), max_size=80))
def test_each_project_is_served_in_its_order_and_waits_one_round_at_most(steps: list[str | None]) -> None:
    """A step puts an item of a project, or takes one."""
    waiting: Turns[int] = Turns()
    model: dict[str, deque[int]] = {project: deque() for project in "abcd"}
    passed_over = dict.fromkeys("abcd", 0)
    for number, project in enumerate(steps):
        if project is not None:
            waiting.put(project, number)
            model[project].append(number)
        else:
            turn = waiting.take()
            if turn is None:
                assert not any(model.values())
                continue
            taken, item = turn
            assert model[taken].popleft() == item
            for other in model:
                passed_over[other] = passed_over[other] + 1 if other != taken and model[other] else 0
                assert passed_over[other] <= len(model) - 1
        assert len(waiting) == sum(map(len, model.values()))


def test_a_newcomer_is_served_before_the_caller_that_was_served_just_now() -> None:
    waiting: Turns[str] = Turns()
    for item in ("a1", "a2", "a3"):
        waiting.put(item[0], item)
    assert waiting.take() == ("a", "a1")
    waiting.put("b", "b1")
    waiting.put("c", "c1")
    assert [waiting.take() for _ in range(4)] == [("b", "b1"), ("c", "c1"), ("a", "a2"), ("a", "a3")]


def test_any_number_of_newcomers_one_after_the_other_do_not_keep_a_caller_waiting() -> None:
    waiting: Turns[str] = Turns()
    waiting.put("a", "a1")
    waiting.put("a", "a2")
    assert waiting.take() == ("a", "a1")
    served = []
    for newcomer in "bcdefg":
        waiting.put(newcomer, newcomer)
        served.append(waiting.take())
    assert ("a", "a2") in served[:2]


def test_who_may_not_run_now_keeps_its_turn() -> None:
    waiting: Turns[str] = Turns()
    for item in ("a1", "b1", "c1", "a2"):
        waiting.put(item[0], item)
    assert waiting.take(lambda project: project != "a") == ("b", "b1")
    assert waiting.take() == ("a", "a1")
    assert waiting.take(lambda project: project == "a") == ("a", "a2")
    assert waiting.take(lambda project: project == "a") is None
    assert waiting.take() == ("c", "c1")
