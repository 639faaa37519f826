"""The state of an export: its directory, its server process, its address, and the claim on its port.

    STATE_DIR/ID/lock          locked by the server, which inherits the locked descriptor at its start
    STATE_DIR/ID/pid           locked by qemu-nbd itself; the kernel tells the process that holds the lock
    STATE_DIR/ID/address       the address of the server; written before the server is started
    STATE_DIR/ID/keys.psk      and dh-params.pem, for TLS
    STATE_DIR/ID/nbd           the unix socket, unless ``socket_dir`` is set
    STATE_DIR/.ports/PORT      a link that names the export that owns the port, even if its server has ended

Used by ``NbdTarget``. An export exists while its directory does. A process is identified by the lock that it holds,
never by a number in a file. Signals go through a descriptor, which cannot refer to another process.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from blockstore import private_files
from blockstore.backends import file_locks
from blockstore.errors import SessionAlive

from .tls import KEYS

TERM_S = 10.0
"""Seconds for a server to end by itself: it finishes requests and flushes."""
TELL_AGAIN_S = 0.5
"""Seconds until the signal is sent again: qemu-nbd may miss a signal just after it reports to be ready."""
KILL_S = 10.0
"""Seconds for the kernel to end a killed server: it finishes requests to the disk first."""
READY_S = 10.0
"""Seconds for a server to listen that was started by a service which was killed meanwhile."""

_POLL_S = 0.001


@dataclass(frozen=True)
class Address:
    """The address of a server: a unix socket, or a host and port."""

    socket: str = ""
    host: str = ""
    port: int = 0


class ExportFolder:
    """The directory of one export."""

    def __init__(self, path: Path):
        self.path = path
        self.pid_file = path / "pid"

    @property
    def id(self) -> str:
        """The export's id."""
        return self.path.name

    def make(self) -> None:
        """Make the directory if it is missing."""
        private_files.make_directory(self.path)

    def remove(self) -> None:
        """Remove the directory; the server must be gone."""
        shutil.rmtree(self.path)

    # --- the address ----------------------------------------------------------------------------------------

    def address(self) -> Address | None:
        """Return the address recorded for the server; None if there is none."""
        try:
            return Address(**json.loads(private_files.read(self.path / "address")))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def remember(self, address: Address) -> None:
        """Record the address, so that it survives a power cut."""
        if self.address() == address:
            return
        data = json.dumps(asdict(address)).encode()
        private_files.write(self.path / "address", data, temporary="address.tmp")

    # --- the server -----------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Give a locked descriptor for a server to inherit; it is unlocked when all processes that have it open have
        ended."""
        end = time.monotonic() + READY_S
        lock = self._open_lock()
        try:
            while not _try_lock(lock):  # a failed server, or another child before its exec
                if time.monotonic() > end:
                    raise SessionAlive(f"Another process holds {self.path / 'lock'}, so no second server is started.")
                time.sleep(_POLL_S)
            yield lock
        finally:
            os.close(lock)  # never LOCK_UN, which would also release the server's lock

    def serves(self) -> bool:
        """Return True if a server runs and can be reached; wait for a server that is starting."""
        end = time.monotonic() + READY_S
        while self._is_alive() and time.monotonic() < end:
            if self._server() is not None:
                return not self.fault()
            time.sleep(_POLL_S)
        return False

    def fault(self) -> str:
        """Return the reason why the export is not served; empty if it is served. Does not wait, and takes no lock."""
        address = self.address()
        if address is None:
            return "its creation was not finished"
        if self._server() is None:
            return "its server has ended"
        if address.socket and not Path(address.socket).is_socket():
            return "its socket was removed"
        if address.port and not (self.path / KEYS).is_file():
            return "its keys were removed"
        return ""

    def stop(self) -> None:
        """End the server, if there is one, and return when it is gone. Raise SessionAlive if it does not end."""
        for number, patience in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, KILL_S)):
            end = time.monotonic() + patience
            while self._is_alive():
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._tell(number, min(left, TELL_AGAIN_S))
                time.sleep(_POLL_S)
            else:
                return
        raise SessionAlive(
            f"The server of export {self.id} (process {self._server() or 'unknown'}) has not ended, although it was"
            " killed: it waits for its disk. Check the storage of the volume, and try again."
        )

    def _tell(self, number: signal.Signals, patience_s: float) -> None:
        """Send the server a signal, and wait until it has ended or ``patience_s`` is over."""
        server = self._server()
        if server is None:
            return
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(server)
            try:
                # If it still holds the lock, the descriptor refers to this process and not to a later one with its pid.
                if self._server() != server:
                    return
                signal.pidfd_send_signal(descriptor, number)
                ended = select.poll()
                ended.register(descriptor, select.POLLIN)
                ended.poll(patience_s * 1000)
            finally:
                os.close(descriptor)

    def _is_alive(self) -> bool:
        """Return True if a server runs or is starting."""
        if not self.path.exists():
            return False
        lock = self._open_lock()
        try:
            if not _try_lock(lock):
                return True
            fcntl.flock(lock, fcntl.LOCK_UN)  # at once, even if another thread's child has it open
            return False
        finally:
            os.close(lock)

    def _server(self) -> int | None:
        """Return the process that holds the lock on the pid file; the file's content is ignored."""
        try:
            file = private_files.open_file(self.pid_file)
        except FileNotFoundError:
            return None
        try:
            return file_locks.locking_process(file)
        finally:
            os.close(file)

    def _open_lock(self) -> int:
        return private_files.open_file(self.path / "lock", os.O_RDWR | os.O_CREAT)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Ports:
    """The ports of exports, for the life of each export."""

    def __init__(self, path: Path, ports: range):
        self._path = path
        self._ports = ports

    def candidates(self, export_id: str, remembered: int) -> Iterator[int]:
        """Yield the ports that no other export has: the remembered port first, then all from an offset derived from the
        id."""
        start = int.from_bytes(hashlib.sha256(export_id.encode()).digest()[:8])
        sequence = (self._ports[(start + step) % len(self._ports)] for step in range(len(self._ports)))
        for port in (remembered, *sequence) if remembered else sequence:
            if self._holder(port) in ("", export_id):
                yield port

    def claim(self, port: int, export_id: str) -> bool:
        """Claim a port; return False if another export has it, True if this export has it already."""
        private_files.make_directory(self._path)
        try:
            (self._path / str(port)).symlink_to(export_id)
        except FileExistsError:
            return self._holder(port) == export_id
        return True

    def release(self, port: int, export_id: str) -> None:
        """Release a port if this export has it."""
        if self._holder(port) == export_id:
            (self._path / str(port)).unlink(missing_ok=True)

    def _holder(self, port: int) -> str:
        try:
            return str((self._path / str(port)).readlink())
        except FileNotFoundError:
            return ""
