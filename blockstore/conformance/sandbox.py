"""The common base of the conformance suites of backends and targets: sandbox, test patterns, cases, results.

Imported by the two suites and their tests only. Never imports pytest, uses no ``assert`` (which -O removes), writes
little, and removes all that a case made, also when the case fails.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self, TypeVar
from unittest import SkipTest

from blockstore.backends.contract import GIB, Backend
from blockstore.errors import BackendError, NotSupported

S = TypeVar("S")
"""The subject of a suite: a backend, or a backend with a target."""

BLOCK = 64 * 1024
ZEROS = bytes(BLOCK)
PREFIX = "conf-"

# The service may work on the same pool during a check; its volumes and snapshots are ignored by their names.
_SERVICE_NAME = re.compile(r"(volume|snap)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


# --- helpers of the cases ----------------------------------------------------------------------------------


def expect(true: object, sentence: str) -> None:
    """Fail the case with a sentence unless the first argument is true."""
    if not true:
        raise AssertionError(sentence)


def refuses(error: type[BackendError], call: Callable[..., object], *args: Any) -> BackendError:
    """Fail the case unless the call raises this error."""
    words = [getattr(arg, "__name__", None) or repr(arg) for arg in args]
    call_text = f"{getattr(call, '__name__', call)}({', '.join(words)})"
    try:
        call(*args)
    except error as exc:
        return exc
    except Exception as exc:
        raise AssertionError(
            f"{call_text} must raise {error.__name__}, but raised {type(exc).__name__}: {exc}"
        ) from exc
    raise AssertionError(f"{call_text} must raise {error.__name__}, but it succeeded.")


def eventually(true: Callable[[], bool], sentence: str, patience_s: float) -> None:
    """Fail the case unless ``true`` becomes true within ``patience_s``: others may delay or disturb the effect."""
    deadline = time.monotonic() + patience_s
    while not true():
        expect(time.monotonic() < deadline, sentence)
        time.sleep(0.2)


def pattern(tag: str) -> bytes:
    """Return a block of bytes that is unique to the tag."""
    return hashlib.sha256(tag.encode()).digest() * (BLOCK // 32)


def places(start: int, end: int) -> tuple[int, ...]:
    """Return the offsets in a region at which cases write and read: its start, its middle, its end."""
    return (start, start + (end - start) // 2, end - BLOCK)


def read_at(file: BinaryIO, offset: int, length: int = BLOCK) -> bytes:
    """Read exactly this many bytes, or up to the end."""
    file.seek(offset)
    parts = []
    while length and (part := file.read(length)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def write_at(file: BinaryIO, offset: int, data: bytes) -> None:
    """Write all of the bytes."""
    file.seek(offset)
    while data:
        data = data[file.write(data) :]


class Sandbox:
    """The backend under test, and all that one case made on it. Its exit removes that and checks for leftovers."""

    def __init__(self, backend: Backend):
        self.backend = backend
        self.has = backend.capabilities()
        self.prefix = f"{PREFIX}{secrets.token_hex(4)}-"
        self._count = 0
        self.made_volumes: list[str] = []
        self._snapshots: list[tuple[str, str]] = []
        self._volumes_before = set(backend.list_volumes())
        self._snapshots_before = set(backend.list_snapshots())

    # names, volumes and snapshots

    def name(self) -> str:
        """Return a new name for a volume and remember to delete it."""
        self._count += 1
        self.made_volumes.append(f"{self.prefix}v{self._count}")
        return self.made_volumes[-1]

    def snapshot_name(self, *volumes: str) -> str:
        """Return a new name for a snapshot of any of these volumes and remember to delete it."""
        self._count += 1
        name = f"{self.prefix}s{self._count}"
        self._snapshots.extend((volume, name) for volume in volumes)
        return name

    def volume(self, tag: str = "", size_gib: int = 1) -> str:
        """Make a volume, filled with a tag when one is given."""
        name = self.name()
        self.backend.create_volume(name, size_gib)
        if tag:
            self.fill(name, tag)
        return name

    def snapshot(self, volume: str) -> str:
        """Make a snapshot."""
        name = self.snapshot_name(volume)
        self.backend.create_snapshot(volume, name)
        return name

    def dirty(self, size_gib: int = 1) -> None:
        """Leave old bytes on the pool: write a volume in many places and delete it."""
        name = self.volume(size_gib=size_gib)
        with self.backend.open_volume(name, "r+b") as file:
            for offset in range(0, size_gib * GIB, GIB // 16):
                write_at(file, offset, pattern("old bytes"))
            write_at(file, size_gib * GIB - BLOCK, pattern("old bytes"))
        self.backend.delete_volume(name)

    # bytes

    def fill(self, volume: str, tag: str, start: int = 0, end: int | None = None) -> None:
        """Write the tag at the start, the middle and the end of a volume, or of a region of it."""
        with self.backend.open_volume(volume, "r+b") as file:
            for offset in places(start, end or file.seek(0, os.SEEK_END)):
                write_at(file, offset, pattern(f"{tag} at {offset}"))

    def volume_holds(self, volume: str, tag: str, size_gib: int = 1, *, of_gib: int = 1) -> None:
        """Fail unless a volume has exactly this size, a tag filled in at ``of_gib``, and zeros around and after it."""
        with self.backend.open_volume(volume, "rb") as file:
            holds(file, f"volume {volume}", tag, size_gib, of_gib)

    def snapshot_holds(self, volume: str, snapshot: str, tag: str, size_gib: int = 1) -> None:
        """Fail unless a snapshot has exactly this size and the tag."""
        with self.backend.open_snapshot(volume, snapshot) as file:
            holds(file, f"snapshot {snapshot}", tag, size_gib, size_gib)

    def volume_is_zero(self, volume: str, size_gib: int = 1) -> None:
        """Fail unless a volume has exactly this size and reads as zeros in many places."""
        with self.backend.open_volume(volume, "rb") as file:
            holds(file, f"volume {volume}", "", size_gib, 0)

    # listings

    def lists(self, volumes: Mapping[str, int], snapshots: Mapping[str, str] | None = None) -> None:
        """Fail unless exactly these volumes and snapshots were added to the pool since the case began."""
        got = _ours(self.backend.list_volumes(), self._volumes_before, self.prefix)
        expect(got == dict(volumes), f"list_volumes must add exactly {dict(volumes)}, but adds {got}.")
        shots = _ours(self.backend.list_snapshots(), self._snapshots_before, self.prefix)
        wanted = dict(snapshots or {})
        expect(shots == wanted, f"list_snapshots must add exactly {wanted}, but adds {shots}.")

    # cleaning up

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        problems = self.clean()
        if not problems:
            try:
                self.lists({})
            except Exception as left:
                problems = [f"Something stays behind after all was deleted: {left}"]
        if exc is None:
            expect(not problems, " ".join(problems))
        elif problems:
            exc.add_note("Cleaning up failed too: " + " ".join(problems))

    def clean(self) -> list[str]:
        """Delete all that was made, in two rounds, since a volume may depend on another volume's snapshot."""
        problems: list[str] = []
        for _round in range(2):
            problems = []
            for volume, snapshot in reversed(self._snapshots):
                attempt(problems, partial(self.backend.delete_snapshot, volume, snapshot))
            for name in reversed(self.made_volumes):
                attempt(problems, partial(self.backend.delete_volume, name))
            if not problems:
                break
        return problems


def attempt(problems: list[str], call: Callable[[], object]) -> None:
    """Call a function, and add its failure to a list of sentences."""
    try:
        call()
    except NotSupported:
        pass
    except Exception as exc:
        problems.append(f"{type(exc).__name__}: {exc}")


def _ours(listing: Mapping[str, Any], before: set[str], prefix: str) -> dict[str, Any]:
    """Return the entries that this case added, without those of other checks of the pool and of the service."""
    return {
        name: value
        for name, value in listing.items()
        if name.startswith(prefix) or not (name in before or _SERVICE_NAME.fullmatch(name) or name.startswith(PREFIX))
    }


def holds(file: BinaryIO, what: str, tag: str, size_gib: int, of_gib: int) -> None:
    """Fail unless a file has exactly this size, a tag filled in at ``of_gib``, and zeros around and after it."""
    size = file.seek(0, os.SEEK_END)
    expect(size == size_gib * GIB, f"{what} must be {size_gib * GIB} bytes long, but is {size}.")
    written = places(0, of_gib * GIB) if tag else ()
    empty = {offset for edge in range(0, size + 1, GIB // 16) for offset in (edge, edge - BLOCK)}
    for offset in written:
        got = read_at(file, offset)
        wanted = pattern(f"{tag} at {offset}")
        expect(got == wanted, f"{what} must hold the bytes of {tag!r} at offset {offset}, but holds {shown(got)}.")
    for offset in sorted(empty - set(written)):
        if 0 <= offset < size:
            got = read_at(file, offset)
            expect(got == ZEROS, f"{what} must read as zeros at offset {offset}, but holds {shown(got)}.")
    expect(read_at(file, size) == b"", f"{what} must end at its size, but bytes can be read after it.")


def shown(data: bytes) -> str:
    """Return bytes in a readable form."""
    return "zeros" if data == bytes(len(data)) else f"{data[:16].hex()}..."


# --- cases -------------------------------------------------------------------------------------------------


def named_after(body: Callable[..., None], test: Callable[[Any, S], None]) -> Callable[[Any, S], None]:
    """Return the test with the name and the docstring of its body, but its own arguments, which pytest inspects."""
    test.__name__, test.__qualname__, test.__doc__ = body.__name__, body.__qualname__, body.__doc__
    return test


@dataclass(frozen=True)
class Result:
    """How one case ended."""

    case: str
    sentence: str
    outcome: Literal["passed", "failed", "skipped"]
    reason: str
    seconds: float


def cases_of(suite: object) -> Sequence[tuple[str, Callable[[Any], None]]]:
    """Return name and function of every case, from the last base of the suite to the first, as pytest does."""
    names = [name for kind in reversed(type(suite).__mro__) for name in vars(kind) if name.startswith("test_")]
    return [(name, getattr(suite, name)) for name in dict.fromkeys(names)]


def run_cases(suite: object, subject: object, report: Callable[[str], None], only: str) -> Sequence[Result]:
    """Run every case whose name contains ``only`` and report a line for each; failed cases are in the results."""
    return [_run_one(subject, report, name, call) for name, call in cases_of(suite) if only in name]


def _run_one(subject: object, report: Callable[[str], None], name: str, call: Callable[[Any], None]) -> Result:
    sentence = (call.__doc__ or name).split("\n")[0]
    started = time.monotonic()
    outcome: Literal["passed", "failed", "skipped"] = "passed"
    reason = ""
    try:
        call(subject)
    except SkipTest as exc:
        outcome, reason = "skipped", str(exc)
    except Exception as exc:
        outcome = "failed"
        kind = "" if isinstance(exc, AssertionError) else f"{type(exc).__name__}: "
        reason = " ".join([f"{kind}{exc}", *getattr(exc, "__notes__", ())])
    seconds = time.monotonic() - started
    report(f"{outcome:8}{sentence} ({seconds:.2f} s)" + (f"\n        {reason}" if reason else ""))
    return Result(name, sentence, outcome, reason, seconds)
