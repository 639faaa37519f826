"""A backend that hangs is down until it answers, holds up no other, and is not asked twice."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from blockstore.accounting.pool_reports import NO_USAGE
from blockstore.app.service import Service
from blockstore.backends.contract import Capacity
from blockstore.manager import reporting
from blockstore.manager.context import ManagerContext
from tests.conftest import backend_section


def test_a_backend_that_does_not_answer_is_down_until_it_does(
    start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start_service(backends=(backend_section("slow", "memory"), backend_section("quick", "memory")))
    slow, quick = "blockstore@slow#slow", "blockstore@quick#quick"
    answer, asked = threading.Event(), []

    def hang() -> None:
        asked.append(1)
        assert answer.wait(120)

    monkeypatch.setattr(service.backends[slow], "check", hang)

    def up() -> dict[str, bool]:
        return {name: report.up for name, report in service.pool_reports.reports().items()}

    def look() -> None:
        service.reporter.check_all(wait_s=0.05)
        service.reporter._checks[quick].result(60)

    look()
    assert up() == {slow: True, quick: True}  # it may still answer
    look()
    look()
    assert (up(), len(asked)) == ({slow: False, quick: True}, 1)
    answer.set()
    service.reporter.check_all(wait_s=60)
    service.reporter.check_all(wait_s=60)
    assert up() == {slow: True, quick: True}


def test_a_backend_that_answers_just_now_stays_up(
    start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its report is there, while its health check has not quite ended when the next one is due."""
    service = start_service(backends=(backend_section("slow", "memory"),))
    (pool,) = service.backends
    reported, end = threading.Event(), threading.Event()
    report = reporting.report

    def end_late(context: ManagerContext, name: str) -> None:
        report(context, name)
        reported.set()
        assert end.wait(60)

    monkeypatch.setattr(reporting, "report", end_late)
    service.reporter.check_all(wait_s=0)
    assert reported.wait(60)
    service.reporter.check_all(wait_s=0)
    up = service.pool_reports.reports()[pool].up
    end.set()
    assert up


def test_a_pool_that_takes_nothing_new_is_up_and_says_why(
    start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = start_service(backends=(backend_section("half", "memory"),))
    pool = "blockstore@half#half"
    full = Capacity(total_gib=10, free_gib=9, metadata_filled_percent=97.123, closed_because="A disk is missing.")
    monkeypatch.setattr(service.backends[pool], "capacity", lambda: full)
    for _ in range(2):
        service.reporter.check_all(wait_s=60)
    report = service.pool_reports.reports()[pool]
    assert report.up
    told = report.api_capabilities(NO_USAGE)
    assert (told["closed_because"], told["metadata_filled_percentage"]) == ("A disk is missing.", 97.12)
    assert [record.getMessage() for record in caplog.records if "accepts no new volumes" in record.getMessage()] == [
        f"backend {pool} accepts no new volumes: A disk is missing."
    ]
