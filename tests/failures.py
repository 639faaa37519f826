"""Writes each failure as one line into the file that TEST_FAILURES names: `.ci/run` prints them all at its very end.

`make test` runs several suites beside each other, whose full reports are too long for what a CI shows of them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

_LINE = 600
"""Characters of a failure's line."""


class Failures:
    """Appends the failures of a run; with xdist in the process to which all reports come."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self._write(f"{report.nodeid} ({report.when})", report.longrepr)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._write(report.nodeid, report.longrepr)

    def _write(self, what: str, why: Any) -> None:
        crash = getattr(why, "reprcrash", None)
        text = f"{crash.path}:{crash.lineno}: {crash.message}" if crash else str(why)
        with self._file.open("a") as file:
            file.write(f"FAILED {what}: {' '.join(text.split())[:_LINE]}\n")


def from_environment() -> Failures | None:
    """Return the writer of failures if TEST_FAILURES names a file; a worker of xdist leaves it to the controller."""
    file = os.environ.get("TEST_FAILURES")
    return Failures(Path(file)) if file and "PYTEST_XDIST_WORKER" not in os.environ else None
