"""The log: one line per event with the request id, for people or for programs, on standard error."""

from __future__ import annotations

import logging
import re
import sys
import time
from typing import TextIO

import orjson

from blockstore.config import LogConfig

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, line ends of every kind, and lone surrogates, which cannot be encoded."""


MAX_EVENT = 4000
"""Characters of an event's text that are written; a traceback is not counted."""
MAX_PATH = 200
"""Characters of a request's path that are written."""


def bounded(text: str, most: int) -> str:
    """Return a text of at most ``most`` characters; a longer text loses its middle."""
    if len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - end - 1]}\N{HORIZONTAL ELLIPSIS}{text[-end:]}"


def printable(text: str) -> str:
    """Return a text with all characters escaped that could forge lines or control a terminal."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def configure(config: LogConfig, stream: TextIO | None = None) -> None:
    """Set format and level of the whole process; call again to change them."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(Json() if config.format == "json" else Plain())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(config.level.upper())
    for chatty in ("alembic", "apscheduler", "werkzeug", "asyncio"):
        logging.getLogger(chatty).setLevel(max(logging.root.level, logging.WARNING))


class Plain(logging.Formatter):
    """TIME LEVEL LOGGER [REQUEST] TEXT, on one line."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        when = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        request = getattr(record, "request_id", None)
        about = f" [{request}]" if request else ""
        text = bounded(record.getMessage(), MAX_EVENT)
        line = f"{when}.{int(record.msecs):03d}Z {record.levelname} {record.name}{about} {text}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        # One event, one line: no text from a client can forge another line or control the reader's terminal.
        return printable(line)


class Json(logging.Formatter):
    """One JSON object on one line."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        event = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": bounded(record.getMessage(), MAX_EVENT),
        }
        for name in ("request_id", "global_request_id"):
            if getattr(record, name, None):
                event[name] = getattr(record, name)
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        whole = {key: value.encode(errors="backslashreplace").decode() for key, value in event.items()}
        return orjson.dumps(whole).decode()
