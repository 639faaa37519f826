"""Copies a volume's bytes from one backend to another, keeps zeros sparse, and verifies the copy before it is used.

Used by ``migration.py``. A few threads each take a chunk through all its steps. So reading, checksums and writing run
at the same time, even if each of them waits for a network.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from blockstore.backends.contract import Backend, Progress
from blockstore.errors import BackendError

T = TypeVar("T")
U = TypeVar("U")

MIB = 2**20
CHUNK = 4 * MIB
BLOCK = 64 * 2**10
"""Blocks of this size that are all zeros are not written."""
THREADS = 8
COPY_SHARE = 70
"""Percent of the progress for copying; the rest is for verifying."""

_ZEROS = bytes(BLOCK)


@dataclass(frozen=True)
class _Piece:
    offset: int
    length: int
    digest: bytes


def copy_volume(source: Backend, name: str, target: Backend, to: str, size: int, progress: Progress) -> None:
    """Copy ``size`` bytes of a volume without writers into a new volume, which reads as zeros.

    Raise BackendError if either side fails, or if the copy does not read as it was written.
    """
    progress(0)
    origin, destination = f"{name} on {source.pool}", f"{to} on {target.pool}"
    with source.open_volume(name, "rb") as reader:
        chunks = list(_chunks(source.regions(name, size)))
        with target.open_volume(to, "r+b") as writer:
            sides = _Side(reader, origin), _Side(writer, destination)
            pieces = _copied(*sides, chunks, lambda percent: progress(percent * COPY_SHARE // 100))
            writer.flush()
            _forget_cached(writer)
    with target.open_volume(to, "rb") as written:
        side = _Side(written, destination)
        _prove(side, pieces, lambda percent: progress(COPY_SHARE + percent * (100 - COPY_SHARE) // 100))


def _copied(come_from: _Side, go_to: _Side, chunks: Sequence[tuple[int, int]], progress: Progress) -> list[_Piece]:
    def copy(chunk: tuple[int, int]) -> _Piece | None:
        offset, length = chunk
        data = come_from.read(offset, length)
        runs = list(_runs(data))
        if not runs:
            return None
        go_to.write(offset, data, runs)
        return _Piece(offset, length, _digest(data))

    return [piece for piece in _all(copy, chunks, progress) if piece is not None]


def _prove(side: _Side, pieces: Sequence[_Piece], progress: Progress) -> None:
    """Read the copy and compare its checksums with those of the source."""

    def check(piece: _Piece) -> None:
        if _digest(side.read(piece.offset, piece.length)) != piece.digest:
            raise BackendError(
                f"{side.what} does not return the bytes that were written, within {piece.length} bytes at"
                f" {piece.offset}. The copy is given up, and the volume stays where it is. Check the storage of the"
                " destination."
            )

    for _ in _all(check, pieces, progress):
        pass


def _all(work: Callable[[T], U], items: Sequence[T], progress: Progress) -> Iterator[U]:
    """Yield ``work(item)`` for each item, in order, a few at a time. No thread works any more when this ends."""
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="move")
    under_way: deque[Future[U]] = deque()
    try:
        for count, item in enumerate(items):
            progress(count * 100 // len(items))
            under_way.append(threads.submit(work, item))
            if len(under_way) > THREADS:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
        progress(100)
    finally:
        threads.shutdown(cancel_futures=True)


class _Side:
    """An open volume that several threads use. They take turns unless its file has ``pread`` and ``pwrite``."""

    def __init__(self, file: BinaryIO, what: str):
        self._file = file
        self.what = what
        self._lock = threading.Lock()
        self._pread: Any = getattr(file, "pread", None)
        self._pwrite: Any = getattr(file, "pwrite", None)

    def read(self, offset: int, length: int) -> bytes:
        """Read exactly ``length`` bytes."""
        parts = []
        with self._named("read"):
            while length:
                if self._pread is not None:
                    part = self._pread(length, offset)
                else:
                    with self._lock:
                        self._file.seek(offset)
                        part = self._file.read(length)
                if not part:
                    raise BackendError(f"{self.what} ends at {offset} bytes, before its size.")
                parts.append(part)
                offset, length = offset + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, data: bytes, runs: Iterable[tuple[int, int]]) -> None:
        """Write the given runs of the chunk at an offset."""
        with self._named("written"):
            for start, end in runs:
                while start < end:
                    part = data if (start, end) == (0, len(data)) else memoryview(data)[start:end]
                    if self._pwrite is not None:
                        start += self._pwrite(part, offset + start)
                        continue
                    with self._lock:
                        self._file.seek(offset + start)
                        start += self._file.write(part)

    @contextmanager
    def _named(self, done: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            cause = exc.strerror or exc
            raise BackendError(f"{self.what} cannot be {done}: {cause}. Check that storage.") from exc


def _chunks(regions: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for start, length in regions:
        for offset in range(start, start + length, CHUNK):
            yield offset, min(CHUNK, start + length - offset)


def _runs(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and end of each run that is not zeros, in whole blocks."""
    start: int | None = None
    for offset in range(0, len(data), BLOCK):
        block = min(BLOCK, len(data) - offset)
        empty = data.startswith(_ZEROS if block == BLOCK else bytes(block), offset)
        if empty and start is not None:
            yield start, offset
            start = None
        elif not empty and start is None:
            start = offset
    if start is not None:
        yield start, len(data)


def _digest(data: bytes) -> bytes:
    """Return a checksum of each MiB. It detects storage errors, not forgery, so a fast checksum is enough."""
    view = memoryview(data)
    return b"".join(zlib.crc32(view[at : at + MIB]).to_bytes(4) for at in range(0, len(view), MIB))


def _forget_cached(file: BinaryIO) -> None:
    """Drop the file from the page cache, so that verifying reads the storage. Do nothing if it is no local file."""
    with suppress(OSError, AttributeError):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
