"""Which connections a sweep closes. tests/server/test_attacks.py has the same over a served process."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Iterator

import pytest

from blockstore.server import connections, http
from blockstore.server.connections import Connections

Pair = tuple[socket.socket, str]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with contextlib.closing(http.listening_socket("127.0.0.1", 0)) as one:
        yield one


class Callers:
    """Connections to a listener: both ends of each are in this process, as they would be for granian."""

    def __init__(self, listener: socket.socket, stack: contextlib.ExitStack) -> None:
        self._listener, self._stack = listener, stack
        self.ends: dict[str, socket.socket] = {}

    def come(self, source: str = "127.0.0.1") -> str:
        """Connect, and return ADDRESS:PORT."""
        address = self._listener.getsockname()
        caller = self._stack.enter_context(socket.create_connection(address, 5, source_address=(source, 0)))
        while True:
            with contextlib.suppress(BlockingIOError):
                self._stack.enter_context(self._listener.accept()[0])
                break
        host, port = caller.getsockname()
        caller.setblocking(False)
        self.ends[f"{host}:{port}"] = caller
        return f"{host}:{port}"

    def open(self) -> set[str]:
        """Return who is still connected."""
        return {peer for peer, one in self.ends.items() if is_open(one)}


def is_open(one: socket.socket) -> bool:
    """Return True if the other end has not closed a connection."""
    try:
        return one.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


@pytest.fixture
def callers(listener: socket.socket) -> Iterator[Callers]:
    with contextlib.ExitStack() as stack:
        yield Callers(listener, stack)


def test_what_is_over_the_bound_of_an_address_is_closed_those_that_never_asked_first(
    listener: socket.socket, callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "JUST_S", 600)
    held = Connections(listener, limit=100, per_address=3)
    silent = [callers.come() for _ in range(4)]
    asking, asked, other = callers.come(), callers.come(), callers.come("127.0.0.2")
    for peer in (asking, asked):
        held.begin(peer)
        held.arrive(peer)
    held.end(asked, arrived=True)
    assert held.sweep()
    assert callers.open() == {*silent, asking, asked, other}, "nothing that no earlier sweep has seen is closed"
    assert held.sweep()
    assert {asking, asked, other} <= callers.open()
    assert len(callers.open()) == 4


def test_who_comes_again_and_says_nothing_is_spared_for_a_moment_only(
    listener: socket.socket, callers: Callers
) -> None:
    held = Connections(listener, limit=100, per_address=3)
    for _ in range(7):
        callers.come()
    time.sleep(connections.JUST_S + 0.05)
    for _ in range(2):
        callers.come()
    assert held.sweep()
    assert len(callers.open()) == 3


def test_a_stop_ends_those_that_are_not_answered(listener: socket.socket, callers: Callers) -> None:
    held = Connections(listener, limit=100, per_address=100)
    asking, half, _silent = (callers.come() for _ in range(3))
    held.begin(asking)
    held.arrive(asking)
    held.begin(half)
    held.shut_idle()
    assert callers.open() == {asking}


def test_a_trusted_proxy_has_no_bound_of_its_own(listener: socket.socket, callers: Callers) -> None:
    held = Connections(listener, limit=100, per_address=1, is_proxy=lambda address: address == "127.0.0.2")
    peers = {callers.come("127.0.0.2") for _ in range(3)}
    held.sweep()
    held.sweep()
    assert callers.open() == peers


def test_when_many_are_open_the_oldest_idle_ones_are_closed_and_none_that_is_answered(
    listener: socket.socket, callers: Callers
) -> None:
    held = Connections(listener, limit=10, per_address=100)
    peers = [callers.come() for _ in range(9)]
    for peer in peers:
        held.begin(peer)
        held.arrive(peer)
    for peer in peers[1:]:
        held.end(peer, arrived=True)
    held.sweep()
    held.sweep()
    assert callers.open() == {peers[0], *peers[3:]}


def test_when_many_are_open_the_address_with_the_most_gives_way_and_half_a_request_is_no_shield(
    listener: socket.socket, callers: Callers
) -> None:
    held = Connections(listener, limit=10, per_address=100)
    kept_alive = [callers.come("127.0.0.2") for _ in range(2)]
    for peer in kept_alive:
        held.begin(peer)
        held.arrive(peer)
        held.end(peer, arrived=True)
    for _ in range(7):
        held.begin(callers.come("127.0.0.3"))
    held.sweep()
    held.sweep()
    assert set(kept_alive) <= callers.open()
    assert len(callers.open()) == 7


def test_when_many_are_open_no_answer_shields_who_has_more_than_his_part(
    listener: socket.socket, callers: Callers
) -> None:
    held = Connections(listener, limit=10, per_address=100)
    quiet = [callers.come("127.0.0.2") for _ in range(2)]
    for _ in range(8):
        peer = callers.come("127.0.0.3")
        held.begin(peer)
        held.arrive(peer)
    held.sweep()
    held.sweep()
    assert set(quiet) <= callers.open()
    assert len(callers.open()) == 7


def test_when_many_are_open_strangers_give_way_to_who_had_a_good_token_and_to_proxies(
    listener: socket.socket, callers: Callers
) -> None:
    """However many addresses the strangers have, and though a proxy or an office has more of one."""
    held = Connections(listener, limit=20, per_address=100, is_proxy=lambda address: address == "127.0.0.2")
    proxied, office = [[callers.come(source) for _ in range(5)] for source in ("127.0.0.2", "127.0.0.3")]
    strangers = [callers.come(f"127.0.1.{number}") for number in range(8)]
    for peer in (*proxied, *office, *strangers):
        held.begin(peer)
        held.arrive(peer, "project" if peer in office else "")
    for peer in (*proxied, *office, *strangers[:6]):
        held.end(peer, arrived=True)
    held.sweep()
    held.sweep()
    assert {*proxied, *office} <= callers.open()
    assert len(callers.open()) == 14


def test_when_many_are_open_of_equal_addresses_who_says_nothing_gives_way(
    listener: socket.socket, callers: Callers
) -> None:
    """Whatever the text of its address: 127.0.0.2 sorts before 127.0.1.0."""
    held = Connections(listener, limit=10, per_address=100)
    asks = callers.come("127.0.0.2")
    held.begin(asks)
    held.arrive(asks)
    held.end(asks, arrived=True)
    for number in range(8):
        callers.come(f"127.0.1.{number}")
    held.sweep()
    time.sleep(connections.JUST_S)  # who has just come is left
    held.sweep()
    assert asks in callers.open()
    assert len(callers.open()) == 7


def test_when_many_are_open_a_project_with_many_addresses_gives_way_before_others_and_proxies(
    listener: socket.socket, callers: Callers
) -> None:
    held = Connections(listener, limit=20, per_address=100, is_proxy=lambda address: address == "127.0.0.2")
    proxied = [callers.come("127.0.0.2") for _ in range(5)]
    office = [callers.come("127.0.0.3") for _ in range(3)]
    crowd = [callers.come(f"127.0.1.{number}") for number in range(10)]
    for peer in (*proxied, *office, *crowd):
        held.begin(peer)
        held.arrive(peer, "office" if peer in office else "crowd" if peer in crowd else "")
        held.end(peer, arrived=True)
    held.sweep()
    held.sweep()
    assert {*proxied, *office} <= callers.open()
    assert len(callers.open()) == 14


def test_who_says_nothing_is_closed_after_its_time_and_who_is_answered_is_not(
    listener: socket.socket, callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(connections.time, "monotonic", lambda: clock[0])
    held = Connections(listener, limit=100, per_address=100)
    _silent, asking, asked = (callers.come() for _ in range(3))
    held.sweep()
    for peer in (asking, asked):
        held.begin(peer)
        held.arrive(peer)
    held.end(asked, arrived=True)
    clock[0] += connections.HEAD_S + 2
    held.sweep()
    assert callers.open() == {asking, asked}
    clock[0] += connections.STALLED_S
    held.sweep()
    assert callers.open() == {asking}


def test_what_is_closed_is_forgotten(listener: socket.socket, callers: Callers) -> None:
    held = Connections(listener, limit=100, per_address=100)
    with contextlib.ExitStack() as stack:
        brief = Callers(listener, stack)
        for _ in range(20):
            peer = brief.come()
            held.begin(peer)
            held.arrive(peer)
            held.end(peer, arrived=True)
    held.sweep()
    assert held._open == {}


@pytest.mark.parametrize(("files", "most"), [(1024, 512), (256, 16), (65536, 4096), (resource.RLIM_INFINITY, 4096)])
def test_open_files_are_kept_from_connections(monkeypatch: pytest.MonkeyPatch, files: int, most: int) -> None:
    monkeypatch.setattr(http.resource, "getrlimit", lambda _what: (files, files))
    assert http.connection_limit() == most


def test_the_soft_limit_of_open_files_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    raised = []
    monkeypatch.setattr(http.resource, "setrlimit", lambda _what, limits: raised.append(limits))
    for soft, hard in ((1024, 524288), (1024, 4096), (1024, 1024), (100000, 200000)):
        monkeypatch.setattr(http.resource, "getrlimit", lambda _what, limits=(soft, hard): limits)
        http.raise_file_limit()
    assert raised == [(65536, 524288), (4096, 4096)]
