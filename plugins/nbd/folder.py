"""What is known of an export: its directory, the server that lives for it, its address, and the claim on its port.

    STATE_DIR/ID/lock          locked by the server, which inherits the descriptor, from before its first step
    STATE_DIR/ID/pid           locked by qemu-nbd itself, for which the kernel tells the process
    STATE_DIR/ID/address       where it listens; written before the server is started
    STATE_DIR/ID/keys.psk      and dh-params.pem, for TLS
    STATE_DIR/ID/nbd           the unix socket, unless there is a directory for sockets
    STATE_DIR/.ports/PORT      a link that names the export that has the port, whether or not its server lives

Used by ``NbdTarget``. An export exists while its directory does. No number in a file is ever taken for a process:
only who holds a lock is, and through a descriptor that cannot come to mean another process.
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
"""Seconds in which a server ends by itself: it finishes requests and flushes."""
TELL_AGAIN_S = 0.5
"""Seconds after which it is told again: qemu-nbd misses a signal in the instant after it says that it is ready."""
KILL_S = 10.0
"""Seconds that the kernel is given to end a killed server: requests that are on their way to a disk come first."""
READY_S = 10.0
"""Seconds that a server, started by a service that was killed meanwhile, has until it listens."""

_POLL_S = 0.001


@dataclass(frozen=True)
class Address:
    """Where a server listens: at a unix socket, or at a host's port."""

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
        """Make the directory, unless it is there."""
        private_files.make_directory(self.path)

    def remove(self) -> None:
        """Remove the directory; the server must be gone."""
        shutil.rmtree(self.path)

    # --- the address ----------------------------------------------------------------------------------------

    def address(self) -> Address | None:
        """Return where the server listens, or would; None when that was not decided."""
        try:
            return Address(**json.loads(private_files.read(self.path / "address")))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def remember(self, address: Address) -> None:
        """Write down the address, so that it survives a power cut."""
        if self.address() == address:
            return
        data = json.dumps(asdict(address)).encode()
        private_files.write(self.path / "address", data, temporary="address.tmp")

    # --- the server -----------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Give a locked descriptor for a server to inherit; the lock is free when all who have it have ended."""
        end = time.monotonic() + READY_S
        lock = self._open_lock()
        try:
            while not _try_lock(lock):  # for a moment: one that has just failed, or another child before its exec
                if time.monotonic() > end:
                    raise SessionAlive(f"Something holds {self.path / 'lock'}, so that no second server is started.")
                time.sleep(_POLL_S)
            yield lock
        finally:
            os.close(lock)  # and never LOCK_UN, which would unlock the server's as well

    def serves(self) -> bool:
        """Say whether a server lives and can be reached, after waiting for one that is just starting."""
        end = time.monotonic() + READY_S
        while self._is_alive() and time.monotonic() < end:
            if self._server() is not None:
                return not self.fault()
            time.sleep(_POLL_S)
        return False

    def fault(self) -> str:
        """Return what keeps the initiator out, and nothing when it is served. Waits for nobody, takes no lock."""
        address = self.address()
        if address is None:
            return "it was not finished"
        if self._server() is None:
            return "its server has ended"
        if address.socket and not Path(address.socket).is_socket():
            return "its socket was removed"
        if address.port and not (self.path / KEYS).is_file():
            return "its keys were removed"
        return ""

    def stop(self) -> None:
        """End the server, and return when it is proved to be gone; none is a success. Raises SessionAlive."""
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
            " killed: it waits for its disk. Look at the storage of the volume, and try again."
        )

    def _tell(self, number: signal.Signals, patience_s: float) -> None:
        """Send the server a signal, and wait until it has ended or patience has."""
        server = self._server()
        if server is None:
            return
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(server)
            try:
                # The lock is still its own, so the descriptor is that process's and not a later one's of its number.
                if self._server() != server:
                    return
                signal.pidfd_send_signal(descriptor, number)
                ended = select.poll()
                ended.register(descriptor, select.POLLIN)
                ended.poll(patience_s * 1000)
            finally:
                os.close(descriptor)

    def _is_alive(self) -> bool:
        """Say whether a server lives, be it one that is only starting."""
        if not self.path.exists():
            return False
        lock = self._open_lock()
        try:
            if not _try_lock(lock):
                return True
            fcntl.flock(lock, fcntl.LOCK_UN)  # at once, also for a child of another thread that has not closed it yet
            return False
        finally:
            os.close(lock)

    def _server(self) -> int | None:
        """Return the process that holds the lock on the pid file, whatever the file says."""
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
    """Which export has which port, for as long as the export is there."""

    def __init__(self, path: Path, ports: range):
        self._path = path
        self._ports = ports

    def candidates(self, export_id: str, remembered: int) -> Iterator[int]:
        """Yield the ports that no other export has: the remembered one first, then from a place made from the id."""
        start = int.from_bytes(hashlib.sha256(export_id.encode()).digest()[:8])
        operation = (self._ports[(start + step) % len(self._ports)] for step in range(len(self._ports)))
        for port in (remembered, *operation) if remembered else operation:
            if self._holder(port) in ("", export_id):
                yield port

    def claim(self, port: int, export_id: str) -> bool:
        """Take a port; False when another export has it. One's own is a success."""
        private_files.make_directory(self._path)
        try:
            (self._path / str(port)).symlink_to(export_id)
        except FileExistsError:
            return self._holder(port) == export_id
        return True

    def release(self, port: int, export_id: str) -> None:
        """Give a port back; one that is another export's, or nobody's, is left alone."""
        if self._holder(port) == export_id:
            (self._path / str(port)).unlink(missing_ok=True)

    def _holder(self, port: int) -> str:
        try:
            return str((self._path / str(port)).readlink())
        except FileNotFoundError:
            return ""
