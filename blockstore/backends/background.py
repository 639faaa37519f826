"""Runs a plugin's background tasks: one after the other, on a thread that ends when none is left.

Used by plugins. Tasks do not survive a kill: at its next start, a plugin finds the remaining work itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from blockstore.backends.contract import BackgroundTask, Progress
from blockstore.errors import BackendError, TryAgain

log = logging.getLogger(__name__)

Work = Callable[[Progress], None]


class _Abandoned(Exception):
    """The running task is abandoned."""


@dataclass
class _Waiting:
    subject: str
    what: str
    work: Work
    percent: int = 0


class BackgroundTasks:
    """The background tasks of one pool, on one thread."""

    def __init__(self, name: str):
        self._name = name
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._waiting: list[_Waiting] = []
        self._busy: _Waiting | None = None
        self._leaving: set[str] = set()

    def add(self, subject: str, what: str, work: Work) -> None:
        """Queue work on a subject, unless work on the same subject already waits.

        ``what`` describes the work in the log, after the pool's name. If the work raises BackendError, it ends, and the
        plugin may add it again later.
        """
        with self._change:
            if not any(one.subject == subject for one in self._waiting):
                self._waiting.append(_Waiting(subject, what, work))
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=f"{self._name}-background", daemon=True)
                try:
                    thread.start()
                except RuntimeError as exc:  # the limit of processes: the next task tries again
                    log.warning("%s: postponed: %s: %s", self._name, what, exc)
                else:
                    self._thread = thread

    def now(self) -> Sequence[BackgroundTask]:
        """Return the running task and the waiting ones."""
        with self._change:
            busy = [self._busy] if self._busy else []
            return [BackgroundTask(what=one.what, percent=one.percent) for one in (*busy, *self._waiting)]

    @contextmanager
    def leaving(self, subject: str) -> Iterator[None]:
        """Allow no background work on a subject: drop what waits, and wait for running work to stop.

        Running work stops when it next reports its progress.
        """
        with self._change:
            self._leaving.add(subject)
            self._waiting = [one for one in self._waiting if one.subject != subject]
            self._change.wait_for(lambda: self._busy is None or self._busy.subject != subject)
        try:
            yield
        finally:
            with self._change:
                self._leaving.discard(subject)

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no work is left; return False on timeout."""
        with self._change:
            return self._change.wait_for(lambda: self._thread is None, timeout_s)

    def _run(self) -> None:
        while True:
            with self._change:
                self._busy = self._waiting.pop(0) if self._waiting else None
                if self._busy is None:
                    self._thread = None
                self._change.notify_all()
                task = self._busy
            if task is None:
                return
            try:
                task.work(partial(self._tell, task))
            except _Abandoned:
                pass
            except (BackendError, TryAgain) as exc:
                log.info("%s: postponed: %s: %s", self._name, task.what, exc)
            except Exception:
                log.exception("%s: failed: %s", self._name, task.what)

    def _tell(self, task: _Waiting, percent: int) -> None:
        if task.subject in self._leaving:
            raise _Abandoned
        if percent // 10 > task.percent // 10:
            log.info("%s: %s: %d %%", self._name, task.what, percent)
        task.percent = max(task.percent, percent)
