"""The bodies of requests: received completely before a thread is used, or streamed while a thread reads."""

from __future__ import annotations

import asyncio
import io
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from granian._granian import RSGIHTTPProtocol as HTTPProtocol
from granian._granian import RSGIProtocolClosed as ProtocolClosed

from blockstore.server.refusals import RequestRefused

MAX_BODY_BYTES = 128 << 10
"""Maximum bytes of a body that is received before a thread is used. The API allows less, and explains the refusal."""
WINDOW_S = 10.0
LEAST_RATE = 1024
"""Bytes per second at which a body must arrive, in each window of ``WINDOW_S`` seconds."""
PIECE_S = 60.0
"""Seconds that a caller has for the next piece of a streamed body."""


class BufferedBody:
    """A body that has arrived, or that the application refuses for its length."""

    def __init__(self, content: bytes, length: int, counted: int) -> None:
        self.content, self.length, self.counted = content, length, counted

    def file(self) -> Any:
        """Return the body as a file for WSGI."""
        return io.BytesIO(self.content)


NO_BODY = BufferedBody(b"", 0, 0)


class StreamedBody(io.RawIOBase):
    """A body that arrives while a thread reads it."""

    def __init__(
        self, proto: HTTPProtocol, loop: asyncio.AbstractEventLoop, has_left: Callable[[], Awaitable[bool]]
    ) -> None:
        self._pieces, self._loop, self._has_left = proto.__aiter__(), loop, has_left
        self._rest = memoryview(b"")
        self._count = self._size = 0
        self._ended = False

    def file(self) -> Any:
        """Return the body as a file for WSGI."""
        return self

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` with received bytes; return 0 at the end. Raise OSError if the caller stalls or has gone."""
        if not self._rest and not self._ended:
            self._rest = memoryview(asyncio.run_coroutine_threadsafe(self._next(), self._loop).result())
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    async def _next(self) -> bytes:
        try:
            while not (piece := await asyncio.wait_for(anext(self._pieces), PIECE_S)):
                pass
            self._count, self._size = self._count + 1, self._size + len(piece)
            if is_crumbled(self._count, self._size):
                raise ConnectionError(CRUMBLED)
            return bytes(piece)
        except StopAsyncIteration:
            self._ended = True
            if await self._has_left():  # granian reports a truncated body as complete
                raise ConnectionError("The caller closed the connection before the end of the body.") from None
            return b""
        except ProtocolClosed as exc:
            raise ConnectionError("The caller closed the connection before the end of the body.") from exc


@dataclass(eq=False)
class BodyPlace:
    """A request whose body is being received."""

    caller: str
    cut: asyncio.Future[None]
    """Done when the place has been given to another request."""
    since: float = field(default_factory=time.monotonic)


class Places:
    """A bounded number of requests whose bodies are being received; used on the event loop only.

    A slow body gives its place to a new request: a login arrives at once, and a body that is sent to occupy a place
    does not.
    """

    QUICK_S = 0.1
    """Seconds that a body has before its place may be given to another request."""

    def __init__(self, total: int, share: int) -> None:
        """``total`` bodies may be received at once, ``share`` of one caller."""
        self._total, self._share = total, share
        self._taken: set[BodyPlace] = set()
        self._counts: Counter[str] = Counter()
        """Number of places by caller."""

    def take(self, caller: str) -> BodyPlace:
        """Return a place, if need be that of the body that has taken longest. Raise RequestRefused if all are quick."""
        rivals = self._rivals(caller)
        if rivals:
            slowest = min(rivals, key=lambda one: one.since)
            if time.monotonic() - slowest.since < self.QUICK_S:
                raise RequestRefused(503, "Too many requests are being received at once. Try again in a moment.")
            self.give_back(slowest)
            slowest.cut.set_result(None)
        place = BodyPlace(caller, asyncio.get_running_loop().create_future())
        self._taken.add(place)
        self._counts[caller] += 1
        return place

    def give_back(self, place: BodyPlace) -> None:
        """Release a place, if it is still held."""
        if place in self._taken:
            self._taken.remove(place)
            self._counts[place.caller] -= 1
            if not self._counts[place.caller]:
                del self._counts[place.caller]

    def _rivals(self, caller: str) -> list[BodyPlace]:
        """Return the places of which one must be released: the caller's, or those of the caller with the most."""
        if self._counts[caller] < self._share:
            if len(self._taken) < self._total:
                return []
            ((caller, _),) = self._counts.most_common(1)
        return [one for one in self._taken if one.caller == caller]


async def received(proto: HTTPProtocol, cut: asyncio.Future[None] | None = None) -> bytes:
    """Return a body; of one longer than ``MAX_BODY_BYTES``, a first part that is longer than that as well.

    ``cut``: that of its ``BodyPlace``. Raise RequestRefused if the body arrives too slowly or in too small pieces.
    """
    loop = asyncio.get_running_loop()
    pieces, size, window_ends, in_window = [], 0, loop.time() + WINDOW_S, 0
    stream = proto.__aiter__()
    while size <= MAX_BODY_BYTES:
        read = asyncio.ensure_future(_next(stream))
        try:
            while not read.done():
                awaited: set[asyncio.Future[Any]] = {read} if cut is None else {read, cut}
                timeout_s = max(window_ends - loop.time(), 0)
                await asyncio.wait(awaited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                if cut is not None and cut.done() and not read.done():
                    raise RequestRefused(408, "The body arrived too slowly while many others came.")
                if loop.time() >= window_ends:
                    if in_window < LEAST_RATE * WINDOW_S:
                        raise RequestRefused(408, f"The body arrived more slowly than {LEAST_RATE} bytes per second.")
                    window_ends, in_window = loop.time() + WINDOW_S, 0
        finally:
            read.cancel()  # without effect if it is done
        piece = read.result()
        if piece is None:
            break
        pieces.append(piece)
        size += len(piece)
        in_window += len(piece)
        if is_crumbled(len(pieces), size):
            raise RequestRefused(400, CRUMBLED)
    return b"".join(pieces)


CRUMBLED = "The body arrives in pieces that are too small."


def is_crumbled(pieces: int, size: int) -> bool:
    """Return True if a body arrives in so many small pieces that receiving it costs more than answering it."""
    return pieces > 64 and size < pieces * 256


async def _next(stream: Any) -> bytes | None:
    # Not anext(stream, None): CPython 3.11 crashes on it with the awaitables of granian's iterator.
    try:
        return bytes(await anext(stream))
    except StopAsyncIteration:
        return None
