"""Volumes over iSCSI by tgtd, Debian's iSCSI target in user space: block devices and raw files, no kernel support needed.

Says what an export is and in which order it is made and taken away; ``management.py`` speaks with tgtd. It starts no
process and keeps no state of its own: what is exported is what tgtd says.

One export is one target with one LUN. Its name (IQN), its account and its tid are its own and are never used again.

* **Before it is whole, nobody gets in.** A new target admits no initiator; the one of the connector is admitted last,
  when account and LUN are there. Accounts are only unbound by removing them, when the LUN is gone: tgtd asks for no
  password where no account is bound.
* **tids are random.** tgtd lets a login that has passed its checks wait for as long as the initiator likes, and then
  attaches the session to whatever target has the tid that it found at the beginning.
* **An offline target** refuses logins, and commands of its sessions never reach the LUN.
* **A connection is listed until its last command has ended**, so an offline target without connections has no command
  under way, and gets none.

Backing stores are ``rdwr``, never ``aio``: aio of tgtd 1.0.85 answers SYNCHRONIZE CACHE, WRITE AND VERIFY and COMPARE
AND WRITE with success and does nothing, and fails UNMAP. rdwr writes through the page cache, says so (WCE), and calls
fdatasync for SYNCHRONIZE CACHE and FUA.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from blockstore.errors import (
    BackendError,
    ConfigError,
    InvalidConnector,
    NotSupported,
    SessionAlive,
    Unreachable,
    VolumeMissing,
)
from blockstore.targets.contract import Connection, Export, Target, TargetCapabilities, TargetOptions, option

from .management import LUN, Code, Portal, Refused, Restarted, Tgtd

log = logging.getLogger(__name__)

T = TypeVar("T")

# tgt-admin counts tids up from 1. Above 2^28 a tid would spill into the type of the identifier that tgtd makes of it.
_TIDS = range(1 << 16, 1 << 28)

# RFC 3720 has only lower case and no underscore; open-iscsi sends what the administrator wrote, and tgtd compares that.
_INITIATOR = re.compile(
    r"iqn\.[0-9]{4}-(?:0[1-9]|1[0-2])\.[A-Za-z0-9](?:[A-Za-z0-9._:-]*[A-Za-z0-9])?"
    r"|eui\.[0-9A-Fa-f]{16}"
    r"|naa\.(?:[0-9A-Fa-f]{16}|[0-9A-Fa-f]{32})"
)
_LONGEST_INITIATOR = 223
_WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_SECRET = re.compile(r"[A-Za-z0-9]{12,64}")
_VOLUME = re.compile(r"volume-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


@dataclass(frozen=True, kw_only=True)
class TgtOptions(TargetOptions):
    """Options of a tgt target."""

    portals: str = option(
        "Addresses and ports that initiators reach this node by, separated by commas; IPv6 in brackets. tgtd is told"
        " to listen there if it does not.",
        "127.0.0.1:3260",
    )
    control_socket: str = option("tgtd's control socket; the number at its end is tgtd's -C.", "/run/tgtd/socket.0")
    session_timeout_s: float = option(
        "Seconds that a detach waits for an initiator's last session to end. One that stops answering is cut off in"
        " less than that.",
        10.0,
    )


@dataclass(frozen=True)
class _Made:
    """What is known of a target of ours in the present tgtd."""

    tid: int
    path: str
    admitted: frozenset[str]


class TgtTarget(Target):
    """One tgtd on this node."""

    Options = TgtOptions

    def __init__(self, name: str, options: TargetOptions, state_dir: Path, owner: str):
        super().__init__(name, options, state_dir, owner)
        where = f"[target:{name}]"
        if not isinstance(options, TgtOptions):
            raise ConfigError(f"{where} needs the options of the plugin tgt.")
        if not _WORD.fullmatch(owner):
            raise ConfigError(f"{where} belongs to {owner!r}; lower-case letters, digits and - are expected.")
        if not 2 <= options.session_timeout_s <= 600:
            raise ConfigError(f"{where} session_timeout_s is {options.session_timeout_s:g}; 2 to 600 is expected.")
        self._timeout_s = options.session_timeout_s
        self._portals = _parse_portals(options.portals, f"{where} portals")
        self._socket = _parse_socket(options.control_socket, f"{where} control_socket")
        self._prefix = f"iqn.2010-10.org.openstack:blockstore.{owner}."
        self._lock = threading.Lock()
        self._tgtd: Tgtd | None = None
        self._made: dict[str, _Made] = {}

    def check(self) -> None:
        """Prove that a tgtd answers which can serve volumes, and that it listens on each portal."""
        tgtd = Tgtd.find(self._socket)
        system = tgtd.system()
        for needed in ("State: ready", "iscsi: ready", "rdwr"):
            if not re.search(rf"^ +{needed}\b", system, re.M):
                raise Unreachable(
                    f"tgtd on {self._socket} does not say {needed!r} in tgtadm --mode system --op show. Restart it"
                    " (systemctl restart tgt), or see its log."
                )
        self._listen(tgtd)

    def _listen(self, tgtd: Tgtd) -> None:
        present = tgtd.portals()
        for portal in self._portals:
            if any(other.covers(portal) for other in present):
                continue
            try:
                tgtd.add_portal(portal)
            except Refused as exc:
                raise Unreachable(
                    f"tgtd cannot listen on {portal}: this node has no such address, or another process has the port."
                    f" Correct [target:{self.name}] portals, or free the port."
                ) from exc
            log.info("tgtd was told to listen on %s", portal)

    def capabilities(self) -> TargetCapabilities:
        """Return what tgtd offers."""
        return TargetCapabilities(
            protocol="iSCSI", multiattach=True, online_extend=True, connector_needs=("initiator",)
        )

    # --- exports --------------------------------------------------------------------------------------------

    def export(self, export: Export) -> Connection:
        """Make or complete the target of an export."""
        initiator = _check_initiator(export.connector)
        _check_export(export)
        discard = _check_path(export.path)
        self._again(lambda tgtd: self._export(tgtd, export, initiator, discard))
        data: dict[str, Any] = {
            "target_discovered": False,
            "target_portal": str(self._portals[0]),
            "target_iqn": self._prefix + export.id,
            "target_lun": LUN,
            "auth_method": "CHAP",
            "auth_username": _account(export.id),
            "discard": discard,
        }
        if len(self._portals) > 1 or export.connector.get("multipath") is True:
            data["target_portals"] = [str(portal) for portal in self._portals]
            data["target_iqns"] = [data["target_iqn"] for _ in self._portals]
            data["target_luns"] = [LUN for _ in self._portals]
        return Connection("iscsi", data, secret_as="auth_password")  # noqa: S106 - the name of a key

    def _export(self, tgtd: Tgtd, export: Export, initiator: str, discard: bool) -> None:
        made = self._known(export.id)
        if made and (made.admitted - {initiator} or made.path not in ("", str(export.path))):
            # Half made for another initiator or path, which must not keep what it has.
            self._end(tgtd, export.id, made)
            made = None
        if made:
            try:
                self._complete(tgtd, made.tid, export, initiator, discard)
            except Refused as exc:
                if exc.code != Code.NO_TARGET:
                    raise
                self._forget(export.id)  # somebody else removed it
                made = None
        if made is None:
            made = self._create(tgtd, export, initiator)
            try:
                self._complete(tgtd, made.tid, export, initiator, discard)
            except BackendError:
                with suppress(BackendError):
                    self._end(tgtd, export.id, made)
                raise
        # What an unfinished withdraw left.
        tgtd.update_target(made.tid, "state", "ready")

    def _create(self, tgtd: Tgtd, export: Export, initiator: str) -> _Made:
        """Make an empty target. It is remembered before it is there, so that a call without an answer is no riddle."""
        made = _Made(secrets.choice(_TIDS), str(export.path), frozenset({initiator}))
        self._made[export.id] = made
        try:
            tgtd.create_target(made.tid, self._prefix + export.id)
        except Refused:
            self._forget(export.id)
            with self._lock:
                self._tgtd = None  # if it exists after all, the next call finds it
            raise
        return made

    def _complete(self, tgtd: Tgtd, tid: int, export: Export, initiator: str, discard: bool) -> None:
        """Give a target all that it lacks. The order is the point: see the docstring of the module."""
        account = _account(export.id)
        with _unless(Code.USER_EXISTS):
            tgtd.create_account(account, export.secret)
        with _unless(Code.USER_EXISTS):
            tgtd.bind_account(tid, account)
        # Ends connections whose initiator is gone or reads no more: tgtd cannot close the latter in any other way.
        tgtd.update_target(tid, "nop_interval", max(1, int(self._timeout_s / 5)))
        tgtd.update_target(tid, "nop_count", 2 if self._timeout_s >= 5 else 1)
        with _unless(Code.LUN_EXISTS):
            tgtd.create_lun(tid, f"path={export.path},bstype=rdwr")
        tgtd.update_lun(
            tid,
            f"{_identity(export.volume)},readonly={export.read_only:d},thin_provisioning={discard:d}",
        )
        with _unless(Code.RULE_EXISTS):
            tgtd.admit(tid, initiator)

    def withdraw(self, export_id: str) -> None:
        """Take a target away."""
        self._again(lambda tgtd: self._withdraw(tgtd, export_id))

    def _withdraw(self, tgtd: Tgtd, export_id: str) -> None:
        made = self._known(export_id)
        if made:
            self._end(tgtd, export_id, made)

    def _end(self, tgtd: Tgtd, export_id: str, made: _Made) -> None:
        deadline = time.monotonic() + self._timeout_s
        with _unless(Code.NO_TARGET):
            tgtd.update_target(made.tid, "state", "offline")
            while True:
                self._cut(tgtd, export_id, made, deadline)
                try:
                    with _unless(Code.NO_LUN):
                        tgtd.delete_lun(made.tid)
                    with _unless(Code.NO_USER):
                        tgtd.delete_account(_account(export_id))
                    tgtd.delete_target(made.tid)
                    break
                except Refused as exc:
                    # A login that was under way has ended: one more session to cut.
                    if exc.code not in (Code.LUN_ACTIVE, Code.TARGET_ACTIVE):
                        raise
        self._forget(export_id)

    def _cut(self, tgtd: Tgtd, export_id: str, made: _Made, deadline: float) -> None:
        """Close the connections of an offline target, and wait until the last command has ended."""
        told: set[tuple[int, int]] = set()
        while connections := tgtd.connections(made.tid):
            if time.monotonic() > deadline:
                raise SessionAlive(
                    f"{' and '.join(sorted(made.admitted)) or 'An initiator'} still has {len(connections)} connection(s)"
                    f" to the export {export_id} after {self._timeout_s:g} s. No new one is let in. Detach again later,"
                    " or restart tgtd."
                )
            for session, connection in connections - told:
                with _unless(Code.NO_SESSION, Code.NO_CONNECTION):
                    tgtd.close_connection(made.tid, session, connection)
            told |= connections
            time.sleep(0.005)

    def resize(self, export_id: str) -> None:
        """Let tgtd open the volume once more, for it looks at the size only then.

        While it does, no command may run: a worker thread of tgtd would write to the closed file's number, or to 0. So
        the target goes offline and its connections are closed; the initiators come back at once by themselves and send
        again what was not answered, as after a fault of the network.
        """
        self._again(lambda tgtd: self._resize(tgtd, export_id))

    def _resize(self, tgtd: Tgtd, export_id: str) -> None:
        made = self._known(export_id)
        if made is None or not made.path:
            raise VolumeMissing(f"tgtd has no whole export {export_id}, so it cannot take notice of a new size.")
        tgtd.update_target(made.tid, "state", "offline")
        try:
            self._cut(tgtd, export_id, made, time.monotonic() + self._timeout_s)
            tgtd.update_lun(made.tid, f"online=0,path={made.path}")
        finally:
            # After a failure, too: LUN 1 is then as it was, or has no size and takes no command.
            tgtd.update_target(made.tid, "state", "ready")

    # --- what is there --------------------------------------------------------------------------------------

    def list_exports(self) -> frozenset[str]:
        """Return the ids of our targets."""
        tgtd = Tgtd.find(self._socket)
        return frozenset(self._ours(tgtd))

    def sessions(self) -> Mapping[str, tuple[str, ...]]:
        """Return the initiators that are logged in to our targets."""
        tgtd = Tgtd.find(self._socket)
        return {export_id: shown.connected for export_id, shown in self._ours(tgtd).items() if shown.connected}
