"""Killed before or after any question to the cluster, then asked again: the action completes, and nothing is left."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blockstore_plugins.rbd import RbdBackend
from blockstore_plugins.rbd.trash import GONE

from tests import sampling
from tests.ceph.conftest import Ceph
from tests.contents import read, read_snapshot, write
from tests.crash.steps import Crash, Steps

pytestmark = [
    pytest.mark.ceph,
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnhandledThreadExceptionWarning"
    ),  # its background tasks are killed, too
]


class CrashingCluster:
    """A cluster, each question to which is a step of its asker."""

    def __init__(self, cluster: Any, steps: Steps, *, after: bool):
        self._cluster, self._steps, self._after = cluster, steps, after

    def __getattr__(self, name: str) -> Any:
        return self._steps.wrap(getattr(self._cluster, name), after=self._after)


def name(what: str = "volume") -> str:
    return f"{what}-{uuid.uuid4()}"


class Scene:
    """A volume with a snapshot and a clone, and names for what is to come."""

    def __init__(self, backend: RbdBackend):
        self.volume, self.shot, self.clone, self.new = name(), name("snap"), name(), name()
        self.new_shot = name("snap")
        backend.create_volume(self.volume, 1)
        write(backend, self.volume, b"first")
        backend.create_snapshot(self.volume, self.shot)
        backend.create_volume_from_snapshot(self.clone, 1, self.volume, self.shot)
        write(backend, self.volume, b"later")


ACTIONS: dict[str, tuple[Callable[[RbdBackend, Scene], Any], Callable[[RbdBackend, Scene], bool]]] = {
    "create": (lambda b, s: b.create_volume(s.new, 2), lambda b, s: b.list_volumes()[s.new] == 2),
    "extend": (lambda b, s: b.extend_volume(s.volume, 3), lambda b, s: b.list_volumes()[s.volume] == 3),
    "snapshot": (
        lambda b, s: b.create_snapshot(s.volume, s.new_shot),
        lambda b, s: read_snapshot(b, s.volume, s.new_shot, 5) == b"later",
    ),
    "delete a snapshot": (
        lambda b, s: b.delete_snapshot(s.volume, s.shot),
        lambda b, s: s.shot not in b.list_snapshots() and read(b, s.clone, 5) == b"first",
    ),
    "from a snapshot": (
        lambda b, s: b.create_volume_from_snapshot(s.new, 2, s.volume, s.shot),
        lambda b, s: read(b, s.new, 5) == b"first" and b.list_volumes()[s.new] == 2,
    ),
    "clone": (
        lambda b, s: b.clone_volume(s.new, 2, s.volume),
        lambda b, s: read(b, s.new, 5) == b"later" and b.list_volumes()[s.new] == 2,
    ),
    "revert": (lambda b, s: b.revert_volume(s.volume, s.shot), lambda b, s: read(b, s.volume, 5) == b"first"),
    "delete a clone": (lambda b, s: b.delete_volume(s.clone), lambda b, s: s.clone not in b.list_volumes()),
    "delete a parent": (
        lambda b, s: (b.delete_snapshot(s.volume, s.shot), b.delete_volume(s.volume)),
        lambda b, s: s.volume not in b.list_volumes() and read(b, s.clone, 5) == b"first",
    ),
    "take over": (lambda b, s: b.manage_volume(s.clone, s.new), lambda b, s: read(b, s.new, 5) == b"first"),
}


@pytest.fixture
def fresh(ceph: Ceph, tmp_path: Path) -> Iterator[Callable[[], RbdBackend]]:
    """Start the backend anew each time, in a namespace of its own."""
    place = f"kill{uuid.uuid4().hex[:8]}"
    ceph.run("rbd", "namespace", "create", f"volumes/{place}")
    return lambda: ceph.backend(tmp_path, bindings="auto", namespace=place)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("action", list(ACTIONS))
def test_killed_at_every_question(fresh: Callable[[], RbdBackend], action: str, after: bool) -> None:
    act, done = ACTIONS[action]
    for step in range(1, 40):
        backend = fresh()
        scene = Scene(backend)
        before = set(backend.list_volumes()) | set(backend.list_snapshots())
        assert backend._trash.wait_idle(600)
        steps = Steps(step)
        backend._made = CrashingCluster(backend._cluster, steps, after=after)  # type: ignore[assignment]
        with contextlib.suppress(Crash):
            act(backend, scene)
        while not (steps.reached or backend._trash.wait_idle(0.05)):
            pass
        again = fresh()
        act(again, scene)
        assert done(again, scene), (action, step)
        mine = {scene.new, scene.new_shot, scene.volume, scene.clone, scene.shot}
        assert set(again.list_volumes()) | set(again.list_snapshots()) <= before | mine
        for shot, volume in again.list_snapshots().items():
            again.delete_snapshot(volume, shot)
        for volume in again.list_volumes():
            again.delete_volume(volume)
        assert again._trash.wait_idle(600)
        assert again._cluster.names() == []
        assert not [one for one in again._cluster.trash().values() if one.startswith(GONE)]
        if not steps.reached:
            return
    raise AssertionError(f"{action} asks more than 40 times")


CLONES_COME_AND_GO = """
import sys
from pathlib import Path
from blockstore_plugins.rbd import librbd
from tests.ceph.conftest import Ceph
librbd._TRASH_LOCK_S = 2
folder, place, state, run = sys.argv[1:]
backend = Ceph(Path(folder)).backend(Path(state), bindings="yes", namespace=place)
print("ready", flush=True)
for number in range(10**6):
    names = [f"volume-{run}-{number}-{depth}" for depth in range(4)]
    backend.create_volume(names[0], 1)
    for below, above in zip(names, names[1:]):
        backend.clone_volume(above, 1, below)
    for name in names:
        backend.delete_volume(name)
"""


def test_killed_by_the_system_parents_do_not_leak(ceph: Ceph, tmp_path: Path) -> None:
    """Ceph itself removes a clone in several steps; what a real kill leaves between them is found again, too."""
    place = f"dead{uuid.uuid4().hex[:8]}"
    ceph.run("rbd", "namespace", "create", f"volumes/{place}")
    chance = random.Random(place)
    for run in range(sampling.effort(6, 12)):
        argv = [sys.executable, "-c", CLONES_COME_AND_GO, str(ceph.folder), place, str(tmp_path), str(run)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0.1, 0.8))
            victim.kill()
    backend = ceph.backend(tmp_path, bindings="yes", namespace=place)
    for volume in backend._cluster.names():  # half of one may be there, which is listed as no volume
        if not volume.startswith(GONE):  # that is the trash's
            backend.delete_volume(volume)
    deadline = time.monotonic() + 900
    while left := ceph.run("rbd", "trash", "ls", "--all", f"volumes/{place}"):
        assert time.monotonic() < deadline, left
        backend.check()  # as the service does, again and again
        assert backend._trash.wait_idle(600)
        time.sleep(1)
    assert backend._cluster.names() == []
