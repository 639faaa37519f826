"""Runs qemu-nbd and translates its errors; no other file does.

Called by ``NbdTarget``. It knows no directories, processes or secrets: keys are in files.
"""

from __future__ import annotations

import re
from pathlib import Path

from blockstore.backends import process
from blockstore.errors import BackendError, InUse, ToolFailed, Unreachable, VolumeMissing

PACKAGE = "qemu-utils"

CLIENTS = 256
"""Most concurrent connections: QEMU reconnects before its lost connection is noticed, and nbdcopy uses four."""

_START_S = 30


class PortTaken(Unreachable):
    """Something else listens on the port."""


def prove(*, tls: bool) -> None:
    """Raise Unreachable unless qemu-nbd is installed, recent enough, and supports TLS-PSK if needed."""
    if "--pid-file" not in process.run(("qemu-nbd", "--help"), package=PACKAGE):
        raise Unreachable(f"This qemu-nbd is too old; 4.1 or later is needed. Upgrade the package {PACKAGE}.")
    if tls and "tls-creds-psk" not in process.run(("qemu-nbd", "--object", "help"), package=PACKAGE):
        raise Unreachable("This qemu-nbd was built without TLS-PSK (gnutls). Leave listen empty, or install another.")


def serve(
    image: str,
    *,
    export: str,
    socket: str,
    host: str,
    port: int,
    keys: Path,
    pid_file: Path,
    read_only: bool,
    lock: int,
) -> None:
    """Start a server and return when it listens. The server keeps the descriptor ``lock`` open until it ends.

    ``image`` is a block device description made by ``images.py``. Raises: PortTaken, InUse, VolumeMissing.
    """
    # Use the page cache, the default; flushes of the initiator make writes durable. With O_DIRECT, requests smaller
    # than a sector are rounded up, and two exports of one volume could undo each other's writes.
    rights = ("--read-only",) if read_only else ("--discard=unmap", "--detect-zeroes=unmap")
    where: tuple[str, ...] = (f"--socket={socket}",)
    if host:
        credentials = f"tls-creds-psk,id=tls0,endpoint=server,dir={str(keys).replace(',', ',,')}"
        where = (f"--bind={host}", f"--port={port}", "--object", credentials, "--tls-creds=tls0")
    stays = ("--fork", "--persistent", f"--shared={CLIENTS}", f"--pid-file={pid_file}")
    argv = ("qemu-nbd", *stays, f"--export-name={export}", *where, *rights, "--cache=writeback", image)
    try:
        process.run(argv, timeout_s=_START_S, package=PACKAGE, pass_fds=(lock,))
    except ToolFailed as exc:
        raise _named(exc) from exc


def _named(exc: ToolFailed) -> BackendError:
    """Return the specific error for qemu-nbd's message; the error itself if there is none."""
    for words, error, sentence in _MEANINGS:
        if words.search(exc.stderr):
            return error(f"{sentence} ({' '.join(exc.stderr.split())[:300].rstrip('.')})")
    return exc


_MEANINGS: tuple[tuple[re.Pattern[str], type[BackendError], str], ...] = (
    (re.compile("Address already in use"), PortTaken, "Something else listens there."),
    (re.compile(r'Failed to get (shared )?"[a-z ]+" lock'), InUse, "Another process has the volume's file open."),
    (re.compile("Cannot assign requested address"), Unreachable, "The address in listen is not one of this node's."),
    (re.compile("Could not open .*: No such (file|device)"), VolumeMissing, "The volume is gone."),
    (re.compile("Permission denied|Operation not permitted"), Unreachable, "This user may not open the volume."),
)
