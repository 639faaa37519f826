"""Fair queues: items of several callers, taken in turns over the callers.

A caller with a thousand items delays another caller's single item by one turn, not by a thousand. Callers are projects
in ``operations/bus.py``; projects, networks and addresses in ``server/threads.py``; addresses in
``identity/hashing.py``; networks and addresses in ``api/http/strangers.py``. Not thread-safe: the bus uses it on its
event loop only; the others hold a lock.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Waiting items by caller: round robin over the callers, first come, first served within one."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()
        """The caller whose turn is next is first."""
        self._served = ""
        """The caller that had the last turn."""

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def put(self, caller: str, item: T) -> None:
        """Queue an item behind the others of its caller.

        A caller without waiting items gets the last turn, but one before the caller that had the turn just now.
        """
        self._lines.setdefault(caller, deque()).append(item)
        if self._served in self._lines:
            self._lines.move_to_end(self._served)

    def remove(self, caller: str, item: T) -> bool:
        """Remove an item, of equal items the newest; return False if it is not in the queue."""
        line = self._lines.get(caller)
        if line is None or item not in line:
            return False
        line.reverse()
        line.remove(item)
        line.reverse()
        if not line:
            del self._lines[caller]
        return True

    def waiting(self, caller: str) -> int:
        """Return the number of waiting items of a caller."""
        return len(self._lines.get(caller, ()))

    def longest(self) -> tuple[str, int]:
        """Return the caller with the most items, and their number. The queue must not be empty."""
        caller = max(self._lines, key=lambda one: len(self._lines[one]))
        return caller, len(self._lines[caller])

    def newest(self, caller: str) -> T:
        """Return the newest item of a caller, who must have one."""
        return self._lines[caller][-1]

    def take(self, may: Callable[[str], bool] = lambda _caller: True) -> tuple[str, T] | None:
        """Remove and return the next item with its caller, or None; callers for which ``may`` is False are skipped.

        A skipped caller keeps its turn.
        """
        for caller, line in self._lines.items():
            if may(caller):
                item = line.popleft()
                self._served = caller
                del self._lines[caller]
                if line:
                    self._lines[caller] = line  # at the end: the others come first
                return caller, item
        return None


class FairQueue(Generic[T]):
    """Waiting items by owner and by line: round robin over the owners, and over the lines of each."""

    def __init__(self) -> None:
        self._owners: Turns[None] = Turns()
        self._lines: dict[str, Turns[T]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def waiting(self, owner: str) -> int:
        """Return the number of waiting items of an owner."""
        return self._owners.waiting(owner)

    def waiting_in(self, owner: str, line: str) -> int:
        """Return the number of waiting items in a line of an owner."""
        return self._lines[owner].waiting(line) if owner in self._lines else 0

    def put(self, owner: str, line: str, item: T) -> None:
        """Queue an item behind the others of its line."""
        self._owners.put(owner, None)
        self._lines.setdefault(owner, Turns()).put(line, item)
        self._count += 1

    def remove(self, owner: str, line: str, item: T) -> bool:
        """Remove an item; return False if it is not in the queue."""
        lines = self._lines.get(owner)
        if lines is None or not lines.remove(line, item):
            return False
        self._owners.remove(owner, None)
        self._left(owner, lines)
        return True

    def last_of_owner(self, owner: str, line: str) -> tuple[str, T] | None:
        """Return the line of an owner with the most items, and its newest item, which gives way to a new item.

        None if the new item's line would then have as many.
        """
        lines = self._lines[owner]
        longest, count = lines.longest()
        return (longest, lines.newest(longest)) if count > lines.waiting(line) + 1 else None

    def last_of_most(self, owner: str, line: str) -> tuple[str, T] | None:
        """Return the same of the owner with the most items, or of the new item's owner if no other has more.

        The queue must not be empty.
        """
        most, count = self._owners.longest()
        if most != owner and count > self.waiting(owner) + 1:
            return self.newest_of_most()
        return self.last_of_owner(owner, line) if owner in self._lines else None

    def newest_of_most(self) -> tuple[str, T]:
        """Return the longest line of the owner with the most items, and its newest item. Not for an empty queue."""
        lines = self._lines[self._owners.longest()[0]]
        longest, _ = lines.longest()
        return longest, lines.newest(longest)

    def take(self) -> T:
        """Remove and return the next item. The queue must not be empty."""
        turn = self._owners.take()
        assert turn is not None
        lines = self._lines[turn[0]]
        found = lines.take()
        assert found is not None  # an owner is queued once for each of its items
        self._left(turn[0], lines)
        return found[1]

    def _left(self, owner: str, lines: Turns[T]) -> None:
        self._count -= 1
        if not lines:
            del self._lines[owner]
