"""What a project leaves behind is bounded by number, and goes in small steps."""

from __future__ import annotations

import datetime

import pytest
from sqlalchemy import event, func, insert, select

from blockstore.app import retention
from blockstore.app.service import Service
from blockstore.db.models import Message, OperationRow, now


def operations(service: Service, project: str, count: int, **values: object) -> None:
    rows = [
        {
            "id": f"{project}-{number:06}", "kind": "CreateVolume", "body": {}, "resource_type": "volume",
            "resource_id": "v", "project_id": project, "request_id": "r", "state": "done", "finished_at": now(),
            **values,
        }
        for number in range(count)
    ]  # fmt: skip
    with service.db.write() as session:
        session.execute(insert(OperationRow), rows)


def messages(service: Service, project: str, count: int) -> None:
    begin = now()
    rows = [
        {
            "id": f"{project}-{number:06}", "project_id": project, "event_id": "e", "action_id": "a", "detail_id": "d",
            "user_message": "m", "created_at": begin + datetime.timedelta(seconds=number),
        }
        for number in range(count)
    ]  # fmt: skip
    with service.db.write() as session:
        session.execute(insert(Message), rows)


def test_the_oldest_go_and_open_operations_stay(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MOST_FINISHED", 20)
    monkeypatch.setattr(retention, "MOST_MESSAGES", 10)
    monkeypatch.setattr(retention, "STEP", 7)
    operations(service, "busy", 70)
    operations(service, "quiet", 20)
    operations(service, "stuck", 60, state="open", finished_at=None)
    messages(service, "busy", 35)
    messages(service, "quiet", 10)
    deletes: list[int] = []

    @event.listens_for(service.db.engine, "after_cursor_execute")
    def count(_c: object, cursor: object, statement: str, *_rest: object) -> None:
        if statement.startswith("DELETE"):
            deletes.append(cursor.rowcount)  # type: ignore[attr-defined]

    for _ in range(2):  # the second finds nothing to do
        retention.trim(service.db)
        with service.db.read() as session:
            for model, left in (
                (OperationRow, {"busy": 20, "quiet": 20, "stuck": 60}),
                (Message, {"busy": 10, "quiet": 10}),
            ):
                counted = select(model.project_id, func.count()).group_by(model.project_id)
                assert dict(session.execute(counted).all()) == left
            assert session.execute(
                select(func.min(OperationRow.id)).where(OperationRow.project_id == "busy")
            ).scalar() == ("busy-000050")
            assert session.execute(select(func.min(Message.id)).where(Message.project_id == "busy")).scalar() == (
                "busy-000025"
            )
    assert max(deletes) == 7
    assert sum(deletes) == 50 + 25


def test_the_clock_trims(service: Service) -> None:
    assert service.clock.get_job("trim") is not None
