"""Callers that hold connections and bytes back: others are answered meanwhile, over plain HTTP and over TLS."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Served
from tests.server.certificates import certificate
from tests.server.test_connections import is_open

pytestmark = [pytest.mark.slow, pytest.mark.timed]

MANY = 1000
OTHERS_P99_MS = 100
ASK = b"GET /v3/volumes/detail HTTP/1.1\r\nHost: [::]\r\nX-Project-Id: big\r\n\r\n"


class Attacked:
    """A served process, and what attackers hold open on it."""

    def __init__(self, served: Served, trusting: ssl.SSLContext | None, quiet: Attacked | None = None) -> None:
        """``quiet`` is one that nobody attacks, to compare with."""
        self.served, self.trusting, self.quiet = served, trusting, quiet
        self.port = int(served.url.rpartition(":")[2].partition("/")[0])

    def tcp(self, source: str = "127.0.0.1") -> socket.socket:
        """Return a connection on which nothing was said."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30, source_address=(source, 0))

    def speaking(self) -> socket.socket:
        """Return a connection on which HTTP is spoken, by TLS where the service speaks TLS."""
        plain = self.tcp()
        return self.trusting.wrap_socket(plain, server_hostname="127.0.0.1") if self.trusting else plain

    def p99_ms(self, seconds: float = 1.5) -> float:
        """Return the p99 of what another tenant's GET takes, each on a connection of its own."""
        taken = []
        end = time.monotonic() + seconds
        while time.monotonic() < end or len(taken) < 50:
            began = time.monotonic()
            with self.speaking() as one:
                one.sendall(
                    b"GET /v3/limits HTTP/1.1\r\nHost: [::]\r\nX-Project-Id: other\r\nConnection: close\r\n\r\n"
                )
                reply = b"".join(iter(lambda: one.recv(65536), b""))
            assert reply.startswith(b"HTTP/1.1 200"), reply[:300]
            taken.append(1000 * (time.monotonic() - began))
        return sorted(taken)[int(len(taken) * 0.99)]

    def others_are_answered(self) -> None:
        """Assert that another tenant's GET is quick: on a busy machine, beside one to a service that is not attacked.

        What is compared is the slowest of some dozens, which chance decides: so there are three tries.
        """
        assert self.quiet is not None
        tries = []
        for _ in range(3):
            took_ms = self.p99_ms()
            if took_ms <= OTHERS_P99_MS:
                return
            tries.append((took_ms, 3 * self.quiet.p99_ms()))
            if tries[-1][0] <= tries[-1][1]:
                return
        raise AssertionError(tries)


@pytest.fixture(scope="module", params=["plain", "tls"])
def attacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    """A service with a list that is long, plain and over TLS."""
    directory: Path = tmp_path_factory.mktemp(request.param)
    config, trusting = "[service]\nauth = none\n", None
    if request.param == "tls":
        cert, key = certificate(directory)
        config += f"tls_certificate = {cert}\ntls_key = {key}\n"
        trusting = ssl.create_default_context(cafile=cert)
    config += "[quota]\nvolumes = -1\ngigabytes = -1\n[backend:m]\nplugin = memory\n"
    served, quiet = (Served(directory / name, config, trusting=trusting) for name in ("s", "quiet"))
    attacked = Attacked(served, trusting, Attacked(quiet, trusting))
    with attacked.speaking() as one:
        for _ in range(40):
            body = json.dumps({"volume": {"size": 1, "description": "x" * 250, "metadata": {"k": "v" * 250}}}).encode()
            head = f"POST /v3/volumes HTTP/1.1\r\nHost: [::]\r\nX-Project-Id: big\r\nContent-Length: {len(body)}\r\n"
            one.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            assert one.recv(65536).startswith(b"HTTP/1.1 202")
    yield attacked
    quiet.kill()
    assert served.stop() == 0


@contextlib.contextmanager
def held(make: Callable[[], socket.socket | None], count: int = MANY) -> Iterator[list[socket.socket]]:
    """Give so many connections, which are open until the end."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(one) for _ in range(count) if (one := make()) is not None]


@contextlib.contextmanager
def dripping(connections: list[socket.socket], byte: bytes, every_s: float = 0.5) -> Iterator[None]:
    """Send a byte now and then on each connection."""
    ended = threading.Event()

    def drip() -> None:
        while not ended.wait(every_s):
            for one in connections:
                with contextlib.suppress(OSError):
                    one.send(byte)

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def begun(attacked: Attacked, head: bytes) -> socket.socket:
    one = attacked.speaking()
    one.sendall(head)
    return one


def test_connections_that_say_nothing(attacked: Attacked) -> None:
    with held(attacked.tcp):  # over TLS not even a ClientHello
        attacked.others_are_answered()


def test_half_heads(attacked: Attacked) -> None:
    with held(lambda: begun(attacked, b"GET /v3 HT"), 250):
        attacked.others_are_answered()


def test_heads_that_drip(attacked: Attacked) -> None:
    with held(lambda: begun(attacked, b"GET /v3 HTTP/1.1\r\nX: "), 250) as those, dripping(those, b"x"):
        attacked.others_are_answered()


def test_bodies_that_drip(attacked: Attacked) -> None:
    head = b"POST /v3/volumes HTTP/1.1\r\nHost: [::]\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
    with held(lambda: begun(attacked, head), 250) as those, dripping(those, b"{"):
        attacked.others_are_answered()


def test_readers_that_take_nothing(attacked: Attacked) -> None:
    with held(lambda: begun(attacked, ASK), 30):
        attacked.others_are_answered()


def test_requests_in_a_row_without_waiting_for_replies(attacked: Attacked) -> None:
    with held(lambda: begun(attacked, ASK * 50), 10):
        attacked.others_are_answered()


@pytest.mark.parametrize("attacked", ["tls"], indirect=True)
def test_handshakes_that_are_cut_off(attacked: Attacked) -> None:
    assert attacked.trusting is not None
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        attacked.trusting.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1").do_handshake()
    hello = outgoing.read()
    ended = threading.Event()

    def abort() -> None:
        while not ended.wait(0.005):
            for part in (hello[:40], hello):
                with attacked.tcp() as one:
                    one.sendall(part)

    with contextlib.ExitStack() as stack:
        for _ in range(2):
            thread = threading.Thread(target=abort)
            thread.start()
            stack.callback(thread.join)
        stack.callback(ended.set)
        attacked.others_are_answered()


def test_what_is_slow_is_closed(attacked: Attacked) -> None:
    """Each kind at once, since each takes its ten seconds."""
    body = b"POST /v3/volumes HTTP/1.1\r\nHost: [::]\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"
    kinds = {
        "nothing": attacked.tcp(),
        "half a head": begun(attacked, b"GET /v3 HT"),
        "a head that drips": begun(attacked, b"GET /v3 HTTP/1.1\r\nX: "),
        "a body that drips": begun(attacked, body),
        "between two requests": begun(attacked, b"GET /healthcheck HTTP/1.1\r\nHost: [::]\r\n\r\n"),
    }
    with contextlib.ExitStack() as stack:
        for one in kinds.values():
            stack.enter_context(one)
        with dripping([kinds["a head that drips"], kinds["a body that drips"]], b"x"):
            deadline = time.monotonic() + 60
            for name, one in kinds.items():
                one.settimeout(max(deadline - time.monotonic(), 0.1))
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    while one.recv(65536):
                        pass
                assert time.monotonic() < deadline, f"{name} is still open"


def test_one_address_holds_a_bounded_number(attacked: Attacked) -> None:
    with held(attacked.tcp, 300) as those, contextlib.ExitStack() as stack:
        for one in those:
            one.settimeout(0)
        stray = stack.enter_context(attacked.tcp("127.0.0.2"))
        stray.settimeout(0)
        deadline = time.monotonic() + 8  # soon, all of them will have been silent for too long
        while time.monotonic() < deadline and sum(map(is_open, those)) > 256:
            time.sleep(0.1)
        assert sum(map(is_open, those)) <= 256
        assert is_open(stray), "another address's connection was closed"


def test_few_open_files_are_kept_for_the_work(tmp_path: Path) -> None:
    """With 1024 files, which many systems give, idle connections made accepted creates fail."""
    served = Served(tmp_path / "s", limits={resource.RLIMIT_NOFILE: (1024, 1024)})
    attacked = Attacked(served, None)
    with held(attacked.tcp):
        ids = [create(attacked) for _ in range(10)]
        deadline = time.monotonic() + 60
        while (settled := [status(attacked, one) for one in ids]).count("available") < len(ids):
            assert "error" not in settled, served.log.read_text()
            assert time.monotonic() < deadline, settled
            time.sleep(0.05)
    assert served.stop() == 0
    assert served.log.read_text().count("\n") < 60, "one line for each connection is a flood"


def test_a_stop_is_clean_whatever_strangers_have_begun(tmp_path: Path) -> None:
    served = Served(tmp_path / "s")
    attacked = Attacked(served, None)
    head = b"POST /v3/volumes HTTP/1.1\r\nHost: [::]\r\nContent-Length: 500\r\n\r\n{"
    with begun(attacked, b"GET /v3 HT"), begun(attacked, head), attacked.tcp():
        time.sleep(0.2)
        assert served.stop() == 0
    log = served.log.read_text()
    assert "connections were still open" not in log
    assert "nothing was cut off" in log
    assert "Traceback" not in log


def create(attacked: Attacked) -> str:
    body = b'{"volume": {"size": 1}}'
    head = f"POST /v3/volumes HTTP/1.1\r\nHost: [::]\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    return str(answer(attacked, f"{head}Content-Type: application/json\r\n\r\n".encode() + body)["volume"]["id"])


def status(attacked: Attacked, volume_id: str) -> str:
    head = f"GET /v3/volumes/{volume_id} HTTP/1.1\r\nHost: [::]\r\nConnection: close\r\n\r\n"
    return str(answer(attacked, head.encode())["volume"]["status"])


def answer(attacked: Attacked, request: bytes) -> Any:
    with attacked.speaking() as one:
        one.sendall(request)
        return json.loads(b"".join(iter(lambda: one.recv(65536), b"")).partition(b"\r\n\r\n")[2])
