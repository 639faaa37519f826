"""In which line a request waits for its turn: that of the project whose token it shows, among those of its address.

A project with many tokens has one line, and so have all requests of an address whose token nobody has seen to be good.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

MOST = 10_000
"""Tokens that are remembered."""
KEPT_S = 300.0
"""Seconds for which one is, after it was last found good: not every request has its token looked at."""


class Lines:
    """The projects of tokens that were found to be good lately. It decides about turns, and about nothing else."""

    def __init__(self) -> None:
        self._projects: dict[int, tuple[str, float]] = {}
        """The project of each, and until when."""

    def note(self, token: str, project: str | None) -> None:
        """Remember the project of a token; None forgets a token that has ended. May be called by any thread."""
        if not token:
            return  # keystonemiddleware takes tokens of another header, too; requests without one are no project's
        if project is None:
            self._projects.pop(hash(token), None)
            return
        if len(self._projects) >= MOST:
            self._projects = {}  # each is noted again by its next request
        self._projects[hash(token)] = project, time.monotonic() + KEPT_S  # the token itself is kept nowhere

    def of(self, headers: Mapping[str, str]) -> str:
        """Return the line of a request, for its headers by lower-case name."""
        project, until = self._projects.get(hash(headers.get("x-auth-token", "")), ("", 0.0))
        return project if time.monotonic() < until else ""
