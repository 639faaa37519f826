"""Copies a volume's bytes from one backend to another: sparse in and out, and proved equal before anybody relies on it.

Used by ``moving.py``. One thread reads, one writes, one reckons checksums: the slowest of the three sets the pace.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO

from blockstore.backends.contract import Backend, Progress
from blockstore.errors import BackendError

CHUNK = 4 * 2**20
BLOCK = 64 * 2**10
"""What is all zeros, in whole blocks of so many bytes, is not written."""
AHEAD = 4
COPY_SHARE = 70
"""Percent of the progress that copying takes; the rest is for the proof."""

_ZEROS = bytes(BLOCK)


@dataclass(frozen=True)
class _Piece:
    offset: int
    length: int
    digest: bytes


def copy_volume(source: Backend, name: str, target: Backend, to: str, size: int, progress: Progress) -> None:
    """Copy ``size`` bytes of a volume nobody writes into a new one, which reads as zeros.

    Raises: BackendError of either side, also when what was written does not read as it should.
    """
    progress(0)
    with source.open_volume(name, "rb") as reader:
        regions = list(source.regions(name, size))
        with target.open_volume(to, "r+b") as writer:
            pieces = _copied(reader, writer, regions, lambda percent: progress(percent * COPY_SHARE // 100))
            writer.flush()
            _forget_cached(writer)
    with target.open_volume(to, "rb") as written:
        _prove(written, pieces, to, lambda percent: progress(COPY_SHARE + percent * (100 - COPY_SHARE) // 100))


def _copied(reader: BinaryIO, writer: BinaryIO, regions: Iterable[tuple[int, int]], progress: Progress) -> list[_Piece]:
    chunks = list(_chunks(regions))
    pieces: list[_Piece] = []
    under_way: deque[tuple[int, int, Future[bytes], Future[None]]] = deque()

    def settle_first() -> None:
        offset, length, digest, written = under_way.popleft()
        written.result()
        pieces.append(_Piece(offset, length, digest.result()))

    with _thread("move-write") as writing, _thread("move-sum") as summing:
        for count, (offset, length) in enumerate(chunks):
            progress(count * 100 // len(chunks))
            data = _read(reader, offset, length)
            runs = list(_runs(data))
            if not runs:
                continue
            digest = summing.submit(_digest, data)
            under_way.append((offset, length, digest, writing.submit(_write, writer, offset, data, runs)))
            if len(under_way) > AHEAD:
                settle_first()
        while under_way:
            settle_first()
    progress(100)
    return pieces


def _prove(written: BinaryIO, pieces: list[_Piece], to: str, progress: Progress) -> None:
    """Read what was written and compare checksums with those of the source."""
    under_way: deque[tuple[_Piece, Future[bytes]]] = deque()

    def settle_first() -> None:
        piece, digest = under_way.popleft()
        if digest.result() != piece.digest:
            raise BackendError(
                f"{to} does not read as it was written, within {piece.length} bytes at {piece.offset}: the copy is"
                " given up, and the volume stays where it is. Check the storage it was to move to."
            )

    with _thread("move-sum") as summing:
        for count, piece in enumerate(pieces):
            progress(count * 100 // len(pieces))
            under_way.append((piece, summing.submit(_digest, _read(written, piece.offset, piece.length))))
            if len(under_way) > AHEAD:
                settle_first()
        while under_way:
            settle_first()
    progress(100)


@contextmanager
def _thread(name: str) -> Iterator[ThreadPoolExecutor]:
    threads = ThreadPoolExecutor(1, thread_name_prefix=name)
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)  # nothing may use a file that is closed next


def _chunks(regions: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for start, length in regions:
        for offset in range(start, start + length, CHUNK):
            yield offset, min(CHUNK, start + length - offset)


def _runs(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and end of what is not zeros, in whole blocks."""
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


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    with _named("read"):
        file.seek(offset)
        data = file.read(length)
        while len(data) < length:
            more = file.read(length - len(data))
            if not more:
                raise BackendError(f"A volume ends at {offset + len(data)} bytes, before its size.")
            data += more
        return data


def _write(file: BinaryIO, offset: int, data: bytes, runs: list[tuple[int, int]]) -> None:
    with _named("written"):
        for start, end in runs:
            file.seek(offset + start)
            left = memoryview(data)[start:end]
            while left:
                left = left[file.write(left) :]


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _forget_cached(file: BinaryIO) -> None:
    """Have the proof read the storage, not this node's memory, where there is a file to say it of."""
    with suppress(OSError, AttributeError):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _named(done: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise BackendError(f"A volume cannot be {done}: {exc.strerror or exc}.") from exc
