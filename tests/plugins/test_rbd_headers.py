"""What needs no cluster; that the headers tell what librbd tells is shown by tests/ceph."""

from __future__ import annotations

import errno
import struct

import pytest
from blockstore_plugins.rbd.headers import Headers


class Refused(Exception):
    def __init__(self, number: int):
        super().__init__("refused")
        self.errno = number


class Pool:
    """A pool with one image of many snapshots; an answer must fit into the space that is given for it."""

    SNAPSHOTS = 3000
    gone: frozenset[int] = frozenset()

    def execute(self, key: str, cls: str, method: str, data: bytes, length: int) -> tuple[int, bytes]:
        assert (key, cls) == ("rbd_header.1a", "rbd")
        answer = getattr(self, method)(data)
        if len(answer) > length:
            raise Refused(errno.ERANGE)
        return len(answer), answer

    def get_snapcontext(self, _data: bytes) -> bytes:
        numbers = range(self.SNAPSHOTS, 0, -1)
        return struct.pack(f"<QI{self.SNAPSHOTS}Q", self.SNAPSHOTS, self.SNAPSHOTS, *numbers)

    def snapshot_get(self, data: bytes) -> bytes:
        (number,) = struct.unpack("<Q", data)
        if number in self.gone:
            raise Refused(errno.ENOENT)
        namespace = struct.pack("<BBII", 1, 1, 4, 0) if number % 2 else struct.pack("<BBIIQ", 1, 1, 12, 2, 7)
        name = f"snap-{number}".encode()
        body = struct.pack("<Q", number) + namespace + struct.pack("<I", len(name)) + name + struct.pack("<Q", 2**30)
        return struct.pack("<BBI", 1, 1, len(body)) + body

    def get_size(self, _data: bytes) -> bytes:
        raise Refused(errno.ETIMEDOUT)


def test_more_snapshots_than_fit_into_the_first_answer() -> None:
    found = dict(Headers(Pool()).snapshots("1a"))
    assert found == {f"snap-{number}": 2**30 for number in range(1, Pool.SNAPSHOTS, 2)}


def test_a_snapshot_that_goes_meanwhile_takes_no_other_out_of_the_list() -> None:
    pool = Pool()
    pool.gone = frozenset({5})
    assert len(dict(Headers(pool).snapshots("1a"))) == Pool.SNAPSHOTS // 2 - 1


def test_other_errors_pass() -> None:
    with pytest.raises(Refused) as caught:
        Headers(Pool()).size("1a")
    assert caught.value.errno == errno.ETIMEDOUT
