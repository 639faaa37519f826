"""Volumes are opened, read and written."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import BinaryIO
from unittest import SkipTest

from blockstore.backends.contract import GIB
from blockstore.conformance.backend.case import case, enter
from blockstore.conformance.sandbox import BLOCK, Sandbox, expect, holds, pattern, read_at, refuses, write_at
from blockstore.errors import BackendError, VolumeMissing


class ContentCases:
    """Volumes are opened, read and written."""

    @case()
    def test_bytes_survive(self, sandbox: Sandbox) -> None:
        """What was written is read back, also across block borders and at odd offsets, and nothing else is."""
        name = sandbox.volume("kept")
        with sandbox.backend.open_volume(name, "r+b") as file:
            write_at(file, 3 * BLOCK - 3, b"odd bytes")
            expect(read_at(file, 3 * BLOCK - 4, 11) == b"\0odd bytes\0", "Bytes just written must be read back.")
        with sandbox.backend.open_volume(name, "rb") as file:
            expect(read_at(file, 3 * BLOCK - 4, 11) == b"\0odd bytes\0", "Bytes must survive closing the volume.")
        sandbox.volume_holds(name, "kept")

    @case()
    def test_writing_past_the_end_is_impossible(self, sandbox: Sandbox) -> None:
        """A write that crosses the end fails or is cut; the size stays exact."""
        name = sandbox.volume()
        for offset in (GIB - 5, GIB, GIB + 4096):
            try:
                with sandbox.backend.open_volume(name, "r+b") as file:
                    file.seek(offset)
                    file.write(b"0123456789")
            except (OSError, ValueError, BackendError):
                pass
            with sandbox.backend.open_volume(name, "rb") as file:
                size = file.seek(0, os.SEEK_END)
            expect(size == GIB, f"The volume must stay {GIB} bytes long, but is {size}.")
        sandbox.lists({name: 1})

    @case()
    def test_open_for_reading_does_not_write(self, sandbox: Sandbox) -> None:
        """A volume opened for reading cannot be changed."""
        name = sandbox.volume("kept")
        try:
            with sandbox.backend.open_volume(name, "rb") as file:
                file.write(b"changed")
        except (OSError, ValueError, BackendError):
            pass
        sandbox.volume_holds(name, "kept")

    @case()
    def test_open_missing_is_refused(self, sandbox: Sandbox) -> None:
        """Opening a volume that is not there raises VolumeMissing and makes nothing."""
        name = sandbox.name()
        refuses(VolumeMissing, enter, sandbox.backend.open_volume, name, "rb")
        refuses(VolumeMissing, enter, sandbox.backend.open_volume, name, "r+b")
        sandbox.lists({})

    @case()
    def test_an_error_inside_open_comes_out(self, sandbox: Sandbox) -> None:
        """An exception raised while a volume is open comes out unchanged, and the volume is closed."""
        name = sandbox.volume()
        refuses(_Thrown, _throw_inside, sandbox.backend.open_volume(name, "r+b"))
        sandbox.backend.delete_volume(name)

    @case()
    def test_the_located_file_has_the_same_bytes(self, sandbox: Sandbox) -> None:
        """Where a volume lies on this node in raw form, the file or device has exactly the volume's bytes."""
        name = sandbox.volume("kept")
        located = sandbox.backend.locate(name)
        if located is None or located.format != "raw":
            raise SkipTest(f"{sandbox.backend.name} gives no raw file or device.")
        with located.path.open("rb", buffering=0) as file:
            holds(file, f"path {located.path}", "kept", 1, 1)

    @case("multiattach")
    def test_declared_multiattach_works(self, sandbox: Sandbox) -> None:
        """A volume is open twice at once, and each sees what the other wrote."""
        name = sandbox.volume()
        with sandbox.backend.open_volume(name, "r+b") as one, sandbox.backend.open_volume(name, "r+b") as two:
            write_at(one, 0, pattern("one"))
            write_at(two, GIB // 2, pattern("two"))
            one.flush()
            two.flush()
            expect(read_at(two, 0) == pattern("one"), "The second opener must see what the first wrote.")
            expect(read_at(one, GIB // 2) == pattern("two"), "The first opener must see what the second wrote.")


class _Thrown(BackendError):
    """The exception that a case raises while a backend has a volume open."""


def _throw_inside(opened: AbstractContextManager[BinaryIO]) -> None:
    with opened:
        raise _Thrown("thrown by the conformance suite")
