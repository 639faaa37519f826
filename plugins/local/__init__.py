"""Returns the path of a volume to a consumer on the same node: nothing is served, the exports are only recorded.

    STATE_DIR/EXPORT_ID         one export: its owner, its volume and path, and the boot it belongs to

Not guaranteed: a path gives no access control. Users with permission for the file or device can open it before and
after the export. A read-only export (``access_mode``) can still be written: a device has one read-only switch for all
its users, and a file has none.

Guaranteed: ``withdraw`` refuses while anything on this node holds the volume (``backends/holders.py``). So no volume is
deleted or attached elsewhere while a consumer uses it.

An export ends with the boot in which it was made, because a reboot ends every holder. The service then exports again,
which also activates devices that are not activated at boot.
"""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from blockstore import private_files
from blockstore.backends import holders
from blockstore.backends.options import of_type
from blockstore.errors import BackendError, DiskFull, InUse, InvalidConnector, NotSupported, Unreachable, VolumeMissing
from blockstore.targets.contract import Connection, Export, Target, TargetCapabilities, TargetOptions, option

PATIENCE_S = 1.0
"""Seconds for which holders may still close a device: udev opens a device whenever its last writer has closed it."""

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")
_HOST = re.compile(r"[0-9A-Za-z._:-]{1,255}")


@dataclass(frozen=True, kw_only=True)
class LocalOptions(TargetOptions):
    """Options for consumers on this node."""

    hosts: str = option("Further names of this node that consumers use besides its host name, separated by commas.", "")


@dataclass(frozen=True)
class Record:
    """The record of an export."""

    owner: str
    boot: str
    volume: str
    path: str


class LocalTarget(Target):
    """Exports by path on this node."""

    Options: ClassVar[type[TargetOptions]] = LocalOptions

    def __init__(self, name: str, options: TargetOptions, state_dir: Path, owner: str):
        super().__init__(name, options, state_dir, owner)
        names = of_type(LocalOptions, options, f"[target:{name}]").hosts.split(",")
        self._hosts = frozenset(name.strip().lower() for name in names if name.strip())

    def check(self) -> None:
        """Check that exports can be recorded and that holders can be found."""
        with self._explained():
            private_files.make_directory(self.state_dir)
            if not os.access(self.state_dir, os.R_OK | os.W_OK | os.X_OK):
                raise Unreachable(
                    f"{self.state_dir} cannot be written; the target {self.name} keeps its exports there."
                )
            holders.prove()

    def capabilities(self) -> TargetCapabilities:
        """Return the capabilities of exports by path."""
        return TargetCapabilities(protocol="local", multiattach=True, online_extend=True)

    def check_connector(self, connector: Mapping[str, Any]) -> None:
        """Raise InvalidConnector for a consumer on another node, where the path is another file or none."""
        super().check_connector(connector)
        host = connector.get("host")
        if host is None:
            return
        if not isinstance(host, str) or not _HOST.fullmatch(host):
            raise InvalidConnector.for_everybody("The connector's 'host' is not a host name.")
        here = socket.gethostname().lower()
        if host.lower() not in {here, *self._hosts}:
            raise InvalidConnector(
                f"The connector's 'host' is {host}, and the volume is on {here}: the target {self.name} gives a path,"
                f" which is useless on other nodes. If both names are one node, add {host} to the target's option"
                " hosts.",
                public=f"The connector's 'host' is {host}; attach this volume on the node of its storage.",
            )

    def export(self, export: Export) -> Connection:
        """Record the export and return the volume's path."""
        self.check_connector(export.connector)
        if not _ID.fullmatch(export.id):
            raise BackendError(f"{export.id[:64]!r} is not the id of an export.")
        if export.format != "raw":
            raise NotSupported(
                f"The target {self.name} gives raw files and devices, and {export.volume} is {export.format};"
                " the target nbd can export it."
            )
        _check_path(export.path)
        with self._explained():
            self._write(export.id, Record(self.owner, _boot(), export.volume, str(export.path)))
        return Connection(
            driver_volume_type="local",
            data={"device_path": str(export.path), "access_mode": "ro" if export.read_only else "rw"},
        )

    def withdraw(self, export_id: str) -> None:
        """Remove an export. Raise InUse, naming the holders, while anything on this node holds the volume."""
        with self._explained():
            record = self._read(export_id)
            if record is None:
                return
            who = _held(Path(record.path))
            # Holders of two exports of one volume cannot be told apart: only the last withdrawal is refused.
            if who and not any(self._others(export_id, record)):
                raise InUse(f"{record.path} is still in use on this node, by {', '.join(who)}. Close it there first.")
            self._file(export_id).unlink(missing_ok=True)

    def list_exports(self) -> frozenset[str]:
        """Return the recorded exports."""
        with self._explained():
            return frozenset(self._records())

    def faults(self) -> Mapping[str, str]:
        """Return the exports with a missing device, such as a deactivated logical volume.

        Files are not checked: a file on a share whose server hangs would block the check.
        """
        with self._explained():
            return {
                export_id: f"{record.path} is missing"
                for export_id, record in self._records().items()
                if _in_dev(Path(record.path)) and not os.path.lexists(record.path)
            }

    def sessions(self) -> Mapping[str, tuple[str, ...]]:
        """Return the holders of each export's volume; two exports of one volume both have all its holders."""
        with self._explained():
            found = ((i, holders.identity(Path(record.path))) for i, record in self._records().items())
            things = {i: thing for i, thing in found if thing is not None}
            held = holders.find(set(things.values()))
        return {i: held[thing] for i, thing in things.items() if thing in held}

    def resize(self, export_id: str) -> None:
        """Do nothing: a path shows the size of its file. A loop device on the file needs ``losetup -c``."""

    # --- records --------------------------------------------------------------------------------------------

    def _others(self, export_id: str, record: Record) -> Iterator[str]:
        return (i for i, other in self._records().items() if i != export_id and other.path == record.path)

    def _records(self) -> dict[str, Record]:
        try:
            names = [file.name for file in self.state_dir.iterdir()]
        except FileNotFoundError:
            return {}
        found = {name: self._read(name) for name in names}
        return {name: record for name, record in found.items() if record is not None}

    def _read(self, export_id: str) -> Record | None:
        """Return this owner's export of this boot; None if there is none. Remove a record of an earlier boot."""
        if not _ID.fullmatch(export_id):
            return None
        file = self._file(export_id)
        try:
            record = Record(**json.loads(private_files.read(file)))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise BackendError(f"{file} is damaged. Remove it, once nothing on this node uses its volume.") from None
        if record.owner != self.owner:
            return None
        if record.boot != _boot():
            file.unlink(missing_ok=True)
            return None
        return record

    def _write(self, export_id: str, record: Record) -> None:
        """Write a record completely or not at all."""
        private_files.make_directory(self.state_dir)
        data = json.dumps(asdict(record)).encode()
        private_files.write(self._file(export_id), data, temporary=f".{export_id}")  # no export has this name

    def _file(self, export_id: str) -> Path:
        return self.state_dir / export_id

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if exc.errno in private_files.DISK_FULL:
                raise DiskFull(f"The disk of {self.state_dir} is full: {exc.strerror}. Make space on it.") from exc
            raise Unreachable(f"{exc.filename or self.state_dir}: {exc.strerror}.") from exc


def _check_path(path: Path) -> None:
    """Raise VolumeMissing if the path is missing; BackendError for a directory, a pipe or a planted link."""
    try:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            # Only names of device-mapper are links, within /dev, to devices.
            resolved = path.resolve(strict=True)
            found = os.lstat(resolved)
            if not (_in_dev(path) and _in_dev(resolved) and stat.S_ISBLK(found.st_mode)):
                raise BackendError(f"{path} is a symbolic link to {resolved}, and is not exported.")
    except (FileNotFoundError, NotADirectoryError):
        raise VolumeMissing(f"{path} does not exist.") from None
    except OSError as exc:
        raise Unreachable(f"{path}: {exc.strerror}.") from exc
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        raise BackendError(f"{path} is neither a file nor a block device, and is not exported.")


def _in_dev(path: Path) -> bool:
    return path.parts[:2] == ("/", "dev") and ".." not in path.parts


def _held(path: Path) -> tuple[str, ...]:
    """Return the holders of a file or device that do not close it within ``PATIENCE_S``; none if it is missing."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        thing = holders.identity(path)
        if thing is None:
            return ()
        free = holders.is_free(path)
        who = () if free else holders.find({thing}).get(thing, ())
        if free is False:
            who = who or ("something that this user cannot see: the kernel, a container, or another user",)
        if not who or time.monotonic() > deadline:
            return who
        time.sleep(0.05)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
