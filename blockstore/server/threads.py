"""The threads that answer requests: callers take turns, so that a caller with many requests delays only itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from blockstore.address import wide_network_of
from blockstore.log_limiter import LogLimiter
from blockstore.turns import FairQueue

log_limiter = LogLimiter(logging.getLogger(__name__))

MOST_WAITING, MOST_STRANGERS_WAITING, MOST_WAITING_OF_ONE = 4096, 1024, 256
"""Maximum numbers of waiting tasks: of all projects, of all strangers, and of one project or stranger's address."""

Task = Callable[[], None]


class Callers:
    """A queue of tasks. Each project has one line for all its addresses, and takes turns; strangers have no line.

    A stranger is a caller without a recently valid token, and may use every address of a network. Strangers take turns
    over wide networks and over the addresses in each. Together they get at most every second turn.
    """

    def __init__(self) -> None:
        self._known: FairQueue[Task] = FairQueue()
        self._strangers: FairQueue[Task] = FairQueue()
        self._was_known = False

    def __len__(self) -> int:
        return len(self._known) + len(self._strangers)

    def is_full(self, line: str) -> bool:
        """Return True if there is no place: for projects if ``line`` is set, else for strangers."""
        return len(self._known) >= MOST_WAITING if line else len(self._strangers) >= MOST_STRANGERS_WAITING

    def waiting(self, address: str, line: str) -> int:
        """Return the number of waiting tasks of a line or, without a line, of a stranger's address."""
        return self._known.waiting(line) if line else self._strangers.waiting_in(wide_network_of(address), address)

    def put(self, address: str, line: str, task: Task) -> None:
        """Add a task behind the others of the same address and line."""
        if line:
            self._known.put(line, address, task)
        else:
            self._strangers.put(wide_network_of(address), address, task)

    def remove(self, address: str, line: str, task: Task) -> bool:
        """Remove a task; return False if it is no longer in the queue."""
        if line:
            return self._known.remove(line, address, task)
        return self._strangers.remove(wide_network_of(address), address, task)

    def gives_way(self, address: str, line: str) -> tuple[str, Task] | None:
        """Return the address and the task that lose their place to a new task whose line is full.

        It is the newest task of the address with the most tasks: in the project's line, or, for strangers, in the wide
        network with the most tasks. None if the new task's address would then have as many.
        """
        if line:
            return self._known.last_of_owner(line, address)
        return self._strangers.last_of_most(wide_network_of(address), address)

    def take(self) -> Task:
        """Remove and return the next task. The queue must not be empty."""
        is_known = bool(self._known) and not (self._strangers and self._was_known)
        self._was_known = is_known
        return (self._known if is_known else self._strangers).take()


class Threads:
    """A pool of threads. How many of them may work at once changes while it runs."""

    def __init__(self, count: int, name: str) -> None:
        """``count`` threads may work at once; each is started when it is first needed."""
        self._count, self._name = count, name
        self._callers = Callers()
        self._give_way: dict[Task, Callable[[], None]] = {}
        """By waiting task, the function that refuses it, called if another task takes its place."""
        self._change = threading.Condition()
        self._started = 0
        self._working = 0
        self._closed = False

    def submit(self, address: str, line: str, task: Task, give_way: Callable[[], None] | None = None) -> bool:
        """Queue ``task``, which must not raise, to be run by a thread. Return False if too many tasks wait.

        ``give_way`` is called instead of the task, on any thread, if another address of a full line gets its place.
        A task without ``give_way`` keeps its place.
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
        """Remove a task whose caller has gone; return False if it already runs."""
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
        # Daemons: the service itself waits for the work that must end before the process.
        thread = threading.Thread(target=self._work, name=f"{self._name}-{self._started + 1}", daemon=True)
        try:
            thread.start()
        except RuntimeError as exc:  # the limit of processes: the next task tries again
            log_limiter.log(logging.ERROR, str(exc), "the threads that answer are %d: %s", self._started, exc)
        else:
            self._started += 1

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
                del task  # frees what it refers to, before the wait for the next task
                with self._change:
                    self._working -= 1
