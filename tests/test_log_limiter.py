"""One fault that everybody meets is one line in the log."""

from __future__ import annotations

import logging

import pytest

from blockstore.log_limiter import LogLimiter


def test_repeated_lines_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("blockstore.test")
    log_limiter = LogLimiter(log, interval_s=1000)
    for number in range(100):
        log_limiter.log(logging.WARNING, "database", "operation %d is tried again", number)
    log_limiter.log(logging.WARNING, "files", "another matter")
    assert caplog.messages == ["operation 0 is tried again", "another matter"]
    log_limiter._next.clear()
    log_limiter.log(logging.WARNING, "database", "operation %d is tried again", 100)
    assert caplog.messages[-1] == "operation 100 is tried again (99 more like this were not logged)"
