"""What administrators see of the installation, and what is not offered yet."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from blockstore.app.service import Service
from tests.api.conftest import SharedService, unknown_id
from tests.conftest import Client

HOST = "blockstore@memory"


def test_hosts(service: Service) -> None:
    admin = Client(service, **{"X-Project-Id": "p"})
    volume = admin.volume(size=3)["id"]
    admin.snapshot(volume)
    hosts = {(one["host_name"], one["service"]) for one in admin.get("/os-hosts")["hosts"]}
    assert hosts == {("blockstore", "cinder-scheduler"), (HOST, "cinder-volume")}
    total, project = (one["resource"] for one in admin.get(f"/os-hosts/{HOST}")["host"])
    figures = {"volume_count": "1", "total_volume_gb": "3", "snapshot_count": "1", "total_snapshot_gb": "3"}
    assert total == {"host": HOST, "project": "(total)", **figures}
    assert project == {"host": HOST, "project": "p", **figures}
    assert admin("GET", "/os-hosts/nowhere").status == 404
    assert admin("PUT", f"/os-hosts/{HOST}", {"status": "disable"}).json == {"host": HOST, "status": "disabled"}
    assert admin.volume()["status"] == "error"
    assert admin("PUT", f"/os-hosts/{HOST}", {"status": "enable"}).status == 200
    assert admin.volume()["status"] == "available"
    assert admin("PUT", f"/os-hosts/{HOST}", {"status": "burn"}).status == 400


def test_a_frozen_backend_stays_as_it_is(service: Service) -> None:
    admin = Client(service)
    volume = admin.volume()["id"]
    snapshot = admin.snapshot(volume)["id"]
    assert admin("PUT", "/os-services/freeze", {"host": "nowhere@x"}).status == 400
    assert admin("PUT", "/os-services/freeze", {"host": HOST}).status == 200
    assert admin("PUT", "/os-services/freeze", {"host": HOST}).status == 400
    for method, path, body in (
        ("DELETE", f"/volumes/{volume}?cascade=true", None),
        ("DELETE", f"/snapshots/{snapshot}", None),
        ("POST", "/snapshots", {"snapshot": {"volume_id": volume}}),
    ):
        answer = admin(method, path, body)
        assert answer.status == 400
        assert "frozen" in answer.message
    assert admin.volume()["status"] == "error"
    assert admin("PUT", "/os-services/thaw", {"host": HOST}).status == 200
    assert admin("DELETE", f"/volumes/{volume}?cascade=true").status == 202


def test_a_volume_that_is_nowhere_goes_at_once(service: Service) -> None:
    """So that its type can be deleted in the next breath."""
    admin = Client(service, **{"X-Project-Id": "p"})
    kind = {"name": "none", "extra_specs": {"volume_backend_name": "nowhere"}}
    type_id = admin("POST", "/types", {"volume_type": kind}).json["volume_type"]["id"]
    volume = admin.volume(volume_type="none")
    assert volume["status"] == "error"
    assert admin("DELETE", f"/volumes/{volume['id']}").status == 202
    assert admin("DELETE", f"/types/{type_id}").status == 202
    assert admin.get("/os-quota-sets/p?usage=true")["quota_set"]["volumes"]["in_use"] == 0


def test_capabilities_clusters_workers_and_filters(sqlite_service: SharedService) -> None:
    admin = sqlite_service.admin()
    shown = admin.get(f"/capabilities/{HOST}")
    assert shown["namespace"] == f"OS::Storage::Capabilities::{HOST}"
    assert (shown["volume_backend_name"], shown["pool_name"]) == ("memory", "memory")
    assert admin("GET", "/capabilities/nowhere").status == 404
    assert admin.get("/clusters") == admin.get("/clusters/detail?is_up=true") == {"clusters": []}
    assert admin("GET", "/clusters?colour=red").status == 400
    assert admin("GET", "/clusters/any").status == admin("PUT", "/clusters/enable", {"name": "any"}).status == 404
    cleaned = admin("POST", "/workers/cleanup", {"host": HOST, "resource_type": "Volume"})
    assert (cleaned.status, cleaned.json) == (202, {"cleaning": [], "unavailable": []})
    assert admin("POST", "/workers/cleanup", {"resource_type": "Backup"}).status == 400
    (filters,) = sqlite_service.member().get("/resource_filters?resource=snapshot")["resource_filters"]
    assert filters["resource"] == "snapshot"
    assert "volume_id" in filters["filters"]
    assert sqlite_service.member().get("/resource_filters?resource=tree") == {"resource_filters": []}


@pytest.mark.parametrize("path", ["/backups", "/backups/detail", "/groups", "/group_types", "/consistencygroups"])
def test_lists_of_what_is_not_offered_yet_are_empty(sqlite_service: SharedService, path: str) -> None:
    assert list(sqlite_service.member().get(path).values()) == [[]]


def test_what_is_not_offered_yet_says_so(sqlite_service: SharedService) -> None:
    admin = sqlite_service.admin()
    volume = sqlite_service.volume(admin)
    for method, path, body in (
        ("POST", "/backups", {"backup": {"volume_id": volume}}),
        ("POST", "/groups", {"group": {}}),
        ("POST", f"/volumes/{volume}/action", {"os-volume_upload_image": {"image_name": "x"}}),
        ("PUT", "/os-services/failover_host", {"host": HOST}),
    ):
        answer = admin(method, path, body)
        assert answer.status == 501
        assert answer.json["notImplemented"]["message"].startswith("This service does not offer ")
    assert admin("GET", f"/backups/{unknown_id()}").status == 404
    assert admin("POST", f"/volumes/{unknown_id()}/action", {"os-migrate_volume": {}}).status == 404


def test_the_state_of_a_disabled_backend_is_not_known(sqlite_service: SharedService) -> None:
    admin, body = sqlite_service.admin(), {"host": HOST, "binary": "cinder-volume"}

    def state(version: str) -> Any:
        rows = admin.get(f"/os-services?host={HOST}", version=version)["services"]
        return rows[0].get("backend_state", "absent")

    assert [state("3.48"), state("3.49")] == ["absent", "up"]
    assert admin("PUT", "/os-services/disable", body).status == 200
    assert [state("3.48"), state("3.49")] == ["absent", None]
    assert admin("PUT", "/os-services/enable", body).status == 200
    assert state("3.71") == "up"


def test_a_backend_that_was_not_looked_at_for_long_is_down(sqlite_service: SharedService) -> None:
    """By the monotonic clock: what the wall clock says of the last look does not matter."""
    admin, pool_reports = sqlite_service.admin(), sqlite_service.service.pool_reports
    reports = pool_reports.reports()

    def state() -> list[str]:
        return [service["state"] for service in admin.get(f"/os-services?host={HOST}")["services"]]

    assert state() == ["up"]
    try:
        for report in reports.values():
            pool_reports.update(replace(report, monotonic_s=time.monotonic() - 100_000_000))
        assert state() == ["down"]
        for report in reports.values():
            pool_reports.update(replace(report, at=report.at - timedelta(days=1)))
        assert state() == ["up"]
    finally:
        for report in reports.values():
            pool_reports.update(report)
