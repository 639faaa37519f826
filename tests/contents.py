"""Bytes of volumes, snapshots and files, written and read by a test."""

from __future__ import annotations

import os
from pathlib import Path

from blockstore.backends.contract import Backend


def write(backend: Backend, volume: str, data: bytes, at: int = 0) -> None:
    """Write to a volume."""
    with backend.open_volume(volume, "r+b") as file:
        file.seek(at)
        assert file.write(data) == len(data)


def read(backend: Backend, volume: str, length: int, at: int = 0) -> bytes:
    """Return bytes of a volume."""
    with backend.open_volume(volume, "rb") as file:
        file.seek(at)
        return file.read(length)


def read_snapshot(backend: Backend, volume: str, snapshot: str, length: int) -> bytes:
    """Return the first bytes of a snapshot."""
    with backend.open_snapshot(volume, snapshot) as file:
        return file.read(length)


def write_file(path: str | Path, data: bytes, at: int = 0) -> None:
    """Write to a file or a disk, down to the storage."""
    with Path(path).open("r+b") as file:
        file.seek(at)
        file.write(data)
        os.fsync(file.fileno())


def read_file(path: str | Path, length: int, at: int = 0) -> bytes:
    """Return bytes of a file or a disk."""
    with Path(path).open("rb") as file:
        file.seek(at)
        return file.read(length)
