"""Refuses requests before the application is called."""

from __future__ import annotations

import contextlib

from granian._granian import RSGIHTTPProtocol as HTTPProtocol
from granian._granian import RSGIProtocolClosed as ProtocolClosed


class RequestRefused(Exception):
    """A request is refused without calling the application; holds status and sentence of the reply."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


def too_many_wait() -> RequestRefused:
    """Return the refusal of a request whose line is full."""
    return RequestRefused(503, "Too many requests are waiting to be answered. Try again in a moment.")


def refuse(proto: HTTPProtocol, exc: RequestRefused) -> None:
    """Refuse a request with a plain-text reply, and have the connection closed."""
    also = [("retry-after", "1")] if exc.status == 503 else []
    with contextlib.suppress(ProtocolClosed):  # the caller has gone
        proto.response_str(
            exc.status, [("content-type", "text/plain"), ("connection", "close"), *also], f"{exc.sentence}\n"
        )
