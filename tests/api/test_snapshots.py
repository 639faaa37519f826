"""What a hypervisor may report on a snapshot, and what it may not."""

from __future__ import annotations

import threading

import pytest

from blockstore.app.service import Service
from tests.conftest import Client


def test_a_report_does_not_stop_a_deletion_of_ours(
    api: Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot would stay in error_deleting, which its owner cannot delete."""
    volume = api.volume()["id"]
    snapshot = api.snapshot(volume)["id"]
    (backend,) = service.backends.values()
    delete, began, go_on = backend.delete_snapshot, threading.Event(), threading.Event()

    def slow(*args: object) -> None:
        began.set()
        assert go_on.wait(120)
        delete(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(backend, "delete_snapshot", slow)
    assert api("DELETE", f"/snapshots/{snapshot}").status == 202
    assert began.wait(60)
    path = f"/snapshots/{snapshot}/action"
    refused = api("POST", path, {"os-update_snapshot_status": {"status": "error_deleting"}})
    assert refused.status == 400
    assert "is deleting, by an operation of this service" in refused.message
    assert api("POST", path, {"os-update_snapshot_status": {"status": "deleting"}}).status == 202
    go_on.set()
    api.wait_idle()
    assert api("GET", f"/snapshots/{snapshot}").status == 404
