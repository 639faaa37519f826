"""Killed or failed at any step, an action of the directory plugin leaves what the next call completes or removes."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from blockstore_plugins.directory import DirectoryBackend, commands, files

from blockstore.backends.contract import GIB
from blockstore.errors import BackendError
from tests import sampling
from tests.contents import read, write
from tests.crash.steps import Crash, Steps

from .mounts import need
from .test_directory import make, tree

STEPS = frozenset(
    ["open", "mkdir", "rmdir", "unlink", "rename", "fsync", "chmod", "fchmod", "ftruncate", "fstat", "stat", "lseek"]
)
BYTES = frozenset(["pwrite", "pread", "copy_file_range"])


class OsSteps(Steps):
    """Stands in for the os module: calls of its functions on files are steps."""

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self.wrap(real) if name in STEPS | BYTES else real


class Verb:
    """An action, what must be there before, what must be true after, and how the service gives it up."""

    def __init__(
        self,
        act: Callable[[DirectoryBackend], None],
        after: Callable[[DirectoryBackend], bool],
        undo: Callable[[DirectoryBackend], None] | None = None,
    ):
        self.act, self.after, self.undo = act, after, undo


def holds(backend: DirectoryBackend, name: str, size_gib: int, start: bytes) -> bool:
    with backend.open_volume(name, "rb") as file:
        return file.seek(0, os.SEEK_END) == size_gib * GIB and read(backend, name, 3) == start


def frozen(backend: DirectoryBackend, snapshot: str, start: bytes) -> bool:
    with backend.open_snapshot("source", snapshot) as file:
        return file.read(3) == start


VERBS = {
    "create_volume": Verb(
        lambda b: b.create_volume("new", 1), lambda b: holds(b, "new", 1, b"\0\0\0"), lambda b: b.delete_volume("new")
    ),
    "clone_volume": Verb(
        lambda b: b.clone_volume("new", 2, "source"),
        lambda b: holds(b, "new", 2, b"now"),
        lambda b: b.delete_volume("new"),
    ),
    "create_volume_from_snapshot": Verb(
        lambda b: b.create_volume_from_snapshot("new", 2, "source", "old"),
        lambda b: holds(b, "new", 2, b"old"),
        lambda b: b.delete_volume("new"),
    ),
    "create_snapshot": Verb(
        lambda b: b.create_snapshot("source", "new"),
        lambda b: frozen(b, "new", b"now"),
        lambda b: b.delete_snapshot("source", "new"),
    ),
    "first snapshot": Verb(
        lambda b: b.create_snapshot("plain", "new"),
        lambda b: b.list_snapshots()["new"] == "plain",
        lambda b: b.delete_snapshot("plain", "new"),
    ),
    "extend_volume": Verb(lambda b: b.extend_volume("source", 3), lambda b: holds(b, "source", 3, b"now")),
    "revert_volume": Verb(lambda b: b.revert_volume("source", "old"), lambda b: holds(b, "source", 1, b"old")),
    "delete_volume": Verb(lambda b: b.delete_volume("plain"), lambda b: "plain" not in b.list_volumes()),
    "delete_snapshot": Verb(lambda b: b.delete_snapshot("source", "old"), lambda b: "old" not in b.list_snapshots()),
}


def prepared(path: Path, kind: str) -> DirectoryBackend:
    """Return a pool with a plain volume and one that has a snapshot and was written since."""
    backend = make(path, kind)
    template = path.parent / "template"
    if template.exists():
        shutil.copytree(template, path)
        return backend
    path.mkdir()
    backend.check()
    backend.create_volume("plain", 1)
    backend.create_volume("source", 1)
    write(backend, "source", b"old")
    backend.create_snapshot("source", "old")
    write(backend, "source", b"now")
    if kind == "qcow2":  # where making takes long, and copying does not fill holes
        shutil.copytree(path, template)
    return backend


def state(backend: DirectoryBackend) -> tuple[object, ...]:
    return dict(backend.list_volumes()), dict(backend.list_snapshots()), read(backend, "source", 3)


def numbers(purpose: str, kind: str) -> Iterable[int]:
    """Return the steps to stop at: with raw files each one, with qcow2, which is slow, a sample."""
    return range(1, 501) if kind == "raw" else sampling.steps(purpose, range(1, 501), 4)


@pytest.fixture
def trip(monkeypatch: pytest.MonkeyPatch) -> Callable[[OsSteps, Callable[[], None]], None]:
    """Run an action with the n-th step failing."""
    monkeypatch.setattr(files, "_reflink", lambda _source, _target: False)
    monkeypatch.setattr(files, "_COARSE_CLOCK_NS", 0)

    def run(steps: OsSteps, act: Callable[[], None]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(files, "os", steps)
            patch.setattr(commands, "run", steps.wrap(commands.run))
            act()

    return run


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("name", VERBS)
def test_killed_at_any_step_the_next_call_completes_it(tmp_path: Path, trip: Any, name: str, kind: str) -> None:
    """Before the second call the pool is as it was or as it will be; after it, nothing tells of the kill."""
    if kind == "qcow2":
        need("qemu-img")
    verb = VERBS[name]
    whole = prepared(tmp_path / "whole", kind)
    before, tree_before = state(whole), tree(whole.path)
    verb.act(whole)
    after, tree_after = state(whole), tree(whole.path)
    assert verb.after(whole)
    for number in numbers(f"kill {name}", kind):
        # Both ways on from each kill; with qcow2, which is slow, one of them.
        ways = [verb.act, verb.undo] if verb.undo else [verb.act]
        for on in ways if kind == "raw" else [ways[number % len(ways)]]:
            backend = prepared(tmp_path / f"{number}-{ways.index(on)}", kind)
            steps = OsSteps(number)
            with suppress(Crash):
                trip(steps, partial(verb.act, backend))
            if not steps.reached:
                assert number > 5
                return
            again = make(backend.path.parent, kind)
            assert state(again) in (before, after)
            on(again)
            expected = (after, tree_after) if on == verb.act else (before, tree_before)
            assert (state(again), tree(again.path)) == expected
            assert on == verb.undo or verb.after(again)
    raise AssertionError("The action never ended.")


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("name", VERBS)
def test_failed_at_any_step_leaves_nothing(tmp_path: Path, trip: Any, name: str, kind: str) -> None:
    """An error of the disk comes out as a BackendError, leaves no file, and the next call succeeds."""
    if kind == "qcow2":
        need("qemu-img")
    verb = VERBS[name]
    for number in numbers(f"fail {name}", kind):
        backend = prepared(tmp_path / str(number), kind)
        before = tree(backend.path)
        steps = OsSteps(number, OSError(errno.EIO, "Input/output error"))
        said = ""
        try:
            trip(steps, partial(verb.act, backend))
        except BackendError as exc:
            said = str(exc)
        left = tree(backend.path)
        if not said:
            assert verb.after(backend)
        else:
            assert "Input/output error" in said
            assert left == before if verb.undo else left <= before
        verb.act(backend)
        assert verb.after(backend)
        if not steps.reached:
            return
    raise AssertionError("The action never ended.")


@pytest.mark.parametrize("number", range(6))
def test_a_write_to_qcow2_that_is_killed_keeps_the_old_bytes(tmp_path: Path, trip: Any, number: int) -> None:
    """A qcow2 volume is packed beside itself: half of it is never seen."""
    need("qemu-img")
    backend = prepared(tmp_path / "pool", "qcow2")
    before = tree(backend.path)
    steps = OsSteps(13 + 4 * number)
    with suppress(Crash):
        trip(steps, lambda: write(backend, "source", b"new"))
    again = make(backend.path.parent, "qcow2")
    assert read(again, "source", 3) == b"now" if steps.reached else b"new"
    write(again, "source", b"new")
    assert read(again, "source", 3) == b"new"
    assert tree(again.path) == before


LIFE = """
import sys
from pathlib import Path
from blockstore_plugins.directory import DirectoryBackend, DirectoryOptions, files
files._reflink = lambda source, target: False
b = DirectoryBackend("directory", DirectoryOptions(path=Path(sys.argv[1])), Path(sys.argv[1]))
b.check()
print("ready", flush=True)
def life():
    b.create_volume("one", 1)
    with b.open_volume("one", "r+b") as file:
        file.write(b"bytes" * 1000)
    b.create_snapshot("one", "shot")
    b.clone_volume("two", 2, "one")
    b.create_volume_from_snapshot("three", 3, "one", "shot")
    b.extend_volume("one", 4)
    b.revert_volume("one", "shot")
    b.delete_volume("two")
    b.delete_volume("three")
    b.delete_snapshot("one", "shot")
    b.delete_volume("one")
if len(sys.argv) > 2:
    while True:
        life()
# After the kill: give everything up, then live once more.
for volume in ("two", "three"):
    b.delete_volume(volume)
b.delete_snapshot("one", "shot")
b.delete_volume("one")
assert not [path for path in Path(sys.argv[1]).rglob("*") if path.is_file()], list(Path(sys.argv[1]).rglob("*"))
life()
assert (dict(b.list_volumes()), dict(b.list_snapshots())) == ({}, {})
"""


def test_kill_9_at_random_instants(tmp_path: Path) -> None:
    """The real thing, ten times over the same pool: whatever was left, deleting by name leaves an empty directory."""
    pool = tmp_path / "volumes"
    dice = random.Random(20)
    for _ in range(10):
        with subprocess.Popen([sys.executable, "-c", LIFE, pool, "loop"], stdout=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            time.sleep(dice.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
        subprocess.run([sys.executable, "-c", LIFE, pool], check=True, capture_output=True)
