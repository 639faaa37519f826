"""The path itself, for a consumer on the same node: nothing is served, the exports are only written down.

    STATE_DIR/EXPORT_ID         one export: its owner, its volume and path, and the boot it belongs to

What it cannot promise, since a path is no door: who may open the file or device opens it, before and after; and a
volume given read-only says so (``access_mode``) and can be written, for a device has one read-only switch for all its
users, and a file none. What it does promise: ``withdraw`` refuses while anything on this node holds the volume
(``backends/holders.py``), so that no volume is deleted or attached elsewhere under a consumer.

An export lives as long as the boot in which it was made: a reboot takes every holder away, and the service then asks
again, which also brings a device back that is not activated at boot.
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
"""How long a holder may take to let go: udev looks into a device whenever its last writer has closed it."""

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")
_HOST = re.compile(r"[0-9A-Za-z._:-]{1,255}")


@dataclass(frozen=True, kw_only=True)
class LocalOptions(TargetOptions):
    """What can be set for consumers on this node."""

    hosts: str = option("Further names of this node that consumers use besides its host name, separated by commas.", "")


@dataclass(frozen=True)
class Record:
    """What is written down of an export."""

    owner: str
    boot: str
    volume: str
    path: str


class LocalTarget(Target):
    """Paths of this node."""

    Options: ClassVar[type[TargetOptions]] = LocalOptions

    def __init__(self, name: str, options: TargetOptions, state_dir: Path, owner: str):
        super().__init__(name, options, state_dir, owner)
        names = of_type(LocalOptions, options, f"[target:{name}]").hosts.split(",")
        self._hosts = frozenset(name.strip().lower() for name in names if name.strip())

    def check(self) -> None:
        """Prove that exports can be written down, and that holders can be found."""
        with self._explained():
            private_files.make_directory(self.state_dir)
            if not os.access(self.state_dir, os.R_OK | os.W_OK | os.X_OK):
                raise Unreachable(
                    f"{self.state_dir} cannot be written; the target {self.name} keeps its exports there."
                )
            holders.prove()

    def capabilities(self) -> TargetCapabilities:
        """Return what a path can do."""
        return TargetCapabilities(protocol="local", multiattach=True, online_extend=True)

    def check_connector(self, connector: Mapping[str, Any]) -> None:
        """Refuse a consumer on another node, to whom the path would mean another file or none."""
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
                f" which means nothing elsewhere. If both are one node, add {host} to the target's option hosts.",
                public=f"The connector's 'host' is {host}; attach this volume on the node of its storage.",
            )

    def export(self, export: Export) -> Connection:
        """Write the export down and return the volume's path."""
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
        """Forget an export; while anything on this node holds the volume, refuse and say who."""
        with self._explained():
            record = self._read(export_id)
            if record is None:
                return
            who = _held(Path(record.path))
            # One holder's export cannot be told from another's of the same volume; the last one is not let go.
            if who and not any(self._others(export_id, record)):
                raise InUse(f"{record.path} is still in use on this node, by {', '.join(who)}. Let go of it first.")
            self._file(export_id).unlink(missing_ok=True)

    def list_exports(self) -> frozenset[str]:
        """Return the exports that are written down."""
        with self._explained():
            return frozenset(self._records())

    def faults(self) -> Mapping[str, str]:
        """Return which devices are not there, such as a logical volume that was deactivated.

        Files are not looked at: one on a share whose server hangs would hold up the look.
        """
        with self._explained():
            return {
                export_id: f"there is no {record.path}"
                for export_id, record in self._records().items()
                if _in_dev(Path(record.path)) and not os.path.lexists(record.path)
            }

    def sessions(self) -> Mapping[str, tuple[str, ...]]:
        """Return who holds each export's volume; of two exports of one volume each has the holders of both."""
        with self._explained():
            found = ((i, holders.identity(Path(record.path))) for i, record in self._records().items())
            things = {i: thing for i, thing in found if thing is not None}
            held = holders.find(set(things.values()))
        return {i: held[thing] for i, thing in things.items() if thing in held}

    def resize(self, export_id: str) -> None:
        """Do nothing: a path shows its file's size. A loop device that was made of it needs ``losetup -c``."""

    # --- what is written down -------------------------------------------------------------------------------

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
        """Return our export of this boot; None when there is none. One of an earlier boot is removed."""
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
        """Write a record whole or not at all."""
        private_files.make_directory(self.state_dir)
        data = json.dumps(asdict(record)).encode()
        private_files.write(self._file(export_id), data, temporary=f".{export_id}")  # which is no export's name

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
    """Refuse what is not a volume: gone, a directory, a pipe, or a link that somebody planted."""
    try:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            # Device-mapper's names are links, within /dev, to devices; nothing else is.
            there = path.resolve(strict=True)
            found = os.lstat(there)
            if not (_in_dev(path) and _in_dev(there) and stat.S_ISBLK(found.st_mode)):
                raise BackendError(f"{path} is a symbolic link to {there}, and is not given to anybody.")
    except (FileNotFoundError, NotADirectoryError):
        raise VolumeMissing(f"{path} is not there.") from None
    except OSError as exc:
        raise Unreachable(f"{path}: {exc.strerror}.") from exc
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        raise BackendError(f"{path} is neither a file nor a block device, and is not given to anybody.")


def _in_dev(path: Path) -> bool:
    return path.parts[:2] == ("/", "dev") and ".." not in path.parts


def _held(path: Path) -> tuple[str, ...]:
    """Return who holds a file or device and does not let go within a moment; nobody holds what is gone."""
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
