"""The threads that answer requests: callers are served in turns, so that one with many requests delays only itself."""

from __future__ import annotations

import threading
from collections.abc import Callable

from blockstore.address import wide_network_of
from blockstore.turns import Turns

MOST_WAITING, MOST_STRANGERS_WAITING, MOST_WAITING_OF_ONE = 4096, 1024, 256
"""Tasks that may wait: of all projects, of all strangers, and of one project or one address of strangers."""

Task = Callable[[], None]


class Callers:
    """A queue of tasks: the lines of projects take turns, over all their addresses; strangers have no line.

    Who shows no token that was good lately may come from as many addresses as a network has. Strangers take turns over
    wide networks and over the addresses in each, and together they get every second turn at most.
    """

    def __init__(self) -> None:
        self._known, self._strangers = _Queue(), _Queue()
        self._was_known = False

    def __len__(self) -> int:
        return len(self._known) + len(self._strangers)

    def is_full(self, line: str) -> bool:
        """Return True if there is no place: for projects with a line, or for strangers, without."""
        return len(self._known) >= MOST_WAITING if line else len(self._strangers) >= MOST_STRANGERS_WAITING

    def waiting(self, address: str, line: str) -> int:
        """Return how many tasks wait of a line; of an address, for a stranger."""
        return self._known.waiting(line) if line else self._strangers.waiting_of(wide_network_of(address), address)

    def put(self, address: str, line: str, task: Task) -> None:
        """Add a task behind the others of the same address and line."""
        if line:
            self._known.put(line, address, task)
        else:
            self._strangers.put(wide_network_of(address), address, task)

    def remove(self, address: str, line: str, task: Task) -> bool:
        """Remove a task; return False if it does not wait any more."""
        if line:
            return self._known.remove(line, address, task)
        return self._strangers.remove(wide_network_of(address), address, task)

    def gives_way(self, address: str, line: str) -> tuple[str, Task] | None:
        """Return the task, with its address, that gives way to one that comes and finds its line full.

        It is the newest of the address that has the most: in a project's line; among strangers, of the wide network
        that has the most. None if the one that comes has as many.
        """
        if line:
            return self._known.gives_way(line, address)
        return self._strangers.last_of_most(wide_network_of(address), address)

    def take(self) -> Task:
        """Remove and return the task whose turn it is. There must be one."""
        is_known = bool(self._known) and not (self._strangers and self._was_known)
        self._was_known = is_known
        return (self._known if is_known else self._strangers).take()


class _Queue:
    """A queue of tasks that serves owners in turns, and the lines of one owner in turns."""

    def __init__(self) -> None:
        self._owners: Turns[None] = Turns()
        self._lines: dict[str, Turns[Task]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def waiting(self, owner: str) -> int:
        return self._owners.waiting(owner)

    def put(self, owner: str, line: str, task: Task) -> None:
        self._owners.put(owner, None)
        self._lines.setdefault(owner, Turns()).put(line, task)
        self._count += 1

    def remove(self, owner: str, line: str, task: Task) -> bool:
        lines = self._lines.get(owner)
        if lines is None or not lines.remove(line, task):
            return False
        self._owners.remove(owner, None)
        self._left(owner, lines)
        return True

    def waiting_of(self, owner: str, line: str) -> int:
        return self._lines[owner].waiting(line) if owner in self._lines else 0

    def gives_way(self, owner: str, line: str) -> tuple[str, Task] | None:
        lines = self._lines[owner]
        longest, count = lines.longest()
        return (longest, lines.newest(longest)) if count > lines.waiting(line) + 1 else None

    def last_of_most(self, owner: str, line: str) -> tuple[str, Task] | None:
        most, count = self._owners.longest()
        if most == owner:
            return self.gives_way(owner, line)
        longest, _ = self._lines[most].longest()
        return (longest, self._lines[most].newest(longest)) if count > self.waiting(owner) + 1 else None

    def take(self) -> Task:
        turn = self._owners.take()
        assert turn is not None
        lines = self._lines[turn[0]]
        found = lines.take()
        assert found is not None  # an owner is in line once for each of its tasks
        self._left(turn[0], lines)
        return found[1]

    def _left(self, owner: str, lines: Turns[Task]) -> None:
        self._count -= 1
        if not lines:
            del self._lines[owner]


class Threads:
    """A pool of threads. How many of them may work at once changes while it runs."""

    def __init__(self, count: int, name: str) -> None:
        """``count`` threads may work at once; each is started when it is first needed."""
        self._count, self._name = count, name
        self._callers = Callers()
        self._give_way: dict[Task, Callable[[], None]] = {}
        """The refusal of each waiting task, called when another takes the place of the task."""
        self._change = threading.Condition()
        self._started = 0
        self._working = 0
        self._closed = False

    def submit(self, address: str, line: str, task: Task, give_way: Callable[[], None] | None = None) -> bool:
        """Have a thread run ``task``, which must not raise, when it is its turn. Return False if too many wait.

        ``give_way`` is called instead of the task, by any thread, if another address of a full line needs its place;
        a task without it keeps its place.
        """
        instead: Callable[[], None] | None = None
        with self._change:
            is_full, has_most = self._callers.is_full(line), self._callers.waiting(address, line) >= MOST_WAITING_OF_ONE
            if is_full if line else has_most:
                return False
            if is_full or has_most:
                whose, last = self._callers.gives_way(address, line) or ("", task)
                instead = self._give_way.pop(last, None)
                if instead is None:
                    return False
                self._callers.remove(whose, line, last)
            self._callers.put(address, line, task)
            if give_way is not None:
                self._give_way[task] = give_way
            if self._working < self._count:
                if self._working == self._started:
                    self._start()
                else:
                    self._change.notify()
        if instead is not None:
            instead()
        return True

    def withdraw(self, address: str, line: str, task: Task) -> bool:
        """Forget a task that nobody waits for any more; return False if it runs already."""
        with self._change:
            self._give_way.pop(task, None)
            return self._callers.remove(address, line, task)

    def set_count(self, count: int) -> None:
        """Let ``count`` threads work at once."""
        with self._change:
            self._count = count
            if self._callers and self._working < count:
                if self._working == self._started:
                    self._start()
                else:
                    self._change.notify()

    def close(self) -> None:
        """Start no further task. Running tasks end by themselves."""
        with self._change:
            self._closed = True
            self._change.notify_all()

    def _start(self) -> None:
        self._started += 1
        # Daemons: the service has waited for what must end before the process does.
        threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._closed and not (self._callers and self._working < self._count):
                    self._change.wait()
                if self._closed:
                    return
                task = self._callers.take()
                self._give_way.pop(task, None)
                self._working += 1
            try:
                task()
            finally:
                del task  # and with it what it refers to, before the next one comes
                with self._change:
                    self._working -= 1
