"""Who else has a file open, or holds a part of it: asked of the kernel."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockstore.backends import file_locks


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(1024))
    return path


@pytest.fixture
def fd(file: Path) -> Iterator[int]:
    fd = os.open(file, os.O_RDWR)
    yield fd
    os.close(fd)


def test_the_only_opener_is_known_as_such(file: Path, fd: int) -> None:
    assert file_locks.is_sole_opener(fd) is True
    with file.open("rb"):
        assert file_locks.is_sole_opener(fd) is False
    assert file_locks.is_sole_opener(fd) is True


def test_what_the_kernel_cannot_tell_is_none() -> None:
    reader, writer = os.pipe()
    try:
        assert file_locks.is_sole_opener(reader) is None
    finally:
        os.close(reader)
        os.close(writer)


def test_a_lock_of_another_open_file_is_found_where_it_lies(file: Path, fd: int) -> None:
    other = os.open(file, os.O_RDWR)
    try:
        file_locks.lock(other, fcntl.F_WRLCK, 100, 10)
        assert file_locks.is_locked(fd, 109, 1)
        assert not file_locks.is_locked(fd, 110, 10)
        with pytest.raises(OSError) as caught:
            file_locks.lock(fd, fcntl.F_RDLCK, 100, 1)
        assert caught.value.errno in (errno.EAGAIN, errno.EACCES)
        file_locks.lock(other, fcntl.F_UNLCK, 100, 10)
        assert not file_locks.is_locked(fd, 100, 10)
    finally:
        os.close(other)


def test_the_process_that_holds_a_lock_is_named(file: Path, fd: int) -> None:
    assert file_locks.locking_process(fd) is None
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'r+b'); fcntl.lockf(file, fcntl.LOCK_EX);"
        " print(flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", code, str(file)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert file_locks.locking_process(fd) == child.pid
        assert child.stdin is not None
        child.stdin.close()
    assert file_locks.locking_process(fd) is None
