"""Volumes as files on NFS exports, which this plugin mounts; consumers mount them themselves.

    STATE_DIR/NAME/mnt/HASH     mount point of an export; its files have the layout of the directory plugin

The server makes copies if it can: by shared blocks (btrfs, xfs), or without passing the network (NFS 4.2). If it
cannot, qcow2 volumes are not copied: they and their snapshots are put on layers (``layers.py``). A background task
merges layers to keep chains short (``merge.py``). No call waits long for a dead server: the mounts are soft, and report
failed writes.
"""

from __future__ import annotations

import errno
import hashlib
import re
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, cast

from blockstore_plugins.directory import commands
from blockstore_plugins.directory.file_backend import FileBackend
from blockstore_plugins.directory.store import FORMATS, Format
from blockstore_plugins.nfs import mounts
from blockstore_plugins.nfs.merge import LayerMerger
from blockstore_plugins.nfs.share import ShareStore

from blockstore.backends.background import BackgroundTasks
from blockstore.backends.contract import (
    Backend,
    BackendOptions,
    BackgroundTask,
    Capacity,
    DirectConnection,
    Progress,
    VolumeLocation,
    no_progress,
    option,
)
from blockstore.backends.options import of_type
from blockstore.errors import ConfigError

_EXPORT = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%[0-9A-Za-z._-]+)?\]|[0-9A-Za-z][0-9A-Za-z.-]*):(/(?:[^\s,\0]| )*)")
_OPTIONS = re.compile(r"([0-9A-Za-z_]+(=[0-9A-Za-z_.:/-]+)?(,|$))*")


@dataclass(frozen=True, kw_only=True)
class NfsOptions(BackendOptions):
    """Options for NFS exports."""

    exports: str = option("Exports, HOST:/PATH, separated by commas. Each is a pool of the scheduler.")
    mount_options: str = option("Options of mount(8). The service adds the timeouts.", "vers=4.2")
    format: str = option(
        "Format of new volumes; existing volumes keep their format. qcow2 needs qemu-img.", "raw", choices=FORMATS
    )
    layers: str = option(
        "Whether snapshots and clones of qcow2 volumes are layers instead of copies; auto: if the server cannot "
        "copy files itself.",
        "auto",
        choices=("auto", "yes", "no"),
    )
    max_layers: int = option("Layers below a volume before some are merged in the background.", 5)
    timeout_s: int = option("Seconds until a call to a server that does not answer fails.", 20)


class NfsBackend(FileBackend):
    """One export."""

    Options: ClassVar[type[BackendOptions]] = NfsOptions
    is_direct: ClassVar[bool] = True
    storage_protocol: ClassVar[str] = "nfs"

    def __init__(self, name: str, options: BackendOptions, state_dir: Path, export: str = ""):
        settings = of_type(NfsOptions, options, f"[backend:{name}]")
        self.export = export or _exports(name, settings)[0]
        self._base = state_dir / "mnt"
        # compat: Cinder and consumers name their mount points by the MD5 of the export
        mount_point = self._base / hashlib.md5(self.export.encode(), usedforsecurity=False).hexdigest()
        self._share = ShareStore(
            self.export,
            mount_point,
            state_dir,
            self.not_recognised,
            mount=self.check,
            is_attached=lambda volume: self.is_attached(volume),
            layer_made=self._merge_soon,
        )
        super().__init__(name, options, state_dir, self._share, cast(Format, settings.format))
        self._settings = settings
        self._mounting = threading.Lock()
        self._tried: int | None = None
        """Device number for which server-side copy was last probed."""
        self._layers = self._share.layers
        self._share.is_layered = settings.layers == "yes"
        self._merger = LayerMerger(self._layers, self._share.layered_files, self._share.is_used, settings.max_layers)
        self._background_tasks = BackgroundTasks(f"nfs {self.export}")

    @classmethod
    def open_pools(cls, name: str, options: BackendOptions, state_dir: Path) -> Sequence[Backend]:
        """Return an instance for each export; a single export keeps the name of the section."""
        exports = _exports(name, of_type(NfsOptions, options, f"[backend:{name}]"))
        instances = [cls(name, options, state_dir, export) for export in exports]
        if len(instances) > 1:
            for backend, export in zip(instances, exports, strict=True):
                backend.pool = export
        return instances

    # --- the mount -----------------------------------------------------------------------------------------

    def identity(self) -> str:
        """Return the present identity of the share. Mount it again if the mount is stale, as after the server lost its
        disk."""
        with self._mounting, self.store.explained():
            self._mount()
            try:
                return self.store.identity()
            except OSError as exc:
                if exc.errno != errno.ESTALE:
                    raise
            mounts.unmount(self.path, self._settings.timeout_s)
            self._mount()
            return self.store.identity()

    def check(self) -> None:
        with self._mounting:
            self._share.device = self._mount()
            if self.file_format == "qcow2":
                commands.need_qemu_img()
            with self.store.explained(), self.store.root() as root:
                root.prove_writable()
                mounts.prove_writable(root)
        with self.store.explained(), self.store.root() as root:
            if self.file_format == "qcow2":
                mounts.refuse_others(self.export, self.path)
            if self._share.device != self._tried:
                self._merger.leave()
                self._layers.unguard(everything=True)
                if self.file_format == "qcow2" and self._settings.layers == "auto":
                    self._share.is_layered = not mounts.copies_by_itself(self.path, root)
                self._tried = self._share.device
            self._share.mend(root)
        self._layers.unguard()
        if self._merger.waits:
            self._merge_soon()

    def _mount(self) -> int:
        """Mount the export unless it is mounted; return its device."""
        return mounts.mounted(self.export, self.path, self._mount_options(), self._settings.timeout_s)

    def _mount_options(self) -> str:
        # Tenths of a second until the first of two retransmissions; each waits longer.
        timeo = max(5, self._settings.timeout_s * 10 // 4)
        # Cached names would hide changes made while the server could not be reached.
        bounds = f"softerr,timeo={timeo},retrans=1,retry=0,lookupcache=none,nosuid,nodev,noexec"
        return ",".join(word for word in (self._settings.mount_options, bounds) if word)

    # --- capacity, and access for consumers -----------------------------------------------------------------

    def capacity(self) -> Capacity:
        deepest = self._merger.deepest if self.file_format == "qcow2" else None
        return replace(super().capacity(), deepest_chain=deepest)

    def background_tasks(self) -> Sequence[BackgroundTask]:
        return self._background_tasks.now()

    def locate(self, name: str) -> VolumeLocation:
        with self.store.named(name) as root, ExitStack() as kept:
            image = self.store.need(root, name)
            if image.format == "raw":
                return VolumeLocation(self.path / image.file)
            with self.store.opened(image) as fd:
                layers = self._layers.chain(root, fd, image.label, kept)
            return VolumeLocation(self.path / image.file, image.format, tuple(self.path / layer for layer in layers))

    def direct(self, name: str) -> DirectConnection:
        with self.store.named(name) as root:
            image = self.store.need(root, name)
        # A name in a consumer's cache may have become the name of a layer.
        words = [self._settings.mount_options, "lookupcache=none" if image.format == "qcow2" else ""]
        options = f"-o {','.join(filter(None, words))}" if any(words) else None
        data = {"export": self.export, "name": image.file, "options": options, "format": image.format, "discard": True}
        return DirectConnection("nfs", data, {"mount_point_base": str(self._base)})

    # --- layers --------------------------------------------------------------------------------------------

    def delete_volume(self, name: str, progress: Progress = no_progress) -> None:
        super().delete_volume(name, progress)
        self._merge_soon()

    def delete_snapshot(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        super().delete_snapshot(volume, snapshot, progress)
        self._merge_soon()

    def revert_volume(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        super().revert_volume(volume, snapshot, progress)
        self._merge_soon()

    def manage_volume(self, reference: str, name: str) -> int:
        with self._layers.renaming():
            return super().manage_volume(reference, name)

    def manage_snapshot(self, volume: str, reference: str, snapshot: str) -> None:
        with self._layers.renaming():
            super().manage_snapshot(volume, reference, snapshot)

    def _merge_soon(self) -> None:
        """Start the background task that shortens chains; do nothing if the share cannot have layers."""
        if self.file_format == "qcow2" or self._merger.waits:
            self._background_tasks.add("layers", f"layers on {self.export} are merged", self._merge_now)

    def _merge_now(self, progress: Progress) -> None:
        with self.store.explained(), self.store.root() as root:
            self._merger.merge(root, progress)


def _exports(name: str, settings: NfsOptions) -> list[str]:
    found = [word.strip() for word in settings.exports.split(",") if word.strip()]
    for export in found:
        if not _EXPORT.fullmatch(export) or ".." in export.split("/"):
            raise ConfigError(f"[backend:{name}] exports: {export!r} is not HOST:/PATH, nor [IPv6]:/PATH.")
    if not found or len(set(found)) != len(found):
        raise ConfigError(f"[backend:{name}] exports must name at least one export, and each once.")
    if not _OPTIONS.fullmatch(settings.mount_options) or settings.mount_options.endswith(","):
        raise ConfigError(f"[backend:{name}] mount_options is {settings.mount_options!r}; such as vers=4.2,nconnect=4.")
    return found
