"""The contract, tried on real LVM: thick and thin."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from blockstore.backends.contract import Backend
from blockstore.conformance.backend import BackendConformance

from .conftest import Disk, lvm_backend

pytestmark = pytest.mark.lab


@pytest.fixture(scope="class")
def used_disk() -> Iterator[Disk]:
    """Return one disk for all cases of a class, so that each finds the dirt of those before."""
    disk = Disk(40)
    yield disk
    disk.close()


class TestThick(BackendConformance):
    """Linear volumes on a volume group with space for the snapshots and copies of the largest case."""

    @pytest.fixture
    def backend(self, used_disk: Disk) -> Backend:
        """Return the backend under test."""
        return lvm_backend(used_disk, "thick")


class TestThin(BackendConformance):
    """Thin volumes in a pool that the backend makes."""

    @pytest.fixture
    def backend(self, used_disk: Disk) -> Backend:
        """Return the backend under test."""
        return lvm_backend(used_disk, "thin")
