"""Who is connected, as the kernel lists it: one read for all exports, whatever their number.

Called by ``NbdTarget.sessions``. Sees the network namespace of the service, in which its servers live too.
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
    """Return the connections to each unix socket, by its path; the kernel's list does not say whose they are."""
    found = defaultdict(list)
    for line in _lines("unix"):
        # Num RefCount Protocol Flags Type State Inode Path; the last may hold blanks, and clients' ends have none.
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[5] == _CONNECTED:
            found[fields[7]].append("a process on this node")
    return found


def of_ports() -> Mapping[tuple[str, int], Sequence[str]]:
    """Return the other ends of the connections of each local address and TCP port."""
    found: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    for table in ("tcp", "tcp6"):
        for line in _lines(table):
            _number, local, remote, state, *_rest = line.split()
            if state == _ESTABLISHED:
                host, port = _end(remote)
                end = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                if end not in found[_end(local)]:  # the kernel may repeat a line of a list that changes meanwhile
                    found[_end(local)].append(end)
    return found


def _lines(table: str) -> Iterator[str]:
    try:
        text = Path("/proc/net", table).read_text(errors="surrogateescape")
    except FileNotFoundError:  # a kernel without IPv6
        return
    yield from text.split("\n")[1:-1]


def _end(text: str) -> tuple[str, int]:
    """Return the address and port that the kernel prints as words of 32 bits in its own byte order."""
    words, port = text.split(":")
    packed = b"".join(struct.pack("=I", int(words[at : at + 8], 16)) for at in range(0, len(words), 8))
    return str(ipaddress.ip_address(packed)), int(port, 16)
