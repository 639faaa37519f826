"""One fault that everybody meets is one line in the log."""

from __future__ import annotations

import logging

import pytest

from blockstore.repeats import Repeats


def test_repeated_lines_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("blockstore.test")
    repeats = Repeats(log, interval_s=1000)
    for number in range(100):
        repeats.log(logging.WARNING, "database", "operation %d is tried again", number)
    repeats.log(logging.WARNING, "files", "another matter")
    assert caplog.messages == ["operation 0 is tried again", "another matter"]
    repeats._next.clear()
    repeats.log(logging.WARNING, "database", "operation %d is tried again", 100)
    assert caplog.messages[-1] == "operation 100 is tried again (99 more like this were not logged)"
