"""Finds the line in which a request waits for its turn: that of the project whose token it shows.

A project with many tokens has one line. A request without a recently valid token has none, and waits by its address.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

MOST = 10_000
"""Maximum number of remembered tokens."""
KEPT_S = 300.0
"""Seconds for which a token is remembered after its last check; not every request has its token checked."""


class TokenProjects:
    """The projects of recently valid tokens. They decide about turns, and about nothing else."""

    def __init__(self) -> None:
        self._projects: dict[int, tuple[str, float]] = {}
        """By hash of a token: its project, and the time until which it is remembered."""

    def note(self, token: str, project: str | None) -> None:
        """Remember the project of a token; None forgets a token that has ended. May be called on any thread."""
        if not token:
            return  # keystonemiddleware also accepts another header; a request without X-Auth-Token has no line
        if project is None:
            self._projects.pop(hash(token), None)
            return
        if len(self._projects) >= MOST:
            self._projects = {}  # each is noted again by its next request
        self._projects[hash(token)] = project, time.monotonic() + KEPT_S  # the token itself is not kept

    def of(self, headers: Mapping[str, str]) -> str:
        """Return the line of a request, given its headers by lower-case name; empty if it has none."""
        project, until = self._projects.get(hash(headers.get("x-auth-token", "")), ("", 0.0))
        return project if time.monotonic() < until else ""
