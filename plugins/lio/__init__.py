"""Volumes exported by the kernel's own iSCSI target, LIO.

Each export is a target with one LUN, one initiator and one password; targets of one volume share a storage object. This
file implements the target plugin. ``backstores.py`` and ``targets.py`` configure the kernel, ``iscsi.py`` checks names
of initiators and portals. The configuration is only in the kernel; after a reboot the service exports again.

* **Other tools must not restore our exports.** Entries saved by targetcli are removed from its file (``saved.py``). If
target.service restores an export nevertheless, its storage objects have other indexes. Its sessions are ended before
the export is made again: by then the volume, or the right to it, may belong to another owner.
* **Objects removed by other tools** are found at each health check, by reading our targets' directories, and made
again.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockstore.backends.options import of_type
from blockstore.errors import BackendError, ConfigError, InUse, NotSupported, SessionAlive, Unreachable
from blockstore.targets.contract import Connection, Export, Target, TargetCapabilities, TargetOptions, option

from . import backstores, iscsi, saved, targets
from .backstores import BLOCK, CORE, FILE, Backstore, closed, kind_of
from .targets import FABRIC, IscsiTarget, SessionEnder, Watch

log = logging.getLogger(__name__)

_CONFIGFS = Path("/sys/kernel/config")
_MODULES = "modprobe -a target_core_mod target_core_iblock target_core_file iscsi_target_mod"


@dataclass(frozen=True, kw_only=True)
class LioOptions(TargetOptions):
    """Options of a LIO target."""

    portals: str = option(
        "Portals for initiators: ADDRESS:PORT, separated by commas, IPv6 in brackets. Initiators without multipath"
        " use the first.",
        "127.0.0.1:3260",
    )
    session_timeout_s: float = option("Seconds that a session may take to end after its volume is detached.", 30.0)


class LioTarget(Target):
    """The node's LIO; this instance changes only objects with its owner's name."""

    Options = LioOptions

    def __init__(self, name: str, options: TargetOptions, state_dir: Path, owner: str):
        super().__init__(name, options, state_dir, owner)
        where = f"[target:{name}]"
        options = of_type(LioOptions, options, where)
        self._portals = iscsi.portals(options.portals, f"{where} portals")
        self._session_timeout_s = options.session_timeout_s
        if not options.session_timeout_s > 0:
            raise ConfigError(f"{where} session_timeout_s is {options.session_timeout_s}; it must be more than 0.")
        self._session_ender = SessionEnder()
        self._watch = Watch()
        self._unproved: dict[str, str] = {}
        self._unsaved = ""
        self._change = threading.Lock()
        self._at_work: Counter[str] = Counter()

    def capabilities(self) -> TargetCapabilities:
        """Return the capabilities of LIO."""
        return TargetCapabilities(
            protocol="iSCSI", multiattach=True, online_extend=True, connector_needs=("initiator",)
        )

    def check_connector(self, connector: Mapping[str, Any]) -> None:
        """Raise InvalidConnector if a connector lacks the name of an iSCSI initiator."""
        super().check_connector(connector)
        iscsi.initiator(connector)

    # --- health ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Check root's rights, rtslib, the kernel's modules and the portals' addresses."""
        if os.geteuid() != 0:
            raise Unreachable("LIO is configured by root alone: run blockstore as root, or use the target plugin tgt.")
        targets.rtslib()
        if not _CONFIGFS.is_mount():
            raise Unreachable(f"configfs is not mounted: mount -t configfs configfs {_CONFIGFS}")
        if not CORE.is_dir():
            raise Unreachable(f"The kernel has no target loaded: {_MODULES}")
        with _explained():
            FABRIC.mkdir(exist_ok=True)
            for kind in (BLOCK, FILE):
                probe = CORE / f"{kind}_{Backstore(self.owner, '').index}"
                probe.mkdir(exist_ok=True)
                with suppress(FileNotFoundError):  # another thread runs the same check
                    probe.rmdir()
            self._sweep()
        for portal in self._portals:
            self._check_portal(portal)
        self._forget_saved()

    def _sweep(self) -> None:
        """Remove our storage objects whose targets were removed by another tool, and so close their volumes."""
        with self._change:
            used = {IscsiTarget(self.owner, export_id).storage_object for export_id in targets.ids(self.owner)}
            for place in list(backstores.storage_objects(self.owner)):
                if place not in used and not self._at_work[place.name] and backstores.remove_at(place):
                    log.warning("%s belonged to no target any longer and was removed", place)

    @contextmanager
    def _working_on(self, backstore: Backstore) -> Iterator[None]:
        """Exclude a storage object from the sweep while its target is made or removed."""
        with self._change:
            self._at_work[backstore.name] += 1
        try:
            yield
        finally:
            with self._change:
                self._at_work[backstore.name] -= 1
                self._at_work += Counter()  # drops entries of 0

    def _forget_saved(self) -> None:
        """Remove our exports with their passwords from targetcli's file. If the file cannot be written, only log it."""
        try:
            self.forget_saved()
        except Unreachable as exc:
            if exc.message != self._unsaved:
                log.error("target %s: %s", self.name, exc)
            self._unsaved = exc.message
        else:
            self._unsaved = ""

    def forget_saved(self) -> int:
        """Remove our targets and storage objects from the file that target.service restores; return the number of
        entries."""
        taken = saved.forget(backstores.beginning(self.owner), targets.beginning(self.owner))
        if taken:
            log.warning("%s: removed %d saved entries of this service", saved.SAVED, taken)
        return taken

    def _check_portal(self, portal: iscsi.Portal) -> None:
        where = f"[target:{self.name}] portals"
        family = socket.AF_INET6 if ":" in portal.address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                # As the kernel does; but the kernel would also listen at an address that the node lacks.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((portal.address, portal.port))
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise Unreachable(
                    f"This node cannot listen at {portal} ({exc.strerror}); give {where} an address that it has."
                ) from exc
            if not targets.listening(portal):
                raise Unreachable(
                    f"Another program listens at {portal}: end it, or give {where} another port."
                ) from exc

    # --- exports --------------------------------------------------------------------------------------------

    def export(self, export: Export) -> Connection:
        """Export the volume to one initiator, with a target name and a password of this export only."""
        initiator = iscsi.initiator(export.connector)
        target = IscsiTarget(self.owner, export.id)
        backstore = Backstore(self.owner, export.volume)
        user = target.user
        if export.format != "raw":
            raise NotSupported(f"LIO exports raw volumes only; {export.volume} is {export.format or 'of no format'}.")
        if not export.secret:
            raise BackendError(f"Export {export.id} has no password, and exports need one.")
        with _explained(), self._working_on(backstore):
            kind_of(export.path)
            if self._session_ender.is_cutting(target) or self._watch.is_stuck(target):
                raise SessionAlive(f"{target.iqn} cannot be exported again: {targets.STUCK}.")
            self._end_intruders(target, backstore)
            was_whole = target.enabled
            try:
                target.begin(export.volume)
                self._make(backstore, export.path)
                target.let_in(backstore, initiator, user, export.secret, read_only=export.read_only)
                target.listen(self._portals)
                discard = backstore.discard
            except Exception:
                if not was_whole:
                    with suppress(BackendError), _explained():
                        self._remove(export.id, target)
                raise
        return Connection(
            driver_volume_type="iscsi",
            data=iscsi.connection(target.iqn, self._portals, user, discard=discard, connector=export.connector),
            secret_as="auth_password",  # noqa: S106 - a key's name
        )

    def _make(self, backstore: Backstore, path: Path) -> None:
        try:
            backstore.make(path)
        except InUse:
            strays = backstores.storage_objects(self.owner, strays=True)
            found = [stray for stray in strays if stray.name == backstore.name]
            if not found or not all(self._end_stray(stray) for stray in found):
                raise
            backstore.make(path)

    def _end_intruders(self, target: IscsiTarget, backstore: Backstore) -> None:
        """End a target's sessions if another tool mapped it to another storage object or allowed logins without a
        password."""
        mapped = target.storage_object
        if mapped is not None and mapped not in Backstore(self.owner, target.volume or backstore.volume).places:
            log.warning("%s leads to %s, which another tool created; ending it", target.iqn, mapped)
            self._end_stray(mapped)
            self._cut(target)
            target.unmap()
        elif target.lets_in_without_password:
            self._cut(target)

    def _end_stray(self, stray: Path) -> bool:
        """Unmap our targets from a storage object that another tool made, and remove it. Return True if it is gone.

        Other exports that lose their storage object by this have a fault until they are exported again.
        """
        if not stray.name.startswith(backstores.beginning(self.owner)):
            return False
        for export_id in targets.ids(self.owner):
            target = IscsiTarget(self.owner, export_id)
            if target.storage_object == stray:
                self._cut(target)
                target.unmap()
        return backstores.remove_at(stray)

    def _cut(self, target: IscsiTarget) -> None:
        self._session_ender.cut(target, time.monotonic() + self._session_timeout_s)

    def withdraw(self, export_id: str) -> None:
        """Disable the target, which ends its sessions; then remove the target and its storage object if unused."""
        target = IscsiTarget(self.owner, export_id)
        with _explained():
            lost_lun = target.storage_object is None
            if target.exists:
                self._remove(export_id, target)
            if lost_lun:
                self._sweep()  # without the LUN, the target's storage object is unknown

    def _remove(self, export_id: str, target: IscsiTarget) -> None:
        deadline = time.monotonic() + self._session_timeout_s
        self._session_ender.cut(target, deadline)
        # Not before: while disabling waits for a command, reading the target's parameters blocks as well.
        volume, mapped = target.volume, target.storage_object
        backstore = Backstore(self.owner, volume)
        with self._working_on(backstore):
            target.unmap()
            if volume:
                path = backstore.path
                if backstore.remove() and path:
                    self._unproved[export_id] = path
            if volume and mapped is not None and mapped.name == backstore.name and mapped not in backstore.places:
                path = backstores.opened_at(mapped)
                if backstores.remove_at(mapped) and path:
                    self._unproved[export_id] = path
        path = self._unproved.get(export_id, "")
        if path and not closed(path, deadline):
            raise SessionAlive(
                f"{target.iqn} is gone, but something still holds {path} open, and it may be the kernel's target. Find"
                " the holder with lsof or lsblk; then detach the volume again."
            )
        self._unproved.pop(export_id, None)
        target.remove()

    def list_exports(self) -> frozenset[str]:
        """Return the export ids in the names of our targets."""
        with _explained():
            return frozenset(targets.ids(self.owner))

    def faults(self) -> Mapping[str, str]:
        """Return changes that other tools made to our targets; only the directories of our targets are read."""
        with _explained():
            existing = {export_id: IscsiTarget(self.owner, export_id) for export_id in targets.ids(self.owner)}
            found = {i: targets.STUCK for i, target in existing.items() if self._session_ender.is_cutting(target)}
            free = [target for i, target in existing.items() if i not in found]
            found_faults = self._watch.check(free, lambda target: target.fault(self._portals))
            found.update(
                {i: found_faults[target.iqn] for i, target in existing.items() if found_faults.get(target.iqn)}
            )
            # A target without directory may have been withdrawn meanwhile.
            return {export_id: fault for export_id, fault in found.items() if existing[export_id].exists}

    def sessions(self) -> Mapping[str, tuple[str, ...]]:
        """Return the logged-in initiators."""
        with _explained():
            found = {
                export_id: IscsiTarget(self.owner, export_id).initiators() for export_id in targets.ids(self.owner)
            }
        return {export_id: who for export_id, who in found.items() if who}

    def resize(self, export_id: str) -> None:
        """Tell the kernel the new size of a file; it detects that of a device. Initiators see the size after a
        rescan."""
        with _explained():
            volume = IscsiTarget(self.owner, export_id).volume
            if volume:
                Backstore(self.owner, volume).grow()


@contextmanager
def _explained() -> Iterator[None]:
    """Translate errors of the kernel and of rtslib."""
    try:
        yield
    except PermissionError as exc:
        raise Unreachable(f"LIO is configured by root alone: run blockstore as root. ({exc})") from exc
    except OSError as exc:
        raise Unreachable(
            f"The kernel's target refused {exc.filename}: {exc.strerror}. Are all modules loaded? {_MODULES}"
        ) from exc
    except Exception as exc:
        if type(exc).__module__.partition(".")[0] != "rtslib_fb":  # rtslib may not be imported
            raise
        raise Unreachable(f"The kernel's target refused: {exc}. Its log may say why: dmesg") from exc
