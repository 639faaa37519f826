"""The files on a mounted export: overrides the hooks of ``FileStore``, and connects them with the layers.

Used by ``NfsBackend``, which mounts the export and sets its device number.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from blockstore_plugins.directory import commands, files
from blockstore_plugins.directory.files import Folder
from blockstore_plugins.directory.store import SNAPSHOTS, FileStore, StoredVolume
from blockstore_plugins.nfs import mounts, rights
from blockstore_plugins.nfs.layers import Layers, ShareFile

from blockstore.backends.contract import GIB, Progress, no_progress
from blockstore.errors import BackendError, InUse, NoSpace, NotRecognised, Unreachable


class ShareStore(FileStore):
    """The files on one export."""

    def __init__(
        self,
        export: str,
        path: Path,
        state_dir: Path,
        not_recognised: Callable[[str], NotRecognised],
        *,
        mount: Callable[[], None],
        is_attached: Callable[[str], bool],
        layer_made: Callable[[], None],
    ):
        """``mount`` mounts the export and sets ``device``; ``layer_made`` is called after each copy by layers."""
        super().__init__(path, state_dir, not_recognised)
        self.layers = Layers(state_dir / "views" / path.name)
        self.device: int | None = None
        """Device number of the mounted file system; a mount point with another device is a local directory."""
        self.is_layered = False
        """True if qcow2 volumes are frozen as layers instead of copied."""
        self._export = export
        self._mount = mount
        self._is_attached = is_attached
        self._layer_made = layer_made

    # --- hooks -------------------------------------------------------------------------------------------

    def open_root(self) -> Folder:
        if self.device is None:
            self._mount()
        # Consumers on other nodes enter the directory as different users; the files in it are private all the same.
        root = Folder.open_root(self.path, may_enter=True)
        if os.fstat(root.fd).st_dev != self.device:
            root.close()
            raise Unreachable(f"{self._export} is not mounted at {self.path}; the service will mount it again.")
        return root

    def prepare(self, root: Folder) -> None:
        self.prove_identity(root)  # read from the server: the mount's cache of the mark may be outdated
        self.mend(root)

    @contextmanager
    def opened(self, image: StoredVolume, *, write: bool = False) -> Iterator[int]:
        with super().opened(image, write=write) as fd:
            # For the server all mounts of this machine are one client: it reports no writes of one mount to another.
            files.forget_cached(fd)
            yield fd

    def refuse_open(self, image: StoredVolume, fd: int | None = None) -> None:
        """Raise InUse if this process or any QEMU, here or elsewhere, has a volume open. NFS shows no other users."""
        if self.openers.is_open(image.name):
            raise InUse(f"Volume {image.name} is open in this process.")
        with ExitStack() as kept:
            if files.is_image_open(kept.enter_context(self.opened(image)) if fd is None else fd):
                raise InUse(
                    f"Volume {image.name} is open: a QEMU process uses {image.label}, here or on another machine."
                )

    def header(self, image: StoredVolume, fd: int) -> commands.Header:
        return self.layers.header(fd, image.label)

    @contextmanager
    def readable(self, image: StoredVolume, fd: int) -> Iterator[str]:
        with self.root() as root, self.layers.readable(root, fd, image.label) as path:
            yield path

    def copy(
        self, image: StoredVolume, source: StoredVolume, size_gib: int | None = None, progress: Progress = no_progress
    ) -> None:
        if source.format == "raw":
            super().copy(image, source, size_gib, progress)
        elif self.is_layered:
            progress(0)
            self._put_on_layer(image, source, size_gib)
            self._layer_made()
        else:
            with self.opened(source) as fd, ExitStack() as kept:
                if backing := self.header(source, fd).backing:  # made when this share used layers
                    kept.enter_context(self.layers.holding(backing))
                super().copy(image, source, size_gib, progress)

    def _put_on_layer(self, image: StoredVolume, source: StoredVolume, size_gib: int | None) -> None:
        frozen = ShareFile(source.folder, source.file)
        is_open = self.openers.is_open(source.name) or self._is_attached(source.name)
        with self.root() as root, self.layers.frozen(root, frozen, is_open=is_open) as (layer, size):
            if size_gib is not None and size > size_gib * GIB:
                raise BackendError(f"A copy of {source.name}, {size / GIB:g} GiB, does not fit into {size_gib} GiB.")
            self.build(image, lambda fd: commands.create_overlay(fd, layer, size_gib * GIB if size_gib else size))

    def no_space(self, cause: str) -> NoSpace:
        return NoSpace(f"{self._export}: {super().no_space(cause)}")

    def explain(self, exc: OSError) -> BackendError:
        if exc.errno in (errno.ETIMEDOUT, errno.EIO, errno.ESTALE, errno.EHOSTDOWN, errno.EHOSTUNREACH):
            return mounts.no_answer(self._export, exc)
        if exc.errno == errno.EROFS:
            return rights.read_only(self._export, self.path)
        if exc.errno in (errno.EACCES, errno.EPERM) and mounts.source_of(self.path) == self._export:
            return rights.refused(self._export, self.path, exc.strerror or str(exc))
        return super().explain(exc)

    # --- layers ------------------------------------------------------------------------------------------

    def mend(self, root: Folder) -> None:
        """Complete or undo an interrupted exchange of names."""
        if self.layers.in_doubt:
            self.layers.mend(root, self._folders(root))

    def layered_files(self, root: Folder) -> Iterator[ShareFile]:
        """Yield the qcow2 files of volumes and snapshots."""
        for folder in self._folders(root):
            yield from (ShareFile(folder, image.file) for image, _ in self.images(folder) if image.format == "qcow2")

    def is_used(self, file: ShareFile, fd: int) -> bool:
        """Return True if a volume may be open. QEMU's locks alone do not tell: NFS hides those of this machine."""
        return self._is_attached(file.file.removesuffix(".qcow2")) or files.is_image_open(fd)

    def _folders(self, root: Folder) -> Iterator[Folder]:
        """Yield the directories that hold images; each is open until the next is requested."""
        yield root
        with self.sub(root, SNAPSHOTS) as snapshots:
            for entry in snapshots.entries() if snapshots else ():
                with self.sub(snapshots if entry.is_dir(follow_symlinks=False) else None, entry.name) as shots:
                    if shots:
                        yield shots
