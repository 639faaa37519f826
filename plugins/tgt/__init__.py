"""Volumes over iSCSI by tgtd, an iSCSI target in user space: block devices and raw files, without a kernel target.

This file makes and removes exports in a safe order; ``management.py`` calls tgtd. The plugin starts no process and
stores no state: tgtd's own list is the list of exports.

One export is one target with one LUN. Its name (IQN), account and tid belong to it alone and are never used again.

* **An incomplete target admits no initiator.** A new target admits none; the connector's initiator is admitted last,
after account and LUN exist. An account is unbound only by removing it, after the LUN is gone: tgtd asks for no password
if no account is bound.
* **tids are random.** A login that passed tgtd's checks may be delayed by the initiator for any time. tgtd then
attaches the session to the target that has the tid found at the beginning of the login.
* **An offline target** refuses logins, and keeps the commands of its sessions from the LUN.
* **A connection is listed until its last command has ended**, so an offline target without connections has no running
command, and gets none.

Backing stores are ``rdwr``, never ``aio``. aio of tgtd 1.0.85 reports success for SYNCHRONIZE CACHE and WRITE AND
VERIFY without doing anything, and fails UNMAP. rdwr writes through the page cache, reports this (WCE), and calls
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockstore.backends.options import of_type
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

from .management import LUN, Code, ListedTarget, Stale, Tgtd, TgtPortal, TgtRefused

log = logging.getLogger(__name__)

# tgt-admin assigns tids from 1. Above 2^28 a tid would overflow into the type of the identifier derived by tgtd.
_TIDS = range(1 << 16, 1 << 28)

# RFC 3720 allows only lower case and no underscore. But open-iscsi sends the name as configured, and tgtd compares it.
_INITIATOR = re.compile(
    r"iqn\.[0-9]{4}-(?:0[1-9]|1[0-2])\.[A-Za-z0-9](?:[A-Za-z0-9._:-]*[A-Za-z0-9])?"
    r"|eui\.[0-9A-Fa-f]{16}"
    r"|naa\.(?:[0-9A-Fa-f]{16}|[0-9A-Fa-f]{32})"
)
_LONGEST_INITIATOR = 223
_PAUSE_S = 0.005
_WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_SECRET = re.compile(r"[A-Za-z0-9]{12,64}")
_VOLUME = re.compile(r"volume-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


@dataclass(frozen=True, kw_only=True)
class TgtOptions(TargetOptions):
    """Options of a tgt target."""

    portals: str = option(
        "Portals for initiators: ADDRESS:PORT, separated by commas, IPv6 in brackets. tgtd is made to listen there.",
        "127.0.0.1:3260",
    )
    control_socket: str = option(
        "Control socket of tgtd. The number at its end is the value of tgtd's option -C.", "/run/tgtd/socket.0"
    )
    session_timeout_s: float = option(
        "Seconds that a detach waits for the last session to end. A session that stops answering is cut off sooner.",
        10.0,
    )


@dataclass(frozen=True)
class _CachedTarget:
    """The cached state of one of our targets in the running tgtd."""

    tid: int
    path: str
    admitted: frozenset[str]


class TgtTarget(Target):
    """One tgtd on this node."""

    Options = TgtOptions

    def __init__(self, name: str, options: TargetOptions, state_dir: Path, owner: str):
        super().__init__(name, options, state_dir, owner)
        where = f"[target:{name}]"
        options = of_type(TgtOptions, options, where)
        if not _WORD.fullmatch(owner):
            raise ConfigError(f"{where} belongs to {owner!r}; lower-case letters, digits and - are expected.")
        if not 5 <= options.session_timeout_s <= 600:
            raise ConfigError(f"{where} session_timeout_s is {options.session_timeout_s:g}; 5 to 600 is expected.")
        self._timeout_s = options.session_timeout_s
        self._portals = _parse_portals(options.portals, f"{where} portals")
        self._socket = _parse_socket(options.control_socket, f"{where} control_socket")
        self._prefix = f"iqn.2010-10.org.openstack:blockstore.{owner}."
        self._lock = threading.Lock()
        self._tgtd: Tgtd | None = None
        self._is_stale = False
        self._made: dict[str, _CachedTarget] = {}
        self._broken: dict[str, ListedTarget] = {}
        """Targets with a fault in the last list, without those that another thread worked on meanwhile."""
        self._at_work: set[str] = set()
        self._worked_on: set[str] = set()

    def check(self) -> None:
        """Check that tgtd answers and can serve volumes, and make it listen on each portal."""
        tgtd = Tgtd.find(self._socket)
        system = tgtd.system()
        for needed in ("State: ready", "iscsi: ready", "rdwr"):
            if not re.search(rf"^ +{needed}\b", system, re.M):
                raise Unreachable(
                    f"tgtd on {self._socket} does not report {needed!r} in tgtadm --mode system --op show. Restart it"
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
            except TgtRefused as exc:
                raise Unreachable(
                    f"tgtd cannot listen on {portal}: this node has no such address, or another process has the port."
                    f" Correct [target:{self.name}] portals, or free the port."
                ) from exc
            log.info("tgtd now listens on %s", portal)

    def capabilities(self) -> TargetCapabilities:
        """Return the capabilities of tgtd."""
        return TargetCapabilities(
            protocol="iSCSI", multiattach=True, online_extend=True, connector_needs=("initiator",), block_size=512
        )

    # --- exports --------------------------------------------------------------------------------------------

    def check_connector(self, connector: Mapping[str, Any]) -> None:
        """Raise InvalidConnector if tgtd cannot admit an initiator by its name."""
        _check_initiator(connector)

    def export(self, export: Export) -> Connection:
        """Make or complete the target of an export."""
        initiator = _check_initiator(export.connector)
        _check_export(export)
        discard = _check_path(export.path)
        self._again(export.id, lambda tgtd: self._export(tgtd, export, initiator, discard))
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
        return Connection(driver_volume_type="iscsi", data=data, secret_as="auth_password")  # noqa: S106 - the name of a key

    def _export(self, tgtd: Tgtd, export: Export, initiator: str, discard: bool) -> None:
        cached = self._known(export.id)
        with self._lock:
            broken = self._broken.pop(export.id, None)
        if cached and broken:
            # Keep a broken target only if it is just offline: sessions without the password must end.
            is_guarded = broken.accounts == {_account(export.id)}
            path = broken.path if broken.is_online else ""
            cached = _CachedTarget(broken.tid, path, broken.admitted if is_guarded else frozenset())
        if cached and (cached.admitted != {initiator} or cached.path != str(export.path)):
            # It is incomplete, or was made for another initiator, whose session must end.
            self._end(tgtd, export.id, cached)
            cached = None
        fresh = cached is None
        if cached is None:
            # Record the tid first, so that a lost reply can be resolved.
            cached = _CachedTarget(secrets.choice(_TIDS), str(export.path), frozenset({initiator}))
            self._remember(export.id, cached)
        try:
            if fresh:
                tgtd.create_target(cached.tid, self._prefix + export.id)
            self._complete(tgtd, cached.tid, export, initiator, discard)
        except BackendError as exc:
            if isinstance(exc, TgtRefused) and exc.code in (Code.TARGET_EXISTS, Code.NO_TARGET):
                self._forget(export.id)  # the tid may be another target's
                raise Stale(
                    f"The targets of tgtd on {self._socket} were changed by another program; try again."
                ) from exc
            if fresh:
                with suppress(BackendError):
                    self._end(tgtd, export.id, cached)
            raise

    def _complete(self, tgtd: Tgtd, tid: int, export: Export, initiator: str, discard: bool) -> None:
        """Complete a target. The order matters: see the docstring of the module."""
        account = _account(export.id)
        # Ends connections whose initiator is gone or does not read; tgtd cannot close the latter in any other way.
        tgtd.update_target(tid, "nop_interval", int(self._timeout_s / 5))
        tgtd.update_target(tid, "nop_count", 2)
        with _unless(Code.USER_EXISTS):
            tgtd.create_account(account, export.secret)
        with _unless(Code.USER_EXISTS):
            tgtd.bind_account(tid, account)
        with _unless(Code.LUN_EXISTS):
            tgtd.create_lun(tid, f"path={export.path},bstype=rdwr")
        identity = _identity(export.volume)
        tgtd.update_lun(tid, f"{identity},readonly={export.read_only:d},thin_provisioning={discard:d}")
        with _unless(Code.RULE_EXISTS):
            tgtd.admit(tid, initiator)
        # An unfinished withdraw or resize may have left it offline.
        tgtd.update_target(tid, "state", "ready")

    def withdraw(self, export_id: str) -> None:
        """Remove the target of an export."""
        self._again(export_id, lambda tgtd: self._withdraw(tgtd, export_id))

    def _withdraw(self, tgtd: Tgtd, export_id: str) -> None:
        cached = self._known(export_id)
        if cached:
            self._end(tgtd, export_id, cached)

    def _end(self, tgtd: Tgtd, export_id: str, cached: _CachedTarget) -> None:
        deadline = time.monotonic() + self._timeout_s
        account = _account(export_id)
        try:
            tgtd.update_target(cached.tid, "state", "offline")
            for initiator in cached.admitted:
                # The offline state refuses logins; this also shows the end of the export in lists.
                with _unless(Code.NO_RULE):
                    tgtd.expel(cached.tid, initiator)
            self._remember(export_id, _CachedTarget(cached.tid, cached.path, frozenset()))
            self._cut(tgtd, export_id, cached, deadline)
            while not self._removed(tgtd, cached.tid, account):
                # A login in progress has completed meanwhile: its session must be cut.
                self._cut(tgtd, export_id, cached, deadline)
                _check_deadline(deadline, export_id, cached)
                time.sleep(_PAUSE_S)
        except TgtRefused as exc:
            if exc.code != Code.NO_TARGET:
                raise
            with _unless(Code.NO_USER):
                tgtd.delete_account(account)
        self._forget(export_id)

    def _removed(self, tgtd: Tgtd, tid: int, account: str) -> bool:
        """Remove an offline target: LUN, account, then target. Return False if commands or sessions prevent it."""
        try:
            with _unless(Code.NO_LUN):
                tgtd.delete_lun(tid)
            with _unless(Code.NO_USER):
                tgtd.delete_account(account)
            tgtd.delete_target(tid)
        except TgtRefused as exc:
            if exc.code not in (Code.LUN_ACTIVE, Code.TARGET_ACTIVE):
                raise
            return False
        return True

    def _cut(self, tgtd: Tgtd, export_id: str, cached: _CachedTarget, deadline: float) -> None:
        """Close the connections of an offline target, and wait until their last command has ended."""
        asked_to_close: set[tuple[int, int]] = set()
        while connections := tgtd.connections(cached.tid):
            _check_deadline(deadline, export_id, cached)
            for session, connection in connections - asked_to_close:
                with _unless(Code.NO_SESSION, Code.NO_CONNECTION):
                    tgtd.close_connection(cached.tid, session, connection)
            asked_to_close |= connections
            time.sleep(_PAUSE_S)

    def resize(self, export_id: str) -> None:
        """Make tgtd open the volume again, since it reads the size only then.

        No command may run meanwhile: a worker thread of tgtd would write to the number of the closed file, or to 0. So
        the target goes offline and its connections are closed. The initiators reconnect at once by themselves and
        repeat unanswered commands, as after a network fault.
        """
        self._again(export_id, lambda tgtd: self._resize(tgtd, export_id))

    def _resize(self, tgtd: Tgtd, export_id: str) -> None:
        cached = self._known(export_id)
        if cached is None or not cached.path or not cached.admitted:
            # A partly withdrawn target must not go online again.
            raise VolumeMissing(f"tgtd has no complete export {export_id}, so it cannot show a new size.")
        tgtd.update_target(cached.tid, "state", "offline")
        try:
            self._cut(tgtd, export_id, cached, time.monotonic() + self._timeout_s)
        except SessionAlive:
            tgtd.update_target(cached.tid, "state", "ready")
            raise
        # If the volume cannot be opened, the target stays offline: initiators wait instead of seeing errors.
        tgtd.update_lun(cached.tid, f"online=0,path={cached.path}")
        tgtd.update_target(cached.tid, "state", "ready")

    # --- state of exports -----------------------------------------------------------------------------------

    def list_exports(self) -> frozenset[str]:
        """Return the export ids of our targets."""
        tgtd = Tgtd.find(self._socket)
        return frozenset(self._ours(tgtd))

    def faults(self) -> Mapping[str, str]:
        """Return changes made to our targets by ``tgtadm``; one list of tgtd shows them all."""
        with self._lock:
            self._worked_on = set(self._at_work)
        tgtd = Tgtd.find(self._socket)
        ours = self._ours(tgtd)
        with self._lock:
            is_same = tgtd == self._tgtd
            found = {
                export_id: fault
                for export_id, listed_target in ours.items()
                if (fault := _fault(export_id, listed_target, self._made.get(export_id) if is_same else None))
            }
            if is_same:
                self._broken = {i: ours[i] for i in found.keys() - self._worked_on - self._at_work}
        return found

    def sessions(self) -> Mapping[str, tuple[str, ...]]:
        """Return the initiators logged in to our targets."""
        tgtd = Tgtd.find(self._socket)
        return {
            export_id: listed_target.connected
            for export_id, listed_target in self._ours(tgtd).items()
            if listed_target.connected
        }

    def _ours(self, tgtd: Tgtd) -> dict[str, ListedTarget]:
        return {
            listed_target.name.removeprefix(self._prefix): listed_target
            for listed_target in tgtd.targets()
            if listed_target.name.startswith(self._prefix)
        }

    # --- cache: the tid of each export, for the life of this tgtd --------------------------------------------

    def _again(self, export_id: str, work: Callable[[Tgtd], None]) -> None:
        """Call ``work`` with the running tgtd; repeat it once if tgtd was restarted or its targets were changed."""
        with self._at_work_on(export_id):
            try:
                work(self._found())
            except Stale:
                with self._lock:
                    self._is_stale = True
                work(self._found())

    @contextmanager
    def _at_work_on(self, export_id: str) -> Iterator[None]:
        """Keep ``faults`` from reporting an export while it is changed, or by an older list."""
        with self._lock:
            self._at_work.add(export_id)
        try:
            yield
        finally:
            with self._lock:
                self._at_work.discard(export_id)
                self._worked_on.add(export_id)
                self._broken.pop(export_id, None)

    def _found(self) -> Tgtd:
        """Return the running tgtd. List the targets of a new tgtd: this is the only list in an attach or detach."""
        with self._lock:
            tgtd = Tgtd.find(self._socket)
            if tgtd != self._tgtd or self._is_stale:
                self._listen(tgtd)
                # Targets that other threads are making may not be listed yet.
                under_way = self._at_work & self._made.keys() if tgtd == self._tgtd else set()
                kept = {export_id: self._made[export_id] for export_id in under_way}
                ours = self._ours(tgtd)
                listed = {
                    i: _CachedTarget(listed_target.tid, listed_target.path, listed_target.admitted)
                    for i, listed_target in ours.items()
                }
                self._made = {**listed, **kept}
                self._broken = {
                    i: listed_target
                    for i, listed_target in ours.items()
                    if i not in kept and _fault(i, listed_target, None)
                }
                self._tgtd, self._is_stale = tgtd, False
            return tgtd

    def _known(self, export_id: str) -> _CachedTarget | None:
        with self._lock:
            return self._made.get(export_id)

    def _remember(self, export_id: str, cached: _CachedTarget) -> None:
        with self._lock:
            self._made[export_id] = cached

    def _forget(self, export_id: str) -> None:
        with self._lock:
            self._made.pop(export_id, None)


# --- checks of values for tgtd, whose parameters are separated by commas -------------------------------------


def _parse_portals(text: str, where: str) -> tuple[TgtPortal, ...]:
    portals = []
    for word in text.split(","):
        try:
            portal = TgtPortal.parse(word.strip())
        except ValueError as exc:
            raise ConfigError(
                f"{where} is {text!r}: {exc}. Use ADDRESS:PORT, such as 192.0.2.10:3260 or [2001:db8::1]:3260."
            ) from exc
        if portal.is_wildcard:
            raise ConfigError(f"{where} is {text!r}; name the addresses that initiators use instead of {portal}.")
        if portal in portals:
            raise ConfigError(f"{where} is {text!r}; {portal} appears twice.")
        portals.append(portal)
    return tuple(portals)


def _parse_socket(text: str, where: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or "\0" in text or len(os.fsencode(text)) > 107:
        raise ConfigError(f"{where} is {text!r}; an absolute path of at most 107 bytes is expected.")
    return path


def _check_initiator(connector: Mapping[str, Any]) -> str:
    """Return the initiator's name. Raise InvalidConnector if it is not an iSCSI name."""
    name = connector.get("initiator")
    if not isinstance(name, str) or len(name) > _LONGEST_INITIATOR or not _INITIATOR.fullmatch(name):
        raise InvalidConnector.for_everybody(
            f"The connector's initiator is {str(name)[:80]!r}; an iSCSI name is expected: iqn.2016-04.com.example:host,"
            " eui. with 16 or naa. with 16 or 32 hexadecimal digits."
        )
    return name


def _check_export(export: Export) -> None:
    if export.format != "raw":
        raise NotSupported(f"tgtd exports raw volumes only; {export.volume} is {export.format}.")
    if not _WORD.fullmatch(export.id):
        raise NotSupported(f"An export's id is a uuid, not {export.id!r}.")
    if not _SECRET.fullmatch(export.secret):
        raise NotSupported(f"The secret of the export {export.id} is not 12 to 64 letters and digits.")


def _check_path(path: Path) -> bool:
    """Return True if discarded space of a volume can be freed. Raises: VolumeMissing; NotSupported."""
    text = str(path)
    if not path.is_absolute() or len(os.fsencode(text)) > 1000 or "," in text or not text.isprintable():
        raise NotSupported(f"tgtd cannot open {text!r}: an absolute path without a comma is expected.")
    try:
        found = path.stat()
    except OSError as exc:
        raise VolumeMissing(f"The volume's file or device {path} cannot be found: {exc.strerror}.") from exc
    if stat.S_ISREG(found.st_mode):
        return True
    if not stat.S_ISBLK(found.st_mode):
        raise VolumeMissing(f"{path} is neither a regular file nor a block device.")
    # tgtd punches holes, which must read as zeros; a device needs write-zeroes for that, not only discard.
    device = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    try:
        return int(Path(f"/sys/dev/block/{device}/queue/write_zeroes_max_bytes").read_text()) > 0
    except (OSError, ValueError):
        return False


def _fault(export_id: str, listed_target: ListedTarget, cached: _CachedTarget | None) -> str:
    """Return the reason why the initiator cannot log in or another one can; empty if the target serves."""
    if listed_target.accounts != {_account(export_id)}:
        return "its account is not bound, or another account is also bound"
    if len(listed_target.admitted) != 1 or (cached and cached.admitted != listed_target.admitted):
        return "it admits another initiator than its own, or none"
    if not listed_target.path or (cached and cached.path != listed_target.path):
        return "its LUN was removed, or has another backing store"
    if not listed_target.is_online:
        return "its LUN is offline"
    return "" if listed_target.is_ready else "the target is offline"


def _account(export_id: str) -> str:
    return f"blockstore-{export_id}"


def _identity(volume: str) -> str:
    """Return the parameters that identify a volume to initiators, the same in all its exports."""
    digest = hashlib.sha256(volume.encode()).hexdigest()
    found = _VOLUME.fullmatch(volume)
    serial = found[1] if found else digest[:36]
    # tgtd derives the NAA identifier from the hexadecimal digits of scsi_id.
    return f"scsi_id={digest[:32]},scsi_sn={serial},vendor_id=BLKSTORE,product_id=VOLUME,product_rev=1"


def _check_deadline(deadline: float, export_id: str, cached: _CachedTarget) -> None:
    """Raise SessionAlive after the deadline."""
    if time.monotonic() > deadline:
        raise SessionAlive(
            f"{' and '.join(sorted(cached.admitted)) or 'An initiator'} still has a session of the export"
            f" {export_id}: a"
            " command on the volume does not end. New sessions are refused meanwhile. Find out why the storage hangs,"
            " and try again."
        )


@contextmanager
def _unless(*codes: Code) -> Iterator[None]:
    """Ignore a refusal of tgtd with one of these codes."""
    try:
        yield
    except TgtRefused as exc:
        if exc.code not in codes:
            raise
