"""Turns requests of granian (RSGI) into calls of the WSGI application on threads, and sends the replies.

A request without a body goes from granian's thread to the line of its caller. A body that is small enough is first
received on the event loop, so that a slow caller holds no thread. Transfers (``is_transfer``: images, backups) stream
their bodies on threads of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from granian._granian import RSGIHTTPProtocol as HTTPProtocol
from granian._granian import RSGIProtocolClosed as ProtocolClosed
from granian.rsgi import Scope

from blockstore.address import network_of
from blockstore.server.bodies import MAX_BODY_BYTES, NO_BODY, BufferedBody, Places, StreamedBody, received
from blockstore.server.budget import Budget, Replies
from blockstore.server.connections import Connections
from blockstore.server.heads import checked, environ_of
from blockstore.server.pace import Pace, has_left
from blockstore.server.refusals import RequestRefused, refuse, too_many_wait
from blockstore.server.threads import Threads

log = logging.getLogger(__name__)

SMALL_BODY_BYTES = 16 << 10
"""Bodies up to this size are always received: the limit of connections bounds their number."""
BODIES = (64 << 20, 4 << 20)
"""Maximum bytes of longer bodies held at once: of all projects together, and of one project."""
STRANGERS_BODIES = (16 << 20, 2 << 20)
"""The same for strangers, who show no token that is known to be valid: of all, and of one address."""
RECEIVED = (1024, 256)
"""Maximum number of strangers' requests whose bodies are being received: of all, and of one address."""
SOON_S = 0.1
"""Seconds after which the caller of a request without a reply is watched, because it may disconnect."""
PIECE_BYTES = 64 << 10
SMALL_REPLY_BYTES = 128 << 10
"""Replies up to this size are sent at once and not counted: the limit of connections bounds their number."""
REPLIES = (128 << 20, 16 << 20)
"""Maximum bytes of longer replies that wait for their callers: of all projects together, and of one project."""
STRANGERS_REPLIES = (32 << 20, 16 << 20)
"""The same for strangers: of all, and of one address."""

Headers = list[tuple[str, str]]


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """A request until it has ended."""

    scope: Scope
    proto: HTTPProtocol
    headers: dict[str, str]
    caller: str
    """The network that counts as one address."""
    line: str
    """The line in which it waits: the project of its token; empty for a stranger."""
    body: BufferedBody | StreamedBody
    done: Callable[[], None]
    """Called on any thread when the request has ended."""
    began: float = field(default_factory=time.monotonic)
    task: Callable[[], None] | None = None
    """Its task in the line. The task refers to the request, so this is cleared when the request has ended."""
    watch: asyncio.Task[None] | None = None
    """Waits for the caller to disconnect."""

    @property
    def owner(self) -> str:
        """Return the owner of the body's bytes: a project with all its addresses, or a stranger's address."""
        return self.line or self.caller


class LongReply(NamedTuple):
    """A long reply, which is sent piece by piece."""

    status: int
    headers: Headers
    content: bytes


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
        turn: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """``is_transfer`` returns True if the bodies of a method and path are streamed.

        ``client_of`` returns the client's address, given the address of the connection and what the proxy says.
        ``line_of`` returns the line of a request, given its headers. ``turn`` is held while a request is answered.
        """
        self._application = application
        self._threads, self._transfers = threads, transfers
        self._connections = connections
        self._is_transfer, self._client_of, self._line_of, self._turn = is_transfer, client_of, line_of, turn
        self._bodies, self._strangers_bodies = Budget(*BODIES), Budget(*STRANGERS_BODIES)
        self._places = Places(*RECEIVED)
        self._replies, self._strangers_replies = Replies(Budget(*REPLIES)), Replies(Budget(*STRANGERS_REPLIES))
        self._loop: asyncio.AbstractEventLoop
        self._waiting: set[Request] = set()
        self._will_watch = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set the event loop, before the first request."""
        self._loop = loop

    # --- requests without a body: on granian's thread -------------------------------------------------------

    def take(self, scope: Scope, proto: HTTPProtocol, done: Callable[[], None]) -> bool:
        """Put a request without a body into its line; return False, and do nothing, if it may have a body.

        The event loop takes no part: each change of threads costs a GET a tenth of its time, and most requests are GET.
        """
        if not self._has_no_body(scope):
            return False
        self._connections.begin(scope.client)
        arrived = False

        def ended() -> None:
            self._connections.end(scope.client, arrived=arrived)
            done()

        try:
            request = self._request(scope, proto, checked(scope), NO_BODY, ended)
            self._connections.arrive(scope.client, request.line)
            arrived = True
            self._hand_over(request)
        except RequestRefused as exc:
            refuse(proto, exc)
            ended()
        except Exception:
            log.exception("a request failed before the application")
            refuse(proto, RequestRefused(500, "Internal error."))
            ended()
        return True

    def _has_no_body(self, scope: Scope) -> bool:
        headers = scope.headers
        return (
            headers.get("content-length", "0") == "0"
            and "transfer-encoding" not in headers
            and not self._is_transfer(scope.method, scope.path)
        )

    # --- other requests: on the event loop ------------------------------------------------------------------

    async def __call__(self, scope: Scope, proto: HTTPProtocol) -> None:
        """Answer one request."""
        self._connections.begin(scope.client)
        arrived = False
        try:
            headers = checked(scope)
            ended = self._loop.create_future()
            request = self._request(scope, proto, headers, NO_BODY, functools.partial(self._tell, ended))
            request.body = await self._body(request)
            try:
                self._connections.arrive(scope.client, request.line)
                arrived = True
                self._hand_over(request)
                await ended
            finally:
                if isinstance(request.body, BufferedBody):
                    self._bodies_of(request).give_back(request.owner, request.body.counted)
        except RequestRefused as exc:
            refuse(proto, exc)
        except ProtocolClosed:
            pass  # the caller has gone
        finally:
            self._connections.end(scope.client, arrived=arrived)

    def _tell(self, ended: asyncio.Future[None]) -> None:
        def tell() -> None:
            if not ended.done():
                ended.set_result(None)

        with contextlib.suppress(RuntimeError):  # the server has stopped meanwhile, and with it the loop
            self._loop.call_soon_threadsafe(tell)

    async def _body(self, request: Request) -> BufferedBody | StreamedBody:
        """Return the body of a request. Raise RequestRefused if it arrives too slowly, or if too many are held."""
        scope, headers = request.scope, request.headers
        if self._is_transfer(scope.method, scope.path):
            return StreamedBody(request.proto, self._loop, functools.partial(self._has_left, scope.client))
        if "transfer-encoding" in headers:  # granian reports a truncated body as complete
            raise RequestRefused(411, "A request with a body must have a Content-Length.")
        length = int(headers.get("content-length") or 0)
        if not 0 < length <= MAX_BODY_BYTES:
            return BufferedBody(b"", length, 0)  # empty, or refused by the application for its length, and never read
        counted = 0 if length <= SMALL_BODY_BYTES else length
        if not request.line:
            return await self._received_of_stranger(request, length, counted)
        return await self._received(request, length, counted)

    async def _received_of_stranger(self, request: Request, length: int, counted: int) -> BufferedBody:
        place = self._places.take(request.caller)
        try:
            return await self._received(request, length, counted, place.cut)
        finally:
            self._places.give_back(place)

    async def _received(
        self, request: Request, length: int, counted: int, cut: asyncio.Future[None] | None = None
    ) -> BufferedBody:
        bodies = self._bodies_of(request)
        if counted and not bodies.has_space(request.owner, counted):
            raise RequestRefused(503, "Too many long requests are being received at once. Try again in a moment.")
        bodies.take(request.owner, counted)
        try:
            content = await received(request.proto, cut)
            if len(content) < length:
                raise RequestRefused(400, "The connection was closed before the end of the body.")
        except BaseException:
            bodies.give_back(request.owner, counted)
            raise
        return BufferedBody(content, len(content), counted)

    def _bodies_of(self, request: Request) -> Budget:
        return self._bodies if request.line else self._strangers_bodies

    async def _has_left(self, peer: str) -> bool:
        connection = await self._connections.locate(peer)
        if connection is None:
            return True
        with connection:
            return has_left(connection)

    # --- waiting for a thread -------------------------------------------------------------------------------

    def _request(
        self, scope: Scope, proto: HTTPProtocol, headers: dict[str, str], body: BufferedBody, done: Callable[[], None]
    ) -> Request:
        connected = scope.client.rpartition(":")[0].strip("[]")
        caller = network_of(self._client_of(connected, headers.get("x-forwarded-for", "")))
        return Request(
            scope=scope,
            proto=proto,
            headers=headers,
            caller=caller,
            line=self._line_of(headers),
            body=body,
            done=done,
        )

    def _hand_over(self, request: Request) -> None:
        """Put a request into its line. Raise RequestRefused if too many wait."""
        streams = isinstance(request.body, StreamedBody)
        request.task = functools.partial(self._answer, request)
        if not streams:
            self._waiting.add(request)
        threads = self._transfers if streams else self._threads
        give_way = functools.partial(self._give_way, request)
        if not threads.submit(request.caller, request.line, request.task, give_way):
            self._watch_no_more(request)
            raise too_many_wait()
        if not streams:
            self._watch_soon()

    def _give_way(self, request: Request) -> None:
        """Refuse a request that lost its place in the line to another address."""
        self._watch_no_more(request)
        refuse(request.proto, too_many_wait())
        request.done()

    def _watch_soon(self) -> None:
        if not self._will_watch:
            self._will_watch = True
            with contextlib.suppress(RuntimeError):  # the server has stopped, and with it the loop
                self._loop.call_soon_threadsafe(self._loop.call_later, SOON_S, self._watch_waiting)

    def _watch_waiting(self) -> None:
        """Watch the callers of requests that have waited for a while, in case they disconnect.

        granian cancels nothing when a connection ends, so the requests of callers who left would stay in line.
        """
        self._will_watch = False
        now = time.monotonic()
        for request in self._waiting.copy():
            if request.watch is None and now - request.began >= SOON_S:
                watch = request.watch = self._loop.create_task(self._watched(request))
                if request not in self._waiting:  # it has been answered in this moment
                    request.watch = None
                    watch.cancel()
        if self._waiting:
            self._watch_soon()

    async def _watched(self, request: Request) -> None:
        await asyncio.ensure_future(request.proto.client_disconnect())
        task = request.task
        if task is not None and self._threads.withdraw(request.caller, request.line, task):
            self._watch_no_more(request)
            request.done()

    def _watch_no_more(self, request: Request) -> None:
        self._waiting.discard(request)
        # Break the reference cycle: else the body would stay until Python collects cycles, which is rare.
        request.task = None
        watch, request.watch = request.watch, None
        if watch is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(watch.cancel)

    # --- the application: on the thread of the request ------------------------------------------------------

    def _answer(self, request: Request) -> None:
        reply = None
        try:
            # A transfer waits for its caller again and again.
            with contextlib.nullcontext() if isinstance(request.body, StreamedBody) else self._turn():
                reply = self._called(request)
        finally:
            self._watch_no_more(request)
            if reply is None:
                request.done()
            else:
                sending = self._sent_or_refused(request, reply)
                try:
                    asyncio.run_coroutine_threadsafe(sending, self._loop)
                except RuntimeError:  # the server has stopped meanwhile, and with it the loop
                    sending.close()
                    request.done()

    def _called(self, request: Request) -> LongReply | None:
        """Call the application; return the reply if it is long, else send it."""
        proto, body = request.proto, request.body
        status, headers = 500, Headers()

        def start_response(line: str, given: Headers, _exc_info: Any = None) -> Any:
            nonlocal status, headers
            status = int(line[:3])
            headers = [(name.lower(), value) for name, value in given]
            return None

        try:
            environ = environ_of(request.scope, request.headers, body)
            pieces: Iterable[bytes] = self._application(environ, start_response)
            try:
                if isinstance(body, StreamedBody):
                    self._stream(request, status, headers, pieces)
                    return None
                content = b"".join(pieces)
            finally:
                if hasattr(pieces, "close"):
                    pieces.close()
            if len(content) > SMALL_REPLY_BYTES:
                return LongReply(status, headers, content)
            proto.response_bytes(status, headers, content)
        except (ProtocolClosed, TimeoutError):
            pass  # the caller has gone, or takes nothing
        except Exception:
            log.exception("a request failed outside the application")
            refuse(proto, RequestRefused(500, "Internal error."))  # unless a part of the reply has been sent
        return None

    def _stream(self, request: Request, status: int, headers: Headers, pieces: Iterable[bytes]) -> None:
        """Send a transfer's reply on the thread that makes it, no faster than the caller takes it."""
        located = asyncio.run_coroutine_threadsafe(self._connections.locate(request.scope.client), self._loop)
        pace = Pace(located.result())
        transport = request.proto.response_stream(status, headers)
        try:
            for piece in pieces:
                if piece:
                    asyncio.run_coroutine_threadsafe(pace.send(transport, piece), self._loop).result()
        except (TimeoutError, ConnectionError):
            pace.cut()
        finally:
            pace.close()

    # --- long replies: on the event loop --------------------------------------------------------------------

    async def _sent_or_refused(self, request: Request, reply: LongReply) -> None:
        try:
            await self._sent(request, reply)
        except RequestRefused as exc:
            refuse(request.proto, exc)
        except ProtocolClosed:
            pass  # the caller has gone
        finally:
            request.done()

    async def _sent(self, request: Request, reply: LongReply) -> None:
        """Send a reply piece by piece, as the caller takes it. Raise RequestRefused if too many replies wait."""
        task = asyncio.current_task()
        assert task is not None
        line = self._line_of(request.headers)  # again, because the request itself may have made its token known
        replies = self._replies if line else self._strangers_replies
        # By project if there is one, because a member may have any number of addresses.
        caller, must = line or request.caller, request.scope.method not in ("GET", "HEAD")
        sending = replies.admit(task, caller, len(reply.content), must=must)
        if sending is None:
            raise RequestRefused(503, "Too many replies are waiting to be read. Read those first, then try again.")

        def taken(count: int) -> None:
            sending.taken = count

        pace = Pace(None)
        try:
            pace = Pace(await self._connections.locate(request.scope.client))
            transport = request.proto.response_stream(reply.status, reply.headers)
            view = memoryview(reply.content)
            for start in range(0, len(view), PIECE_BYTES):
                await pace.send(transport, bytes(view[start : start + PIECE_BYTES]), taken)
            await pace.finish(taken)
        except (TimeoutError, ConnectionError, asyncio.CancelledError):
            pace.cut()
        finally:
            pace.close()
            replies.end(sending)
