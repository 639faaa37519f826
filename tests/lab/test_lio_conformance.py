"""The contract of targets on real LVM: every target that can export a device, lio among them.

All that a target does without a device is tried on files, outside the lab, by tests/plugins/test_*_conformance.py. So
`make test` draws a part of the cases of tgt, nbd and local by the seed; lio, which only the lab has, keeps all.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockstore_plugins.lio import LioOptions, LioTarget
from blockstore_plugins.local import LocalOptions, LocalTarget
from blockstore_plugins.lvm import LvmBackend
from blockstore_plugins.nbd import NbdOptions, NbdTarget
from blockstore_plugins.tgt import TgtOptions, TgtTarget

from blockstore.conformance.target import Pair, TargetConformance
from blockstore.targets.contract import Target
from tests import sampling
from tests.targets import damages
from tests.tgtd import Tgtd

from .conftest import Disk, lvm_backend

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(scope="module")
def backend() -> Iterator[LvmBackend]:
    """One pool for all cases, which takes the lab seconds to make."""
    disk = Disk(40)
    yield lvm_backend(disk, "thin")
    disk.close()


class TestConformance(TargetConformance):
    @pytest.fixture(params=["lio", "tgt", "nbd", "local"])
    def pair(self, request: pytest.FixtureRequest, backend: LvmBackend) -> Iterator[Pair]:
        if request.param != "lio":
            sampling.one_of(3, request.node.name)
        owner = uuid.uuid4().hex[:8]
        with contextlib.ExitStack() as stack:
            place = Path(tempfile.mkdtemp(prefix="lab-"))
            stack.callback(shutil.rmtree, place, ignore_errors=True)
            target: Target
            broken_by: damages.Damages = {}  # those of tgt and nbd need no devices
            if request.param == "lio":
                target, broken_by = LioTarget("lio", LioOptions(), place / "lio", owner), damages.of_lio()
            elif request.param == "tgt":
                tgtd = stack.enter_context(Tgtd())
                options = TgtOptions(portals=tgtd.portal, control_socket=str(tgtd.socket), session_timeout_s=5.0)
                target = TgtTarget("tgt", options, place / "tgt", owner)
            elif request.param == "nbd":
                target = NbdTarget("nbd", NbdOptions(), place / "nbd", owner)
            else:
                target = local = LocalTarget("local", LocalOptions(), place / "local", owner)
                broken_by = {"deactivated": damages.of_local(local)["its device is deactivated"]}
            yield Pair(backend, target, broken_by)
