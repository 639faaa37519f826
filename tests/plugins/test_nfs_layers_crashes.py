"""Killed or failed at any step, what is done with layers leaves every image whole, and nothing behind."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from blockstore_plugins.directory import commands, files
from blockstore_plugins.nfs import NfsBackend, layers, merge
from blockstore_plugins.nfs.layers import LAYER, SUPERSEDED

from blockstore.backends.background import BackgroundTasks
from blockstore.backends.contract import no_progress
from blockstore.errors import BackendError
from tests import sampling
from tests.contents import read, read_snapshot
from tests.crash.steps import Crash, Steps

from .test_nfs_layers import hidden, nas, share, write

__all__ = ["nas", "share"]  # fixtures

CHANGES = frozenset(["link", "rename", "unlink", "mkdir", "rmdir", "fchmod", "fsync", "pwrite", "copy_file_range"])


class OsSteps(Steps):
    """Stands in for the os module.

    Only what changes something is a step: a crash before one that only looks is a crash before the next change.
    """

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name == "open":
            return lambda *args, **options: (self.wrap(real) if args[1] & os.O_CREAT else real)(*args, **options)
        return self.wrap(real) if name in CHANGES else real


VERBS: dict[str, Callable[[NfsBackend], Any]] = {
    "first snapshot": lambda b: b.create_snapshot("plain", "new"),
    "snapshot": lambda b: b.create_snapshot("source", "new"),
    "clone": lambda b: b.clone_volume("new", 2, "source"),
    "from a snapshot": lambda b: b.create_volume_from_snapshot("new", 2, "source", "old"),
    "revert": lambda b: b.revert_volume("source", "old"),
    "extend": lambda b: b.extend_volume("source", 3),
    "delete a snapshot": lambda b: b.delete_snapshot("source", "old"),
    "delete": lambda b: b.delete_volume("plain"),
    "merge": lambda b: b._merge_now(no_progress),
}


def prepared(start: Callable[..., NfsBackend], template: Path) -> NfsBackend:
    """Return a share with a plain volume, and one with a snapshot on layers of which some can be merged."""
    if template.exists():
        (path,) = (template.parent / "mnt").iterdir()
        shutil.rmtree(path)
        shutil.copytree(template, path)
        return start()
    backend = start()
    backend.create_volume("plain", 1)
    backend.create_volume("source", 1)
    write(backend, "source", b"old")
    backend.create_snapshot("source", "old")
    for number in range(2):
        write(backend, "source", b"%d" % number, 2**20)
        backend.create_snapshot("source", "gone")
        backend.delete_snapshot("source", "gone")
    write(backend, "source", b"now")
    assert len(hidden(backend, LAYER)) == 3
    shutil.copytree(backend.path, template)
    return backend


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing go on in the background of a test that counts steps."""
    monkeypatch.setattr(BackgroundTasks, "add", lambda *_args: None)


def state(backend: NfsBackend) -> tuple[object, ...]:
    volumes, snapshots = dict(backend.list_volumes()), dict(backend.list_snapshots())
    return (
        volumes,
        snapshots,
        {name: (read(backend, name, 3), read(backend, name, 1, 2**20)) for name in volumes},
        {name: read_snapshot(backend, volume, name, 3) for name, volume in snapshots.items()},
    )


def nothing_stays(backend: NfsBackend) -> None:
    """Delete everything: no layer outlives what lay on it."""
    for snapshot, volume in backend.list_snapshots().items():
        backend.delete_snapshot(volume, snapshot)
    for name in ("new", *backend.list_volumes()):
        backend.delete_volume(name)
    backend._merge_now(no_progress)
    assert [path.name for path in backend.path.iterdir() if path.name not in (".tender", "snapshots")] == []
    assert list((backend.path / "snapshots").rglob("*.qcow2")) == []
    assert list(backend.state_dir.glob("views/*/*")) == []


@pytest.fixture
def trip(monkeypatch: pytest.MonkeyPatch) -> Callable[[OsSteps, Callable[[], None]], None]:
    monkeypatch.setattr(files, "_reflink", lambda _source, _target: False)
    monkeypatch.setattr(files, "_COARSE_CLOCK_NS", 0)

    def run(steps: OsSteps, act: Callable[[], None]) -> None:
        with monkeypatch.context() as patch:
            for module in (files, layers, merge):
                patch.setattr(module, "os", steps)
            patch.setattr(commands, "run", steps.wrap(commands.run))
            patch.setattr(commands, "follow", steps.wrap(commands.follow))
            act()

    return run


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("failure", ["killed", "failed"])
@pytest.mark.parametrize("name", VERBS)
def test_stopped_at_any_step_every_image_is_whole(
    share: Callable[..., NfsBackend], tmp_path: Path, trip: Any, name: str, failure: str
) -> None:
    template, act = tmp_path / "template", VERBS[name]
    whole = prepared(share, template)
    before = state(whole)
    act(whole)
    after = state(whole)
    for number in sampling.steps(f"{failure} {name}", range(1, 301), 4):
        backend = prepared(share, template)
        steps = OsSteps(number, None if failure == "killed" else OSError(errno.EIO, "Input/output error"))
        with suppress(Crash, BackendError):
            trip(steps, partial(act, backend))
        if not steps.reached:
            assert number > 2
            return
        if failure == "killed":
            backend = share()
        else:
            backend.check()  # as the next look does
        assert state(backend) in (before, after), number
        assert not [path for path in (*hidden(backend, LAYER), *hidden(backend, SUPERSEDED)) if path.endswith(".tmp")]
        act(backend)
        assert state(backend) == after, number
        backend._merge_now(no_progress)
        assert state(backend) == after, number
        if number % 7 == 0:
            nothing_stays(backend)
    raise AssertionError("The action never ended.")


LIFE = """
import sys
from pathlib import Path
from blockstore_plugins.nfs import NfsBackend, NfsOptions, layers, mounts

def mounted(_export, at, *_args):
    at.mkdir(mode=0o700, parents=True, exist_ok=True)
    return at.stat().st_dev

mounts.mounted = mounted
layers.GUARDED_S = 0
b = NfsBackend("nas", NfsOptions(exports="nas:/volumes", format="qcow2", layers="yes", max_layers=2), Path(sys.argv[1]))
b.check()

def starts(opened, text):
    with opened as file:
        assert file.read(4) == text, text

def write(text):
    with b.open_volume("kept", "r+b") as file:
        file.write(text)

if "kept" not in b.list_volumes():
    b.create_volume("kept", 1)
    write(b"kept")
print("ready", flush=True)

def life():
    starts(b.open_volume("kept", "rb"), b"kept")
    b.create_snapshot("kept", "one")
    b.clone_volume("two", 2, "kept")
    b.create_volume_from_snapshot("three", 3, "kept", "one")
    b.create_snapshot("three", "four")
    b.clone_volume("five", 4, "three")
    starts(b.open_volume("five", "rb"), b"kept")
    b.extend_volume("three", 4)
    b.revert_volume("three", "four")
    give_up()

def give_up():
    for volume, snapshot in (("three", "four"), ("kept", "one")):
        b.delete_snapshot(volume, snapshot)
    for volume in ("two", "three", "five"):
        b.delete_volume(volume)

if len(sys.argv) > 2:
    while True:
        life()
give_up()
life()
assert b._background_tasks.wait_idle(600)
b.check()
assert b._background_tasks.wait_idle(600)
starts(b.open_volume("kept", "rb"), b"kept")
assert (dict(b.list_volumes()), dict(b.list_snapshots())) == ({"kept": 1}, {})
left = sorted(path.name for path in b.path.iterdir() if path.is_file())
assert len(left) <= 3, left  # the volume, the tender's lock, and at most one layer
"""


@pytest.mark.slow
def test_kill_9_at_random_instants(tmp_path: Path) -> None:
    """The real thing, over the same share: one volume outlives it all, and nothing else does."""
    dice = random.Random(21)
    for _ in range(12):
        with subprocess.Popen([sys.executable, "-c", LIFE, tmp_path, "loop"], stdout=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            time.sleep(dice.uniform(0, 1))
            process.send_signal(signal.SIGKILL)
        done = subprocess.run([sys.executable, "-c", LIFE, tmp_path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
