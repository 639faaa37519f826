"""Prints at the end how long the tests of each folder took: the seconds of the clock, and of the processor.

Processor seconds are those of the test's process and of the children that it waited for; a process that outlives the
test (PostgreSQL, a Ceph) is not in them. A folder whose tests take many more seconds of the clock waits.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator
from typing import Any

import pytest


def processor_seconds() -> float:
    """Return what this process and its finished children have used."""
    return sum(os.times()[:4])


class Durations:
    """Measures each test where it runs; adds up where the reports arrive (with xdist: in another process)."""

    def __init__(self) -> None:
        self._started = 0.0
        self.clock: dict[str, float] = collections.defaultdict(float)
        self.processor: dict[str, float] = collections.defaultdict(float)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        report: Any = yield
        now = processor_seconds()
        report.processor_seconds = now - (self._started or now)
        self._started = now
        return report

    def pytest_runtest_logstart(self) -> None:
        self._started = processor_seconds()

    def pytest_runtest_logreport(self, report: Any) -> None:
        parts = report.nodeid.partition("::")[0].split("/")
        folder = "/".join(parts[:2]) if len(parts) > 2 else parts[0]
        self.clock[folder] += report.duration
        self.processor[folder] += getattr(report, "processor_seconds", 0.0)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.clock:
            return
        terminalreporter.section("seconds of each suite: clock, processor")
        for folder in sorted(self.clock, key=lambda name: -self.clock[name]):
            terminalreporter.write_line(f"{self.clock[folder]:8.1f} {self.processor[folder]:8.1f}  {folder}")
