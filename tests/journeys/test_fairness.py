"""Two tenants of a real service: what one may take of exports, and how long the other waits meanwhile."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from blockstore.app.service import Service
from blockstore.backends.memory import MemoryBackend
from tests.conftest import Client, Served, need
from tests.plugins.nbd_initiators import processes

LIMIT = 3
CONFIG = f"""\
[service]
auth = none
attachments_per_volume = {LIMIT}
[backend:files]
plugin = directory
target = nbd
[target:nbd]
socket_dir = """


def test_one_member_starts_no_more_exports_than_a_volume_may_have(serve: Callable[..., Served]) -> None:
    """Ten requests at the same moment, of a member, each from another initiator: so many qemu-nbd, and refusals."""
    need(shutil.which("qemu-nbd"), "apt-get install qemu-utils")
    sockets = tempfile.mkdtemp(prefix="bs-")  # the kernel takes short paths only
    try:
        _ask_for_ten(serve(CONFIG + sockets))
    finally:
        shutil.rmtree(sockets)


def _ask_for_ten(served: Served) -> None:

    def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json", "X-Project-Id": "p", "X-Roles": "member,reader"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(served.url + path, method=method, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as refusal:
            return refusal.code, json.loads(refusal.read())

    volume = ask("POST", "/volumes", {"volume": {"size": 1}})[1]["volume"]["id"]
    action = f"/volumes/{volume}/action"
    for _ in range(1000):
        if ask("GET", f"/volumes/{volume}")[1]["volume"]["status"] == "available":
            break

    def export(number: int) -> tuple[int, Any]:
        connector = {"host": f"node{number}", "initiator": f"iqn.2026-01.test:{number}", "ip": "127.0.0.1"}
        return ask("POST", action, {"os-initialize_connection": {"connector": connector}})

    try:
        with ThreadPoolExecutor(10) as threads:
            answers = list(threads.map(export, range(10)))
        assert sorted(status for status, _ in answers) == [200] * LIMIT + [413] * (10 - LIMIT)
        refusal = next(body for status, body in answers if status == 413)["overLimit"]["message"]
        assert f"allowed ({LIMIT}) exceeded for volume {volume}: it has {LIMIT}." in refusal
        assert len(list(processes(served.state_dir))) == LIMIT
    finally:
        ended = ask("POST", action, {"os-terminate_connection": {"connector": {}}})
    assert ended[0] == 202
    assert not list(processes(served.state_dir))


@pytest.mark.timed
def test_a_project_s_create_begins_while_another_has_sixty_in_line(
    start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage is stuck, so that all of them stand in line: the last that was asked for is the next that begins."""
    service = start_service()
    busy, quiet = (Client(service, **{"X-Project-Id": name, "X-Roles": "member"}) for name in ("busy", "quiet"))
    workers = service.config.service.workers
    begun, one_more, places = list[str](), threading.Semaphore(0), itertools.count()
    first, others = threading.Event(), threading.Event()
    create = MemoryBackend.create_volume

    def stuck(self: MemoryBackend, name: str, *args: Any) -> None:
        gate = first if next(places) < workers else others
        begun.append(name)
        one_more.release()
        assert gate.wait(120)
        create(self, name, *args)

    def begin(count: int) -> None:
        assert all(one_more.acquire(timeout=60) for _ in range(count))

    monkeypatch.setattr(MemoryBackend, "create_volume", stuck)
    try:
        for _ in range(60):
            assert busy("POST", "/volumes", {"volume": {"size": 1}}).status == 202
        begin(workers)
        made = [quiet("POST", "/volumes", {"volume": {"size": 1}}).json["volume"]["id"] for _ in range(2)]
        begin(1)
        assert begun[workers] == f"volume-{made[0]}"
        (line,) = (one._waiting for one in service.bus._components["manager"].workers.values())
        deadline = time.monotonic() + 60
        while (line.waiting("busy"), line.waiting("quiet")) != (60 - workers, 1):  # the scheduler comes before it
            assert time.monotonic() < deadline
            time.sleep(0.01)
        # Then in turns, although the first still runs: the second waits for no more than what runs of the busy project.
        first.set()
        begin(workers - 1)
        assert f"volume-{made[1]}" in begun[workers + 1 :]
        assert len(begun) == 2 * workers
    finally:
        first.set()
        others.set()
    busy.wait_idle()
