"""Lists connected clients from the kernel's tables: one read for all exports.

Called by ``NbdTarget.sessions``. It reads the network namespace of the service, in which its servers also run.
"""

from __future__ import annotations

import ipaddress
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_CONNECTED = "03"
_ESTABLISHED = "01"


def of_sockets() -> Mapping[str, Sequence[str]]:
    """Return the connections to each unix socket, by its path; the kernel's list does not name the processes."""
    found = defaultdict(list)
    for line in _lines("unix"):
        # Num RefCount Protocol Flags Type State Inode Path; a path may have blanks, and clients' ends have no path.
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[5] == _CONNECTED:
            found[fields[7]].append("a process on this node")
    return found


def of_ports() -> Mapping[tuple[str, int], Sequence[str]]:
    """Return the remote ends of the connections of each local address and TCP port."""
    found: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    for table in ("tcp", "tcp6"):
        for line in _lines(table):
            _number, local, remote, state, *_rest = line.split()
            if state == _ESTABLISHED:
                host, port = _end(remote)
                end = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                if end not in found[_end(local)]:  # the kernel may repeat a line if the list changes
                    found[_end(local)].append(end)
    return found


def _lines(table: str) -> Iterator[str]:
    try:
        text = Path("/proc/net", table).read_text(errors="surrogateescape")
    except FileNotFoundError:  # a kernel without IPv6
        return
    yield from text.split("\n")[1:-1]


def _end(text: str) -> tuple[str, int]:
    """Parse an address and port, which the kernel prints as words of 32 bits in host byte order."""
    words, port = text.split(":")
    packed = b"".join(struct.pack("=I", int(words[at : at + 8], 16)) for at in range(0, len(words), 8))
    return str(ipaddress.ip_address(packed)), int(port, 16)
