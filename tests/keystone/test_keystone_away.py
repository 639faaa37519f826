"""A Keystone that hangs, is gone or answers nonsense: who is known is served, and others are told to come back."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Answer, Served
from tests.keystone.conftest import PASSWORD, Keystone, ask

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # pip installs Keystone

CONFIG = """\
[service]
auth = keystone
[keystone]
auth_url = {url}
password = {password}
interface = public
token_cache_s = 300
[backend:m]
plugin = memory
"""
SOON_S = 5.0


@pytest.fixture
def served(keystone: Keystone, tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "served", CONFIG.format(url=keystone.url, password=PASSWORD))
    yield served
    assert served.stop() == 0
    assert "Traceback" not in served.log.read_text()


def seconds(asks: Callable[[], Answer], status: int) -> float:
    """Ask, expect a status, and return how long the answer took."""
    began = time.monotonic()
    assert asks().status == status
    return time.monotonic() - began


@pytest.mark.filterwarnings("ignore:'cgi' is deprecated:DeprecationWarning")  # of webob, which the middleware needs
def test_keystone_that_hangs_holds_up_only_those_it_is_asked_about(served: Served, keystone: Keystone) -> None:
    from blockstore.api.http.keystone import ANSWER_S
    from blockstore.api.http.strangers import MOST_ASKED, MOST_WAITING

    known, new = keystone.token("member", "demo"), keystone.token("reader", "demo")
    assert ask(f"{served.url}/volumes", token=known).status == 200
    os.kill(keystone.pid, signal.SIGSTOP)
    try:
        count = MOST_ASKED + MOST_WAITING + 8
        with ThreadPoolExecutor(count) as pool:
            waiting = [pool.submit(ask, f"{served.url}/volumes", token=f"forged{number}") for number in range(count)]
            until = time.monotonic() + ANSWER_S
            while sum(one.done() for one in waiting) < 8:  # those beyond the places are refused at once
                assert time.monotonic() < until
                time.sleep(0.1)
            assert seconds(lambda: ask(f"{served.url}/volumes", token=known), 200) < SOON_S
            assert seconds(lambda: ask(served.url.removesuffix("/v3") + "/healthcheck"), 200) < SOON_S
            answers = [one.result(timeout=10 * ANSWER_S) for one in waiting]
    finally:
        os.kill(keystone.pid, signal.SIGCONT)
    for answer in answers:
        assert answer.status == 503
        assert answer.headers["retry-after"]
        assert "Keystone" in answer.message
    until = time.monotonic() + 120  # Keystone first answers what it was asked while it hung
    while (answer := ask(f"{served.url}/volumes", token=new)).status == 503 and time.monotonic() < until:
        time.sleep(0.5)
    assert answer.status == 200
    assert ask(f"{served.url}/volumes", token="forged").status == 401


@contextmanager
def impostor(status: int, body: bytes) -> Iterator[str]:
    """Answer everything alike, in the place of a Keystone; gives the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_said: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v3"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def refused(url: str, tmp_path: Path) -> None:
    """A token that nobody can be asked about is answered 503, not called bad."""
    served = Served(tmp_path / "served", CONFIG.format(url=url, password=PASSWORD))
    answer = ask(f"{served.url}/volumes", token="good-or-not")
    assert (answer.status, answer.headers["retry-after"]) == (503, "5"), answer.body
    assert answer.message == "Keystone does not answer. Try again later."
    assert ask(served.url.removesuffix("/v3") + "/healthcheck", token="good-or-not").status == 200
    assert served.stop() == 0
    assert "Traceback" not in served.log.read_text()


@pytest.mark.parametrize(("status", "body"), [(503, b"{}"), (200, b"<html>"), (200, b"[]")])
def test_what_answers_in_place_of_keystone(status: int, body: bytes, tmp_path: Path) -> None:
    with impostor(status, body) as url:
        refused(url, tmp_path)


def test_keystone_that_is_gone(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    refused(f"http://127.0.0.1:{port}/v3", tmp_path)
