"""Who gives way when replies that wait to be taken are too many."""

from __future__ import annotations

from typing import Any

import pytest

from blockstore.server.budget import Budget, Replies


class Task:
    """What is cancelled."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        """Note it."""
        self.cancelled = True


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> Replies:
    monkeypatch.setattr(Replies, "SLOW_RATE", 0)  # everybody takes what is his quickly enough
    return Replies(Budget(total=100, share=40))


def admit(replies: Replies, caller: str, size: int, *, must: bool = False) -> tuple[Any, Task]:
    task = Task()
    return replies.admit(task, caller, size, must=must), task  # type: ignore[arg-type]


def test_beyond_its_share_a_caller_is_refused_and_others_are_not(replies: Replies) -> None:
    assert admit(replies, "a", 30)[0] is not None
    assert admit(replies, "a", 20)[0] is None
    assert admit(replies, "b", 30)[0] is not None


def test_a_reply_that_is_larger_than_the_share_is_sent_when_it_is_the_only_one(replies: Replies) -> None:
    assert admit(replies, "a", 60)[0] is not None
    assert admit(replies, "a", 1)[0] is None


def test_when_all_is_taken_the_largest_gives_way_to_who_has_nothing(replies: Replies) -> None:
    held = [admit(replies, caller, 15) for caller in ("a", "b", "a", "b", "c", "d")]
    mine, _ = admit(replies, "bob", 15)
    assert mine is not None
    assert [task.cancelled for _, task in held].count(True) == 1
    assert not held[4][1].cancelled
    assert not held[5][1].cancelled


def test_what_has_changed_something_is_answered_in_any_case(replies: Replies) -> None:
    admit(replies, "a", 40)
    assert admit(replies, "a", 40, must=True)[0] is not None


def test_what_ends_is_given_back(replies: Replies) -> None:
    for _ in range(10):
        sending, _ = admit(replies, "a", 40)
        replies.end(sending)
        replies.end(sending)
    assert admit(replies, "a", 40)[0] is not None
