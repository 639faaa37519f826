"""Operations seen and stopped from outside: given up when they kill the process each time, shown, cancelled,
resumed.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from typing import Any

import pytest

from tests.crash.conftest import KilledService

pytestmark = pytest.mark.timed


def ask(victim: KilledService, method: str, path: str, body: Any = None) -> Any:
    request = urllib.request.Request(
        f"{victim.url}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "OpenStack-API-Version": "volume 3.71"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


def volume(victim: KilledService, **fields: Any) -> str:
    return str(ask(victim, "POST", "/volumes", {"volume": fields})["volume"]["id"])


def status(victim: KilledService, volume_id: str) -> str:
    return str(ask(victim, "GET", f"/volumes/{volume_id}")["volume"]["status"])


def operation(victim: KilledService, *arguments: str) -> str:
    """Run ``blockstore operation`` beside the served process."""
    argv = [sys.executable, "-m", "blockstore", "operation", *arguments, "--state-dir", str(victim.place)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(victim: KilledService, *arguments: str) -> list[list[str]]:
    """Return the words of ``operation list``, without its header."""
    return [re.split(r"  +", line) for line in operation(victim, "list", *arguments).splitlines()[1:]]


def settle(victim: KilledService, limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while victim.open_operations():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    victim.check()


def test_an_operation_that_kills_the_process_each_time_is_given_up(victim: KilledService) -> None:
    """Those that only waited behind it, for the one worker, are carried out."""
    config = victim.config.read_text().replace("workers = 4", "workers = 1\noperation_attempts = 3")
    victim.config.write_text(config)
    victim.start(function="serve_deadly")
    deadly = volume(victim, size=13)
    waiting = [volume(victim, size=1) for _ in range(3)]
    (victim.place / "may-die").touch()
    assert victim.wait() == -signal.SIGKILL
    for _ in range(2):
        victim.launch("serve_deadly")
        assert victim.wait() == -signal.SIGKILL
    victim.start(function="serve_deadly")
    settle(victim)
    assert status(victim, deadly) == "error"
    assert [status(victim, volume_id) for volume_id in waiting] == ["available"] * 3
    (message,) = ask(victim, "GET", "/messages")["messages"]
    assert message["resource_uuid"] == deadly
    assert message["user_message"].endswith("given up: the service died 3 times while it ran")
    ask(victim, "DELETE", f"/volumes/{deadly}")
    settle(victim)


def test_what_runs_is_shown_and_can_be_stopped(victim: KilledService) -> None:
    """One copy runs, one waits for the worker: both are listed, and cancelled they settle with that reason."""
    victim.config.write_text(victim.config.read_text().replace("workers = 4", "workers = 1"))
    victim.start(function="serve_slow")
    source = volume(victim, size=1)
    settle(victim)
    copies = [volume(victim, size=2, source_volid=source) for _ in range(2)]
    deadline = time.monotonic() + 60
    while not re.search(r"running +\d+ %", operation(victim, "list")):
        assert time.monotonic() < deadline
    listed = {row[2]: row for row in rows(victim)}
    assert listed[f"volume {copies[0]}"][1:4] == ["CreateVolume", f"volume {copies[0]}", "running"]
    assert re.fullmatch(r"\d+ %", listed[f"volume {copies[0]}"][4])
    assert listed[f"volume {copies[1]}"][3:5] == ["queued", "-"]
    shown = operation(victim, "show", listed[f"volume {copies[0]}"][0])
    assert re.search(r"^state +running$", shown, re.MULTILINE)
    assert source in shown
    for copy in reversed(copies):  # the one that waits first, lest it begin
        asked = operation(victim, "cancel", listed[f"volume {copy}"][0])
        assert asked == f"Asked {listed[f'volume {copy}'][1]} of volume {copy} to stop.\n"
    settle(victim)
    assert [status(victim, copy) for copy in copies] == ["error", "error"]
    said = {m["resource_uuid"]: m["user_message"] for m in ask(victim, "GET", "/messages")["messages"]}
    assert re.search(r"cancelled by the operator at \d+ %$", said[copies[0]])
    assert said[copies[1]].endswith("cancelled by the operator before it began")
    assert {row[3] for row in rows(victim, "--all") if row[1] == "CreateVolume" and source not in row[2]} == {
        "cancelled"
    }
    for volume_id in (*copies, source):
        ask(victim, "DELETE", f"/volumes/{volume_id}")
    settle(victim)
    assert ask(victim, "GET", "/volumes") == {"volumes": []}
    assert ask(victim, "GET", "/limits")["limits"]["absolute"]["totalGigabytesUsed"] == 0


def test_a_stop_that_is_cut_short_is_resumed(victim: KilledService) -> None:
    """SIGTERM while a long copy runs: a clean exit, the copy left open, and the next start finishes it."""
    victim.config.write_text(victim.config.read_text().replace("workers = 4", "workers = 4\ndrain_timeout_s = 0.3"))
    victim.start(function="serve_slow")
    source = volume(victim, size=1)
    settle(victim)
    copy = volume(victim, size=2, source_volid=source)
    time.sleep(0.5)
    started = time.monotonic()
    assert victim.signal(signal.SIGTERM) == 0
    assert time.monotonic() - started < 60  # the copy takes five minutes
    assert victim.open_operations() == 1
    victim.start()
    victim.drain()
    victim.check()
    assert status(victim, copy) == "available"
