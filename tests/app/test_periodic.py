"""What is removed by the clock, in transactions of a bounded size, on both databases."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import event, func, insert, select

from blockstore.app import periodic
from blockstore.db import migrations
from blockstore.db.models import Domain, Message, OperationRow, Token, User, now
from blockstore.db.session import Database

ROWS = 1200
KEPT = 3


@pytest.fixture
def database(database_url: str, tmp_path: Path) -> Iterator[Database]:
    """A database with one user."""
    db = Database(database_url or f"sqlite:///{tmp_path / 'blockstore.db'}")
    migrations.upgrade(db)
    with db.write() as session:
        session.add(Domain(id="d", name="d"))
        session.flush()
        session.add(User(id="u", name="u", domain_id="d"))
    yield db
    db.dispose()


def fill(db: Database) -> None:
    """Add finished operations, messages and tokens: many whose time has come, and some that stay."""
    old, new = now() - datetime.timedelta(days=9), now() + datetime.timedelta(days=9)
    ends = [old] * ROWS + [new] * KEPT
    operation = {"kind": "CreateVolume", "body": {}, "resource_type": "volume", "project_id": "p", "request_id": "r"}
    token = {"user_id": "u", "scope": "none", "scope_id": "", "methods": [], "audit_id": "a", "issued_at": old}
    message = {"project_id": "p", "event_id": "e", "action_id": "1", "detail_id": "1", "user_message": "m"}
    with db.write() as session:
        session.execute(
            insert(OperationRow),
            [
                {**operation, "id": f"o{n}", "resource_id": f"v{n}", "state": "done", "finished_at": end}
                for n, end in enumerate(ends)
            ],
        )
        session.execute(insert(Message), [{**message, "expires_at": end} for end in ends])
        session.execute(insert(Token), [{**token, "id": f"t{n}", "expires_at": end} for n, end in enumerate(ends)])
        session.add(
            OperationRow(**operation, id="open", resource_id="v", state="open")  # type: ignore[arg-type]
        )


def counts(db: Database) -> list[int]:
    with db.read() as session:
        return [
            session.scalar(select(func.count()).select_from(model)) or 0 for model in (OperationRow, Message, Token)
        ]


def test_what_has_had_its_time_is_removed_in_small_transactions(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database)
    removed: list[int] = []

    @event.listens_for(database.engine, "after_cursor_execute")
    def count(_conn: object, cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("DELETE"):
            removed.append(cursor.rowcount)  # type: ignore[attr-defined]

    @event.listens_for(database.engine, "commit")
    def end(_conn: object) -> None:
        removed.append(0)

    between: list[int] = []

    def write_meanwhile(_seconds: float) -> None:
        """Between two transactions another writer has its turn."""
        with database.write() as session:
            session.get_one(User, "u").description = f"{len(between)}"
        between.append(sum(counts(database)))

    monkeypatch.setattr(periodic, "sleep", write_meanwhile)
    periodic.purge(database, keep_days=7)
    assert counts(database) == [KEPT + 1, KEPT, KEPT]
    assert sum(removed) == 3 * ROWS
    transactions = "".join("|" if rows == 0 else f" {rows} " for rows in removed).split("|")
    assert max(sum(map(int, rows.split())) for rows in transactions) <= periodic.ROWS_AT_ONCE
    assert len(between) == 3 * (ROWS // periodic.ROWS_AT_ONCE)
    assert between == sorted(between, reverse=True)


def test_a_stop_ends_a_long_purge(database: Database) -> None:
    fill(database)
    turns = iter([True, True, False])
    periodic.purge(database, keep_days=7, may_go_on=lambda: next(turns, False))
    assert counts(database)[0] == ROWS + KEPT + 1 - 2 * periodic.ROWS_AT_ONCE


def test_the_clock_stops_while_it_purges(start_service: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    """The purge asks the clock whether it may go on; a stopped one says no."""
    service = start_service()
    asked = threading.Event()
    answers: list[bool] = []

    def purge(_db: Database, _days: int, may_go_on: Callable[[], bool]) -> None:
        answers.append(may_go_on())
        asked.set()

    monkeypatch.setattr(periodic, "purge", purge)
    clock = service.clock  # type: ignore[attr-defined]
    clock.modify_job("purge", next_run_time=datetime.datetime.now(datetime.UTC))
    assert asked.wait(60)
    service.stop()  # type: ignore[attr-defined]
    assert answers == [True]
    assert not clock.running
