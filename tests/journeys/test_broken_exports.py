"""Whatever breaks an export serves again, over the real server: a qemu-nbd is killed, and the service with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Served, need

CONFIG = """\
[service]
report_interval_s = 1
[backend:files]
plugin = directory
target = disks
[target:disks]
plugin = nbd
"""
PATIENCE_S = 60


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A directory with a short path, since that of a unix socket has 107 bytes at most; no server outlives it."""
    path = Path(tempfile.mkdtemp(prefix="broken-"))
    yield path / "s"
    for pid in servers(path):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(path)


def servers(path: Path) -> list[int]:
    """Return the servers of the volumes below a path."""
    found = subprocess.run(["pgrep", "-f", f"^qemu-nbd .*{path}"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def ask(served: Served, method: str, path: str, body: Any = None) -> Any:
    """Speak the API, as an administrator."""
    headers = {"Content-Type": "application/json", "OpenStack-API-Version": "volume 3.71"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{served.url}{path}", data, headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or "null")


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def reads(uri: str) -> bool:
    """Say whether an initiator that knows what it was told once reads what it wrote."""
    argv = ["qemu-io", "-f", "raw", "-c", "read -P 7 0 4k", uri]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode == 0 and "verification failed" not in done.stdout


def test_a_killed_server_serves_again_also_when_the_service_is_killed_too(
    serve: Callable[..., Served], state_dir: Path
) -> None:
    need(shutil.which("qemu-nbd") and shutil.which("qemu-io"), "apt-get install qemu-utils")
    need(shutil.which("pgrep"), "apt-get install procps")
    served = serve(CONFIG, state_dir=state_dir)
    volume = ask(served, "POST", "/volumes", {"volume": {"size": 1}})["volume"]["id"]
    until(lambda: ask(served, "GET", f"/volumes/{volume}")["volume"]["status"] == "available")
    body = {"attachment": {"volume_uuid": volume, "connector": {"host": "h", "initiator": "i"}}}
    made = ask(served, "POST", "/attachments", body)["attachment"]
    uri = made["connection_info"]["uri"]
    subprocess.run(["qemu-io", "-f", "raw", "-c", "write -P 7 0 4k", uri], check=True, capture_output=True)

    (first,) = servers(state_dir)
    os.kill(first, signal.SIGKILL)
    until(lambda: reads(uri))
    (second,) = servers(state_dir)
    assert second != first
    line = f"export {made['id']} is broken: its server has ended; creating it again"
    assert served.log.read_text().count(line) == 1
    assert ask(served, "GET", f"/attachments/{made['id']}")["attachment"]["status"] == "attaching"

    # The service is killed as well, as it may be in the middle of making the export again.
    os.kill(second, signal.SIGKILL)
    served.kill()
    served = serve(CONFIG, state_dir=state_dir)
    until(lambda: reads(uri))
    assert len(servers(state_dir)) == 1
    ask(served, "DELETE", f"/attachments/{made['id']}")
    assert not reads(uri)
    until(lambda: not servers(state_dir))
    assert re.search(r"is broken:", served.log.read_text())
