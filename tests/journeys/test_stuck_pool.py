"""A pool whose storage does not answer holds up its own volumes, and nobody else's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from blockstore_plugins.directory import DirectoryBackend

from blockstore.app.service import Service
from tests.api.volumes.test_migration import bound, idle, shown
from tests.conftest import Client, backend_section


def test_many_operations_on_a_stuck_pool(
    start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = (backend_section("a", "directory"), backend_section("b", "directory"))
    api = Client(start_service(backends=sections))
    kinds = {name: bound(api, name) for name in "ab"}
    answers = threading.Event()
    create = DirectoryBackend.create_volume

    def stuck(self: DirectoryBackend, *args: Any) -> None:
        if self.name == "a":
            assert answers.wait(120)
        create(self, *args)

    monkeypatch.setattr(DirectoryBackend, "create_volume", stuck)

    def made(backend: str) -> str:
        answer = api("POST", "/volumes", {"volume": {"size": 1, "volume_type": kinds[backend]}})
        return str(answer.json["volume"]["id"])

    waiting = [made("a") for _ in range(2 * api.service.config.service.workers)]
    try:
        one = made("b")
        with api.service.bus._change:
            assert api.service.bus._change.wait_for(lambda: shown(api, one)["status"] == "available", 60)
        assert {shown(api, volume)["status"] for volume in waiting} == {"creating"}
    finally:
        answers.set()
    idle(api)
    assert {shown(api, volume)["status"] for volume in waiting} == {"available"}
