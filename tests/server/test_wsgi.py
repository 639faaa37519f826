"""What a WSGI application is told of a request, what is refused before it, and bodies that pass piece by piece."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from blockstore.server import bodies, wsgi
from blockstore.server.budget import Replies
from blockstore.server.http import HttpServer, listening_socket
from blockstore.server.threads import Threads

PIECE = 64 << 10
MIB = 1 << 20


class Application:
    """Tells what it was called with; /stream takes and gives long bodies."""

    def __init__(self) -> None:
        self.called: list[dict[str, Any]] = []
        self.taken = hashlib.sha256()
        self.most_read = 0
        self.threads: list[str] = []
        self.slow, self.begun, self.go = threading.Event(), threading.Event(), threading.Event()
        self.failed: list[BaseException] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.called.append(environ)
        self.threads.append(threading.current_thread().name)
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path == "/stream" and method == "PUT":
            return self._take(environ, start_response)
        if path == "/stream":
            start_response("200 OK", [("Content-Type", "application/octet-stream")])
            return (bytes(PIECE) for _ in range(int(environ["QUERY_STRING"] or 1)))
        if path == "/wait":
            self.begun.set()
            assert self.go.wait(120)
        if path == "/long":
            body = bytes(int(environ["QUERY_STRING"]))
            start_response("200 OK", [("Content-Length", str(len(body)))])
            return [body]
        told = {name: value for name, value in environ.items() if isinstance(value, str)}
        body = json.dumps({**told, "body": environ["wsgi.input"].read().decode()}).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [b"" if method == "HEAD" else body]

    def _take(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            while piece := environ["wsgi.input"].read(PIECE):
                self.most_read = max(self.most_read, len(piece))
                self.taken.update(piece)
        except OSError as exc:
            self.failed.append(exc)
            self.slow.set()
            raise
        start_response("201 Created", [("Content-Length", "0")])
        return []


@pytest.fixture
def application() -> Application:
    return Application()


@contextlib.contextmanager
def serving(application: Application, **options: Any) -> Iterator[int]:
    """Serve the application, and give the port."""
    server = HttpServer(
        application, listening_socket("127.0.0.1", 0), 1, is_transfer=lambda _method, path: path == "/stream", **options
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.address[1]
    finally:
        server.stop()
        thread.join(60)
    assert not thread.is_alive()


@pytest.fixture
def port(application: Application) -> Iterator[int]:
    """A server of the application."""
    with serving(application) as number:
        yield number


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def ask(port: int, raw: bytes) -> tuple[int, str, bytes]:
    """Send bytes and return status, head and body of the first reply."""
    with connect(port) as one:
        one.sendall(raw)
        return reply_of(one)


def reply_of(one: socket.socket, *, head_only: bool = False) -> tuple[int, str, bytes]:
    got = b""
    while b"\r\n\r\n" not in got:
        piece = one.recv(65536)
        assert piece, got
        got += piece
    head, _, body = got.partition(b"\r\n\r\n")
    text = head.decode().lower()
    length = int(text.partition("content-length: ")[2].partition("\r\n")[0] or 0)
    while len(body) < length and not head_only:
        body += one.recv(65536)
    return int(head[9:12]), text, body


def told(port: int, head: str, body: bytes = b"") -> dict[str, Any]:
    status, _, reply = ask(port, f"{head}\r\n\r\n".encode("latin-1") + body)
    assert status == 200, (status, reply)
    return dict(json.loads(reply))


# --- the environment ---------------------------------------------------------------------------------------


def test_the_environment_is_that_of_pep_3333(port: int) -> None:
    head = "POST /a%2Fb/%C3%A9?x=%20y HTTP/1.1\r\nHost: lab:8776\r\nContent-Type: text/x\r\nX-Two: 1\r\nX-Two: 2"
    environ = told(port, f"{head}\r\nContent-Length: 3", b"abc")
    assert environ["PATH_INFO"].encode("latin-1").decode() == "/a/b/é"
    wanted = {
        "REQUEST_METHOD": "POST",
        "QUERY_STRING": "x=%20y",
        "HTTP_HOST": "lab:8776",
        "HTTP_X_TWO": "1,2",
        "CONTENT_TYPE": "text/x",
        "CONTENT_LENGTH": "3",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_PORT": str(port),
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.url_scheme": "http",
        "body": "abc",
    }
    assert {name: environ.get(name) for name in wanted} == wanted
    assert not {"HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE"} & environ.keys()


def test_what_is_not_ascii_in_a_path_or_a_query_arrives_as_bytes(port: int) -> None:
    with connect(port) as one:
        one.sendall("GET /a%C3%A9?n=é&m=漢 HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        environ = json.loads(reply_of(one)[2])
    assert environ["PATH_INFO"].encode("latin-1").decode() == "/aé"
    assert environ["QUERY_STRING"].encode("latin-1").decode() == "n=é&m=漢"


def test_a_name_with_an_underscore_is_not_that_with_a_hyphen(port: int) -> None:
    environ = told(port, "GET / HTTP/1.1\r\nHost: a\r\nX_Auth_Token: forged\r\nX-Roles: right\r\nX_Roles: forged")
    assert "HTTP_X_AUTH_TOKEN" not in environ
    assert environ["HTTP_X_ROLES"] == "right"


def test_http_1_0_without_a_host_is_answered(port: int) -> None:
    environ = told(port, "GET / HTTP/1.0")
    assert "HTTP_HOST" not in environ
    assert environ["SERVER_NAME"] == "127.0.0.1"


def test_the_host_of_an_absolute_request_line_counts(port: int) -> None:
    assert told(port, "GET http://one:1/x HTTP/1.1\r\nHost: two")["HTTP_HOST"] == "one:1"


def test_a_body_without_a_length_is_411_where_it_does_not_pass_piece_by_piece(
    port: int, application: Application
) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert ask(port, head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")[0] == 411
    assert application.called == []


def test_a_reply_to_head_has_the_length_and_no_body(port: int) -> None:
    with connect(port) as one:
        one.sendall(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
        status, head, body = reply_of(one, head_only=True)
        assert status == 200
        assert int(head.partition("content-length: ")[2].partition("\r\n")[0]) > 100
        assert body == b""


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("Content-Length: 1\r\nContent-Length: 2", 400),
        ("Content-Length: 1_0", 400),
        ("Content-Length: +1", 400),
        ("Content-Length: 0x1", 400),
        ("Content-Length: 99999999999999999999999", 400),
        ("Transfer-Encoding: xchunked", 400),
        ("X: a\0b", 400),
        ("X : a", 400),
        (" X: a", 400),
        ("X: a\r\n folded", 400),
        ("Host: b", 400),
        ("X-Forwarded-For: \xff", 400),
        ("X-Other: caf\xe9, 8.8.8.8", 400),
        ("X-Auth-Token: a\r\nX-Auth-Token: b", 400),
        (f"X: {'a' * (32 << 10)}", 431),
        (f"Content-Type: application/json{';a=b' * 60}", 415),
        ("\r\n".join(f"X{n}: a" for n in range(150)), 431),
    ],
)
def test_a_head_with_two_meanings_or_too_long_reaches_no_application(
    port: int, application: Application, head: str, status: int
) -> None:
    answer = ask(port, f"GET / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n".encode("latin-1"))
    assert answer[0] == status
    assert "connection: close" in answer[1]
    assert application.called == []


@pytest.mark.parametrize(
    "line", ["get / HTTP/1.1", "GET /\x01 HTTP/1.1", "GET /\x80 HTTP/1.1", "GET / HTTP/2.0", "junk", "GET /"]
)
def test_a_request_line_that_is_none(port: int, application: Application, line: str) -> None:
    assert ask(port, f"{line}\r\nHost: a\r\n\r\n".encode("latin-1"))[0] == 400
    assert application.called == []


def test_a_body_of_tiny_pieces_is_given_up(port: int, application: Application) -> None:
    with connect(port) as one:
        one.sendall(b"PUT /stream HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            one.sendall(b"1\r\nx\r\n" * 100_000)
        assert application.slow.wait(60)
        assert isinstance(application.failed[0], OSError)


def test_a_body_that_is_too_long_is_not_read_and_the_application_sees_its_length(
    port: int, application: Application
) -> None:
    length = bodies.MAX_BODY_BYTES + 1
    environ = told(port, f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}")
    assert (environ["CONTENT_LENGTH"], environ["body"]) == (str(length), "")


def test_a_body_that_stalls_is_408(port: int, application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "WINDOW_S", 0.2)
    status, head, body = ask(port, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
    assert (status, "connection: close" in head) == (408, True)
    assert b"1024 bytes per second" in body
    assert application.called == []


@pytest.mark.parametrize("step_s", [0, 0.05])
def test_a_body_that_drips_is_408_however_fast_it_began(
    port: int, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    monkeypatch.setattr(bodies, "WINDOW_S", 0.3)
    with connect(port) as one:
        one.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + bytes(90000))
        ended, began = threading.Event(), time.monotonic()

        def drip() -> None:
            while step_s and not ended.wait(step_s):
                with contextlib.suppress(OSError):
                    one.send(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        status = reply_of(one)[0]
        ended.set()
        thread.join()
        assert status == 408
        assert time.monotonic() - began < 60  # a byte for each 50 ms: the whole body would take minutes


def test_long_bodies_have_a_share_for_each_caller_and_short_ones_are_always_received(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wsgi, "STRANGERS_BODIES", (300_000, 100_000))
    long, short = b"Content-Length: 60000\r\n\r\n", b"Content-Length: 3\r\n\r\nabc"
    head = b"POST / HTTP/1.1\r\nHost: a\r\n"
    with (
        serving(application, client_of=lambda connected, said: said or connected) as port,
        contextlib.ExitStack() as stack,
    ):

        def start(caller: bytes) -> socket.socket:
            one = stack.enter_context(connect(port))
            one.sendall(head + b"X-Forwarded-For: " + caller + b"\r\n" + long + bytes(59000))
            return one

        first = start(b"192.0.2.1")
        deadline = time.monotonic() + 60
        while ask(port, head + b"X-Forwarded-For: 192.0.2.1\r\n" + long + bytes(60000))[0] != 503:
            assert time.monotonic() < deadline
        assert ask(port, head + b"X-Forwarded-For: 192.0.2.1\r\n" + short)[0] == 200
        assert ask(port, head + b"X-Forwarded-For: 192.0.2.2\r\n" + long + bytes(60000))[0] == 200
        first.sendall(bytes(1000))
        assert reply_of(first)[0] == 200
        while ask(port, head + b"X-Forwarded-For: 192.0.2.1\r\n" + long + bytes(60000))[0] != 200:
            assert time.monotonic() < deadline  # its part is given back a moment after the reply


def test_bodies_of_strangers_leave_those_of_tokens_their_part(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wsgi, "STRANGERS_BODIES", (100_000, 100_000))
    monkeypatch.setattr(wsgi, "BODIES", (100_000, 100_000))
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n"
    with serving(application, line_of=lambda headers: headers.get("x-auth-token", "")) as port, connect(port) as slow:
        slow.sendall(head + b"\r\n" + bytes(59000))
        deadline = time.monotonic() + 60
        while ask(port, head + b"\r\n" + bytes(60000))[0] != 503:
            assert time.monotonic() < deadline
        assert ask(port, head + b"X-Auth-Token: good\r\n\r\n" + bytes(60000))[0] == 200
        with connect(port) as other:
            other.sendall(head + b"X-Auth-Token: good\r\n\r\n" + bytes(59000))
            while ask(port, head + b"X-Auth-Token: good\r\n\r\n" + bytes(60000))[0] != 503:
                assert time.monotonic() < deadline


def test_a_bounded_number_of_bodies_of_strangers_is_received_at_once(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short ones, too: a request that is being received holds the place of a connection after its caller has gone."""
    monkeypatch.setattr(wsgi, "RECEIVED", (3, 2))
    monkeypatch.setattr(bodies.Places, "QUICK_S", 600)
    take, taken = bodies.Places.take, list[str]()

    def noted(self: bodies.Places, caller: str) -> bodies.BodyPlace:
        place = take(self, caller)
        taken.append(caller)
        return place

    monkeypatch.setattr(bodies.Places, "take", noted)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n"

    def asked(caller: int) -> bytes:
        return head + b"X-Forwarded-For: 192.0.2.%d\r\n\r\n" % caller

    of = {"client_of": lambda _peer, said: said, "line_of": lambda headers: headers.get("x-auth-token", "")}
    with serving(application, **of) as port, contextlib.ExitStack() as stack:
        halves = [stack.enter_context(connect(port)) for _ in range(3)]
        deadline = time.monotonic() + 60
        for number, (half, caller) in enumerate(zip(halves, (1, 1, 2), strict=True)):
            half.sendall(asked(caller) + b"half")
            while len(taken) <= number:  # so that they come in this order
                assert time.monotonic() < deadline
                time.sleep(0.001)
        assert ask(port, asked(1) + bytes(10))[0] == 503
        assert ask(port, asked(3) + bytes(10))[0] == 503
        assert ask(port, head + b"X-Forwarded-For: 192.0.2.1\r\nX-Auth-Token: good\r\n\r\n" + bytes(10))[0] == 200
        monkeypatch.setattr(bodies.Places, "QUICK_S", 0)
        assert ask(port, asked(3) + bytes(10))[0] == 200, "who takes long makes room: of the address with the most"
        assert reply_of(halves[0])[0] == 408
        for half in halves[1:]:
            half.sendall(b" whole")
            assert reply_of(half)[0] == 200


def test_a_request_that_has_ended_is_gone_without_a_search_for_cycles(port: int, application: Application) -> None:
    """The collector runs rarely, by the thresholds of ``serve``: bodies that wait for it would fill the memory."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
    gc.collect()
    gc.disable()
    try:
        for _ in range(30):
            assert ask(port, head + bytes(100_000))[0] == 200
            assert ask(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 200
            with connect(port) as gone:
                gone.sendall(head + bytes(100_000))
        with connect(port) as first, contextlib.ExitStack() as stack:
            first.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
            assert application.begun.wait(60)
            waiting = [stack.enter_context(connect(port)) for _ in range(10)]
            for one in waiting:
                one.sendall(head + bytes(100_000))
            time.sleep(4 * wsgi.SOON_S)  # so long that their callers are watched
            application.go.set()
            assert {reply_of(one)[0] for one in (first, *waiting)} == {200}
            del one
        deadline = time.monotonic() + 60
        while (left := sum(type(one) is wsgi.Request for one in gc.get_objects())) > 2:
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
    finally:
        gc.enable()


def test_replies_that_nobody_takes_are_bounded_and_the_slowest_is_cut(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wsgi, "STRANGERS_REPLIES", (64 * MIB, 24 * MIB))
    monkeypatch.setattr(Replies, "GRACE_S", 60)
    with serving(application) as port, contextlib.ExitStack() as stack:

        def start() -> socket.socket:
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.settimeout(60)
            one.connect(("127.0.0.1", port))
            one.sendall(b"GET /long?%d HTTP/1.1\r\nHost: a\r\n\r\n" % (10 * MIB))
            assert one.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 200"
            return one

        first, second = start(), start()
        third = stack.enter_context(connect(port))
        third.sendall(b"GET /long?%d HTTP/1.1\r\nHost: a\r\n\r\n" % (10 * MIB))
        assert reply_of(third, head_only=True)[0] == 503, "nothing is slow yet, and the share is full"
        monkeypatch.setattr(Replies, "GRACE_S", 0)
        monkeypatch.setattr(Replies, "SLOW_RATE", 1 << 40)
        start()
        with pytest.raises(OSError, match="reset"):  # noqa: PT012
            for _ in range(10 * MIB // 4096 + 1000):
                if not first.recv(4096):
                    raise ConnectionResetError("reset: it ended early")
        assert second.recv(4096), "the one that was taken later is still sent"
        assert told(port, "GET / HTTP/1.1\r\nHost: a")["REQUEST_METHOD"] == "GET"


def test_replies_to_strangers_leave_those_to_tokens_their_part(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wsgi, "STRANGERS_REPLIES", (MIB, MIB))
    monkeypatch.setattr(Replies, "GRACE_S", 60)
    long = b"GET /long?%d HTTP/1.1\r\nHost: a\r\n" % (5 * MIB)
    with serving(application, line_of=lambda headers: headers.get("x-auth-token", "")) as port, connect(port) as first:
        first.sendall(long + b"\r\n")
        assert first.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 200"
        assert ask(port, long + b"\r\n")[0] == 503
        assert len(ask(port, long + b"X-Auth-Token: good\r\n\r\n")[2]) == 5 * MIB


def test_replies_to_one_project_are_bounded_over_all_its_addresses(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wsgi, "REPLIES", (64 * MIB, 8 * MIB))
    monkeypatch.setattr(Replies, "GRACE_S", 60)

    def asked(address: int, token: str) -> bytes:
        return b"GET /long?%d HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.%d\r\nX-Auth-Token: %s\r\n\r\n" % (
            5 * MIB,
            address,
            token.encode(),
        )

    of = {"client_of": lambda _peer, said: said, "line_of": lambda headers: headers.get("x-auth-token", "")}
    with serving(application, **of) as port, connect(port) as first:
        first.sendall(asked(1, "one"))
        assert first.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 200"
        assert ask(port, asked(2, "one"))[0] == 503
        assert len(ask(port, asked(2, "other"))[2]) == 5 * MIB


@pytest.mark.timed
def test_long_replies_on_new_connections_are_whole_and_quick_while_many_are_open(port: int) -> None:
    def median_s(count: int) -> float:
        took = []
        for _ in range(count):
            began = time.monotonic()
            assert len(ask(port, b"GET /long?%d HTTP/1.1\r\nHost: a\r\n\r\n" % MIB)[2]) == MIB
            took.append(time.monotonic() - began)
        return sorted(took)[len(took) // 2]

    alone_s = median_s(10)
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(connect(port))
        assert median_s(30) < max(0.2, 5 * alone_s), alone_s


def test_a_long_reply_is_whole_and_has_a_length(port: int) -> None:
    status, head, body = ask(port, b"GET /long?%d HTTP/1.1\r\nHost: a\r\n\r\n" % (5 * MIB))
    assert (status, len(body), "chunked" in head) == (200, 5 * MIB, False)


def test_a_caller_who_leaves_in_mid_body_leaves_nothing(port: int, application: Application) -> None:
    with connect(port) as one:
        one.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
    assert told(port, "GET / HTTP/1.1\r\nHost: a")["REQUEST_METHOD"] == "GET"
    assert len(application.called) == 1


def test_who_asks_and_leaves_does_not_stay_in_line(
    port: int, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    withdraw, left = Threads.withdraw, list[bool]()

    def noted(*arguments: Any) -> bool:
        left.append(withdraw(*arguments))
        return left[-1]

    monkeypatch.setattr(Threads, "withdraw", noted)
    with connect(port) as first:
        first.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        assert application.begun.wait(60)
        for _ in range(50):
            with connect(port) as one:
                one.sendall(b"GET /left HTTP/1.1\r\nHost: a\r\n\r\n")
        deadline = time.monotonic() + 60
        with connect(port) as last:
            last.sendall(b"GET /last HTTP/1.1\r\nHost: a\r\n\r\n")
            while left.count(True) < 41:  # it takes some time to notice that they have left
                assert time.monotonic() < deadline, left
                time.sleep(0.01)
            application.go.set()
            assert reply_of(last)[0] == 200
    assert [environ["PATH_INFO"] for environ in application.called].count("/left") < 10


def test_a_stop_before_the_start_is_not_lost(application: Application) -> None:
    server = HttpServer(application, listening_socket("127.0.0.1", 0), 1)
    server.stop()
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def test_a_path_that_is_too_long_is_414(port: int, application: Application) -> None:
    assert ask(port, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 414
    assert application.called == []


def test_an_upload_that_is_cut_off_is_not_taken_for_a_whole_one(port: int, application: Application) -> None:
    for head in ("Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"):
        application.slow.clear()
        with connect(port) as one:
            one.sendall(f"PUT /stream HTTP/1.1\r\nHost: a\r\n{head}".encode())
            deadline = time.monotonic() + 60
            while not application.threads or not application.threads[-1].startswith("transfer"):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert application.slow.wait(60)
    assert len(application.failed) == 2


def test_an_application_that_fails_is_a_500_and_not_the_end(port: int, application: Application) -> None:
    def broken(_environ: Any, _start: Any) -> Any:
        raise RuntimeError("planted")

    application._take = broken  # type: ignore[method-assign]
    assert ask(port, b"PUT /stream HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")[0] == 500
    assert told(port, "GET / HTTP/1.1\r\nHost: a")["REQUEST_METHOD"] == "GET"


# --- bodies that pass piece by piece -----------------------------------------------------------------------


def test_a_long_body_passes_piece_by_piece_with_100_continue(port: int, application: Application) -> None:
    data = bytes(range(256)) * (64 * MIB // 256)
    with connect(port) as one:
        one.sendall(b"PUT /stream HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n")
        assert one.recv(100).startswith(b"HTTP/1.1 100 Continue")
        for start in range(0, len(data), MIB):
            one.sendall(f"{MIB:x}\r\n".encode() + data[start : start + MIB] + b"\r\n")
        one.sendall(b"0\r\n\r\n")
        assert reply_of(one)[0] == 201
    assert application.taken.hexdigest() == hashlib.sha256(data).hexdigest()
    assert application.most_read <= PIECE
    assert application.threads[-1].startswith("transfer")


def test_an_upload_that_stops_holds_no_thread_that_answers(
    port: int, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "PIECE_S", 0.5)
    with connect(port) as one:
        one.sendall(b"PUT /stream HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        assert told(port, "GET / HTTP/1.1\r\nHost: a")["REQUEST_METHOD"] == "GET"
        assert application.slow.wait(60)
        (failure,) = application.failed
        assert isinstance(failure, OSError)


def test_a_long_reply_waits_for_its_reader_and_for_nobody_else(port: int) -> None:
    pieces = 1024
    with connect(port) as one:
        one.sendall(f"GET /stream?{pieces} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        assert told(port, "GET / HTTP/1.1\r\nHost: a")["REQUEST_METHOD"] == "GET"
        with io.BytesIO() as got:
            while piece := one.recv(MIB):
                got.write(piece)
            head, _, body = got.getvalue().partition(b"\r\n\r\n")
    assert b"chunked" in head.lower()
    assert len(body) > pieces * PIECE
