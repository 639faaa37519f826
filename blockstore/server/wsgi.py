"""From a request of granian (RSGI, on the event loop) to a call of the WSGI application on a thread, and back.

A body that is small enough is read here, before a thread is asked, so that a slow caller holds no thread. Requests
that ``is_transfer`` names (images, backups) read and write their bodies piece by piece, on threads of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import logging
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from granian._granian import RSGIHTTPProtocol as HTTPProtocol
from granian._granian import RSGIProtocolClosed as ProtocolClosed
from granian.rsgi import Scope

from blockstore.address import network_of
from blockstore.server.budget import Budget, Replies
from blockstore.server.connections import Connections
from blockstore.server.pace import Pace, has_left
from blockstore.server.threads import Threads

log = logging.getLogger(__name__)

MAX_PATH_BYTES = 8 << 10
"""Bytes of a path."""
MAX_HEAD_BYTES = 32 << 10
"""Bytes of a request line and its headers together."""
MAX_BODY_BYTES = 128 << 10
"""Bytes of a body that is read before a thread is asked; the API allows less, with a sentence."""
SMALL_BODY_BYTES = 16 << 10
"""A body of at most so many bytes is always received: connections bound how many there are."""
BODIES = (64 << 20, 4 << 20)
"""Bytes of longer bodies that are held at once: of all callers together, and of one."""
WINDOW_S = 10.0
LEAST_RATE = 1024
"""Bytes per second at which a body must arrive, in each window of ``WINDOW_S`` seconds."""
SOON_S = 0.05
"""Seconds after which a request that is not answered yet is looked at: its caller may have gone."""
PIECE_BYTES = 64 << 10
PIECE_S = 60.0
"""Seconds that a caller has for the next piece of a body that passes piece by piece."""
SMALL_REPLY_BYTES = 128 << 10
"""A reply of at most so many bytes is handed over whole, and not counted: connections bound how many there are."""
REPLIES = (128 << 20, 16 << 20)
"""Bytes of longer replies that wait to be taken: of all callers together, and of one."""

Headers = list[tuple[str, str]]


class Refused(Exception):
    """A request that the application is not asked about: status and sentence of the reply."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Adapter:
    """The RSGI application that calls a WSGI application."""

    def __init__(
        self,
        application: Any,
        threads: Threads,
        transfers: Threads,
        connections: Connections,
        is_transfer: Callable[[str, str], bool],
        client_of: Callable[[str, str], str],
        line_of: Callable[[Mapping[str, str]], str],
    ) -> None:
        """``is_transfer`` is asked with method and path whether bodies pass piece by piece.

        ``client_of`` is asked who the caller is, with the address of the connection and what a proxy says; ``line_of``
        in which line of that caller a request waits, with its headers.
        """
        self._application = application
        self._threads, self._transfers = threads, transfers
        self._connections = connections
        self._is_transfer, self._client_of, self._line_of = is_transfer, client_of, line_of
        self._bodies = Budget(*BODIES)
        self._replies = Replies(Budget(*REPLIES))

    async def __call__(self, scope: Scope, proto: HTTPProtocol) -> None:
        """Answer one request."""
        self._connections.begin(scope.client)
        arrived = False
        try:
            headers = checked(scope)
            connected = scope.client.rpartition(":")[0].strip("[]")
            caller = network_of(self._client_of(connected, headers.get("x-forwarded-for", "")))
            body = await self._body(scope, proto, headers, caller)
            self._connections.arrive(scope.client)
            arrived = True
            try:
                reply = await self._called(scope, proto, headers, caller, body)
            finally:
                if isinstance(body, Buffered):
                    self._bodies.give_back(caller, body.counted)
            if reply is not None:
                await self._sent(proto, scope, f"{caller} {self._line_of(headers)}", reply)
        except Refused as exc:
            text = f"{exc.sentence}\n"
            also = [("retry-after", "1")] if exc.status == 503 else []
            proto.response_str(exc.status, [("content-type", "text/plain"), ("connection", "close"), *also], text)
        except ProtocolClosed:
            pass  # the caller has gone
        finally:
            self._connections.end(scope.client, arrived=arrived)

    # --- the body -------------------------------------------------------------------------------------------

    async def _body(
        self, scope: Scope, proto: HTTPProtocol, headers: dict[str, str], caller: str
    ) -> Buffered | Streamed:
        """Return the body of a request. Raises Refused when it arrives too slowly, or too many are held."""
        if self._is_transfer(scope.method, scope.path):
            return Streamed(proto, asyncio.get_running_loop(), functools.partial(self._has_left, scope.client))
        if "transfer-encoding" in headers:  # of a body that is cut off granian says that it has ended
            raise Refused(411, "A request has a Content-Length.")
        length = int(headers.get("content-length") or 0)
        if not 0 < length <= MAX_BODY_BYTES:
            return Buffered(b"", length, 0)  # empty, or refused by the application for its length, and never read
        counted = 0 if length <= SMALL_BODY_BYTES else length
        if counted and not self._bodies.has_room(caller, counted):
            raise Refused(503, "Too many long requests are being received at once. Try again in a moment.")
        self._bodies.take(caller, counted)
        try:
            content = await _received(proto)
            if len(content) < length:
                raise Refused(400, "The connection was closed before the end of the body.")
        except BaseException:
            self._bodies.give_back(caller, counted)
            raise
        return Buffered(content, len(content), counted)

    async def _has_left(self, peer: str) -> bool:
        connection = await self._connections.locate(peer)
        if connection is None:
            return True
        with connection:
            return has_left(connection)

    # --- the application ------------------------------------------------------------------------------------

    async def _called(
        self, scope: Scope, proto: HTTPProtocol, headers: dict[str, str], caller: str, body: Buffered | Streamed
    ) -> Reply | None:
        """Have a thread call the application; return the reply unless the thread has sent it."""
        loop, streams = asyncio.get_running_loop(), isinstance(body, Streamed)
        replied: asyncio.Future[Reply | None] = loop.create_future()

        def tell(reply: Reply | None) -> None:
            if not replied.done():  # the caller may have gone meanwhile
                replied.set_result(reply)

        def answer() -> None:
            reply = None
            try:
                reply = self._answer(environ_of(scope, headers, body), proto, loop, scope.client if streams else None)
            finally:
                with contextlib.suppress(RuntimeError):  # the server has stopped meanwhile, and with it the loop
                    loop.call_soon_threadsafe(tell, reply)

        threads = self._transfers if streams else self._threads
        line = self._line_of(headers)
        if not threads.submit(caller, line, answer):
            raise Refused(503, "Too many requests wait to be answered. Try again in a moment.")
        if not streams and not (await asyncio.wait({replied}, timeout=SOON_S))[0]:
            # granian cancels nothing when the connection ends, so that who asks and leaves would stay in line.
            gone: asyncio.Future[Any] = asyncio.ensure_future(proto.client_disconnect())
            await asyncio.wait(set[asyncio.Future[Any]]({replied, gone}), return_when=asyncio.FIRST_COMPLETED)
            if not replied.done():
                threads.withdraw(caller, line, answer)
                return None
            gone.cancel()
        return await replied

    def _answer(
        self, environ: dict[str, Any], proto: HTTPProtocol, loop: asyncio.AbstractEventLoop, peer: str | None
    ) -> Reply | None:
        """Call the application on the thread of this request; return a long reply. ``peer``: of a transfer."""
        status, headers = 500, Headers()

        def start_response(line: str, given: Headers, _exc_info: Any = None) -> Any:
            nonlocal status, headers
            status = int(line[:3])
            headers = [(name.lower(), value) for name, value in given]
            return None

        try:
            pieces: Iterable[bytes] = self._application(environ, start_response)
            try:
                if peer is not None:
                    located = asyncio.run_coroutine_threadsafe(self._connections.locate(peer), loop).result()
                    _stream(proto, loop, Pace(located), status, headers, pieces)
                    return None
                content = b"".join(pieces)
            finally:
                if hasattr(pieces, "close"):
                    pieces.close()
            if len(content) > SMALL_REPLY_BYTES:
                return Reply(status, headers, content)
            proto.response_bytes(status, headers, content)
        except (ProtocolClosed, TimeoutError):
            pass  # the caller has gone, or takes nothing
        except Exception:
            log.exception("a request failed outside the application")
            with contextlib.suppress(ProtocolClosed):  # a part of the reply has been sent
                proto.response_str(500, [("content-type", "text/plain"), ("connection", "close")], "Internal error.\n")
        return None

    # --- long replies ---------------------------------------------------------------------------------------

    async def _sent(self, proto: HTTPProtocol, scope: Scope, caller: str, reply: Reply) -> None:
        """Send a reply piece by piece, as its caller takes it. Raises Refused when the caller has too many to take.

        ``caller``: address and line, for projects behind one address have shares of their own.
        """
        task = asyncio.current_task()
        assert task is not None
        sending = self._replies.admit(task, caller, len(reply.content), must=scope.method not in ("GET", "HEAD"))
        if sending is None:
            raise Refused(503, "Too many replies wait to be taken. Take those first, then try again.")

        def taken(count: int) -> None:
            sending.taken = count

        pace = Pace(None)
        try:
            pace = Pace(await self._connections.locate(scope.client))
            transport = proto.response_stream(reply.status, reply.headers)
            view = memoryview(reply.content)
            for start in range(0, len(view), PIECE_BYTES):
                await pace.send(transport, bytes(view[start : start + PIECE_BYTES]), taken)
            await pace.finish(taken)
        except (TimeoutError, ConnectionError, asyncio.CancelledError):
            pace.cut()
        finally:
            pace.close()
            self._replies.end(sending)


async def _received(proto: HTTPProtocol) -> bytes:
    """Return a body, or what exceeds ``MAX_BODY_BYTES`` of it. Raises Refused when it arrives too slowly."""
    loop = asyncio.get_running_loop()
    pieces, size, window_ends, in_window = [], 0, loop.time() + WINDOW_S, 0
    stream = proto.__aiter__()
    while size <= MAX_BODY_BYTES:
        read = asyncio.ensure_future(_next(stream))
        try:
            while not read.done():
                await asyncio.wait({read}, timeout=max(window_ends - loop.time(), 0))
                if loop.time() >= window_ends:
                    if in_window < LEAST_RATE * WINDOW_S:
                        raise Refused(408, f"The body arrived more slowly than {LEAST_RATE} bytes per second.")
                    window_ends, in_window = loop.time() + WINDOW_S, 0
        finally:
            read.cancel()  # nothing, if it is done
        piece = read.result()
        if piece is None:
            break
        pieces.append(piece)
        size += len(piece)
        in_window += len(piece)
        if is_crumbled(len(pieces), size):
            raise Refused(400, CRUMBLED)
    return b"".join(pieces)


CRUMBLED = "The body arrives in pieces that are too small."


def is_crumbled(pieces: int, size: int) -> bool:
    """Return True if a body arrives in so many small pieces that receiving it costs more than answering it."""
    return pieces > 64 and size < pieces * 256


async def _next(stream: Any) -> bytes | None:
    # Not anext(stream, None): CPython 3.11 crashes on it, for granian's iterator awaits in a way of its own.
    try:
        return bytes(await anext(stream))
    except StopAsyncIteration:
        return None


def _stream(
    proto: HTTPProtocol,
    loop: asyncio.AbstractEventLoop,
    pace: Pace,
    status: int,
    headers: Headers,
    pieces: Iterable[bytes],
) -> None:
    """Send a transfer's reply from the thread that makes it, no faster than its caller takes it."""
    transport = proto.response_stream(status, headers)
    try:
        for piece in pieces:
            if piece:
                asyncio.run_coroutine_threadsafe(pace.send(transport, piece), loop).result()
    except (TimeoutError, ConnectionError):
        pace.cut()
    finally:
        pace.close()


class Reply(NamedTuple):
    """A reply that its caller takes piece by piece."""

    status: int
    headers: Headers
    content: bytes


class Buffered:
    """A body that has arrived, or that is refused by its length."""

    def __init__(self, content: bytes, length: int, counted: int) -> None:
        self.content, self.length, self.counted = content, length, counted

    def file(self) -> Any:
        """Return the body as WSGI reads it."""
        return io.BytesIO(self.content)


class Streamed(io.RawIOBase):
    """A body that arrives while a thread reads it."""

    def __init__(
        self, proto: HTTPProtocol, loop: asyncio.AbstractEventLoop, has_left: Callable[[], Awaitable[bool]]
    ) -> None:
        self._pieces, self._loop, self._has_left = proto.__aiter__(), loop, has_left
        self._rest = memoryview(b"")
        self._count = self._size = 0
        self._ended = False

    def file(self) -> Any:
        """Return the body as WSGI reads it."""
        return self

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` with what has arrived; 0 is the end. Raises OSError when the caller stalls, or has gone."""
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
            if await self._has_left():  # granian ends a body that is cut off like any other
                raise ConnectionError("The caller closed the connection before the end of the body.") from None
            return b""
        except ProtocolClosed as exc:
            raise ConnectionError("The caller closed the connection before the end of the body.") from exc


def checked(scope: Scope) -> dict[str, str]:
    """Return the headers of a request by lower-case name. Raises Refused for a head that has two meanings.

    A name with an underscore is left out: in a WSGI environment it would be the same as one with a hyphen. Of a header
    that stands twice, the values are joined by a comma, as RFC 9110 does.
    """
    headers: dict[str, str] = {}
    readable = set()
    size = len(scope.path) + len(scope.query_string)
    for name, value in scope.headers.items():
        size += len(name) + len(value) + 4
        readable.add(name)
        if "_" in name:
            continue
        if name in headers:
            if name in ("host", "x-auth-token", "x-service-token", "x-subject-token"):
                raise Refused(400, f"The header {name} stands twice in the request.")
            headers[name] += f",{value}"
        else:
            headers[name] = value
    if len(readable) < len(scope.headers.keys()):  # granian leaves those out
        raise Refused(400, "The value of a header may hold visible ASCII characters only.")
    if not scope.method.isupper():
        raise Refused(400, "The method of a request is written in capital letters.")
    if size > MAX_HEAD_BYTES:
        raise Refused(431, f"The request line and the headers may have at most {MAX_HEAD_BYTES} bytes.")
    if len(scope.path) > MAX_PATH_BYTES:
        raise Refused(414, f"The path may have at most {MAX_PATH_BYTES} bytes.")
    if "transfer-encoding" in headers and "content-length" in headers:
        raise Refused(400, "A request has either a Content-Length or a Transfer-Encoding.")
    return headers


def environ_of(scope: Scope, headers: dict[str, str], body: Buffered | Streamed) -> dict[str, Any]:
    """Return the WSGI environment (PEP 3333) of a request."""
    address, _, port = scope.client.rpartition(":")
    server, _, server_port = scope.server.rpartition(":")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": _bytes_as_text(scope.path),
        "QUERY_STRING": _bytes_as_text(scope.query_string),
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "SERVER_NAME": server.strip("[]"),
        "SERVER_PORT": server_port,
        "REMOTE_ADDR": address.strip("[]"),
        "REMOTE_PORT": port,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.scheme,
        "wsgi.input": body.file(),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in headers.items():
        environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
    environ.pop("HTTP_CONTENT_LENGTH", None)
    if isinstance(body, Buffered) and (body.length or "content-length" in headers):
        environ["CONTENT_LENGTH"] = str(body.length)
    elif "content-length" in headers:
        environ["CONTENT_LENGTH"] = headers["content-length"]
    if (content_type := environ.pop("HTTP_CONTENT_TYPE", None)) is not None:
        environ["CONTENT_TYPE"] = content_type
    if scope.authority:
        environ["HTTP_HOST"] = quote(scope.authority, safe=":[]@")  # RFC 9112: the request line counts, not Host
    return environ


def _bytes_as_text(text: str) -> str:
    return text if text.isascii() else text.encode().decode("latin-1")
