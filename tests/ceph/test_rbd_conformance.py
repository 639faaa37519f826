"""The conformance suite on a real Ceph, asked in both ways."""

from __future__ import annotations

from pathlib import Path

import pytest
from blockstore_plugins.rbd import RbdBackend

from blockstore.conformance.backend import BackendConformance
from tests.ceph.conftest import Ceph

pytestmark = pytest.mark.ceph


class TestRbd(BackendConformance):
    @pytest.fixture
    def backend(self, ceph: Ceph, way: str, tmp_path: Path) -> RbdBackend:
        return ceph.backend(tmp_path, bindings=way)
