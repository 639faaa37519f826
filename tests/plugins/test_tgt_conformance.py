"""The contract of targets, kept by the tgt plugin with a real tgtd: for files here; for LVM's devices in the lab."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from blockstore_plugins.directory import DirectoryBackend, DirectoryOptions
from blockstore_plugins.tgt import TgtOptions, TgtTarget

from blockstore.conformance.target import Pair, TargetConformance

from ..targets import damages
from ..tgtd import Tgtd


class TestConformance(TargetConformance):
    @pytest.fixture
    def pair(self, tmp_path: Path) -> Iterator[Pair]:
        with Tgtd() as tgtd:
            options = TgtOptions(portals=tgtd.portal, control_socket=str(tgtd.socket), session_timeout_s=5.0)
            yield Pair(
                DirectoryBackend("d", DirectoryOptions(), tmp_path / "backend"),
                TgtTarget("t", options, tmp_path / "target", "0a1b2c3d"),
                damages.of_tgt(tgtd),
            )
