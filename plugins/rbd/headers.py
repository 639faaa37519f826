"""Reads what the header object of an image holds, by the object class ``rbd`` of the OSD, without opening the image.

An image that goes while librbd opens it can take the process down, and an open image tells what it last heard. The
header tells what is. Encodings: ``cls_rbd.cc`` and ``cls_rbd_types.cc`` of Ceph, which the kernel's client speaks, too.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_HEAD = struct.pack("<Q", 2**64 - 2)
"""CEPH_NOSNAP: what is asked of the image itself, not of a snapshot."""
_MOST_BYTES = 2**20
_USERS = 0
"""The namespace of the snapshots that somebody made; another is of what only clones still need."""


@dataclass(frozen=True)
class Parent:
    """The image that a clone needs."""

    pool_id: int
    namespace: str
    image_id: str


class Headers:
    """The headers of the images of one pool."""

    def __init__(self, pool: Any):
        """``pool`` is a ``rados.Ioctx``, whose errors all methods raise; ObjectNotFound for an image that is not there.

        An image of the first format has no such header: it is not there.
        """
        self._pool = pool

    def image_id(self, name: str) -> str:
        """Return the id of an image."""
        return _Reader(self._ask(f"rbd_id.{name}", "get_id")).text()

    def name(self, image_id: str) -> str:
        """Return the name of an image that is not in the trash."""
        coded = image_id.encode()
        return _Reader(self._ask("rbd_directory", "dir_get_name", struct.pack("<I", len(coded)) + coded)).text()

    def size(self, image_id: str) -> int:
        """Return the size of an image in bytes."""
        reader = _Reader(self._ask(f"rbd_header.{image_id}", "get_size", _HEAD))
        reader.number("B")  # the size of its objects, as a power of two
        return reader.number("Q")

    def parent(self, image_id: str) -> Parent | None:
        """Return the parent of a clone; None of what is none."""
        reader = _Reader(self._ask(f"rbd_header.{image_id}", "parent_get"))
        reader.skip_version()
        found = Parent(reader.number("q"), reader.text(), reader.text())
        return found if found.pool_id >= 0 else None

    def snapshots(self, image_id: str) -> Iterator[tuple[str, int]]:
        """Give name and size in bytes of the snapshots of an image, without those that only clones still need."""
        header = f"rbd_header.{image_id}"
        reader = _Reader(self._ask(header, "get_snapcontext"))
        reader.number("Q")  # the newest one's number
        for number in [reader.number("Q") for _ in range(reader.number("I"))]:
            try:
                one = _Reader(self._ask(header, "snapshot_get", struct.pack("<Q", number)))
            except Exception as exc:  # of rados
                if getattr(exc, "errno", None) != errno.ENOENT:
                    raise
                continue  # it went meanwhile; the others are there
            one.skip_version()
            one.number("Q")  # its number
            if one.part().number("I") == _USERS:
                yield one.text(), one.number("Q")

    def is_of_new_format(self, image_id: str) -> bool:
        """Return True if an image is a clone of format 2, whose parent's snapshot needs no protection."""
        return bool(_Reader(self._ask(f"rbd_header.{image_id}", "op_features_get")).number("Q") & 2)

    def _ask(self, key: str, method: str, words: bytes = b"") -> bytes:
        length = 8192
        while True:
            try:
                return bytes(self._pool.execute(key, "rbd", method, words, length)[1])
            except Exception as exc:  # of rados, which may not be there to be imported
                if getattr(exc, "errno", None) != errno.ERANGE or length >= _MOST_BYTES:
                    raise
                length *= 8


class _Reader:
    """Takes one value after the other from what Ceph has encoded."""

    def __init__(self, data: bytes):
        self._data = data
        self._at = 0

    def number(self, kind: str) -> int:
        """Take a number; ``kind`` is a letter of the module struct."""
        (found,) = struct.unpack_from(f"<{kind}", self._data, self._at)
        self._at += struct.calcsize(f"<{kind}")
        return int(found)

    def text(self) -> str:
        """Take a text, behind its length."""
        return self._bytes(self.number("I")).decode("utf-8", "replace")

    def skip_version(self) -> None:
        """Pass over the version of a structure, the oldest that can read it, and its length."""
        self._at += 6

    def part(self) -> _Reader:
        """Take a structure within, as a reader of its own."""
        self._at += 2
        return _Reader(self._bytes(self.number("I")))

    def _bytes(self, length: int) -> bytes:
        found = self._data[self._at : self._at + length]
        self._at += length
        return found
