"""The contract of targets on a share: its files as they are, and as disks over NBD.

`make test` draws a part of the cases of raw files by the seed; qcow2 files keep all.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockstore_plugins.local import LocalOptions, LocalTarget
from blockstore_plugins.nbd import NbdOptions, NbdTarget
from blockstore_plugins.nfs import NfsBackend, NfsOptions

from blockstore.conformance.target import Pair, TargetConformance
from blockstore.targets.contract import Target
from tests import sampling

from .conftest import SERVED

pytestmark = [pytest.mark.lab, pytest.mark.slow]


class TestConformance(TargetConformance):
    @pytest.fixture(params=["raw-local", "raw-nbd", "qcow2-nbd"])
    def pair(self, request: pytest.FixtureRequest) -> Iterator[Pair]:
        kind, _, plugin = request.param.partition("-")
        if kind == "raw":
            sampling.one_of(3, request.node.name)
        SERVED.chmod(0o755)
        with contextlib.ExitStack() as stack:
            place = Path(tempfile.mkdtemp(prefix="lab-"))
            stack.callback(shutil.rmtree, place)
            backend = NfsBackend("share", NfsOptions(exports="127.0.0.1:/", format=kind), place / "share")
            backend.check()
            stack.callback(subprocess.run, ["umount", "-l", str(backend.path)], check=True)
            owner = uuid.uuid4().hex[:8]
            target: Target = LocalTarget("local", LocalOptions(), place / "local", owner)
            if plugin == "nbd":
                target = NbdTarget("nbd", NbdOptions(), place / "nbd", owner)
            yield Pair(backend, target)
