"""A file behind an NBD socket: the part of the protocol that reading and writing needs.

Used by ``commands.py``, because ``rbd`` itself reads and writes whole images only.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import struct
from pathlib import Path
from typing import Any

from blockstore_plugins.rbd.cluster import Stuck

from blockstore.errors import Unreachable

_GREETING = b"NBDMAGICIHAVEOPT"
_FIXED_NEWSTYLE, _NO_ZEROES, _OPT_EXPORT_NAME = 1, 2, 1
_READ, _WRITE, _DISCONNECT, _FLUSH = range(4)
_REQUEST, _REPLY = 0x25609513, 0x67446698
_MOST = 4 * 2**20
_NO_WORD = (errno.EINVAL, errno.EIO, errno.ESHUTDOWN)
"""qemu's errors for a request that the cluster did not answer, for which NBD has no code. Our requests are never
invalid."""
_SILENT = "The Ceph cluster does not answer: an open image can be neither read nor written."


class NbdFile(io.RawIOBase):
    """An open export, as an unbuffered file of a fixed size."""

    def __init__(self, path: Path, *, write: bool, timeout_s: float):
        self._write = write
        self._position = 0
        self._is_lost = False
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(str(path))
            if self._receive(16) != _GREETING:
                raise Unreachable("qemu-nbd did not follow the NBD protocol.")
            self._receive(2)
            self._socket.sendall(struct.pack(">I", _FIXED_NEWSTYLE | _NO_ZEROES))
            self._socket.sendall(b"IHAVEOPT" + struct.pack(">II", _OPT_EXPORT_NAME, 0))
            self._size = int(struct.unpack(">QH", self._receive(10))[0])
        except TimeoutError as exc:
            self._socket.close()
            raise Stuck(_SILENT) from exc
        except BaseException:
            self._socket.close()
            raise

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return self._write

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        part = memoryview(buffer).cast("B")
        length = max(0, min(len(part), self._size - self._position, _MOST))
        if length:
            part[:length] = self._ask(_READ, self._position, length)
            self._position += length
        return length

    def write(self, data: Any) -> int:
        if not self._write:
            raise io.UnsupportedOperation("It is open for reading only.")
        part = memoryview(data).cast("B")
        length = min(len(part), self._size - self._position, _MOST)
        if len(part) and length <= 0:
            raise OSError(errno.ENOSPC, "This is past the end of the volume.")
        self._ask(_WRITE, self._position, length, bytes(part[:length]))
        self._position += length
        return length

    def flush(self) -> None:
        if self._write and not self.closed:
            self._ask(_FLUSH, 0, 0)

    def truncate(self, _size: int | None = None) -> int:
        raise io.UnsupportedOperation("The size of a volume is changed by extend_volume only.")

    def close(self) -> None:
        if self.closed:
            return
        try:
            super().close()  # flushes
            self._socket.sendall(struct.pack(">IHHQQI", _REQUEST, 0, _DISCONNECT, 0, 0, 0))
            self._socket.recv(1)  # qemu-nbd hangs up when it has closed the image
        except OSError:
            pass
        finally:
            self._socket.close()

    def _ask(self, what: int, offset: int, length: int, data: bytes = b"") -> bytes:
        if self._is_lost:  # the next reply may belong to an earlier request
            raise Stuck(_SILENT)
        try:
            self._socket.sendall(struct.pack(">IHHQQI", _REQUEST, 0, what, 0, offset, length) + data)
            magic, code, _handle = struct.unpack(">IIQ", self._receive(16))
            if magic != _REPLY:
                raise Unreachable("qemu-nbd sent an invalid reply.")
            if code in _NO_WORD:
                raise Stuck(_SILENT)
            if code:
                raise OSError(code, os.strerror(code))
            return self._receive(length) if what == _READ else b""
        except TimeoutError as exc:
            self._is_lost = True
            raise Stuck(_SILENT) from exc

    def _receive(self, length: int) -> bytes:
        parts = []
        while length:
            part = self._socket.recv(min(length, 2**20))
            if not part:
                raise Unreachable("qemu-nbd hung up.")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)
