"""Reads the header object of an image through the object class ``rbd`` of the OSD, without opening the image.

librbd can crash when an image is removed while it opens the image, and an open image may return outdated values. The
header holds the present values. Encodings: ``cls_rbd.cc`` and ``cls_rbd_types.cc`` of Ceph; the kernel's client uses
them as well.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_HEAD = struct.pack("<Q", 2**64 - 2)
"""CEPH_NOSNAP: addresses the image itself, not a snapshot."""
_MOST_BYTES = 2**20
_USERS = 0
"""The namespace of users' snapshots; snapshots that only clones still need are in another one."""


@dataclass(frozen=True)
class Parent:
    """The image that a clone needs."""

    pool_id: int
    namespace: str
    image_id: str


class Headers:
    """The headers of the images of one pool."""

    def __init__(self, pool: Any):
        """``pool`` is a ``rados.Ioctx``. All methods raise its errors, and ObjectNotFound for a missing image.

        An image of format 1 has no such header and counts as missing.
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
        """Return the parent of a clone; None if the image is no clone."""
        reader = _Reader(self._ask(f"rbd_header.{image_id}", "parent_get"))
        reader.skip_version()
        found = Parent(reader.number("q"), reader.text(), reader.text())
        return found if found.pool_id >= 0 else None

    def snapshots(self, image_id: str) -> Iterator[tuple[str, int]]:
        """Yield name and size in bytes of the snapshots of an image, without those that only clones still need."""
        header = f"rbd_header.{image_id}"
        reader = _Reader(self._ask(header, "get_snapcontext"))
        reader.number("Q")  # the number of the newest snapshot
        for number in [reader.number("Q") for _ in range(reader.number("I"))]:
            try:
                decoder = _Reader(self._ask(header, "snapshot_get", struct.pack("<Q", number)))
            except Exception as exc:  # an error of rados
                if getattr(exc, "errno", None) != errno.ENOENT:
                    raise
                continue  # this snapshot was removed meanwhile
            decoder.skip_version()
            decoder.number("Q")  # the snapshot's number
            if decoder.part().number("I") == _USERS:
                yield decoder.text(), decoder.number("Q")

    def is_of_new_format(self, image_id: str) -> bool:
        """Return True if an image is a clone of format 2, whose parent's snapshot needs no protection."""
        return bool(_Reader(self._ask(f"rbd_header.{image_id}", "op_features_get")).number("Q") & 2)

    def _ask(self, key: str, method: str, words: bytes = b"") -> bytes:
        length = 8192
        while True:
            try:
                return bytes(self._pool.execute(key, "rbd", method, words, length)[1])
            except Exception as exc:  # an error of rados, which may not be installed
                if getattr(exc, "errno", None) != errno.ERANGE or length >= _MOST_BYTES:
                    raise
                length *= 8


class _Reader:
    """Decodes one value after the other from Ceph's encoding."""

    def __init__(self, data: bytes):
        self._data = data
        self._at = 0

    def number(self, kind: str) -> int:
        """Take a number; ``kind`` is a letter of the module struct."""
        (found,) = struct.unpack_from(f"<{kind}", self._data, self._at)
        self._at += struct.calcsize(f"<{kind}")
        return int(found)

    def text(self) -> str:
        """Take a text, which follows its length."""
        return self._bytes(self.number("I")).decode("utf-8", "replace")

    def skip_version(self) -> None:
        """Skip the version of a structure, the oldest version that can read it, and its length."""
        self._at += 6

    def part(self) -> _Reader:
        """Take a nested structure, and return a reader for it."""
        self._at += 2
        return _Reader(self._bytes(self.number("I")))

    def _bytes(self, length: int) -> bytes:
        found = self._data[self._at : self._at + length]
        self._at += length
        return found
