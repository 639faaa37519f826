"""Volumes as files on NFS exports, which this plugin mounts; consumers mount them themselves.

    STATE_DIR/NAME/mnt/HASH     where an export is mounted; what lies in it is laid out as the directory plugin does it

Copies are made by the server where it can: shared blocks (btrfs, xfs), or a copy that does not pass the network (NFS
4.2). Nothing waits long for a dead server: the mounts are soft, and report what they could not write.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

from blockstore_plugins.directory import FORMATS, DirectoryBackend, DirectoryOptions, Image
from blockstore_plugins.directory.files import Folder
from blockstore_plugins.nfs import mounts

from blockstore.backends.contract import Backend, BackendOptions, Capabilities, Direct, option
from blockstore.errors import BackendError, ConfigError, InUse, Unreachable

_EXPORT = re.compile(r"(\[[0-9A-Fa-f:]+\]|[0-9A-Za-z][0-9A-Za-z.-]*):(/[^\s,\0]*)")
_OPTIONS = re.compile(r"([0-9A-Za-z_]+(=[0-9A-Za-z_.:/-]+)?(,|$))*")


@dataclass(frozen=True, kw_only=True)
class NfsOptions(BackendOptions):
    """What can be set for NFS exports."""

    exports: str = option("Exports, HOST:/PATH, separated by commas; each is a pool of the scheduler's, too.")
    mount_options: str = option("Options of mount(8) besides those that bound its waiting.", "vers=4.2")
    format: str = option("Format of new volumes; old ones keep theirs. qcow2 needs qemu-img.", "raw", choices=FORMATS)
    timeout_s: int = option("Seconds after which a server that does not answer is given up.", 20)


class NfsBackend(DirectoryBackend):
    """One export."""

    Options: ClassVar[type[BackendOptions]] = NfsOptions
    is_direct: ClassVar[bool] = True

    def __init__(self, name: str, options: BackendOptions, state_dir: Path, export: str = ""):
        settings = cast(NfsOptions, options)
        self.export = export or _exports(name, settings)[0]
        self._base = state_dir / "mnt"
        # compat: the reference names its mount points by the MD5 of the export, and so do consumers
        mount_point = self._base / hashlib.md5(self.export.encode(), usedforsecurity=False).hexdigest()
        super().__init__(name, DirectoryOptions(path=mount_point, format=settings.format), state_dir)
        self.options = options
        self._settings = settings
        self._mounting = threading.Lock()
        self._device: int | None = None
        """Of the mounted file system; anything else at the mount point is a local directory."""

    @classmethod
    def open_pools(cls, name: str, options: BackendOptions, state_dir: Path) -> Sequence[Backend]:
        """Return an instance for each export; the only one is named as the section."""
        exports = _exports(name, cast(NfsOptions, options))
        made = [cls(name, options, state_dir, export) for export in exports]
        if len(made) > 1:
            for backend, export in zip(made, exports, strict=True):
                backend.pool = export
        return made

    def check(self) -> None:
        with self._mounting:
            self._device = mounts.mounted(self.export, self.path, self._mount_options(), self._settings.timeout_s)
        super().check()

    def _mount_options(self) -> str:
        # Tenths of a second until the first of two repetitions; each waits longer.
        timeo = max(5, self._settings.timeout_s * 10 // 4)
        bounds = f"softerr,timeo={timeo},retrans=1,retry=0,nosuid,nodev,noexec"
        return ",".join(word for word in (self._settings.mount_options, bounds) if word)

    def capabilities(self) -> Capabilities:
        raw = self._settings.format == "raw"
        return Capabilities(
            snapshots=True,
            clone=True,
            revert=True,
            online_extend=raw,
            multiattach=raw,
            thin=True,
            manage=True,
            storage_protocol="nfs",
        )

    def direct(self, name: str) -> Direct:
        with self._named(name) as root:
            image = self._need(root, name)
        options = f"-o {self._settings.mount_options}" if self._settings.mount_options else None
        data = {"export": self.export, "name": image.file, "options": options, "format": image.format}
        return Direct("nfs", data, {"mount_point_base": str(self._base)})

    # --- what is different on a share ----------------------------------------------------------------------

    def _root(self) -> Folder:
        if self._device is None:
            self.check()
        # Consumers on other nodes enter it, each as a user of its own; what is in it is private all the same.
        root = Folder.open_root(self.path, may_enter=True)
        if os.fstat(root.fd).st_dev != self._device:
            root.close()
            raise Unreachable(f"{self.export} is not mounted at {self.path} any more; it is mounted again soon.")
        return root

    def _refuse_open(self, image: Image, fd: int | None = None) -> None:  # noqa: ARG002 - an open file tells nothing
        """Refuse what this process has open; NFS cannot tell who else has."""
        with self._lock:
            is_open = image.name in self._openers
        if is_open:
            raise InUse(f"Volume {image.name} is open in this process.")

    def _explain(self, exc: OSError) -> BackendError:
        if exc.errno in (errno.ETIMEDOUT, errno.EIO, errno.ESTALE, errno.EHOSTDOWN, errno.EHOSTUNREACH):
            said = exc.strerror or str(exc)
            return Unreachable(
                f"The NFS server of {self.export} does not answer as it should: {said}. Look at the server."
            )
        return super()._explain(exc)


def _exports(name: str, settings: NfsOptions) -> list[str]:
    found = [word.strip() for word in settings.exports.split(",") if word.strip()]
    for export in found:
        if not _EXPORT.fullmatch(export) or ".." in export.split("/"):
            raise ConfigError(f"[backend:{name}] exports: {export!r} is not HOST:/PATH.")
    if not found or len(set(found)) != len(found):
        raise ConfigError(f"[backend:{name}] exports must name at least one export, and each once.")
    if not _OPTIONS.fullmatch(settings.mount_options) or settings.mount_options.endswith(","):
        raise ConfigError(f"[backend:{name}] mount_options is {settings.mount_options!r}; such as vers=4.2,nconnect=4.")
    return found
