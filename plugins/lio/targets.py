"""LIO's iSCSI targets, one for each export, through rtslib, which is imported when it is first needed.

Used by ``__init__.py``. Every call names its objects, so that rtslib walks nothing beside the one target: no ``Target``
without a name, no ``RTSRoot``, no lists above the target portal group. Its objects are made anew in each call and its
one global, a cache of indexes, is not used when the index is given; so threads need no lock.

A target is made and removed so that at every instant its directory says what else there is: its name holds the
export's id, and its alias, set before the storage object is made and gone after it, the volume.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from blockstore.errors import BackendError, SessionAlive, Unreachable

from .backstores import BLOCK, Backstore
from .iscsi import LUN, Portal

FABRIC = Path("/sys/kernel/config/target/iscsi")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ALIAS = "TargetAlias"
_NO_ALIAS = "LIO Target"  # the kernel's default
_POLL_S = 0.02
_PATIENCE_S = 5.0
"""Seconds that the files of one target may take to be read."""
STUCK = "it is being switched off, and waits for its storage"
"""The fault of a target that cannot be looked at."""

_TPG_ATTRIBUTES = {
    "authentication": "1",
    "generate_node_acls": "0",
    "cache_dynamic_acls": "0",
    "demo_mode_write_protect": "1",
    "demo_mode_discovery": "0",  # else a discovery shows every target to everybody
}


def rtslib() -> Any:
    """Return rtslib, which takes some 0.1 s to import. Raises Unreachable."""
    try:
        import rtslib_fb  # type: ignore[import-untyped]
    except ImportError as exc:
        raise Unreachable(f"The target plugin lio needs rtslib: pip install 'blockstore[lio]' ({exc}).") from exc
    return rtslib_fb


def ids(owner: str) -> Iterator[str]:
    """Yield the ids of this owner's exports, half-made ones too."""
    prefix = beginning(owner)
    with suppress(FileNotFoundError):
        for entry in FABRIC.iterdir():
            export_id = entry.name.removeprefix(prefix)
            if export_id != entry.name and _UUID.fullmatch(export_id):
                yield export_id


def listening(portal: Portal) -> bool:
    """Say whether LIO listens at a portal, for any target of any owner."""
    return next(FABRIC.glob(f"*/tpgt_*/np/{portal.host.replace('[', '[[]')}:{portal.port}"), None) is not None


def beginning(owner: str) -> str:
    """Return how the names of an owner's targets begin."""
    return f"iqn.2010-10.org.openstack:blockstore.{owner}."


class IscsiTarget:
    """The target of one export, made or not."""

    def __init__(self, owner: str, export_id: str):
        if not _UUID.fullmatch(export_id):
            raise BackendError(f"{export_id!r} is not the id of an export; a uuid in small letters is expected.")
        self._owner = owner
        # Not the bare id: the kernel takes a name that begins with 0b or 0x for a number, and refuses the login.
        self.user = f"blockstore-{export_id}"
        self.iqn = beginning(owner) + export_id
        self._path = FABRIC / self.iqn
        self._tpg_path = self._path / "tpgt_1"

    @property
    def exists(self) -> bool:
        """Say whether anything of it is there."""
        return self._path.is_dir()

    @property
    def enabled(self) -> bool:
        """Say whether initiators may log in, which is the last step of making it."""
        try:
            return (self._tpg_path / "enable").read_text().strip() == "1"
        except FileNotFoundError:
            return False

    @property
    def volume(self) -> str:
        """The volume it leads to; empty when it was not made so far."""
        try:
            alias = (self._tpg_path / "param" / _ALIAS).read_text().strip()
        except FileNotFoundError:
            return ""
        return "" if alias == _NO_ALIAS else alias

    @property
    def storage_object(self) -> Path | None:
        """Where its LUN leads to, whoever made that; None when there is no LUN."""
        with suppress(OSError):
            for part in (self._tpg_path / "lun" / f"lun_{LUN}").iterdir():
                if part.is_symlink():
                    return part.resolve()
        return None

    @property
    def lets_in_without_password(self) -> bool:
        """Say whether somebody may have logged in without one, since a tool changed what ``begin`` set."""
        try:
            return self.enabled and not self._is_guarded()
        except FileNotFoundError:
            return False  # it is removed at this moment

    def _is_guarded(self) -> bool:
        attributes = self._tpg_path / "attrib"
        return all(_read(attributes / name) == value for name, value in _TPG_ATTRIBUTES.items()) and not any(
            _asks_for_no_password(acl) for acl in (self._tpg_path / "acls").iterdir()
        )

    def fault(self, portals: Sequence[Portal]) -> str:
        """Return what keeps its initiator out, or lets others in; nothing when it serves. Reads its directory alone."""
        try:
            return self._fault(portals)
        except FileNotFoundError as exc:
            return f"there is no {exc.filename}"

    def _fault(self, portals: Sequence[Portal]) -> str:
        if not self.enabled:
            return "it is disabled"
        if not self._is_guarded():
            return "it may let in initiators without a password"
        if {np.name for np in (self._tpg_path / "np").iterdir()} != {str(portal) for portal in portals}:
            return "it does not listen at exactly its portals"
        there = self.storage_object
        if there is None:
            return "its LUN was removed"
        if there not in Backstore(self._owner, self.volume).places:
            return "its LUN leads to a storage object that another tool made"
        if _read(there / "enable") != "1":
            return "its storage object is disabled"
        acls = list((self._tpg_path / "acls").iterdir())
        if len(acls) != 1:
            return "another initiator is let in than its own, or none"
        if _read(acls[0] / "auth/userid") != self.user or not _read(acls[0] / "auth/password"):
            return "its password was removed"
        if not any(part.is_symlink() for part in (acls[0] / f"lun_{LUN}").iterdir()):
            return "its LUN is not mapped to its initiator"
        return ""

    def initiators(self) -> tuple[str, ...]:
        """Return who is logged in."""
        found = []
        with suppress(FileNotFoundError):
            for acl in (self._tpg_path / "acls").iterdir():
                if not (acl / "info").read_text().startswith("No active"):
                    found.append(acl.name)
        return tuple(sorted(found))

    def _tpg(self) -> Any:
        r = rtslib()
        return r.TPG(r.Target(r.FabricModule("iscsi"), self.iqn), 1)

    # --- making ---------------------------------------------------------------------------------------------

    def begin(self, volume: str) -> None:
        """Make the target, closed to everybody, and write down its volume."""
        tpg = self._tpg()
        if self.volume != volume:
            if self.volume:
                raise BackendError(f"{self.iqn} leads to {self.volume}, and cannot lead to {volume} too.")
            tpg.set_parameter(_ALIAS, volume)
        for name, value in _TPG_ATTRIBUTES.items():
            if tpg.get_attribute(name) != value:
                tpg.set_attribute(name, value)

    def let_in(self, backstore: Backstore, initiator: str, user: str, password: str, *, read_only: bool) -> None:
        """Lead one initiator, and no other, to the storage object."""
        r = rtslib()
        tpg = self._tpg()
        lun = self._lun(tpg, backstore)
        for other in tpg.node_acls:
            if other.node_wwn != initiator or _asks_for_no_password(Path(other.path)):
                other.delete()
        acl = r.NodeACL(tpg, initiator)
        acl.chap_userid = user
        acl.chap_password = password
        try:
            mapped = r.MappedLUN(acl, LUN)
            mapped.alias  # noqa: B018 - raises when the kill came between directory and link
        except r.RTSLibNotInCFSError:
            mapped = r.MappedLUN(acl, LUN, lun, read_only)
        except r.utils.RTSLibBrokenLink:
            mapped.delete()
            mapped = r.MappedLUN(acl, LUN, lun, read_only)
        # Again, since rtslib makes it writable when it fails to protect it.
        if mapped.write_protect != read_only:
            mapped.write_protect = read_only

    def _lun(self, tpg: Any, backstore: Backstore) -> Any:
        r = rtslib()
        try:
            lun = r.LUN(tpg, LUN)
            lun.alias  # noqa: B018 - as above
            if self.storage_object in backstore.places:
                return lun
            lun.delete()  # a tool led it elsewhere
        except r.RTSLibNotInCFSError:
            pass
        except r.utils.RTSLibBrokenLink:
            lun.delete()
        kind = r.BlockStorageObject if backstore.kind == BLOCK else r.FileIOStorageObject
        return r.LUN(tpg, LUN, kind(backstore.name, index=backstore.index))

    def listen(self, portals: Sequence[Portal]) -> None:
        """Open the target to its initiator, at these portals alone."""
        r = rtslib()
        tpg = self._tpg()
        wanted = {str(portal) for portal in portals}
        there = {f"{np.ip_address}:{np.port}": np for np in tpg.network_portals}
        for portal in portals:
            if str(portal) not in there:
                r.NetworkPortal(tpg, portal.host, portal.port)
        for name in there.keys() - wanted:
            there[name].delete()
        tpg.enable = True

    # --- removing -------------------------------------------------------------------------------------------

    def unmap(self) -> None:
        """Remove what leads to the storage object, when nobody is logged in any more."""
        if self._tpg_path.is_dir():
            tpg = self._tpg()
            for part in (*tpg.node_acls, *tpg.luns):
                part.delete()

    def remove(self) -> None:
        """Remove the rest."""
        if self._path.is_dir():
            r = rtslib()
            r.Target(r.FabricModule("iscsi"), self.iqn, "lookup").delete()


def _asks_for_no_password(acl: Path) -> bool:
    """Say whether an initiator's entry says so, against what holds for all; older kernels have no such switch."""
    try:
        return _read(acl / "attrib/authentication") == "0"
    except FileNotFoundError:
        return False


def _read(path: Path) -> str:
    return path.read_text().strip()


class Watch:
    """Looks for faults on a thread that may be left behind.

    While a target is being switched off, and waits for a command that hangs, its parameters can be read by nobody.
    """

    def __init__(self) -> None:
        self._stuck: dict[str, threading.Thread] = {}

    def is_stuck(self, target: IscsiTarget) -> bool:
        """Say whether a look at a target has not ended yet."""
        thread = self._stuck.get(target.iqn)
        if thread is not None and not thread.is_alive():
            del self._stuck[target.iqn]
        return target.iqn in self._stuck

    def look(self, found: Sequence[IscsiTarget], fault: Callable[[IscsiTarget], str]) -> dict[str, str]:
        """Return the fault of each target by its name, also an empty one."""
        told = {target.iqn: STUCK for target in found if self.is_stuck(target)}
        left = [target for target in found if target.iqn not in told]
        while left:
            errors: list[Exception] = []
            thread = threading.Thread(target=_look, args=(left, fault, told, errors), daemon=True)
            thread.start()
            before = len(left) + 1
            while thread.is_alive() and len(left) < before:
                before = len(left)
                thread.join(_PATIENCE_S)
            if errors:
                raise errors[0]
            if thread.is_alive():  # at the same target as a while ago
                stuck, *left = left
                self._stuck[stuck.iqn], told[stuck.iqn] = thread, STUCK
        return told


def _look(
    left: list[IscsiTarget], fault: Callable[[IscsiTarget], str], told: dict[str, str], errors: list[Exception]
) -> None:
    try:
        while left:
            told[left[0].iqn] = fault(left[0])
            del left[0]
    except Exception as exc:
        errors.append(exc)


class Scissors:
    """Cuts sessions off, within a time.

    Switching a target off makes the kernel end its sessions, and wait for their last command in a way that nothing can
    interrupt, not even the end of this process: for ever, if the storage hangs. So a thread of its own waits, and who
    asked gets an answer. This switch is the one to wait at, since while it is stuck the target can still be looked at;
    removing the initiator's ACL waits just so, but with a lock that stops whoever reads its directory.
    """

    def __init__(self) -> None:
        self._cutting: dict[str, threading.Thread] = {}

    def is_cutting(self, target: IscsiTarget) -> bool:
        """Say whether a switch that was thrown still waits for a command."""
        thread = self._cutting.get(target.iqn)
        return thread is not None and thread.is_alive()

    def cut(self, target: IscsiTarget, deadline: float) -> None:
        """Refuse new sessions and end those that live. Raises SessionAlive."""
        thread = self._cutting.get(target.iqn)
        if thread is None and target.enabled:
            thread = self._cutting[target.iqn] = threading.Thread(target=_switch_off, args=(target,), daemon=True)
            thread.start()
        if thread is not None:
            thread.join(max(0.0, deadline - time.monotonic()))
            if not thread.is_alive():
                del self._cutting[target.iqn]
        # The kernel shows a session until its last command is done.
        while target.enabled or target.initiators() or target.iqn in self._cutting:
            if time.monotonic() >= deadline:
                who = ", ".join(target.initiators()) or "an initiator"
                raise SessionAlive(
                    f"The session of {who} with {target.iqn} did not end in time, which it does when its last command"
                    " is done: look whether the storage hangs. New sessions are refused; detach it again."
                )
            time.sleep(_POLL_S)


def _switch_off(target: IscsiTarget) -> None:
    with suppress(OSError):  # it is off already; what matters is looked at afterwards
        (target._tpg_path / "enable").write_text("0")
