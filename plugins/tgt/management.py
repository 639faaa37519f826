"""The management protocol of tgtd on its unix socket: calls, lists and errors.

Called only by this plugin's ``__init__.py``. It knows targets, LUNs, accounts and connections, but no exports or
policy. It never runs ``tgtadm``: every user of the machine can read a password on a command line, and a process takes
longer than all calls of an export together.

Each call is one connection: a request of fixed size, parameters as text, an error number, text. tgtd answers calls one
by one, in the thread that also accepts logins and receives commands.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from blockstore.errors import BackendError, Unreachable

log = logging.getLogger(__name__)

LUN = 1
"""The volume's LUN; LUN 0 is the controller that tgtd adds to each target."""

# mode, operation, driver, length, tid, session, lun, connection, host, device type, direction of CHAP, pack, force
_REQUEST = struct.Struct("@ii64sIiQQIIIIII")
_REPLY = struct.Struct("@II")
_ALL = -1

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Mode(IntEnum):
    """The kind of object that a call addresses."""

    SYSTEM = 0
    TARGET = 1
    DEVICE = 2
    PORTAL = 3
    CONNECTION = 6
    ACCOUNT = 7


class Op(IntEnum):
    """The action of a call."""

    NEW = 0
    DELETE = 1
    SHOW = 2
    BIND = 3
    UNBIND = 4
    UPDATE = 5


class Code(IntEnum):
    """tgtd's error numbers."""

    UNKNOWN = 1
    NO_MEMORY = 2
    NO_DRIVER = 3
    NO_TARGET = 4
    NO_LUN = 5
    NO_SESSION = 6
    NO_CONNECTION = 7
    NO_BINDING = 8
    TARGET_EXISTS = 9
    LUN_EXISTS = 10
    BINDING_EXISTS = 11
    RULE_EXISTS = 12
    NO_RULE = 13
    USER_EXISTS = 14
    NO_USER = 15
    TOO_MANY_USERS = 16
    INVALID_REQUEST = 17
    OUTGOING_EXISTS = 18
    TARGET_ACTIVE = 19
    LUN_ACTIVE = 20
    DRIVER_ACTIVE = 21
    UNSUPPORTED = 22
    UNKNOWN_PARAMETER = 23
    REMOVAL_PREVENTED = 24


_SENTENCES = {
    Code.NO_MEMORY: "it has no memory left",
    Code.NO_DRIVER: "its iSCSI driver is not ready",
    Code.NO_TARGET: "it has no such target",
    Code.NO_LUN: "the target has no such LUN",
    Code.NO_SESSION: "there is no such session",
    Code.NO_CONNECTION: "there is no such connection",
    Code.TARGET_EXISTS: "the target exists already",
    Code.LUN_EXISTS: "the LUN exists already",
    Code.RULE_EXISTS: "the initiator is admitted already",
    Code.NO_RULE: "the initiator is not admitted",
    Code.USER_EXISTS: "the account exists already",
    Code.NO_USER: "there is no such account",
    Code.TOO_MANY_USERS: "it has too many accounts",
    Code.INVALID_REQUEST: "it finds the request invalid; its log says why",
    Code.TARGET_ACTIVE: "the target has sessions",
    Code.LUN_ACTIVE: "commands are under way on the LUN",
    Code.UNSUPPORTED: "this version does not offer that",
    Code.UNKNOWN_PARAMETER: "this version does not know a parameter",
    Code.REMOVAL_PREVENTED: "an initiator prevents the LUN from going offline",
}


class TgtRefused(BackendError):
    """tgtd answered with an error. ``code`` is its number, which may be missing in ``Code``."""

    def __init__(self, what: str, code: int):
        self.code = code
        known = _SENTENCES.get(Code(code)) if code in Code._value2member_map_ else None
        super().__init__(f"tgtd did not {what}: {known or f'its error {code}'}.")


class Stale(Unreachable):
    """The cached state of tgtd is outdated. Nothing was changed; read the state again."""


@dataclass(frozen=True)
class TgtPortal:
    """An address and port that tgtd listens on."""

    address: IpAddress
    port: int

    @classmethod
    def parse(cls, text: str) -> TgtPortal:
        """Parse ADDRESS:PORT, IPv6 in brackets. Raise ValueError if the text is anything else."""
        found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})", text)
        if found is None:
            raise ValueError(f"{text!r} is not ADDRESS:PORT")
        v6, v4, port = found.groups()
        if not 1 <= int(port) <= 65535:
            raise ValueError(f"{port} is not a port")
        return cls(ipaddress.IPv6Address(v6) if v6 else ipaddress.IPv4Address(v4), int(port))

    def covers(self, other: TgtPortal) -> bool:
        """Return True if listening at this portal includes ``other``."""
        same_family = self.address.version == other.address.version
        return self.port == other.port and same_family and (self.address == other.address or self.is_wildcard)

    @property
    def is_wildcard(self) -> bool:
        """True if the portal covers all addresses."""
        return self.address.is_unspecified

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


@dataclass(frozen=True)
class ListedTarget:
    """A target as listed by tgtd."""

    tid: int
    name: str
    path: str
    """Backing store of LUN 1; empty if there is no LUN 1."""
    admitted: frozenset[str]
    """Initiators that may log in."""
    connected: tuple[str, ...]
    """Logged-in initiators."""
    accounts: frozenset[str] = frozenset()
    """Accounts bound to the target; without any, tgtd asks for no password."""
    is_ready: bool = True
    """False if the target is offline and refuses all logins."""
    is_online: bool = True
    """True if LUN 1 accepts commands."""


@dataclass(frozen=True)
class Tgtd:
    """One running tgtd.

    A tid is valid only for one process; the next tgtd may use it for another target. So each call first compares the
    answering process with the one that ``find`` found. Raises: Stale; TgtRefused; Unreachable.
    """

    socket_path: Path
    pid: int
    started: int
    """Start time of the process in clock ticks, since the kernel reuses pids."""

    @classmethod
    def find(cls, socket_path: Path) -> Tgtd:
        """Return the tgtd that listens now. Raise Unreachable if there is none."""
        with _connected(socket_path) as connection:
            return cls(socket_path, *_peer(connection))

    # --- the daemon -----------------------------------------------------------------------------------------

    def system(self) -> str:
        """Return the state, drivers and backing stores of tgtd, as text."""
        return self._call("tell its state", Mode.SYSTEM, Op.SHOW)

    def portals(self) -> tuple[TgtPortal, ...]:
        """Return the portals on which tgtd listens."""
        text = self._call("tell its portals", Mode.PORTAL, Op.SHOW)
        return tuple(TgtPortal.parse(found) for found in re.findall(r"^Portal: (\S+),\d+$", text, re.M))

    def add_portal(self, portal: TgtPortal) -> None:
        """Make tgtd listen on another portal."""
        self._call(f"listen on {portal}", Mode.PORTAL, Op.NEW, params=f"portal={portal}")

    # --- targets --------------------------------------------------------------------------------------------

    def targets(self) -> tuple[ListedTarget, ...]:
        """Return all targets; only this call's cost grows with their number."""
        return tuple(_parse_targets(self._call("list its targets", Mode.TARGET, Op.SHOW, tid=_ALL)))

    def create_target(self, tid: int, name: str) -> None:
        """Make a target without LUN and account, which admits no initiator."""
        self._call(f"make the target {name}", Mode.TARGET, Op.NEW, tid=tid, params=f"targetname={name}")

    def delete_target(self, tid: int) -> None:
        """Remove a target without sessions."""
        self._call(f"remove the target {tid}", Mode.TARGET, Op.DELETE, tid=tid)

    def update_target(self, tid: int, name: str, value: str | int) -> None:
        """Set one parameter. ``state=offline`` refuses logins and keeps commands of existing sessions from the LUN."""
        self._call(f"set {name} of the target {tid}", Mode.TARGET, Op.UPDATE, tid=tid, params=f"{name}={value}")

    def admit(self, tid: int, initiator: str) -> None:
        """Allow an initiator to log in."""
        what = f"admit {initiator} to the target {tid}"
        self._call(what, Mode.TARGET, Op.BIND, tid=tid, params=f"initiator-name={initiator}")

    def expel(self, tid: int, initiator: str) -> None:
        """Refuse new logins of an initiator; its existing sessions stay."""
        what = f"expel {initiator} from the target {tid}"
        self._call(what, Mode.TARGET, Op.UNBIND, tid=tid, params=f"initiator-name={initiator}")

    # --- accounts, which belong to the daemon and are bound to targets ---------------------------------------

    def create_account(self, user: str, password: str) -> None:
        """Make an account for CHAP."""
        self._call(f"make the account {user}", Mode.ACCOUNT, Op.NEW, params=f"user={user},password={password}")

    def bind_account(self, tid: int, user: str) -> None:
        """Require this account for logins to a target."""
        self._call(f"bind the account {user}", Mode.ACCOUNT, Op.BIND, tid=tid, params=f"user={user}")

    def delete_account(self, user: str) -> None:
        """Remove an account. A target without accounts asks for no password."""
        self._call(f"remove the account {user}", Mode.ACCOUNT, Op.DELETE, params=f"user={user}")

    # --- LUNs and connections -------------------------------------------------------------------------------

    def create_lun(self, tid: int, params: str) -> None:
        """Add LUN 1; its backing store is opened at once."""
        self._call(f"open a LUN of the target {tid}", Mode.DEVICE, Op.NEW, tid=tid, lun=LUN, params=params)

    def update_lun(self, tid: int, params: str) -> None:
        """Set parameters of LUN 1, from left to right."""
        self._call(f"set up the LUN of the target {tid}", Mode.DEVICE, Op.UPDATE, tid=tid, lun=LUN, params=params)

    def delete_lun(self, tid: int) -> None:
        """Remove LUN 1: its backing store is closed before this returns."""
        self._call(f"close the LUN of the target {tid}", Mode.DEVICE, Op.DELETE, tid=tid, lun=LUN)

    def connections(self, tid: int) -> frozenset[tuple[int, int]]:
        """Return the connections of a target as (session, connection).

        A connection is listed until its last command has ended, even if its TCP connection is gone.
        """
        text = self._call(f"list the connections of the target {tid}", Mode.CONNECTION, Op.SHOW, tid=tid)
        found = re.findall(r"^Session: (\d+)\n +Connection: (\d+)$", text, re.M)
        return frozenset((int(session), int(connection)) for session, connection in found)

    def close_connection(self, tid: int, session: int, connection: int) -> None:
        """Begin to close one connection."""
        what = f"close a connection of the target {tid}"
        self._call(what, Mode.CONNECTION, Op.DELETE, tid=tid, session=session, connection=connection)

    # --- the protocol --------------------------------------------------------------------------------------

    def _call(
        self,
        what: str,
        mode: Mode,
        op: Op,
        *,
        tid: int = 0,
        lun: int = 0,
        session: int = 0,
        connection: int = 0,
        params: str = "",
    ) -> str:
        """Make one call and return its text. ``what`` is for errors and logs; ``params`` may hold a secret."""
        sent = params.encode() + b"\0" if params else b""
        head = _REQUEST.pack(
            mode, op, b"iscsi", _REQUEST.size + len(sent), tid, session, lun, connection, 0, 0, 0, 0, 0
        )
        with _connected(self.socket_path) as peer:
            if _peer(peer) != (self.pid, self.started):
                raise Stale(f"tgtd on {self.socket_path} was restarted in the middle of the work; try again.")
            try:
                peer.sendall(head + sent)
                code, length = _REPLY.unpack(_received(peer, _REPLY.size))
                text = _received(peer, length - _REPLY.size).decode(errors="replace")
            except TimeoutError as exc:
                raise Unreachable(f"tgtd on {self.socket_path} did not answer within {peer.gettimeout():g} s.") from exc
            except OSError as exc:
                raise Unreachable(
                    f"tgtd on {self.socket_path} closed the connection. It serves only the user that runs it, usually"
                    " root."
                ) from exc
        log.debug("tgtd: %s: %s", what, code or "done")
        if code:
            raise TgtRefused(what, code)
        return text


def _connected(socket_path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    # Blocking, with a timeout: a non-blocking connect is refused at once while others are queued at tgtd.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 10, 0))
    try:
        connection.connect(str(socket_path))
        connection.settimeout(10)
    except OSError as exc:
        connection.close()
        raise Unreachable(
            f"No tgtd answers on {socket_path} ({exc.strerror or exc}). Install it (apt-get install tgt), start it"
            " (systemctl start tgt), run this service as root, or set control_socket to tgtd's socket."
        ) from exc
    return connection


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Return pid and start time of the listening process."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid = struct.unpack("3i", credentials)[0]
    try:
        # The stat of the first thread: for that of the process the kernel visits all threads, and tgtd has 16 per LUN.
        stat = Path(f"/proc/{pid}/task/{pid}/stat").read_text()
    except OSError as exc:
        raise Unreachable(f"tgtd, process {pid}, ended at this moment.") from exc
    # The second field, the name of the command, may contain anything; the start is the twentieth field after it.
    return pid, int(stat.rpartition(")")[2].split()[19])


def _received(connection: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = connection.recv(min(length - len(parts), 1 << 20))
        if not part:
            raise ConnectionResetError
        parts += part
    return bytes(parts)


def _parse_targets(text: str) -> Iterator[ListedTarget]:
    for block in re.split(r"^(?=Target \d+: )", text, flags=re.M):
        head = re.match(r"Target (\d+): (\S+)\n", block)
        if head is None:
            continue
        sections = dict(re.findall(r"^    (\S[^\n]*) information:\n((?: {8}[^\n]*\n)*)", block, re.M))
        # Skip the controller, which comes first.
        lun = sections.get("LUN", "").partition(f" LUN: {LUN}\n")[2]
        path = re.search(r"^ +Backing store path: (.*)$", lun, re.M)
        yield ListedTarget(
            tid=int(head[1]),
            name=head[2],
            path=path[1] if path and path[1] != "None" else "",
            admitted=frozenset(sections.get("ACL", "").split()),
            connected=tuple(re.findall(r"^ +Initiator: (\S+)", sections.get("I_T nexus", ""), re.M)),
            accounts=frozenset(line.strip() for line in sections.get("Account", "").splitlines()),
            is_ready="State: ready\n" in sections.get("System", ""),
            is_online=" Online: Yes\n" in lun,
        )
