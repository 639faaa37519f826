"""Fair waiting: items of several projects in one queue, taken in turns over the projects.

One project that asks for a thousand things delays another project's one thing by one turn, not by a thousand. Used by
``bus.py`` for its workers. Not thread-safe: the bus uses it on its loop only; others hold a lock of their own.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class ProjectQueue(Generic[T]):
    """Waiting items by project: round robin over the projects, first come, first served within one."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()
        """The project whose turn is next stands first."""

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def put(self, project: str, item: T) -> None:
        """Queue an item behind the others of its project; a project that had none gets the last turn."""
        self._lines.setdefault(project, deque()).append(item)

    def take(self, may: Callable[[str], bool] = lambda _project: True) -> tuple[str, T] | None:
        """Remove and return the next item with its project, or None; projects for which ``may`` is False are skipped.

        A skipped project keeps its turn.
        """
        for project, line in self._lines.items():
            if may(project):
                item = line.popleft()
                del self._lines[project]
                if line:
                    self._lines[project] = line  # at the end: the others come first
                return project, item
        return None
