"""The log: one line per event, whatever is in it."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable, Iterator

import pytest

from blockstore.app.service import Service
from blockstore.config import LogConfig
from blockstore.server import logs
from tests.conftest import Client

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ \S+ .*")


@pytest.fixture
def configure() -> Iterator[Callable[..., io.StringIO]]:
    """Configure the log of this process into a text; what was is restored afterwards."""
    before = logging.root.handlers[:], logging.root.level

    def into(**options: str) -> io.StringIO:
        stream = io.StringIO()
        logs.configure(LogConfig(**options), stream)
        return stream

    yield into
    logging.root.handlers[:], level = before
    logging.root.setLevel(level)


def fail(text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError:
        logging.getLogger("blockstore.x").exception("it broke: %s", text)


@pytest.mark.parametrize("forged", ["a\nb", "a\r\n2026-01-01T00:00:00.000Z INFO root all is well", "\n" * 100])
def test_newline_in_an_event_forges_no_second_line(configure: Callable[..., io.StringIO], forged: str) -> None:
    for form in ("plain", "json"):
        stream = configure(format=form)
        logging.getLogger("blockstore.x").warning("said %s", forged, extra={"request_id": forged})
        fail(forged)
        lines = stream.getvalue().split("\n")
        assert len(lines) == 3, form
        assert lines.pop() == ""
        assert not any("\r" in line for line in lines)


@pytest.mark.parametrize("odd", ["\x1b[2J", "\x85", "\u2028", "\x0b", "\x0c", "\x1c", "\x00"])
def test_control_characters_are_shown_and_not_obeyed(configure: Callable[..., io.StringIO], odd: str) -> None:
    for form in ("plain", "json"):
        stream = configure(format=form)
        logging.getLogger("blockstore.x").warning("said %s!", odd)
        (line,) = stream.getvalue().rstrip("\n").split("\n")
        if form == "plain":
            assert odd not in line
            assert len(line.splitlines()) == 1
            assert LINE.fullmatch(line)
        else:
            assert json.loads(line)["message"] == f"said {odd}!"


def test_lone_surrogate_does_not_lose_the_event(configure: Callable[..., io.StringIO]) -> None:
    for form in ("plain", "json"):
        stream = configure(format=form)
        logging.getLogger("blockstore.x").warning("said %s!", "\ud800")
        assert "said" in stream.getvalue()
        stream.getvalue().encode()


def test_plain_line_has_time_level_logger_and_request(configure: Callable[..., io.StringIO]) -> None:
    stream = configure()
    logging.getLogger("blockstore.x").info("hello", extra={"request_id": "req-1"})
    line = stream.getvalue().rstrip("\n")
    assert LINE.fullmatch(line)
    assert line.endswith(" INFO blockstore.x [req-1] hello")


def test_json_line_is_one_object(configure: Callable[..., io.StringIO]) -> None:
    stream = configure(format="json")
    fail("no")
    event = json.loads(stream.getvalue())
    assert event["level"] == "error"
    assert event["logger"] == "blockstore.x"
    assert event["message"] == "it broke: no"
    assert "ValueError: no" in event["exception"]
    assert set(event) == {"time", "level", "logger", "message", "exception"}


def test_level_can_be_changed_while_it_runs(configure: Callable[..., io.StringIO]) -> None:
    stream = configure(level="error")
    logging.getLogger("blockstore.x").info("quiet")
    assert stream.getvalue() == ""
    stream = configure(level="debug")
    logging.getLogger("blockstore.x").debug("loud")
    logging.getLogger("apscheduler.executors").info("chatter")
    assert len(stream.getvalue().splitlines()) == 1


def test_request_is_one_line_with_its_id(
    configure: Callable[..., io.StringIO], start_service: Callable[..., Service]
) -> None:
    api = Client(start_service())
    stream = configure(format="json")
    answer = api("POST", "/volumes", {"volume": {"size": 1, "name": "two\nlines"}})
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    told = [event for event in events if event["logger"] == "blockstore.api"]
    assert len(told) == 1
    assert told[0]["message"].startswith("POST /v3/volumes 202 in ")
    assert told[0]["request_id"] == answer.headers["x-openstack-request-id"]
    api.wait_idle()


@pytest.mark.parametrize("form", ["plain", "json"])
def test_long_event_is_cut_in_the_middle(configure: Callable[..., io.StringIO], form: str) -> None:
    stream = configure(format=form)
    logging.getLogger("blockstore.x").warning("begin %s end", "x" * 100_000)
    assert len(stream.getvalue()) < logs.MAX_EVENT + 200
    assert "begin xxx" in stream.getvalue()
    assert "xxx end" in stream.getvalue()
    assert "\N{HORIZONTAL ELLIPSIS}" in stream.getvalue()


@pytest.mark.parametrize("form", ["plain", "json"])
def test_long_path_is_cut_and_forges_nothing(
    configure: Callable[..., io.StringIO], start_service: Callable[..., Service], form: str
) -> None:
    api = Client(start_service())
    stream = configure(format=form)
    forged = "2026-01-01T00:00:00.000Z%20INFO%20root%20all%20is%20well"
    for method, path in (("GET", f"/volumes/{'x' * 50_000}"), ("POST", f"/a%0A{forged}"), ("B" * 5000, "/volumes")):
        assert api(method, path).status in (400, 404, 405)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) < logs.MAX_PATH + 300
    assert not any(line.startswith("2026-01-01T00:00:00.000Z") for line in lines)
