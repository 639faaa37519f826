"""The contract of targets, kept by the local plugin: what of it a path can keep."""

from __future__ import annotations

from pathlib import Path

import pytest
from blockstore_plugins.directory import DirectoryBackend, DirectoryOptions
from blockstore_plugins.local import LocalOptions, LocalTarget

from blockstore.conformance.target import Pair, TargetConformance

from ..targets import damages


class TestConformance(TargetConformance):
    @pytest.fixture
    def pair(self, tmp_path: Path) -> Pair:
        target = LocalTarget("l", LocalOptions(), tmp_path / "target", "0a1b2c3d")
        return Pair(DirectoryBackend("d", DirectoryOptions(), tmp_path / "backend"), target, damages.of_local(target))
