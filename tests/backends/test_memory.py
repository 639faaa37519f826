"""The memory backend keeps the whole contract, thin and thick, and fails when a test tells it to."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockstore.backends.contract import GIB
from blockstore.backends.memory import MemoryBackend, MemoryOptions
from blockstore.conformance.backend import BackendConformance
from blockstore.errors import NoSpace


class TestThin(BackendConformance):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> MemoryBackend:
        return MemoryBackend("memory", MemoryOptions(), tmp_path)


class TestThick(BackendConformance):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> MemoryBackend:
        return MemoryBackend("memory", MemoryOptions(thin=False, size_gib=30), tmp_path)


@pytest.fixture
def memory(tmp_path: Path) -> MemoryBackend:
    return MemoryBackend("memory", MemoryOptions(size_gib=10), tmp_path)


def test_fail_makes_the_next_call_raise_and_only_that(memory: MemoryBackend) -> None:
    memory.fail["create_volume"] = NoSpace("full")
    with pytest.raises(NoSpace, match="full"):
        memory.create_volume("volume-1", 1)
    assert memory.list_volumes() == {}
    memory.create_volume("volume-1", 1)
    assert memory.list_volumes() == {"volume-1": 1}
    assert memory.calls == [("create_volume", "volume-1")] * 2


def test_a_restart_inside_the_process_finds_the_volumes(memory: MemoryBackend, tmp_path: Path) -> None:
    memory.create_volume("volume-1", 1)
    again = MemoryBackend("memory", MemoryOptions(), tmp_path)
    assert again.list_volumes() == {"volume-1": 1}
    assert MemoryBackend("other", MemoryOptions(), tmp_path).list_volumes() == {}


def test_copies_share_their_bytes(memory: MemoryBackend) -> None:
    memory.create_volume("volume-1", 1)
    with memory.open_volume("volume-1", "r+b") as file:
        for number in range(16):
            file.seek(number * 64 * 1024)
            file.write(b"x" * 64 * 1024)
    used = 10 - memory.capacity().free_gib
    memory.clone_volume("volume-2", 1, "volume-1")
    memory.create_snapshot("volume-1", "snap-1")
    assert 10 - memory.capacity().free_gib == used == pytest.approx(2**20 / GIB)
