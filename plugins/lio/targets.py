"""LIO's iSCSI targets, one for each export, through rtslib, which is imported on first use.

Used by ``__init__.py``. Every call names its objects, so that rtslib reads only the one target: no ``Target`` without a
name, no ``RTSRoot``, no lists above the target portal group. rtslib's objects are made again in each call. Its one
global, a cache of indexes, is not used if the index is given. So threads need no lock.

At every step of making and removing a target, its directory tells the export and the volume. The export's id is in the
name of the directory. The volume is the alias, which is set before the storage object is made and removed after it.
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
"""Seconds that reading the files of one target may take."""
STUCK = "it is being switched off, and waits for its storage"
"""The fault of a target that cannot be checked."""

_TPG_ATTRIBUTES = {
    "authentication": "1",
    "generate_node_acls": "0",
    "cache_dynamic_acls": "0",
    "demo_mode_write_protect": "1",
    "demo_mode_discovery": "0",  # otherwise a discovery shows every target to every initiator
}


def rtslib() -> Any:
    """Return rtslib, whose import takes about 0.1 s. Raise Unreachable if it is not installed."""
    try:
        import rtslib_fb  # type: ignore[import-untyped]
    except ImportError as exc:
        raise Unreachable(f"The target plugin lio needs rtslib: pip install 'blockstore[lio]' ({exc}).") from exc
    return rtslib_fb


def ids(owner: str) -> Iterator[str]:
    """Yield the ids of this owner's exports, including incomplete ones."""
    prefix = beginning(owner)
    with suppress(FileNotFoundError):
        for entry in FABRIC.iterdir():
            export_id = entry.name.removeprefix(prefix)
            if export_id != entry.name and _UUID.fullmatch(export_id):
                yield export_id


def listening(portal: Portal) -> bool:
    """Return True if LIO listens at a portal, for any target of any owner."""
    return next(FABRIC.glob(f"*/tpgt_*/np/{portal.host.replace('[', '[[]')}:{portal.port}"), None) is not None


def beginning(owner: str) -> str:
    """Return the prefix of the names of an owner's targets."""
    return f"iqn.2010-10.org.openstack:blockstore.{owner}."


class IscsiTarget:
    """The target of one export, which need not exist."""

    def __init__(self, owner: str, export_id: str):
        if not _UUID.fullmatch(export_id):
            raise BackendError(f"{export_id!r} is not the id of an export; a uuid in small letters is expected.")
        self._owner = owner
        # Not only the id: the kernel takes a name that begins with 0b or 0x for a number, and refuses the login.
        self.user = f"blockstore-{export_id}"
        self.iqn = beginning(owner) + export_id
        self._path = FABRIC / self.iqn
        self._tpg_path = self._path / "tpgt_1"

    @property
    def exists(self) -> bool:
        """True if the target exists, even incomplete."""
        return self._path.is_dir()

    @property
    def enabled(self) -> bool:
        """True if initiators may log in; enabling is the last step of making a target."""
        try:
            return (self._tpg_path / "enable").read_text().strip() == "1"
        except FileNotFoundError:
            return False

    @property
    def volume(self) -> str:
        """The volume of the target; empty if it was not recorded yet."""
        try:
            alias = (self._tpg_path / "param" / _ALIAS).read_text().strip()
        except FileNotFoundError:
            return ""
        return "" if alias == _NO_ALIAS else alias

    @property
    def storage_object(self) -> Path | None:
        """The storage object of its LUN, even if another tool made it; None if there is no LUN."""
        with suppress(OSError):
            for part in (self._tpg_path / "lun" / f"lun_{LUN}").iterdir():
                if part.is_symlink():
                    return part.resolve()
        return None

    @property
    def lets_in_without_password(self) -> bool:
        """True if another tool changed the settings of ``begin``, so that logins without a password were possible."""
        try:
            return self.enabled and not self._is_guarded()
        except FileNotFoundError:
            return False  # the target is being removed

    def _is_guarded(self) -> bool:
        attributes = self._tpg_path / "attrib"
        return all(_read(attributes / name) == value for name, value in _TPG_ATTRIBUTES.items()) and not any(
            _asks_for_no_password(acl) for acl in (self._tpg_path / "acls").iterdir()
        )

    def fault(self, portals: Sequence[Portal]) -> str:
        """Return the reason why its initiator cannot log in or others can; empty if all is well. Only its directory is
        read."""
        try:
            return self._fault(portals)
        except FileNotFoundError as exc:
            return f"there is no {exc.filename}"

    def _fault(self, portals: Sequence[Portal]) -> str:
        if not self.enabled:
            return "it is disabled"
        if not self._is_guarded():
            return "it may admit initiators without a password"
        if {np.name for np in (self._tpg_path / "np").iterdir()} != {str(portal) for portal in portals}:
            return "it does not listen at exactly its portals"
        mapped = self.storage_object
        if mapped is None:
            return "its LUN was removed"
        if mapped not in Backstore(self._owner, self.volume).places:
            return "its LUN leads to a storage object that another tool created"
        if _read(mapped / "enable") != "1":
            return "its storage object is disabled"
        acls = list((self._tpg_path / "acls").iterdir())
        if len(acls) != 1:
            return "it admits another initiator than its own, or none"
        if _read(acls[0] / "auth/userid") != self.user or not _read(acls[0] / "auth/password"):
            return "its password was removed"
        if not any(part.is_symlink() for part in (acls[0] / f"lun_{LUN}").iterdir()):
            return "its LUN is not mapped to its initiator"
        return ""

    def initiators(self) -> tuple[str, ...]:
        """Return the logged-in initiators."""
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
        """Make the target, without access for any initiator, and record its volume."""
        tpg = self._tpg()
        if self.volume != volume:
            if self.volume:
                raise BackendError(f"{self.iqn} leads to {self.volume}, and cannot lead to {volume} too.")
            tpg.set_parameter(_ALIAS, volume)
        for name, value in _TPG_ATTRIBUTES.items():
            if tpg.get_attribute(name) != value:
                tpg.set_attribute(name, value)

    def let_in(self, backstore: Backstore, initiator: str, user: str, password: str, *, read_only: bool) -> None:
        """Give one initiator, and no other, access to the storage object."""
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
            mapped.alias  # noqa: B018 - raises if a kill came between directory and link
        except r.RTSLibNotInCFSError:
            mapped = r.MappedLUN(acl, LUN, lun, read_only)
        except r.utils.RTSLibBrokenLink:
            mapped.delete()
            mapped = r.MappedLUN(acl, LUN, lun, read_only)
        # Set it again, since rtslib leaves it writable if the write protection fails.
        if mapped.write_protect != read_only:
            mapped.write_protect = read_only

    def _lun(self, tpg: Any, backstore: Backstore) -> Any:
        r = rtslib()
        try:
            lun = r.LUN(tpg, LUN)
            lun.alias  # noqa: B018 - as above
            if self.storage_object in backstore.places:
                return lun
            lun.delete()  # another tool mapped it elsewhere
        except r.RTSLibNotInCFSError:
            pass
        except r.utils.RTSLibBrokenLink:
            lun.delete()
        kind = r.BlockStorageObject if backstore.kind == BLOCK else r.FileIOStorageObject
        return r.LUN(tpg, LUN, kind(backstore.name, index=backstore.index))

    def listen(self, portals: Sequence[Portal]) -> None:
        """Enable the target at exactly these portals."""
        r = rtslib()
        tpg = self._tpg()
        wanted = {str(portal) for portal in portals}
        present = {f"{np.ip_address}:{np.port}": np for np in tpg.network_portals}
        for portal in portals:
            if str(portal) not in present:
                r.NetworkPortal(tpg, portal.host, portal.port)
        for name in present.keys() - wanted:
            present[name].delete()
        tpg.enable = True

    # --- removing -------------------------------------------------------------------------------------------

    def unmap(self) -> None:
        """Remove the ACLs and LUNs; call this after all sessions ended."""
        if self._tpg_path.is_dir():
            tpg = self._tpg()
            for part in (*tpg.node_acls, *tpg.luns):
                part.delete()

    def remove(self) -> None:
        """Remove the target."""
        if self._path.is_dir():
            r = rtslib()
            r.Target(r.FabricModule("iscsi"), self.iqn, "lookup").delete()


def _asks_for_no_password(acl: Path) -> bool:
    """Return True if an initiator's ACL disables the password; older kernels have no such attribute."""
    try:
        return _read(acl / "attrib/authentication") == "0"
    except FileNotFoundError:
        return False


def _read(path: Path) -> str:
    return path.read_text().strip()


class Watch:
    """Checks targets for faults in a thread, which is abandoned if it blocks.

    While disabling a target waits for a hanging command, reading the target's parameters blocks.
    """

    def __init__(self) -> None:
        self._stuck: dict[str, threading.Thread] = {}

    def is_stuck(self, target: IscsiTarget) -> bool:
        """Return True if an earlier check of a target still blocks."""
        thread = self._stuck.get(target.iqn)
        if thread is not None and not thread.is_alive():
            del self._stuck[target.iqn]
        return target.iqn in self._stuck

    def check(self, found: Sequence[IscsiTarget], fault: Callable[[IscsiTarget], str]) -> dict[str, str]:
        """Return the fault of each target by its name; empty for a target without fault."""
        found_faults = {target.iqn: STUCK for target in found if self.is_stuck(target)}
        left = [target for target in found if target.iqn not in found_faults]
        while left:
            errors: list[Exception] = []
            thread = threading.Thread(target=_check, args=(left, fault, found_faults, errors), daemon=True)
            thread.start()
            before = len(left) + 1
            while thread.is_alive() and len(left) < before:
                before = len(left)
                thread.join(_PATIENCE_S)
            if errors:
                raise errors[0]
            if thread.is_alive():  # still at the same target
                stuck, *left = left
                self._stuck[stuck.iqn], found_faults[stuck.iqn] = thread, STUCK
        return found_faults


def _check(
    left: list[IscsiTarget], fault: Callable[[IscsiTarget], str], found_faults: dict[str, str], errors: list[Exception]
) -> None:
    try:
        while left:
            found_faults[left[0].iqn] = fault(left[0])
            del left[0]
    except Exception as exc:
        errors.append(exc)


class SessionEnder:
    """Ends the sessions of targets, with a deadline.

    Disabling a target makes the kernel end its sessions and wait for their last command. Nothing can interrupt this
    wait, not even the end of this process; if the storage hangs, it lasts for ever. So a separate thread waits, and the
    caller gets an answer. While disabling blocks, the target can still be checked. Removing the initiator's ACL would
    block in the same way, but with a lock that blocks all readers of its directory.
    """

    def __init__(self) -> None:
        self._cutting: dict[str, threading.Thread] = {}

    def is_cutting(self, target: IscsiTarget) -> bool:
        """Return True if disabling a target still waits for a command."""
        thread = self._cutting.get(target.iqn)
        return thread is not None and thread.is_alive()

    def cut(self, target: IscsiTarget, deadline: float) -> None:
        """Refuse new sessions and end existing ones. Raise SessionAlive if one does not end before the deadline."""
        thread = self._cutting.get(target.iqn)
        if thread is None and target.enabled:
            thread = self._cutting[target.iqn] = threading.Thread(target=_switch_off, args=(target,), daemon=True)
            thread.start()
        if thread is not None:
            thread.join(max(0.0, deadline - time.monotonic()))
            if not thread.is_alive():
                del self._cutting[target.iqn]
        # The kernel lists a session until its last command is done.
        while target.enabled or target.initiators() or target.iqn in self._cutting:
            if time.monotonic() >= deadline:
                who = ", ".join(target.initiators()) or "an initiator"
                raise SessionAlive(
                    f"The session of {who} with {target.iqn} did not end in time; it ends after its last command."
                    " Check whether the storage hangs. New sessions are refused; detach the volume again."
                )
            time.sleep(_POLL_S)


def _switch_off(target: IscsiTarget) -> None:
    with suppress(OSError):  # it may be disabled already; ``cut`` checks the result
        (target._tpg_path / "enable").write_text("0")
