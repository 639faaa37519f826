"""Turns to run Python: a thread keeps its turn for a whole request, or for all that an operation does in one session.

Python's own lock knows no projects, and a thread loses it at each question to SQLite. With four busy threads a create
then took three times its processor time. A thread that has its turn here runs almost alone. It gives the turn back
while it waits: for the right to write, for a commit, for an operation, for Keystone (``released``). No storage of
volumes is touched within a turn, so storage that hangs holds nobody up. The database is: without its disk, nothing can
be answered.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from blockstore.turns import Turns

REQUESTS = " requests"  # no project has a space in its id
"""The line of the threads that answer requests: every second turn is theirs. Operations share the others by project."""


class InterpreterTurns:
    """The turns of the threads of one service."""

    def __init__(self, *, are_taken: bool) -> None:
        """Without ``are_taken`` nobody waits: for a database that answers over the network."""
        self._are_taken = are_taken
        self._guard = threading.Lock()
        self._is_held = False
        self._first: deque[threading.Lock] = deque()
        """The thread with the right to write the database. Each lock is held until the turn of its waiter."""
        self._requests: deque[threading.Lock] = deque()
        self._operations: Turns[threading.Lock] = Turns()
        """By project."""
        self._was_request = False
        self._thread = _Thread()

    @contextmanager
    def held(self, line: str, *, first: bool = False) -> Iterator[None]:
        """Wait for the turn and hold it inside; do nothing if this thread has it.

        ``line``: a project, or REQUESTS. A thread that has released its turn keeps the line of that turn. With
        ``first`` it gets the next turn, because others wait for this thread.
        """
        mine = self._thread
        if mine.has_turn or not self._are_taken:
            yield
            return
        before = mine.line, mine.is_first
        mine.line, mine.is_first = mine.line or line, first
        self._take(mine)
        try:
            yield
        finally:
            self._pass_on(mine)
            mine.line, mine.is_first = before

    @contextmanager
    def released(self) -> Iterator[None]:
        """Let other threads have turns inside, and wait for the turn again at the end; do nothing without a turn."""
        mine = self._thread
        if not mine.has_turn:
            yield
            return
        self._pass_on(mine)
        try:
            yield
        finally:
            self._take(mine)

    def _take(self, mine: _Thread) -> None:
        with self._guard:
            ticket = threading.Lock() if self._is_held else None
            if ticket is None:
                self._is_held = True
            else:
                ticket.acquire()
                if mine.is_first:
                    self._first.append(ticket)
                elif mine.line == REQUESTS:
                    self._requests.append(ticket)
                else:
                    self._operations.put(mine.line, ticket)
        if ticket is not None:
            ticket.acquire()
        mine.has_turn = True

    def _pass_on(self, mine: _Thread) -> None:
        mine.has_turn = False
        with self._guard:
            ticket = self._next()
            self._is_held = ticket is not None
            if ticket is not None:
                ticket.release()

    def _next(self) -> threading.Lock | None:
        if self._first:
            return self._first.popleft()
        self._was_request = bool(self._requests) and not (self._was_request and self._operations)
        if self._was_request:
            return self._requests.popleft()
        turn = self._operations.take()
        return turn[1] if turn is not None else None


class _Thread(threading.local):
    has_turn = False
    is_first = False
    line = ""
    """The line of the turn that this thread has, or has released."""
