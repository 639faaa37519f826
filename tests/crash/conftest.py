"""A served process that is killed and started again, for the tests of this folder."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from blockstore.app.wiring import load_backends, load_targets
from blockstore.config import load
from blockstore.db.session import Database
from blockstore.keys.keyring import Keyring
from tests.conftest import Served
from tests.crash.fork_server import ForkServer
from tests.crash.invariants import check

DRAIN_LIMIT_S = 60.0

CONFIG = """
[service]
auth = none
workers = 4
[quota]
volumes = -1
snapshots = -1
gigabytes = -1
[backend:directory]
plugin = directory
max_over_subscription_ratio = 1000
reserved_percentage = 0
fill_limit_percentage = 100
[backend:spare]
plugin = directory
max_over_subscription_ratio = 1000
reserved_percentage = 0
fill_limit_percentage = 100
"""


class KilledService:
    """A served state directory, its process started again and again."""

    def __init__(self, place: Path, fork_server: ForkServer) -> None:
        self.place, self.fork_server = place, fork_server
        self.config = place / "config.ini"
        self.config.write_text(CONFIG)
        self.answered = 0.0
        self.url = ""
        self._pid = 0
        self._cold: Served | None = None

    def start(self, *, cold: bool = False, function: str = "serve") -> None:
        """Start, and return when it answers."""
        if cold:
            self._cold = Served(self.place, self.config.read_text())
            self.url, self.answered = self._cold.url, time.monotonic()
            return
        self.launch(function)
        note = self.place / "endpoint"
        deadline = time.monotonic() + 60
        while not (note.exists() and note.read_text().endswith("\n")):
            assert time.monotonic() < deadline, (self.place / "log").read_text()[-5000:]
            time.sleep(0.002)
        self.url, self.answered = note.read_text().strip(), time.monotonic()

    def launch(self, function: str) -> None:
        """Start, and do not wait."""
        (self.place / "endpoint").unlink(missing_ok=True)
        self._pid = self.fork_server.start(self.place / "log", function, str(self.place), str(self.config))

    def wait(self) -> int:
        """Wait for the end."""
        return self.fork_server.wait(self._pid)

    def signal(self, number: int) -> int:
        """Send a signal and wait for the end."""
        if self._cold is not None:
            served, self._cold = self._cold, None
            served.process.send_signal(number)
            return int(served.process.wait())
        os.kill(self._pid, number)
        return self.wait()

    def drain(self) -> float:
        """Wait until no operation is open; return how long that took from the first answer of the process."""
        while self.open_operations():
            assert time.monotonic() - self.answered < DRAIN_LIMIT_S, (self.place / "log").read_text()[-5000:]
            time.sleep(0.005)
        return time.monotonic() - self.answered

    def open_operations(self) -> int:
        """Return how many operations are open."""
        with closing(sqlite3.connect(f"file:{self.place}/blockstore.db?mode=ro", uri=True)) as db:
            return int(db.execute("SELECT count(*) FROM operations WHERE state = 'open'").fetchone()[0])

    def check(self) -> None:
        """Compare rows and files; nothing may be running."""
        db, config = Database(f"sqlite:///{self.place}/blockstore.db"), load(self.config)
        backends = load_backends(config, self.place)
        targets, _ = load_targets(config, backends, self.place, Keyring(self.place / "attachments.key"))
        try:
            check(db, backends, targets=targets)
        finally:
            db.dispose()


@pytest.fixture
def victim() -> Iterator[KilledService]:
    """A state directory, in memory where there is one: a kill is no power cut."""
    parent = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    fork_server = ForkServer()
    with tempfile.TemporaryDirectory(prefix="blockstore-kills-", dir=parent) as place:
        try:
            yield KilledService(Path(place), fork_server)
        finally:
            fork_server.close()
