"""From a request of granian (RSGI, on the event loop) to a call of the WSGI application on a thread, and back.

A body that is small enough is read here, before a thread is asked, so that a slow caller holds no thread. Requests
that ``is_transfer`` names (images, backups) read and write their bodies piece by piece, on threads of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from granian._granian import RSGIHTTPProtocol as HTTPProtocol
from granian._granian import RSGIProtocolClosed as ProtocolClosed
from granian.rsgi import Scope

from blockstore.server.connections import Connections
from blockstore.server.threads import Threads

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 32 << 10
"""Bytes of a request line and its headers together."""
MAX_BODY_BYTES = 128 << 10
"""Bytes of a body that is read before a thread is asked; the API allows less, with a sentence."""
BODY_GRACE_S = 10.0
"""Seconds in which a body may arrive at any rate."""
LEAST_RATE = 1024
"""Bytes per second at which the rest of a body must arrive, and a reply must be taken."""
MAX_HELD_BYTES = 64 << 20
"""Bytes of bodies that are held at once, of all callers together."""
PIECE_S = 60.0
"""Seconds that a transfer waits for the next piece of a body, or for the caller to take one."""
WHOLE_REPLY_BYTES = 1 << 20
"""A reply of at most so many bytes is handed over whole."""

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
    ) -> None:
        """``is_transfer`` is asked with method and path whether bodies pass piece by piece."""
        self._application = application
        self._threads, self._transfers = threads, transfers
        self._connections = connections
        self._is_transfer = is_transfer
        self._held = 0

    async def __call__(self, scope: Scope, proto: HTTPProtocol) -> None:
        """Answer one request."""
        self._connections.begin(scope.client)
        body: Buffered | Streamed | None = None
        try:
            headers = checked(scope)
            streams = self._is_transfer(scope.method, scope.path)
            body = Streamed(proto, asyncio.get_running_loop()) if streams else await self._read(proto, headers)
            await self._called(scope, proto, headers, body)
        except Refused as exc:
            text = f"{exc.sentence}\n"
            proto.response_str(exc.status, [("content-type", "text/plain"), ("connection", "close")], text)
        except ProtocolClosed:
            pass  # the caller has gone
        finally:
            if isinstance(body, Buffered):
                self._held -= len(body.content)
            self._connections.end(scope.client)

    # --- the body -------------------------------------------------------------------------------------------

    async def _read(self, proto: HTTPProtocol, headers: dict[str, str]) -> Buffered:
        """Return the body of a request that is no transfer. Raises Refused when it arrives too slowly."""
        chunked = "transfer-encoding" in headers
        length = int(headers.get("content-length") or 0)
        if not chunked and length > MAX_BODY_BYTES:
            return Buffered(b"", length)  # the application refuses it by its length, and nothing is read
        if not chunked and length == 0:
            return Buffered(b"", 0)
        if self._held + (MAX_BODY_BYTES if chunked else length) > MAX_HELD_BYTES:
            raise Refused(503, "Too many requests are being received at once. Try again in a moment.")
        started = asyncio.get_running_loop().time()
        pieces, size = [], 0
        pending = proto.__aiter__()
        while True:
            left = started + BODY_GRACE_S + size / LEAST_RATE - asyncio.get_running_loop().time()
            try:
                piece = await asyncio.wait_for(anext(pending), max(left, 0))
            except StopAsyncIteration:
                break
            except TimeoutError:
                self._held -= size
                raise Refused(
                    408, f"The body of the request arrived more slowly than {LEAST_RATE} bytes per second."
                ) from None
            except BaseException:
                self._held -= size
                raise
            size += len(piece)
            self._held += len(piece)
            pieces.append(piece)
            if size > MAX_BODY_BYTES:
                break  # the application refuses it by its length
        return Buffered(b"".join(pieces), size)

    # --- the application ------------------------------------------------------------------------------------

    async def _called(
        self, scope: Scope, proto: HTTPProtocol, headers: dict[str, str], body: Buffered | Streamed
    ) -> None:
        loop = asyncio.get_running_loop()
        replied = loop.create_future()

        def answer() -> None:
            try:
                self._answer(environ_of(scope, headers, body), proto, loop)
            finally:
                with contextlib.suppress(RuntimeError):  # a stop did not wait any longer: the loop is closed
                    loop.call_soon_threadsafe(replied.set_result, None)

        threads = self._transfers if isinstance(body, Streamed) else self._threads
        threads.submit(scope.client.rpartition(":")[0], headers.get("x-auth-token", ""), answer)
        await replied

    def _answer(self, environ: dict[str, Any], proto: HTTPProtocol, loop: asyncio.AbstractEventLoop) -> None:
        """Call the application and reply, on the thread of this request."""
        status, headers = 500, Headers()

        def start_response(line: str, given: Headers, _exc_info: Any = None) -> Any:
            nonlocal status, headers
            status = int(line[:3])
            headers = [(name.lower(), value) for name, value in given]
            return None

        try:
            reply: Iterable[bytes] = self._application(environ, start_response)
            try:
                length = next((int(value) for name, value in headers if name == "content-length"), None)
                if length is not None and length <= WHOLE_REPLY_BYTES:
                    proto.response_bytes(status, headers, b"".join(reply))
                else:
                    self._send(proto, loop, status, headers, reply)
            finally:
                if hasattr(reply, "close"):
                    reply.close()
        except (ProtocolClosed, TimeoutError):
            pass  # the caller has gone, or takes nothing
        except Exception:
            log.exception("a request failed outside the application")
            with contextlib.suppress(ProtocolClosed):  # a part of the reply has been sent
                proto.response_str(500, [("content-type", "text/plain"), ("connection", "close")], "Internal error.\n")

    @staticmethod
    def _send(
        proto: HTTPProtocol, loop: asyncio.AbstractEventLoop, status: int, headers: Headers, reply: Iterable[bytes]
    ) -> None:
        transport = proto.response_stream(status, headers)
        for piece in reply:
            if piece:
                asyncio.run_coroutine_threadsafe(_sent(transport, piece), loop).result(PIECE_S)


async def _sent(transport: Any, piece: bytes) -> None:
    await transport.send_bytes(piece)


class Buffered:
    """A body that has arrived, or that is refused by its length."""

    def __init__(self, content: bytes, length: int) -> None:
        self.content, self.length = content, length

    def file(self) -> Any:
        """Return the body as WSGI reads it."""
        return io.BytesIO(self.content)


class Streamed(io.RawIOBase):
    """A body that arrives while a thread reads it."""

    def __init__(self, proto: HTTPProtocol, loop: asyncio.AbstractEventLoop) -> None:
        self._pieces, self._loop = proto.__aiter__(), loop
        self._rest = memoryview(b"")
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
            return bytes(piece)
        except StopAsyncIteration:
            self._ended = True
            return b""
        except ProtocolClosed as exc:
            raise ConnectionError("The caller closed the connection before the end of the body.") from exc


def checked(scope: Scope) -> dict[str, str]:
    """Return the headers of a request by lower-case name. Raises Refused for a head that has two meanings.

    A name with an underscore is left out: in a WSGI environment it would be the same as one with a hyphen. Of a header
    that stands twice, the values are joined by a comma, as RFC 9110 does.
    """
    headers: dict[str, str] = {}
    size = len(scope.path) + len(scope.query_string)
    for name, value in scope.headers.items():
        size += len(name) + len(value) + 4
        if "_" in name:
            continue
        if name in headers:
            if name in ("host", "x-auth-token", "x-service-token", "x-subject-token"):
                raise Refused(400, f"The header {name} stands twice in the request.")
            headers[name] += f",{value}"
        else:
            headers[name] = value
    if size > MAX_HEAD_BYTES:
        raise Refused(431, f"The request line and the headers may have at most {MAX_HEAD_BYTES} bytes.")
    if "transfer-encoding" in headers and "content-length" in headers:
        raise Refused(400, "A request has either a Content-Length or a Transfer-Encoding.")
    return headers


def environ_of(scope: Scope, headers: dict[str, str], body: Buffered | Streamed) -> dict[str, Any]:
    """Return the WSGI environment (PEP 3333) of a request."""
    address, _, port = scope.client.rpartition(":")
    server, _, server_port = scope.server.rpartition(":")
    path = scope.path
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path if path.isascii() else path.encode().decode("latin-1"),
        "QUERY_STRING": scope.query_string,
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
