"""The newest snapshot is the one that was taken last, whatever the clock said at the time."""

from __future__ import annotations

import datetime

import pytest
from sqlalchemy import select

from blockstore.api import snapshots
from blockstore.db.models import OperationRow, Snapshot, now
from tests.api.conftest import SharedService
from tests.api.volumes.test_attach_actions import ask
from tests.conftest import Client


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[datetime.datetime]:
    """What the clock says to each snapshot that is taken; the present time when it is empty."""
    times: list[datetime.datetime] = []
    monkeypatch.setattr(snapshots, "now", lambda: times.pop(0) if times else now())
    return times


def taken(client: Client, clock: list[datetime.datetime], volume: str, *hours: float) -> list[str]:
    """Take snapshots, the clock so many hours ahead at each."""
    clock += [now() + datetime.timedelta(hours=ahead) for ahead in hours]
    return [client.snapshot(volume)["id"] for _ in hours]


def test_a_volume_is_reverted_to_the_snapshot_that_was_taken_last(
    attach_service: SharedService, clock: list[datetime.datetime]
) -> None:
    """Though the clock was stepped back before each, or stood still."""
    client = attach_service.member()
    volume = client.volume()["id"]
    shots = taken(client, clock, volume, 0, -1, -2, -2, -1.5)
    while shots:
        newest = shots.pop()
        for older in shots:
            refused = ask(client, volume, "revert", {"snapshot_id": older})
            assert (refused.status, "is not the newest snapshot" in refused.message) == (400, True)
        assert ask(client, volume, "revert", {"snapshot_id": newest}).status == 202
        client.wait_idle()
        assert client.get(f"/volumes/{volume}")["volume"]["status"] == "available"
        assert client("DELETE", f"/snapshots/{newest}").status == 202
        client.wait_idle()


def test_lists_go_by_the_time_that_they_show(sqlite_service: SharedService, clock: list[datetime.datetime]) -> None:
    """And the number, which Cinder does not have, is neither shown nor sorted or filtered by."""
    client = sqlite_service.admin()
    volume = client.volume()["id"]
    first, second, third = taken(client, clock, volume, 0, -2, -1)
    listed = client.get("/snapshots/detail")["snapshots"]
    assert [row["id"] for row in listed] == [first, third, second]
    assert [row["created_at"] for row in listed] == sorted((row["created_at"] for row in listed), reverse=True)
    assert not any("number" in row for row in listed)
    assert client("GET", "/snapshots?sort=number").status == 400
    assert client.get("/snapshots?number=1")["snapshots"] == []


def test_with_a_volume_its_snapshots_go_from_the_newest_on(
    sqlite_service: SharedService, clock: list[datetime.datetime]
) -> None:
    client = sqlite_service.member()
    volume = client.volume()["id"]
    shots = taken(client, clock, volume, 0, -1, -2)
    assert client("DELETE", f"/volumes/{volume}?cascade=true").status == 202
    client.wait_idle()
    with sqlite_service.db.read() as session:
        gone = select(OperationRow.resource_id).where(
            OperationRow.kind == "DeleteSnapshot", OperationRow.resource_id.in_(shots)
        )
        assert list(session.scalars(gone.order_by(OperationRow.id))) == shots[::-1]


def test_numbers_are_of_each_volume_and_grow(sqlite_service: SharedService) -> None:
    client = sqlite_service.member()
    volumes = [client.volume()["id"] for _ in range(2)]
    shots = [client.snapshot(volume)["id"] for _ in range(2) for volume in volumes]
    with sqlite_service.db.read() as session:
        numbers = {row.id: row.number for row in session.scalars(select(Snapshot).where(Snapshot.id.in_(shots)))}
    assert [numbers[shot] for shot in shots] == [1, 1, 2, 2]
