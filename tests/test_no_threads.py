"""At the limit of processes no thread can be started: what needs one waits or is refused, and later works again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from blockstore.backends.background import BackgroundTasks
from blockstore.db import migrations
from blockstore.db.health import NO_THREAD, Health
from blockstore.db.session import Database
from blockstore.errors import Busy
from blockstore.identity.hashing import HashingPool
from blockstore.server.threads import Threads

WAIT_S = 60


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Refuse threads until the function is called."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    return monkeypatch.undo


def test_threads_that_answer(limited: Callable[[], None]) -> None:
    threads, first, second = Threads(1, "answer"), threading.Event(), threading.Event()
    assert threads.submit("192.0.2.1", "", first.set)
    limited()
    assert threads.submit("192.0.2.1", "", second.set)
    assert first.wait(WAIT_S)
    assert second.wait(WAIT_S)
    threads.close()


def test_hashing(limited: Callable[[], None]) -> None:
    pool = HashingPool(threads=1)
    with pytest.raises(Busy):
        pool.run(lambda: 1, address="192.0.2.1", account="u")
    limited()
    assert pool.run(lambda: 2, address="192.0.2.1", account="u") == 2
    pool.close()


def test_background_tasks(limited: Callable[[], None]) -> None:
    tasks, done = BackgroundTasks("d"), [threading.Event(), threading.Event()]
    tasks.add("v1", "delete v1", lambda _progress: done[0].set())
    limited()
    tasks.add("v2", "delete v2", lambda _progress: done[1].set())
    assert all(event.wait(WAIT_S) for event in done)


def test_health(limited: Callable[[], None], tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/blockstore.db")
    migrations.upgrade(db)
    health = Health(db, lambda: contextlib.nullcontext(True))
    assert health.complaint() == NO_THREAD
    limited()
    assert health.complaint() != NO_THREAD
    db.dispose()
