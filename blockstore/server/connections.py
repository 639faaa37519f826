"""Limits open connections: their number per address, and, when many are open, the idle ones.

granian accepts connections and reads heads with a deadline, but has no limit per address. A sweep reads the connections
of this process from the table of open files, and shuts those that are too many or too slow. A sweep follows an arrival,
and is repeated while connections are open.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import os
import select
import socket
import stat
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from blockstore.address import network_of
from blockstore.server.pace import LEAST_RATE, acked, silent_s

HEAD_S = 10.0
"""Seconds in which the head of a request must arrive, and after which a connection without requests is closed."""
STALLED_S = 30.0
"""Seconds after which a connection is closed if its caller does not take the reply."""
AFTER_ARRIVAL_S = 0.25
WHILE_OPEN_S = 5.0
JUST_S = 0.1
FEW = 64
"""Up to this number, each search for a connection reads them all; above it, one sweep serves all waiting searches."""
CROWDED, ROOMY = 0.8, 0.7
"""When more than the first fraction of the limit is open, connections are closed down to the second fraction."""

_DESCRIPTORS = Path("/proc/self/fd")
_Worth = tuple[bool, bool, bool, float]


@dataclass(slots=True)
class Open:
    """One open connection."""

    last: float
    """When its last request began or ended, or when bytes of its reply were last taken."""
    requests: int = 0
    """Number of its requests that arrived completely."""
    busy: int = 0
    """Number of its requests that are being read or answered."""
    answering: int = 0
    """Number of those that arrived completely."""
    line: str = ""
    """The project of the token in the last request, if the token is known to be valid."""
    descriptor: int | None = None
    """Its file descriptor at the last sweep."""
    network: str = ""
    """The network that counts as one address. Set by the first sweep, since finding it takes 60 µs."""
    acked: int = 0
    acked_at: float = 0.0


class Connections:
    """The open connections of one listening socket."""

    def __init__(
        self,
        listener: socket.socket,
        limit: int,
        per_address: int,
        is_proxy: Callable[[str], bool] = lambda _address: False,
    ) -> None:
        """Allow ``limit`` connections, ``per_address`` of one address; a trusted proxy has only the first limit."""
        self._listener, self._limit, self._per_address, self._is_proxy = listener, limit, per_address, is_proxy
        self._port = listener.getsockname()[1]
        self._open: dict[str, Open] = {}
        self._noting = threading.Lock()
        """Held briefly to read and change ``_open`` and its entries; granian's thread takes it as well."""
        self._arrivals = select.epoll()
        self._sweep: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        """Set while arrivals are watched."""
        self._search: asyncio.Future[None] | None = None
        self._next_search = self._next_sweep = 0.0

    # --- on any thread --------------------------------------------------------------------------------------

    def begin(self, peer: str) -> None:
        """Note that a request of ADDRESS:PORT has begun."""
        now = time.monotonic()
        with self._noting:
            is_new = peer not in self._open
            known = self._open.setdefault(peer, Open(last=now))
            known.busy += 1
            known.last = now
        if is_new and (loop := self._loop) is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                # The listener may have had no event: granian may accept a connection before epoll looks.
                loop.call_soon_threadsafe(self._sweep_soon)

    def arrive(self, peer: str, line: str = "") -> None:
        """Note that a request of ADDRESS:PORT has arrived completely; ``line``: the project, if its token is known."""
        with self._noting:
            if (known := self._open.get(peer)) is not None:
                known.requests += 1
                known.answering += 1
                known.line = line

    def end(self, peer: str, *, arrived: bool) -> None:
        """Note that a request of ADDRESS:PORT has ended; ``arrived``: it had arrived completely."""
        with self._noting:
            if (known := self._open.get(peer)) is not None:
                known.busy -= 1
                known.answering -= arrived
                known.last = time.monotonic()

    # --- on the event loop ----------------------------------------------------------------------------------

    def watch(self) -> None:
        """Sweep after each arrival, from now on, on the running event loop."""
        # Edge-triggered: it reports an arrival, while granian accepts the connection.
        self._arrivals.register(self._listener, select.EPOLLIN | select.EPOLLET)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._arrivals.fileno(), self._arrived)

    def close(self) -> None:
        """Sweep no more."""
        self._loop = None
        asyncio.get_running_loop().remove_reader(self._arrivals.fileno())
        self._arrivals.close()
        if self._sweep is not None:
            self._sweep.cancel()

    async def locate(self, peer: str) -> socket.socket | None:
        """Return a copy of the socket connected to ADDRESS:PORT, for the caller to close; None if it has ended."""
        for _ in range(2):
            known = self._open.get(peer)
            if known is not None and known.descriptor is not None and (found := self._copy(peer, known.descriptor)):
                return found
            if len(self._open) <= FEW:
                descriptor = dict(self._present()).get(peer)
                return None if descriptor is None else self._copy(peer, descriptor)
            await self._searched()
        return None

    async def _searched(self) -> None:
        """Wait for a sweep that begins after this call. All who wait at the same time share one sweep."""
        loop = asyncio.get_running_loop()
        if self._search is None:
            self._search = loop.create_future()
            loop.call_at(self._next_search, self._search_now)
        await asyncio.shield(self._search)

    def _search_now(self) -> None:
        search, self._search = self._search, None
        try:
            self.sweep()
        finally:
            if search is not None:
                search.set_result(None)

    def _arrived(self) -> None:
        self._arrivals.poll(0)
        self._sweep_soon()

    def _sweep_soon(self) -> None:
        loop = self._loop
        if loop is None:
            return
        due = max(loop.time() + AFTER_ARRIVAL_S, self._next_sweep)
        if self._sweep is None or self._sweep.when() > due:
            if self._sweep is not None:
                self._sweep.cancel()
            self._sweep = loop.call_at(due, self._swept)

    def _swept(self) -> None:
        self._sweep = None
        crowded = True
        try:
            crowded = self.sweep()
        finally:
            if self._open:
                pause_s = AFTER_ARRIVAL_S if crowded else WHILE_OPEN_S
                loop = asyncio.get_running_loop()
                self._sweep = loop.call_at(max(loop.time() + pause_s, self._next_sweep), self._swept)

    def shut_idle(self) -> None:
        """Shut every connection without a request that is being answered. A stop waits for the others."""
        for peer, descriptor in dict(self._present()).items():
            known = self._open.get(peer)
            if known is None or not known.answering:
                self._shut(peer, descriptor)

    # --- the sweep ------------------------------------------------------------------------------------------

    def sweep(self) -> bool:
        """Shut the connections that are too slow, and those that are too many; return True if some were too many.

        A connection that no earlier sweep has seen never counts as too many just after it was made or sent data: its
        first request may be on the way.
        """
        now = time.monotonic()
        present = dict(self._present())
        # Searches for one connection use at most a tenth of the processor, and so do other sweeps.
        self._next_search = time.monotonic() + 10 * (time.monotonic() - now)
        silent = {peer: _asked(present[peer], silent_s) for peer in present.keys() - self._open.keys()}
        young = {peer for peer, seconds in silent.items() if seconds < JUST_S}
        with self._noting:
            # A busy connection is kept: its request may have begun after the table was read, without it.
            for peer in [peer for peer, known in self._open.items() if peer not in present and not known.busy]:
                del self._open[peer]
            held = {peer: self._open.setdefault(peer, Open(last=now - silent.get(peer, 0.0))) for peer in present}
        for peer, known in held.items():
            known.descriptor = present[peer]
            known.network = known.network or network_of(peer.rpartition(":")[0].strip("[]"))
            if not known.busy:
                self._note_progress(known, present[peer], now)
        ending = {peer for peer, known in held.items() if _is_slow(known, now)}
        too_many = self._too_many({peer: known for peer, known in held.items() if peer not in ending})
        for peer in ending | (too_many - young):
            self._shut(peer, present[peer])
        self._next_sweep = time.monotonic() + 10 * (time.monotonic() - now)
        return bool(too_many)

    def _too_many(self, held: dict[str, Open]) -> set[str]:
        """Return the connections above the limit of their address and, near the total limit, further ones to close.

        Near the total limit, strangers' connections go first, by address. Then go those with a valid token, by project
        over all addresses; those of trusted proxies go last. In each group the largest address or project goes first.
        """
        by_address = defaultdict(list)
        worth = {peer: _worth(known) for peer, known in held.items()}
        for peer, known in held.items():
            by_address[known.network].append(peer)
        ending: set[str] = set()
        for address, those in by_address.items():
            those.sort(key=worth.__getitem__)
            if len(those) > self._per_address and not self._is_proxy(address.partition("/")[0]):
                ending |= set(those[: len(those) - self._per_address])
                del those[: len(those) - self._per_address]
        left = len(held) - len(ending)
        excess = left - int(self._limit * ROOMY)
        if left <= self._limit * CROWDED:
            return ending
        strangers, projects, proxies = (defaultdict[str, list[str]](list) for _ in range(3))
        for address, those in by_address.items():
            is_proxy = self._is_proxy(address.partition("/")[0])
            for peer in those:
                line = held[peer].line
                (proxies[address] if is_proxy else projects[line] if line else strangers[address]).append(peer)
        for those in projects.values():  # from several addresses, each of them sorted by itself
            those.sort(key=worth.__getitem__)
        fair = self._limit * ROOMY / (len(strangers) + len(projects) + len(proxies))
        for group in strangers, projects, proxies:
            cut = _cut(group, excess, fair, worth)
            ending |= cut
            excess -= len(cut)
        return ending

    def _note_progress(self, known: Open, descriptor: int, now: float) -> None:
        confirmed = int(_asked(descriptor, acked))
        if confirmed - known.acked >= LEAST_RATE * (now - known.acked_at):
            if known.acked_at and confirmed > known.acked:
                known.last = now
            known.acked, known.acked_at = confirmed, now

    def _present(self) -> Iterator[tuple[str, int]]:
        """Yield ADDRESS:PORT and file descriptor of each connection to the listening socket."""
        for entry in _DESCRIPTORS.iterdir():
            descriptor = int(entry.name)
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(descriptor).st_mode) and (peer := self._peer(descriptor)) is not None:
                    yield peer, descriptor

    def _peer(self, descriptor: int) -> str | None:
        """Return ADDRESS:PORT of the peer; None if the socket is no connection to the listening socket."""
        connection = socket.socket(fileno=descriptor)
        try:
            if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.getsockname()[1] != self._port:
                return None
            host, port = connection.getpeername()[:2]  # fails for the listening socket itself
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        finally:
            connection.detach()

    def _copy(self, peer: str, descriptor: int) -> socket.socket | None:
        # The number may belong to another file by now, the copy cannot.
        with contextlib.suppress(OSError):
            copy = socket.socket(fileno=os.dup(descriptor))
            if self._peer_or_none(copy.fileno()) == peer:
                return copy
            copy.close()
        return None

    def _peer_or_none(self, descriptor: int) -> str | None:
        with contextlib.suppress(OSError):
            return self._peer(descriptor)
        return None

    def _shut(self, peer: str, descriptor: int) -> None:
        if (copy := self._copy(peer, descriptor)) is not None:
            with copy, contextlib.suppress(OSError):
                copy.shutdown(socket.SHUT_RDWR)


def _cut(by_address: dict[str, list[str]], excess: int, fair: float, worth: Mapping[str, _Worth]) -> set[str]:
    """Return ``excess`` connections to close: those of the largest address first; of equals, the least worth."""
    ending: set[str] = set()
    most = [(-len(those), worth[those[0]], address) for address, those in by_address.items() if those]
    heapq.heapify(most)
    while len(ending) < excess and most:
        _, (_, is_answered, *_rest), address = heapq.heappop(most)
        those = by_address[address]
        # An address above its fair part also loses connections that are being answered, or requests would protect them.
        if len(those) > fair or not is_answered:
            ending.add(those.pop(0))
            if those:
                heapq.heappush(most, (-len(those), worth[those[0]], address))
    return ending


def _worth(known: Open) -> _Worth:
    """Return the sort key of a connection; the first in order is closed first.

    Connections without a valid token come first. Among them, as among the others, connections that never had a complete
    request come first, and connections with a request that is being answered come last.
    """
    return bool(known.line), bool(known.answering), bool(known.requests), known.last


def _is_slow(known: Open, now: float) -> bool:
    if known.busy:
        return False  # its body and its reply have deadlines of their own
    # granian closes these itself, unless it is held up; the extra second leaves it the time.
    return now - known.last > (STALLED_S if known.requests else HEAD_S + 1)


def _asked(descriptor: int, question: Callable[[socket.socket], float]) -> float:
    """Return the kernel's answer about a connection; 0 if it has just ended."""
    with contextlib.suppress(OSError):
        connection = socket.socket(fileno=descriptor)
        try:
            return question(connection)
        finally:
            connection.detach()
    return 0
