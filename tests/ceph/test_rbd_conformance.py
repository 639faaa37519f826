"""The conformance suite on a real Ceph, asked in both ways.

By commands each question starts a process, and a case costs two seconds of the processor: `make test` draws half of
these cases by the seed, `make test-long` tries all. What the two ways do differently is in ``test_rbd.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from blockstore_plugins.rbd import RbdBackend

from blockstore.conformance.backend import BackendConformance
from tests import sampling
from tests.ceph.conftest import Ceph

pytestmark = pytest.mark.ceph


class TestRbd(BackendConformance):
    @pytest.fixture
    def backend(self, request: pytest.FixtureRequest, ceph: Ceph, way: str, tmp_path: Path) -> RbdBackend:
        if way == "no":
            sampling.one_of(2, request.node.name)
        return ceph.backend(tmp_path, bindings=way)
