"""The database is locked, full, damaged or out of reach while clients work: 503 and a sentence; no operation fails."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from blockstore.app.service import Service
from blockstore.backends.memory import MemoryBackend
from blockstore.db import health, outages, wait_limits
from blockstore.errors import BackendError
from blockstore.operations.catalogue import Operation
from tests.conftest import Client, Served


@pytest.fixture
def service(start_service: Callable[..., Service]) -> Service:
    """A service on SQLite."""
    return start_service()


@pytest.fixture
def api(service: Service) -> Client:
    return Client(service)


SHORT = wait_limits.WaitLimit(wait_s=0.1)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait_limits, "_WAIT_LIMIT", ContextVar("patience", default=SHORT))
    monkeypatch.setattr(wait_limits, "REQUEST_S", 0.1)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def no_traceback(caplog: pytest.LogCaptureFixture) -> bool:
    return not any(record.exc_info for record in caplog.records)


@pytest.mark.usefixtures("impatient")
def test_accepted_create_outlives_a_lock(api: Client, caplog: pytest.LogCaptureFixture) -> None:
    service, enqueued = api.service, api.service.db.enqueue
    assert service.db.path is not None
    lock = contextlib.ExitStack()

    def enqueue_then_lock(operation: Operation) -> None:
        service.db.enqueue = enqueued
        lock.enter_context(locked(service.db.path))  # type: ignore[arg-type]
        enqueued(operation)

    service.db.enqueue = enqueue_then_lock
    with lock:
        accepted = api("POST", "/volumes", {"volume": {"size": 1}})
        assert accepted.status == 202
        refused = api("POST", "/volumes", {"volume": {"size": 1}})
        assert (refused.status, refused.message, refused.headers["Retry-After"]) == (503, outages.BUSY, "5")
        assert api("GET", "/volumes").status == 200
        assert not service.bus.wait_idle(1)
    api.wait_idle()
    assert api.get(f"/volumes/{accepted.json['volume']['id']}")["volume"]["status"] == "available"
    assert no_traceback(caplog)


@pytest.mark.parametrize("made", [lambda: BackendError("wrapped"), lambda: OSError(24, "Too many open files")])
def test_too_many_open_files_is_no_failure_of_an_operation(
    api: Client, monkeypatch: pytest.MonkeyPatch, made: Callable[[], Exception], caplog: pytest.LogCaptureFixture
) -> None:
    real, failures = MemoryBackend.create_volume, [1]

    def create(self: MemoryBackend, name: str, gib: int) -> None:
        if failures:
            failures.pop()
            raise made() from OSError(24, "Too many open files")
        real(self, name, gib)

    monkeypatch.setattr(MemoryBackend, "create_volume", create)
    assert api.volume()["status"] == "available"
    assert api.get("/messages")["messages"] == []
    assert no_traceback(caplog)


def test_pool_is_not_down_for_want_of_files(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(_self: MemoryBackend) -> None:
        raise BackendError("no") from OSError(24, "Too many open files")

    monkeypatch.setattr(MemoryBackend, "check", check)
    service.report()
    assert all(report.up for report in service.pool_reports.reports().values())


def test_database_that_is_damaged_while_it_is_used(api: Client, caplog: pytest.LogCaptureFixture) -> None:
    path = api.service.db.path
    assert path is not None
    api.volume()
    api.service.db.dispose()
    with path.open("r+b") as file:
        file.write(os.urandom(path.stat().st_size))
    for method, body in (("GET", None), ("POST", {"volume": {"size": 1}})):
        answer = api(method, "/volumes", body)
        assert (answer.status, answer.message) == (503, outages.DAMAGED)
        assert answer.headers["Retry-After"] == "60"
    assert no_traceback(caplog)
    assert str(path) in caplog.text


def test_periodic_jobs_leave_it_for_the_next_time(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    for job in service.clock.get_jobs():
        path = service.db.path
        assert path is not None
        service.db.dispose()
        shutil.move(path.parent, path.parent.with_name("elsewhere"))
        try:
            with caplog.at_level(logging.WARNING):
                job.func()
        finally:
            service.db.dispose()
            shutil.move(path.parent.with_name("elsewhere"), path.parent)
    assert no_traceback(caplog)


# --- the served process ------------------------------------------------------------------------------------


def ask(served: Served, method: str, path: str, body: Any = None) -> tuple[int, Any, Any]:
    request = urllib.request.Request(
        served.url.removesuffix("/v3") + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read(), exc.headers


@pytest.mark.slow
def test_served_process_answers_while_another_process_holds_the_lock(serve: Callable[..., Served]) -> None:
    served = serve("[backend:m]\nplugin = memory\n")
    answers: list[tuple[int, Any, Any]] = []

    def create() -> None:
        answers.append(ask(served, "POST", "/v3/volumes", {"volume": {"size": 1}}))

    times = []
    with locked(served.state_dir / "blockstore.db"):
        started = time.monotonic()
        creating = [threading.Thread(target=create) for _ in range(4)]
        for thread in creating:
            thread.start()
        while time.monotonic() < started + wait_limits.REQUEST_S + 1:
            asked = time.monotonic()
            assert ask(served, "GET", "/v3/volumes/detail")[0] == 200
            times.append(time.monotonic() - asked)
        asked = time.monotonic()
        status, said, _ = ask(served, "GET", "/healthcheck")
        assert (status, said.decode().strip()) == (503, health.SLOW)
        assert time.monotonic() - asked < wait_limits.REQUEST_S
        for thread in creating:
            thread.join()
    assert sorted(times)[len(times) // 2] < 1
    assert max(times) < wait_limits.REQUEST_S  # they wait for none of the creates
    assert [(status, headers["Retry-After"]) for status, _, headers in answers] == [(503, "5")] * 4
    assert ask(served, "POST", "/v3/volumes", {"volume": {"size": 1}})[0] == 202
    assert served.stop() == 0
    assert "Traceback" not in served.log.read_text()


@pytest.mark.slow
def test_emptied_database_is_refused_until_a_new_one_is_asked_for(serve: Callable[..., Served]) -> None:
    served = serve("[backend:m]\nplugin = memory\n")
    assert served.stop() == 0
    for path in served.state_dir.glob("blockstore.db*"):
        path.unlink()
    where = ["--state-dir", served.state_dir, "--config", served.state_dir / "config.ini", "--listen", "127.0.0.1:0"]
    argv = [sys.executable, "-m", "blockstore", "serve", *map(str, where)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"blockstore: The database {served.state_dir}/blockstore.db is missing, but")
    assert not (served.state_dir / "blockstore.db").exists()
    again = serve("[backend:m]\nplugin = memory\n", "--new-database", state_dir=served.state_dir)
    assert ask(again, "GET", "/healthcheck")[0] == 200
