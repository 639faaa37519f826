"""No storage is touched within a turn to run Python: storage that hangs would hold up every request."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from blockstore.app.service import Service
from blockstore.backends.memory import MemoryBackend
from blockstore.interpreter import REQUESTS
from tests.conftest import Client, backend_section, make_config

WAIT_S = 60


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, bool]]]:
    """The calls of the backend, and whether the calling thread had the turn."""
    calls: list[tuple[str, bool]] = []

    def watched(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(backend: MemoryBackend, *args: Any, **named: Any) -> Any:
            calls.append((name, Turns.has_turn()))
            return method(backend, *args, **named)

        return call

    for name, method in vars(MemoryBackend).items():
        if not name.startswith("_") and inspect.isfunction(method):
            monkeypatch.setattr(MemoryBackend, name, watched(name, method))
    yield calls
    Turns.service = None


class Turns:
    """The turns of the service under test, once it is there."""

    service: Service | None = None

    @classmethod
    def has_turn(cls) -> bool:
        return cls.service is not None and cls.service.db.interpreter._thread.has_turn


def test_operations_touch_storage_without_a_turn(
    start_service: Callable[..., Service], tmp_path: Any, touched: list[tuple[str, bool]]
) -> None:
    service = start_service(make_config(tmp_path / "s", backends=(backend_section("m", "memory"),)))
    Turns.service = service
    with service.db.interpreter.held(REQUESTS):
        assert Turns.has_turn()  # else this test proves nothing
    api = Client(service)
    volume = api.volume()
    snapshot = api.snapshot(volume["id"])
    clone = api.volume(source_volid=volume["id"])
    restored = api.volume(snapshot_id=snapshot["id"])
    assert api.action(f"volumes/{clone['id']}", "os-extend", {"new_size": 3}).status == 202
    api.wait_idle()
    for path in (f"volumes/{restored['id']}", f"snapshots/{snapshot['id']}", f"volumes/{volume['id']}"):
        assert api("DELETE", f"/{path}").status == 202
        api.wait_idle()
    service.report()
    names = {name for name, _had_turn in touched}
    assert names >= {"create_volume", "create_snapshot", "clone_volume", "extend_volume", "delete_volume", "check"}
    assert [name for name, had_turn in touched if had_turn] == []


def test_storage_that_hangs_holds_up_no_request(
    start_service: Callable[..., Service], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hang(_backend: MemoryBackend, _name: str, _size_gib: int) -> None:
        begun.set()
        assert go_on.wait(WAIT_S)

    monkeypatch.setattr(MemoryBackend, "create_volume", hang)
    service = start_service(make_config(tmp_path / "s", backends=(backend_section("m", "memory"),)))
    api = Client(service)
    volume = api.volume(settle=False)
    assert begun.wait(WAIT_S)
    with service.db.interpreter.held(REQUESTS):  # as the server does for each request
        assert api.get(f"/volumes/{volume['id']}")["volume"]["status"] == "creating"
    go_on.set()
    api.wait_idle()
