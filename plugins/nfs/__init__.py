"""Volumes as files on NFS exports, which this plugin mounts; consumers mount them themselves.

    STATE_DIR/NAME/mnt/HASH     where an export is mounted; what lies in it is laid out as the directory plugin does it

Copies are made by the server where it can: shared blocks (btrfs, xfs), or a copy that does not pass the network (NFS
4.2). Where it cannot, qcow2 volumes are not copied: they and their snapshots lie on layers (``layers.py``), of which
few are left in the background (``tending.py``). Nothing waits long for a dead server: the mounts are soft, and report
what they could not write.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, cast

from blockstore_plugins.directory import FORMATS, DirectoryBackend, DirectoryOptions, Image, commands, files
from blockstore_plugins.directory.files import Folder
from blockstore_plugins.nfs import mounts, rights
from blockstore_plugins.nfs.layers import Layers, Named
from blockstore_plugins.nfs.tending import Tender

from blockstore.backends.chores import Chores
from blockstore.backends.contract import (
    GIB,
    Backend,
    BackendOptions,
    Capabilities,
    Capacity,
    Chore,
    Direct,
    Located,
    Progress,
    no_progress,
    option,
)
from blockstore.errors import BackendError, ConfigError, InUse, NoSpace, Unreachable

_EXPORT = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%[0-9A-Za-z._-]+)?\]|[0-9A-Za-z][0-9A-Za-z.-]*):(/(?:[^\s,\0]| )*)")
_OPTIONS = re.compile(r"([0-9A-Za-z_]+(=[0-9A-Za-z_.:/-]+)?(,|$))*")


@dataclass(frozen=True, kw_only=True)
class NfsOptions(BackendOptions):
    """What can be set for NFS exports."""

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
        self._tried: int | None = None
        """The device of which it is known whether the share copies by itself."""
        self._is_layered = settings.layers == "yes"
        self._layers = Layers(state_dir / "views" / mount_point.name)
        self._tender = Tender(self._layers, self._layered_files, self._is_used, settings.max_layers)
        self._chores = Chores(f"nfs {self.export}")

    @classmethod
    def open_pools(cls, name: str, options: BackendOptions, state_dir: Path) -> Sequence[Backend]:
        """Return an instance for each export; the only one is named as the section."""
        exports = _exports(name, cast(NfsOptions, options))
        made = [cls(name, options, state_dir, export) for export in exports]
        if len(made) > 1:
            for backend, export in zip(made, exports, strict=True):
                backend.pool = export
        return made

    def identity(self) -> str:
        """Return what the share is now: a server that lost its disk may answer to the mount that is there."""
        how = (self.export, self.path, self._mount_options(), self._settings.timeout_s)
        with self._mounting, self._explained():
            mounts.mounted(*how)
            try:
                return self._identity()
            except OSError as exc:
                if exc.errno != errno.ESTALE:
                    raise
            mounts.unmount(self.path, self._settings.timeout_s)
            mounts.mounted(*how)
            return self._identity()

    def check(self) -> None:
        with self._mounting:
            self._device = mounts.mounted(self.export, self.path, self._mount_options(), self._settings.timeout_s)
            super().check()
            with self._explained(), self._root() as root:
                mounts.prove_writable(root)
        with self._explained(), self._root() as root:
            if self._format == "qcow2":
                mounts.refuse_others(self.export, self.path)
            if self._device != self._tried:
                self._tender.leave()
                self._layers.unguard(everything=True)
                if self._format == "qcow2" and self._settings.layers == "auto":
                    self._is_layered = not mounts.copies_by_itself(self.path, root)
                self._tried = self._device
            self._mend(root)
        self._layers.unguard()
        if self._tender.waits:
            self._tend()

    def _mount_options(self) -> str:
        # Tenths of a second until the first of two repetitions; each waits longer.
        timeo = max(5, self._settings.timeout_s * 10 // 4)
        # A name that was looked up before the server went away tells nothing about what it did meanwhile.
        bounds = f"softerr,timeo={timeo},retrans=1,retry=0,lookupcache=none,nosuid,nodev,noexec"
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
            owner_mark=True,
            storage_protocol="nfs",
        )

    def capacity(self) -> Capacity:
        deepest = self._tender.deepest if self._format == "qcow2" else None
        return replace(super().capacity(), deepest_chain=deepest)

    def chores(self) -> Sequence[Chore]:
        return self._chores.now()

    def locate(self, name: str) -> Located:
        with self._named(name) as root, ExitStack() as kept:
            image = self._need(root, name)
            if image.format == "raw":
                return Located(self.path / image.file)
            with self._opened(image) as fd:
                layers = self._layers.chain(root, fd, image.shown, kept)
            return Located(self.path / image.file, image.format, tuple(self.path / layer for layer in layers))

    def direct(self, name: str) -> Direct:
        with self._named(name) as root:
            image = self._need(root, name)
        # A name that a consumer has cached may have become a layer's.
        words = [self._settings.mount_options, "lookupcache=none" if image.format == "qcow2" else ""]
        options = f"-o {','.join(filter(None, words))}" if any(words) else None
        data = {"export": self.export, "name": image.file, "options": options, "format": image.format, "discard": True}
        return Direct("nfs", data, {"mount_point_base": str(self._base)})

    # --- what is different on a share ----------------------------------------------------------------------

    def _open_root(self) -> Folder:
        if self._device is None:
            self.check()
        # Consumers on other nodes enter it, each as a user of its own; what is in it is private all the same.
        root = Folder.open_root(self.path, may_enter=True)
        if os.fstat(root.fd).st_dev != self._device:
            root.close()
            raise Unreachable(f"{self.export} is not mounted at {self.path} any more; it is mounted again soon.")
        return root

    @contextmanager
    def _opened(self, image: Image, *, write: bool = False) -> Iterator[int]:
        with super()._opened(image, write=write) as fd:
            # To the server all mounts of this machine are one client, whom it need not tell what another one wrote.
            files.forget_cached(fd)
            yield fd

    def _refuse_open(self, image: Image, fd: int | None = None) -> None:
        """Refuse what this process has open, and what a QEMU has, here or elsewhere; NFS knows of no others."""
        if self._is_open_here(image):
            raise InUse(f"Volume {image.name} is open in this process.")
        with ExitStack() as kept:
            if files.is_image_open(kept.enter_context(self._opened(image)) if fd is None else fd):
                raise InUse(f"Volume {image.name} is open: a QEMU uses {image.shown}, here or on another machine.")

    def _is_open_here(self, image: Image) -> bool:
        with self._lock:
            return image.name in self._openers

    def _is_used(self, one: Named, fd: int) -> bool:
        """Say whether somebody may have a volume open. QEMU's locks are not all: NFS hides those of this machine."""
        return self.is_attached(one.file.removesuffix(".qcow2")) or files.is_image_open(fd)

    # --- layers --------------------------------------------------------------------------------------------

    def delete_volume(self, name: str, progress: Progress = no_progress) -> None:
        super().delete_volume(name, progress)
        self._tend()

    def delete_snapshot(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        super().delete_snapshot(volume, snapshot, progress)
        self._tend()

    def revert_volume(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        super().revert_volume(volume, snapshot, progress)
        self._tend()

    def adopt_volume(self, reference: str, name: str) -> int:
        with self._layers.renaming():
            return super().adopt_volume(reference, name)

    def adopt_snapshot(self, volume: str, reference: str, snapshot: str) -> None:
        with self._layers.renaming():
            super().adopt_snapshot(volume, reference, snapshot)

    def _tend(self) -> None:
        """Have chains shortened soon; what has no layers never has any."""
        if self._format == "qcow2" or self._tender.waits:
            self._chores.add("layers", f"layers on {self.export} are merged", self._tend_now)

    def _tend_now(self, progress: Progress) -> None:
        with self._explained(), self._root() as root:
            self._tender.tend(root, progress)

    @contextmanager
    def _named(self, *names: str) -> Iterator[Folder]:
        with super()._named(*names) as root:
            self._prove_mark(root)  # what the mount remembers of the mark proves nothing
            self._mend(root)
            yield root

    def _mend(self, root: Folder) -> None:
        if self._layers.in_doubt:
            self._layers.mend(root, self._folders(root))

    def _folders(self, root: Folder) -> Iterator[Folder]:
        """Yield the directories that hold images; each is open until the next one is asked for."""
        yield root
        with self._sub(root, "snapshots") as snapshots:
            for entry in snapshots.entries() if snapshots else ():
                with self._sub(snapshots if entry.is_dir(follow_symlinks=False) else None, entry.name) as shots:
                    if shots:
                        yield shots

    def _layered_files(self, root: Folder) -> Iterator[Named]:
        """Yield the qcow2 files of volumes and snapshots."""
        for folder in self._folders(root):
            yield from (Named(folder, image.file) for image, _ in self._images(folder) if image.format == "qcow2")

    def _header(self, image: Image, fd: int) -> commands.Header:
        return self._layers.header(fd, image.shown)

    @contextmanager
    def _readable(self, image: Image, fd: int) -> Iterator[str]:
        with self._root() as root, self._layers.readable(root, fd, image.shown) as path:
            yield path

    def _build_copy(
        self, image: Image, source: Image, size_gib: int | None = None, progress: Progress = no_progress
    ) -> None:
        if source.format == "raw":
            super()._build_copy(image, source, size_gib, progress)
        elif not self._is_layered:
            with self._opened(source) as fd, ExitStack() as kept:
                if backing := self._header(source, fd).backing:  # it was made when this share was layered
                    kept.enter_context(self._layers.holding(backing))
                super()._build_copy(image, source, size_gib, progress)
        else:
            progress(0)
            frozen = Named(source.folder, source.file)
            is_open = self._is_open_here(source) or self.is_attached(source.name)
            with (
                self._root() as root,
                self._layers.frozen(root, frozen, is_open=is_open) as (layer, size),
            ):
                if size_gib is not None and size > size_gib * GIB:
                    raise BackendError(
                        f"A copy of {source.name}, {size / GIB:g} GiB, does not fit into {size_gib} GiB."
                    )
                self._build(image, lambda fd: commands.create_overlay(fd, layer, size_gib * GIB if size_gib else size))
            self._tend()

    def _no_space(self, said: str) -> NoSpace:
        return NoSpace(f"{self.export}: {super()._no_space(said)}")

    def _explain(self, exc: OSError) -> BackendError:
        if exc.errno in (errno.ETIMEDOUT, errno.EIO, errno.ESTALE, errno.EHOSTDOWN, errno.EHOSTUNREACH):
            said = exc.strerror or str(exc)
            return Unreachable(
                f"The NFS server of {self.export} does not answer as it should: {said}. Look at the server."
            )
        if exc.errno == errno.EROFS:
            return rights.read_only(self.export, self.path)
        if exc.errno in (errno.EACCES, errno.EPERM) and mounts.source_of(self.path) == self.export:
            return rights.refused(self.export, self.path, exc.strerror or str(exc))
        return super()._explain(exc)


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
