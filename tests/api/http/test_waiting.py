"""While a request waits for a target, others are answered: with SQLite, and one thread that answers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstore.api.http import waiting
from blockstore.api.http.waiting import ThreadReserve
from tests.api.conftest import SharedService
from tests.api.test_attachments import CONNECTOR, reserve, shown
from tests.conftest import ROOT

Ask = Callable[..., Any]


# --- the room ----------------------------------------------------------------------------------------------


def test_there_is_one_thread_more_for_each_that_waits() -> None:
    table, counts = ThreadReserve(4), []
    table.set_thread_count = counts.append
    with table.waiting_place() as may_wait:
        assert may_wait
        with table.waiting_place():
            pass
    assert counts == [5, 6, 5, 4]


def test_who_waits_with_a_bound_of_its_own_takes_no_place() -> None:
    table, counts = ThreadReserve(1), []
    table.set_thread_count = counts.append
    with table.lend_thread(), table.lend_thread(), table.waiting_place() as may_wait:
        assert may_wait
    assert counts == [2, 3, 4, 3, 2, 1]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SHARE", 4)
    monkeypatch.setattr(waiting, "MOST", 6)
    monkeypatch.setattr(waiting, "KEPT", 2)


@pytest.mark.usefixtures("small")
def test_a_project_has_its_share_and_is_told_at_once_beyond_it() -> None:
    table, counts = ThreadReserve(1), []
    table.set_thread_count = counts.append
    with ExitStack() as stack:
        assert [stack.enter_context(table.waiting_place("p")) for _ in range(6)] == [True] * 4 + [False] * 2
        assert stack.enter_context(table.waiting_place("q"))
    assert counts == [2, 3, 4, 5, 6, 5, 4, 3, 2, 1]
    with table.waiting_place("p") as may_wait:
        assert may_wait


@pytest.mark.usefixtures("small")
def test_whatever_some_projects_hold_the_next_has_places_of_its_own() -> None:
    table = ThreadReserve(1)
    with ExitStack() as stack:
        for project in "ab":
            for _ in range(20):
                stack.enter_context(table.waiting_place(project))
        assert table._waiting == {"a": 4, "b": 2}
        for project in "cdefgh":
            assert [stack.enter_context(table.waiting_place(project)) for _ in range(3)] == [True, True, False]
    assert not table._waiting


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=400))
def test_no_sequence_takes_the_places_that_are_kept(steps: list[tuple[str, bool]]) -> None:
    table, held = ThreadReserve(1), defaultdict(list)
    for project, comes in steps:
        if comes:
            place = table.waiting_place(project)
            got = place.__enter__()
            assert got or len(held[project]) >= waiting.KEPT
            (held[project].append(place) if got else place.__exit__(None, None, None))
        elif held[project]:
            held[project].pop().__exit__(None, None, None)
        assert all(len(places) <= waiting.SHARE for places in held.values())
        assert sum(map(len, held.values())) <= waiting.MOST + waiting.KEPT * len(held)


def test_a_wait_that_fails_gives_the_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SHARE", 1)
    monkeypatch.setattr(waiting, "KEPT", 1)
    table = ThreadReserve(1)
    with pytest.raises(RuntimeError), table.waiting_place():
        raise RuntimeError
    with table.waiting_place() as may_wait:
        assert may_wait


def test_threads_in_and_out_keep_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SHARE", 5)
    table, counts = ThreadReserve(1), []
    table.set_thread_count = counts.append
    start = threading.Barrier(16)

    def enter(_: int) -> None:
        start.wait(60)
        for _ in range(200):
            with table.waiting_place():
                pass

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(enter, range(16)))
    assert counts[-1] == 1
    assert set(counts) <= {1, 2, 3, 4, 5, 6}


# --- requests ----------------------------------------------------------------------------------------------


def test_who_finds_no_room_is_told_at_once_and_the_operation_goes_on(
    attach_service: SharedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "SHARE", 1)
    monkeypatch.setattr(waiting, "KEPT", 1)
    client = attach_service.member()
    project = client.headers["X-Project-Id"]
    first, second = attach_service.volume(client), attach_service.volume(client)
    gate = attach_service.target.gate("export")
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(reserve, attach_service.member(project), first, connector=CONNECTOR)
        assert attach_service.target.begun["export"].wait(60)
        answer = reserve(client, second, connector=CONNECTOR)
        assert not slow.done()
        assert (
            answer.status,
            ("and the operation continues; check the status of the attachment") in answer.message,
        ) == (503, True)
        stranger = attach_service.member()
        with ThreadPoolExecutor(1) as others:
            waits = others.submit(reserve, stranger, attach_service.volume(stranger), connector=CONNECTOR)
            while not attach_service.service.thread_reserve._waiting[stranger.headers["X-Project-Id"]]:
                assert not waits.done()
                time.sleep(0.002)
            gate.set()
            assert waits.result(60).status == 200
        gate.set()
        assert slow.result(60).status == 200
    client.wait_idle()
    (row,) = client.get(f"/attachments?volume_id={second}")["attachments"]
    assert shown(client, row["id"])["connection_info"]["driver_volume_type"] == "iscsi"


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[Ask, Path]]:
    """What asks a service of one thread in a process of its own, and the file that opens its target."""
    state, gate = tmp_path / "state", tmp_path / "gate"
    argv = [sys.executable, "-m", "tests.api.slow_server", str(state), str(gate)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (state / "endpoint").exists() or not (state / "endpoint").read_text().strip():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        url = (state / "endpoint").read_text().strip()

        def ask(method: str, path: str, body: Any = None, project: str = "admin") -> Any:
            headers = {"Content-Type": "application/json", "OpenStack-API-Version": "volume 3.71"}
            headers["X-Project-Id"] = project
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(url + path, method=method, data=data, headers=headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"null")

        yield ask, gate
        gate.touch()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_others_are_answered_while_several_wait_for_a_target(slow: tuple[Ask, Path]) -> None:
    ask, gate = slow
    volumes = [ask("POST", "/volumes", {"volume": {"size": 1}})["volume"]["id"] for _ in range(6)]
    while {v["status"] for v in ask("GET", "/volumes/detail")["volumes"]} != {"available"}:
        time.sleep(0.02)

    def attach(volume: str) -> Any:
        return ask("POST", "/attachments", {"attachment": {"volume_uuid": volume, "connector": CONNECTOR}})

    with ThreadPoolExecutor(6) as threads:
        waits = [threads.submit(attach, volume) for volume in volumes]
        while [a["status"] for a in ask("GET", "/attachments")["attachments"]] != ["attaching"] * 6:
            time.sleep(0.02)
        for _ in range(20):  # each of them while six wait
            assert len(ask("GET", "/volumes")["volumes"]) == 6
        made = ask("POST", "/volumes", {"volume": {"size": 1}})["volume"]["id"]
        assert ask("GET", f"/volumes/{made}")["volume"]["id"] == made
        assert not any(wait.done() for wait in waits)
        gate.touch()
        for wait in waits:
            assert wait.result(60)["attachment"]["connection_info"]["driver_volume_type"] == "iscsi"
    assert len(ask("GET", "/attachments")["attachments"]) == 6


def test_one_project_s_waiting_requests_leave_places_to_the_next(slow: tuple[Ask, Path]) -> None:
    """As many attaches of one project as were places in all before; another project's waits and succeeds."""
    ask, gate = slow
    count = 34

    def volume(project: str) -> str:
        return str(ask("POST", "/volumes", {"volume": {"size": 1}}, project)["volume"]["id"])

    def until(project: str, path: str, noun: str, statuses: list[str]) -> None:
        deadline = time.monotonic() + 60
        while [one["status"] for one in ask("GET", path, project=project)[noun]] != statuses:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def attach(project: str, volume_id: str) -> Any:
        return ask("POST", "/attachments", {"attachment": {"volume_uuid": volume_id, "connector": CONNECTOR}}, project)

    volumes = [volume("busy") for _ in range(count)]
    others = volume("other")  # now, for the attaches will hold every worker of the pool
    until("busy", "/volumes/detail", "volumes", ["available"] * count)
    until("other", "/volumes/detail", "volumes", ["available"])
    with ThreadPoolExecutor(count + 1) as threads:
        try:
            busy = [threads.submit(attach, "busy", one) for one in volumes]
            until("busy", "/attachments", "attachments", ["attaching"] * count)
            other = threads.submit(attach, "other", others)
            until("other", "/attachments", "attachments", ["attaching"])
            assert not other.done()
        finally:
            gate.touch()
        for one in (other, *busy):
            assert one.result(60)["attachment"]["connection_info"]["driver_volume_type"] == "iscsi"


def test_others_are_answered_while_a_pool_does_not_say_what_is_on_it(slow: tuple[Ask, Path]) -> None:
    ask, gate = slow
    volume = ask("POST", "/volumes", {"volume": {"size": 1}})["volume"]["id"]
    with ThreadPoolExecutor(4) as threads:
        lists = [threads.submit(ask, "GET", "/manageable_volumes?host=blockstore@memory") for _ in range(4)]
        for _ in range(20):
            assert ask("GET", f"/volumes/{volume}")["volume"]["id"] == volume
        ask("POST", "/volumes", {"volume": {"size": 1}})
        while {v["status"] for v in ask("GET", "/volumes/detail")["volumes"]} != {"available"}:
            time.sleep(0.02)
        assert not any(one.done() for one in lists)
        gate.touch()
        for one in lists:
            assert len(one.result(60)["manageable-volumes"]) == 2
