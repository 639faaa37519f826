"""The contract of targets, kept by the nbd plugin with a real qemu-nbd: raw and qcow2 files, unix sockets and TLS."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockstore_plugins.directory import DirectoryBackend, DirectoryOptions
from blockstore_plugins.nbd import NbdOptions, NbdTarget

from blockstore.conformance.target import Pair, TargetConformance

from ..conftest import need
from ..targets import damages


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short path, since that of a unix socket has 107 bytes at most."""
    path = Path(tempfile.mkdtemp(prefix="nbd-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


class TestConformance(TargetConformance):
    @pytest.fixture(params=["raw", "qcow2", "raw, TLS"])
    def pair(self, request: pytest.FixtureRequest, tmp_path: Path, short: Path) -> Pair:
        need(shutil.which("qemu-nbd"), "apt-get install qemu-utils")
        kind, _, tls = request.param.partition(", ")
        options = NbdOptions(listen="127.0.0.1" if tls else "")
        target = NbdTarget("n", options, short / "target", "0a1b2c3d")
        backend = DirectoryBackend("d", DirectoryOptions(format=kind), tmp_path / "backend")
        return Pair(backend, target, damages.of_nbd(target))
