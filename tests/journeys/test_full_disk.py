"""A tenant fills the disk of the state directory: what frees space is accepted, and the rest is told why it is not."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Served
from tests.plugins.mounts import mounted

MIB = 2**20
CONFIG = "[backend:directory]\nplugin = directory\nmax_over_subscription_ratio = 100\n"


class Tenant:
    """Speaks to a served process, with a token of its own."""

    def __init__(self, served: Served) -> None:
        self.root = served.url.removesuffix("/v3")
        self.token = ""

    def __call__(self, method: str, path: str, body: Any = None) -> tuple[int, str, Message]:
        data = None if body is None else json.dumps(body).encode()
        headers = {
            "Content-Type": "application/json",
            "OpenStack-API-Version": "volume 3.71",
            "X-Auth-Token": self.token,
        }
        request = urllib.request.Request(self.root + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode(), answer.headers
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read().decode(), refusal.headers

    def login(self, password: str) -> None:
        user = {"name": "admin", "domain": {"id": "default"}, "password": password}
        identity = {"methods": ["password"], "password": {"user": user}}
        scope = {"project": {"name": "admin", "domain": {"id": "default"}}}
        auth = {"auth": {"identity": identity, "scope": scope}}
        status, said, headers = self("POST", "/identity/v3/auth/tokens", auth)
        assert status == 201, said
        self.token = headers["X-Subject-Token"]

    def create(self) -> tuple[int, str]:
        return self("POST", "/v3/volumes", {"volume": {"size": 1}})[:2]

    def status(self, volume_id: str) -> str:
        code, said, _ = self("GET", f"/v3/volumes/{volume_id}")
        return "gone" if code == 404 else str(json.loads(said)["volume"]["status"])


def wait_for(true: Callable[[], bool]) -> None:
    for _ in range(1200):
        if true():
            return
        threading.Event().wait(0.05)
    raise AssertionError("it did not come true in 60 s")


def fill(path: Path) -> None:
    """Write to a file until its disk is full."""
    with path.open("r+b" if path.exists() else "wb", buffering=0) as file:
        for size in (MIB, 4096):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
        with suppress(OSError):
            os.fsync(file.fileno())


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path, request.param, "96M") as point:
        shutil.rmtree(point / "lost+found", ignore_errors=True)
        yield point


def test_a_full_disk_is_emptied_by_the_tenant(disk: Path, serve: Callable[..., Served]) -> None:
    """Log in, delete and create again, while somebody takes each byte that becomes free until the deletion is done."""
    state = disk / "state"
    served = serve(f"[service]\nauth = builtin\n{CONFIG}", state_dir=state)
    tenant = Tenant(served)
    tenant.login((state / "admin-password").read_text().strip())
    code, said = tenant.create()
    assert code == 202, said
    volume_id = json.loads(said)["volume"]["id"]
    wait_for(lambda: tenant.status(volume_id) == "available")
    reserve = state / "blockstore.db-reserve"
    assert reserve.stat().st_blocks * 512 >= 5 * MIB
    fill(state / "directory" / "volumes" / f"volume-{volume_id}.raw")
    try:
        code, said = tenant.create()
        assert code == 503
        assert "only deletions are accepted" in said
        assert f"{state}: its disk has" in said  # told to administrators
        wait_for(lambda: tenant("GET", "/healthcheck")[0] != 200)  # an answer is good for a second
        code, said, _ = tenant("GET", "/healthcheck")
        assert (code, "only deletions are accepted" in said, str(disk) in said) == (503, True, False)

        greedy, stop = disk / "another-tenants-bytes", threading.Event()

        def take() -> None:
            while not stop.is_set():
                fill(greedy)

        taker = threading.Thread(target=take)
        taker.start()
        try:
            tenant.login((state / "admin-password").read_text().strip())
            code, said, _ = tenant("DELETE", f"/v3/volumes/{volume_id}")
            assert code == 202, said
            wait_for(lambda: tenant.status(volume_id) == "gone")
        finally:
            stop.set()
            taker.join()
        assert tenant.create()[0] == 503
        greedy.unlink()
        wait_for(lambda: tenant("GET", "/healthcheck")[0] == 200)
        assert tenant.create()[0] == 202
        assert reserve.stat().st_blocks * 512 >= 5 * MIB
        assert "the disk of" in served.log.read_text()
    finally:
        served.kill()


@pytest.mark.parametrize("disk", ["ext4"], indirect=True)
def test_a_service_starts_on_a_full_disk(disk: Path, serve: Callable[..., Served]) -> None:
    """The reserve is what the start needs; after it a volume is deleted."""
    state = disk / "state"
    served = serve(CONFIG, state_dir=state)
    tenant = Tenant(served)
    volume_id = json.loads(tenant.create()[1])["volume"]["id"]
    wait_for(lambda: tenant.status(volume_id) == "available")
    assert served.stop() == 0
    fill(state / "directory" / "volumes" / f"volume-{volume_id}.raw")
    with pytest.raises(OSError) as full:
        (state / "one-more").write_bytes(bytes(MIB))
    assert full.value.errno == errno.ENOSPC
    served = serve(CONFIG, state_dir=state)
    try:
        tenant = Tenant(served)
        assert tenant("DELETE", f"/v3/volumes/{volume_id}")[0] == 202
        wait_for(lambda: tenant.status(volume_id) == "gone")
        wait_for(lambda: tenant.create()[0] == 202)
    finally:
        served.kill()
