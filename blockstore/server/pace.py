"""Sends a reply at the pace of its caller: granian queues without a limit, so this module holds data back.

The kernel knows how many bytes the peer of a connection has acknowledged.
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
"""Bytes that may be in flight: in granian's queue, in the kernel, in the network."""
LEAST_RATE = 1024
"""Bytes per second at which the caller must take a reply, in each window of ``WINDOW_S`` seconds."""
WINDOW_S = 10.0
FIRST_CHECK_S, LAST_CHECK_S = 0.001, 0.1

_ACKED = struct.Struct("=Q")
_ACKED_AT = 120
"""Offset of tcpi_bytes_acked in struct tcp_info (linux/tcp.h)."""

_SILENT_MS = struct.Struct("=I")
_SILENT_MS_AT = 52
"""Offset of tcpi_last_data_recv."""


def acked(connection: socket.socket) -> int:
    """Return the number of bytes that the peer has acknowledged; 0 if the connection has ended."""
    with contextlib.suppress(OSError, struct.error):
        return int(_ACKED.unpack_from(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192), _ACKED_AT)[0])
    return 0


def silent_s(connection: socket.socket) -> float:
    """Return the seconds since the peer last sent data, or since the connection was made."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    return int(_SILENT_MS.unpack_from(info, _SILENT_MS_AT)[0]) / 1000


def has_left(connection: socket.socket) -> bool:
    """Return True if the peer has closed its side of a connection."""
    with contextlib.suppress(OSError):
        return _state(connection) != _ESTABLISHED
    return True


def _state(connection: socket.socket) -> int:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


class Pace:
    """Paces one reply. Holds a copy of the connection's descriptor until ``close``."""

    def __init__(self, connection: socket.socket | None) -> None:
        """``connection``: a copy of the socket, closed by ``close``; None if it was not found: nothing is held back."""
        self._socket = connection
        self._base = 0 if self._socket is None else acked(self._socket)
        self._sent = 0

    async def send(self, transport: Any, piece: bytes, taken: Callable[[int], None] = lambda _bytes: None) -> None:
        """Send a piece, and return when more may follow. Raise TimeoutError if the caller takes it too slowly.

        ``taken`` is called with the number of bytes of the reply that the caller has acknowledged.
        """
        await transport.send_bytes(piece)
        self._sent += len(piece)
        await self._until(self._sent - AHEAD_BYTES, taken)

    async def finish(self, taken: Callable[[int], None] = lambda _bytes: None) -> None:
        """Return when the caller has acknowledged all that was sent. Raises TimeoutError."""
        await self._until(self._sent, taken)

    async def _until(self, wanted: int, taken: Callable[[int], None]) -> None:
        if self._socket is None:
            return
        check_s, window_ends, before = FIRST_CHECK_S, time.monotonic() + WINDOW_S, self._taken()
        while (now_taken := self._taken()) < wanted:
            taken(now_taken)
            if time.monotonic() >= window_ends:
                if now_taken - before < LEAST_RATE * WINDOW_S:
                    raise TimeoutError
                window_ends, before = time.monotonic() + WINDOW_S, now_taken
            await asyncio.sleep(check_s)  # the kernel has no event for acknowledged bytes
            check_s = min(check_s * 2, LAST_CHECK_S)
        taken(now_taken)

    def _taken(self) -> int:
        assert self._socket is not None
        if _state(self._socket) not in (_ESTABLISHED, _CLOSE_WAIT):
            raise ConnectionError("The caller has gone.")
        return acked(self._socket) - self._base

    def close(self) -> None:
        """Close the copy of the descriptor."""
        if self._socket is not None:
            self._socket.close()

    def cut(self) -> None:
        """Shut the connection, so that the caller cannot take the truncated reply for a complete one."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


_ESTABLISHED, _CLOSE_WAIT = 1, 8
"""States of a connection in which the peer may still receive bytes (linux/tcp_states.h)."""
