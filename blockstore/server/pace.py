"""How fast a caller takes a reply: granian queues whatever it is given, so that what is sent is held back here.

The kernel knows how many bytes the other end of a connection has confirmed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

AHEAD_BYTES = 256 << 10
"""Bytes that may be on their way: in granian's queue, in the kernel, in the network."""
LEAST_RATE = 1024
"""Bytes per second at which a reply must be taken, in each window of ``WINDOW_S`` seconds."""
WINDOW_S = 10.0
FIRST_LOOK_S, LAST_LOOK_S = 0.001, 0.1

_ACKED = struct.Struct("=Q")
_ACKED_AT = 120
"""Offset of tcpi_bytes_acked in struct tcp_info (linux/tcp.h)."""

_SILENT_MS = struct.Struct("=I")
_SILENT_MS_AT = 52
"""Offset of tcpi_last_data_recv."""


def acked(one: socket.socket) -> int:
    """Return the bytes that the other end of a connection has confirmed; 0 for one that has ended."""
    with contextlib.suppress(OSError, struct.error):
        return int(_ACKED.unpack_from(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192), _ACKED_AT)[0])
    return 0


def silent_s(one: socket.socket) -> float:
    """Return the seconds since a connection was made, or since the other end last sent something."""
    info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    return int(_SILENT_MS.unpack_from(info, _SILENT_MS_AT)[0]) / 1000


def has_left(connection: socket.socket) -> bool:
    """Return True if the other end of a connection sends no more."""
    with contextlib.suppress(OSError):
        return _state(connection) != _ESTABLISHED
    return True


def _state(one: socket.socket) -> int:
    return one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


class Pace:
    """The pace at which one reply is taken. Holds a copy of the connection's descriptor until it is closed."""

    def __init__(self, connection: socket.socket | None) -> None:
        """``connection``: a copy, which is closed with this; None: it was not found, and its reply is not held back."""
        self._socket = connection
        self._base = 0 if self._socket is None else acked(self._socket)
        self._sent = 0

    async def send(self, transport: Any, piece: bytes, taken: Callable[[int], None] = lambda _bytes: None) -> None:
        """Send a piece, and return when more may follow. Raises TimeoutError for a caller who takes too little.

        ``taken`` is told how many bytes of the reply the caller has confirmed.
        """
        await transport.send_bytes(piece)
        self._sent += len(piece)
        await self._until(self._sent - AHEAD_BYTES, taken)

    async def finish(self, taken: Callable[[int], None] = lambda _bytes: None) -> None:
        """Return when all that was sent has been confirmed. Raises TimeoutError."""
        await self._until(self._sent, taken)

    async def _until(self, wanted: int, taken: Callable[[int], None]) -> None:
        if self._socket is None:
            return
        look_s, window_ends, before = FIRST_LOOK_S, time.monotonic() + WINDOW_S, self._taken()
        while (now_taken := self._taken()) < wanted:
            taken(now_taken)
            if time.monotonic() >= window_ends:
                if now_taken - before < LEAST_RATE * WINDOW_S:
                    raise TimeoutError
                window_ends, before = time.monotonic() + WINDOW_S, now_taken
            await asyncio.sleep(look_s)  # the kernel tells nobody when bytes are confirmed
            look_s = min(look_s * 2, LAST_LOOK_S)
        taken(now_taken)

    def _taken(self) -> int:
        assert self._socket is not None
        if _state(self._socket) not in (_ESTABLISHED, _CLOSE_WAIT):
            raise ConnectionError("The caller has gone.")
        return acked(self._socket) - self._base

    def close(self) -> None:
        """Give the copy of the descriptor back."""
        if self._socket is not None:
            self._socket.close()

    def cut(self) -> None:
        """End the connection: its reply has no end that the caller could take for one."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


_ESTABLISHED, _CLOSE_WAIT = 1, 8
"""States of a connection in which the other end may still take bytes (linux/tcp_states.h)."""
