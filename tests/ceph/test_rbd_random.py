"""Random actions, compared with a model: bytes and sizes are right, chains stay short, and pool and trash end empty."""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pytest
from blockstore_plugins.rbd import RbdBackend

from blockstore.backends.contract import GIB
from blockstore.errors import InUse
from tests import sampling
from tests.ceph.conftest import Ceph

pytestmark = [pytest.mark.ceph, pytest.mark.slow]

PLACES = (0, 5 * 2**20, GIB // 2 + 7, GIB - 16)
MAX_DEPTH = 2
STEPS = {"yes": 250, "no": 70}


@dataclass
class Frozen:
    """A size, and the words at the places."""

    size: int
    words: tuple[bytes, ...] = (bytes(16),) * len(PLACES)


@dataclass
class Model:
    """What should be there."""

    volumes: dict[str, Frozen] = field(default_factory=dict)
    snapshots: dict[tuple[str, str], Frozen] = field(default_factory=dict)


class Walk:
    """Random actions on a backend and on its model."""

    def __init__(self, backend: RbdBackend, chance: random.Random):
        self.backend, self.chance, self.model = backend, chance, Model()
        self._count = 0

    def step(self) -> str:
        """Do one action; return what it was."""
        actions = {
            self.create: 2, self.write: 5, self.snapshot: 4, self.clone: 5, self.from_snapshot: 5, self.extend: 1,
            self.revert: 2, self.delete_snapshot: 4, self.delete: 5,
        }  # fmt: skip
        (action,) = self.chance.choices(list(actions), list(actions.values()))
        if action != self.create and not self.model.volumes:
            action = self.create
        if action in (self.from_snapshot, self.revert, self.delete_snapshot) and not self.model.snapshots:
            action = self.snapshot
        action()
        return action.__name__

    def _new(self, what: str) -> str:
        self._count += 1
        return f"{what}-{self._count}"

    def _any(self) -> str:
        return self.chance.choice(list(self.model.volumes))

    def _any_snapshot(self) -> tuple[str, str]:
        return self.chance.choice(list(self.model.snapshots))

    def create(self) -> None:
        name = self._new("volume")
        self.backend.create_volume(name, 1)
        self.model.volumes[name] = Frozen(1)

    def write(self) -> None:
        name, at, word = self._any(), self.chance.randrange(len(PLACES)), self.chance.randbytes(16)
        with self.backend.open_volume(name, "r+b") as file:
            file.seek(PLACES[at])
            file.write(word)
        was = self.model.volumes[name]
        self.model.volumes[name] = Frozen(was.size, (*was.words[:at], word, *was.words[at + 1 :]))

    def snapshot(self) -> None:
        volume, name = self._any(), self._new("snap")
        self.backend.create_snapshot(volume, name)
        self.model.snapshots[volume, name] = self.model.volumes[volume]

    def clone(self) -> None:
        source, name = self._any(), self._new("volume")
        was = self.model.volumes[source]
        size = was.size + self.chance.choice((0, 0, 1))
        self.backend.clone_volume(name, size, source)
        self.model.volumes[name] = Frozen(size, was.words)

    def from_snapshot(self) -> None:
        (volume, snapshot), name = self._any_snapshot(), self._new("volume")
        was = self.model.snapshots[volume, snapshot]
        self.backend.create_volume_from_snapshot(name, was.size, volume, snapshot)
        self.model.volumes[name] = was

    def extend(self) -> None:
        name = self._any()
        was = self.model.volumes[name]
        self.backend.extend_volume(name, was.size + 1)
        self.model.volumes[name] = Frozen(was.size + 1, was.words)

    def revert(self) -> None:
        volume, snapshot = self._any_snapshot()
        self.backend.revert_volume(volume, snapshot)
        self.model.volumes[volume] = self.model.snapshots[volume, snapshot]

    def delete_snapshot(self) -> None:
        volume, snapshot = self._any_snapshot()
        self.backend.delete_snapshot(volume, snapshot)
        del self.model.snapshots[volume, snapshot]

    def delete(self) -> None:
        name = self._any()
        if any(volume == name for volume, _snapshot in self.model.snapshots):
            with pytest.raises(InUse):
                self.backend.delete_volume(name)
            return
        self.backend.delete_volume(name)
        del self.model.volumes[name]

    def compare(self) -> None:
        """The backend has what the model has, neither more nor less."""
        assert dict(self.backend.list_volumes()) == {name: float(one.size) for name, one in self.model.volumes.items()}
        assert dict(self.backend.list_snapshots()) == {name: volume for volume, name in self.model.snapshots}
        for name, one in self.model.volumes.items():
            with self.backend.open_volume(name, "rb") as file:
                assert self._words(file) == one.words, name
        for (volume, name), one in self.model.snapshots.items():
            with self.backend.open_snapshot(volume, name) as file:
                assert self._words(file) == one.words, (volume, name)

    def _words(self, file: BinaryIO) -> tuple[bytes, ...]:
        words = []
        for place in PLACES:
            file.seek(place)
            words.append(file.read(16))
        return tuple(words)


@pytest.mark.parametrize("seed", [1, 2] if sampling.LONG else [sampling.dice("random actions").choice((1, 2))])
def test_random_actions_leave_neither_parents_nor_wrong_bytes(ceph: Ceph, way: str, tmp_path: Path, seed: int) -> None:
    place = f"r{uuid.uuid4().hex[:8]}"
    ceph.run("rbd", "namespace", "create", f"volumes/{place}")

    def start() -> RbdBackend:
        return ceph.backend(tmp_path, bindings=way, namespace=place, max_clone_depth=MAX_DEPTH)

    walk = Walk(start(), random.Random(seed))
    done: dict[str, int] = {}
    for number in range(STEPS[way]):
        action = walk.step()
        done[action] = done.get(action, 0) + 1
        if number % 25 == 24:
            assert walk.backend._trash.wait_idle(600)
            walk.backend = start()
    assert len(done) == 9, done
    assert walk.backend._trash.wait_idle(600)
    walk.compare()
    parents = walk.backend._cluster.parents()
    assert max(map(len, (_chain(name, parents) for name in walk.model.volumes)), default=0) <= MAX_DEPTH
    for volume, snapshot in list(walk.model.snapshots):
        walk.backend.delete_snapshot(volume, snapshot)
    volumes = list(walk.model.volumes)
    walk.chance.shuffle(volumes)
    for name in volumes:
        walk.backend.delete_volume(name)
    assert walk.backend._trash.wait_idle(600)
    assert ceph.run("rbd", "ls", f"volumes/{place}") == ""
    assert ceph.run("rbd", "trash", "ls", "--all", f"volumes/{place}") == ""
    ceph.run("rbd", "namespace", "remove", f"volumes/{place}")  # which refuses while anything is in it


def _chain(name: str, parents: Mapping[str, str]) -> list[str]:
    found = []
    while name := parents.get(name, ""):
        found.append(name)
    return found
