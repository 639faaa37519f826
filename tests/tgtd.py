"""A tgtd of a test's own: on a free port and a control socket of its own, in the foreground, killed at the end.

    with Tgtd() as tgtd:
        target = TgtTarget("t", TgtOptions(portals=tgtd.portal, control_socket=str(tgtd.socket)), state_dir, "owner")

Used by the tests of the plugin and by whoever needs an iSCSI target; skips when tgtd is not installed or not root.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from .conftest import need

SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def free_port(address: str = "127.0.0.1") -> int:
    """Return a TCP port that nobody listens on at this moment."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


class Tgtd:
    """One tgtd; ``restart`` is what a reboot does to it: it comes back empty, on the same port and socket."""

    def __init__(self) -> None:
        binary = shutil.which("tgtd", path=SEARCH)
        need(binary, "apt-get install tgt")
        need(os.geteuid() == 0, "tgtd runs as root")
        # Should the tests be killed, it does not outlive them.
        self._argv = ["setpriv", "--pdeathsig", "KILL", str(binary), "-f", "-C", "0"]
        # Not pytest's: the path of a unix socket has 107 bytes at most.
        self.directory = Path(tempfile.mkdtemp(prefix="tgtd-"))
        self.socket = self.directory / "socket.0"
        self.log = self.directory / "log"
        self.port = free_port()
        self.portal = f"127.0.0.1:{self.port}"
        self.start()

    def start(self, timeout_s: float = 60) -> None:
        """Start it and wait until it takes calls."""
        self.socket.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._argv, "--iscsi", f"portal={self.portal}"],
                env={"TGT_IPC_SOCKET": str(self.directory / "socket")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, "tgtd does not take calls"
            time.sleep(0.01)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def kill(self) -> None:
        """As the power would."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Kill it and start an empty one."""
        self.kill()
        self.start()

    def open_files(self) -> list[str]:
        """Return what it has open."""
        found = []
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                found.append(str(link.readlink()))
        return found

    def waits_for_storage(self) -> bool:
        """Say whether one of its threads is in a call of the kernel that nothing interrupts."""
        stats = [path.read_text() for path in Path(f"/proc/{self.process.pid}/task").glob("*/stat")]
        return any(stat.rpartition(")")[2].split()[0] == "D" for stat in stats)

    def __enter__(self) -> Tgtd:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
