"""`blockstore serve` with storage that answers when a file is there: for tests of what other requests meet meanwhile.

Run as ``python -m tests.api.slow_server STATE_DIR GATE``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from blockstore.app import process
from blockstore.app.service import Service
from blockstore.backends.contract import Manageable
from blockstore.backends.memory import MemoryBackend
from blockstore.config import Config, ServiceConfig
from blockstore.targets.contract import Connection, Export
from tests.conftest import make_config
from tests.scripted_target import ScriptedTarget, attaching_service


class GatedTarget(ScriptedTarget):
    """A target that hangs until a file is there."""

    def __init__(self, gate: Path) -> None:
        super().__init__()
        self.gate = gate

    def export(self, export: Export) -> Connection:
        """Wait for the file."""
        while not self.gate.exists():
            time.sleep(0.01)
        return super().export(export)


def main(state_dir: str, gate: str) -> int:
    """Serve until a signal."""
    config = make_config(
        Path(state_dir), service=ServiceConfig(listen="127.0.0.1:0", api_threads=1, workers=4, attach_timeout_s=60)
    )

    list_manageable = MemoryBackend.list_manageable

    def wait_and_list(backend: MemoryBackend) -> Sequence[Manageable]:
        while not Path(gate).exists():
            time.sleep(0.01)
        return list_manageable(backend)

    MemoryBackend.list_manageable = wait_and_list  # type: ignore[method-assign]

    def made(config: Config) -> Service:
        return attaching_service(config, GatedTarget(Path(gate)))

    process.Service = made  # type: ignore[assignment,misc]
    return process.serve(config)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
