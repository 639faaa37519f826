"""Layered volumes through the whole service, on a local directory in a share's place."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blockstore_plugins.nfs import NfsBackend, layers, mounts

from blockstore.app.service import Service
from tests.api.volumes.test_migration import fill, holds, idle, whole
from tests.conftest import Client, backend_section
from tests.plugins.mounts import need

CONNECTOR = {"host": "elsewhere", "ip": "192.0.2.1"}


@pytest.fixture
def api(start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch) -> Client:
    need("qemu-img")

    def mounted(_export: str, at: Path, *_args: object) -> int:
        at.mkdir(mode=0o700, parents=True, exist_ok=True)
        return at.stat().st_dev

    monkeypatch.setattr(mounts, "mounted", mounted)
    monkeypatch.setattr(layers, "GUARDED_S", 0)
    section = backend_section("nas", "nfs", exports="nas:/volumes", format="qcow2", layers="yes")
    return Client(start_service(backends=(section,)))


def made(api: Client, path: str, kind: str, **fields: Any) -> str:
    answer = api("POST", path, {kind: fields})
    assert answer.status in (200, 202), answer.body
    idle(api)
    return str(answer.json[kind]["id"])


def test_a_layered_life(api: Client) -> None:
    (nas,) = api.service.backends.values()
    assert isinstance(nas, NfsBackend)
    volume = made(api, "/volumes", "volume", size=1)
    fill(api, volume)
    first = made(api, "/snapshots", "snapshot", volume_id=volume)
    clone = made(api, "/volumes", "volume", size=2, snapshot_id=first)
    assert len(nas.locate(f"volume-{clone}").layers) == 1
    file = nas.path / f"volume-{volume}.qcow2"

    attachment = made(api, "/attachments", "attachment", volume_uuid=volume)
    assert not nas.is_attached(f"volume-{volume}")  # reserved: nobody was told how to reach it
    answer = api("PUT", f"/attachments/{attachment}", {"attachment": {"connector": CONNECTOR}})
    assert answer.json["attachment"]["connection_info"]["format"] == "qcow2"
    assert nas.is_attached(f"volume-{volume}")
    assert api("POST", f"/attachments/{attachment}/action", {"os-complete": {}}).status == 204
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 10M 1M", file], check=True, stdout=subprocess.DEVNULL)
    before = file.stat().st_ino
    live = made(api, "/snapshots", "snapshot", volume_id=volume, force=True)
    assert file.stat().st_ino == before  # whoever has it open goes on writing to it
    assert api("DELETE", f"/attachments/{attachment}").status == 200
    assert not nas.is_attached(f"volume-{volume}")

    assert api("DELETE", f"/snapshots/{first}").status == 202
    idle(api)
    copy = made(api, "/volumes", "volume", size=1, source_volid=volume)
    assert file.stat().st_ino != before
    assert all(holds(api, one) for one in (volume, copy))
    assert nas._background_tasks.wait_idle(60)
    api.service.report()
    (pool,) = api("GET", "/scheduler-stats/get_pools?detail=true").json["pools"]
    assert (pool["capabilities"]["deepest_chain"], pool["capabilities"]["background"]) == (2, [])
    whole(api)
    for one in (live, volume, clone, copy):
        assert api("DELETE", f"/{'snapshots' if one == live else 'volumes'}/{one}").status == 202
        idle(api)
    assert nas._background_tasks.wait_idle(60)
    assert {path.name for path in nas.path.iterdir() if path.is_file()} == {
        ".blockstore-identity",
        ".blockstore-owner",
        ".tender",
    }
