"""A directory of images: finds and opens images, creates each completely or not at all, and translates errors.

Handles files and formats; ``FileBackend`` uses them as volumes. The hooks are the differences between kinds of storage:
a plugin for another kind overrides the hooks, and uses only public members of the class.
"""

from __future__ import annotations

import errno
import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, cast

from blockstore_plugins.directory import commands, files, marks
from blockstore_plugins.directory.files import Folder, temporary_name

from blockstore.backends.contract import GIB, Progress, check_name, no_progress
from blockstore.backends.openers import Openers
from blockstore.errors import (
    BackendError,
    InUse,
    NameTaken,
    NoSpace,
    NotRecognised,
    RefusedForSpace,
    Unreachable,
    VolumeMissing,
)

Format = Literal["raw", "qcow2"]
FORMATS: tuple[Format, ...] = ("raw", "qcow2")

SNAPSHOTS = "snapshots"
"""The directory below the volumes that holds their snapshots."""
_ELSEWHERE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM)
"""Errors of a mount point's own directory, when nothing is mounted."""

MIB = 2**20
_KEPT = 256 * MIB
_KEPT_PART = 16
"""``_KEPT`` bytes are kept for the service's own files on a disk that they share; at most 1/``_KEPT_PART`` of the
disk."""


class StoredVolume(NamedTuple):
    """A file that holds a volume or snapshot."""

    folder: Folder
    name: str
    format: Format

    @property
    def file(self) -> str:
        """The name of the file."""
        return f"{self.name}.{self.format}"

    @property
    def label(self) -> str:
        """The path, for messages."""
        return str(self.folder.label / self.file)


class FileStore:
    """A directory that holds images."""

    def __init__(self, path: Path, state_dir: Path, not_recognised: Callable[[str], NotRecognised]):
        """``not_recognised`` makes the error for a directory whose identity is not the recorded one."""
        self.path = path
        self.openers = Openers()
        self._state_dir = state_dir
        self._not_recognised = not_recognised
        self._recognised = ""
        self._unpacking = threading.Lock()
        self._proved: tuple[int, ...] | None = None
        """Device, inode and ctime of the identity's file when it was last checked."""

    # --- hooks: overridden for other kinds of storage ------------------------------------------------------

    def open_root(self) -> Folder:
        """Open the directory. Raise PermissionError if other users may change it."""
        return Folder.open_root(self.path)

    def prepare(self, root: Folder) -> None:
        """Prepare the directory before names in it are used."""

    @contextmanager
    def opened(self, image: StoredVolume, *, write: bool = False) -> Iterator[int]:
        """Open an image. Raise VolumeMissing if it is gone."""
        try:
            fd = image.folder.open(image.file, write=write)
        except FileNotFoundError:
            raise VolumeMissing(f"{image.label} is gone.") from None
        with files.closing(fd):
            yield fd

    def refuse_open(self, image: StoredVolume, fd: int | None = None) -> None:
        """Raise InUse if a volume is open anywhere, as far as this node can tell; ``fd``: this process's descriptor of
        it."""
        is_open = self.openers.is_open(image.name)
        if not is_open and fd is None:
            with self.opened(image, write=True) as own:
                is_open = files.is_open_elsewhere(own)
        elif fd is not None:
            is_open = is_open or files.is_open_elsewhere(fd)
        if is_open:
            raise InUse(f"Volume {image.name} is open: something on this machine uses {image.label}.")

    def header(self, image: StoredVolume, fd: int) -> commands.Header:
        """Read a qcow2 header. Raise BackendError if it names another file."""
        header = commands.read_header(files.read_start(fd, commands.HEADER_LENGTH), image.label)
        if header.backing is not None:
            raise commands.names_another(image.label)
        return header

    @contextmanager
    def readable(self, image: StoredVolume, fd: int) -> Iterator[str]:
        """Give a path by which qemu-img may open a qcow2 image."""
        self.header(image, fd)
        yield commands.path_of(fd)

    def copy(
        self, image: StoredVolume, source: StoredVolume, size_gib: int | None = None, progress: Progress = no_progress
    ) -> None:
        """Build a copy of an image, grown to ``size_gib`` if given."""
        with self.opened(source) as source_fd:
            size = self.size(source, source_fd)
            if size_gib is not None and size > size_gib * GIB:
                raise BackendError(f"A copy of {source.name}, {size / GIB:g} GiB, does not fit into {size_gib} GiB.")

            def make(fd: int) -> None:
                files.copy(source_fd, fd, source.label, progress, functools.partial(self._refuse_full, image))
                if size_gib is None or size == size_gib * GIB:
                    return
                if image.format == "raw":
                    files.set_size(fd, size_gib * GIB)
                else:
                    with self.readable(image, fd) as path:
                        commands.resize_qcow2(path, size_gib)

            self.build(image, make)

    def explain(self, exc: OSError) -> BackendError:
        """Return the backend's error for an OSError: what it means here, and what to do."""
        cause = exc.strerror or str(exc)
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            return self.no_space(f"{cause}.")
        if exc.errno == errno.EFBIG:
            return NoSpace(f"The file system of {self.path} cannot hold a file that large ({cause}).")
        todo = {
            errno.ENOENT: f"Mount its disk, or create it: mkdir -m 700 {self.path}",
            errno.ENOTDIR: "The option path must name a directory.",
            errno.EACCES: f"It must belong to uid {os.geteuid()} alone: chown {os.geteuid()} {self.path}; "
            f"chmod 700 {self.path}",
            errno.EROFS: "It is mounted read-only; remount it read-write.",
        }
        todo[errno.EPERM] = todo[errno.EACCES]
        hint = todo.get(exc.errno or 0, "Check the kernel's messages: dmesg")
        return Unreachable(f"Directory {self.path} cannot be used: {cause}. {hint}")

    def no_space(self, cause: str) -> NoSpace:
        """Return the error for a full disk: ``cause``, and the free space."""
        try:
            with self.root() as root:
                total, free = root.space()
        except OSError:
            return NoSpace(cause)
        return NoSpace(f"{cause} {self.path} has {free / GIB:.1f} of {total / GIB:.1f} GiB free.")

    # --- identity ----------------------------------------------------------------------------------------

    def recognise(self, identity: str) -> None:
        """Set the recorded identity; empty if none is recorded."""
        if identity != self._recognised:
            self._proved = None
        self._recognised = identity

    def identity(self) -> str:
        """Return the present identity of the directory; empty if it has none, or if the directory is missing."""
        try:
            with Folder.open_any(self.path) as root:  # an unmounted mount point may belong to another user
                return marks.read(root, marks.IDENTITY) or ""
        except (FileNotFoundError, NotADirectoryError):
            return ""

    def prove_identity(self, root: Folder) -> None:
        """Raise NotRecognised unless the directory has the recorded identity; the identity is read from the storage."""
        identity = marks.read(root, marks.IDENTITY) or ""
        if self._recognised and identity != self._recognised:
            raise self._not_recognised(identity)

    def kept(self, root: Folder, total: int) -> int:
        """Return the number of bytes kept free for the service's own files; 0 if they are on another disk."""
        with suppress(OSError):
            if os.fstat(root.fd).st_dev == self._state_dir.parent.stat().st_dev:
                return min(_KEPT, total // _KEPT_PART)
        return 0

    # --- finding -----------------------------------------------------------------------------------------

    def root(self) -> Folder:
        """Open the pool's directory. Raise NotRecognised if its identity is not the recorded one.

        This costs one stat of the mark. Without it, volumes of an unmounted disk would be taken for deleted.
        """
        try:
            root = self.open_root()
        except OSError as exc:
            if self._recognised and exc.errno in _ELSEWHERE:
                raise NotRecognised(str(self.explain(exc))) from exc
            raise
        if not self._recognised:
            return root
        try:
            found = root.stat(marks.IDENTITY, names=2)
            place = (found.st_dev, found.st_ino, found.st_ctime_ns) if found else None
            if place is None or place != self._proved:
                self.prove_identity(root)
                self._proved = place
        except BaseException:
            root.close()
            raise
        return root

    @contextmanager
    def named(self, *names: str) -> Iterator[Folder]:
        """Check names, then give the pool's directory; translate an OSError of the block."""
        for name in names:
            check_name(name)
        with self.explained(), self.root() as root:
            self.prepare(root)
            yield root

    @contextmanager
    def sub(self, folder: Folder | None, name: str) -> Iterator[Folder | None]:
        """Give a directory inside another one; None if either is missing."""
        sub = folder.open_sub(name) if folder else None
        try:
            yield sub
        finally:
            if sub:
                sub.close()

    def find(self, folder: Folder, name: str) -> StoredVolume | None:
        """Return the image of this name in a directory; None if there is none."""
        for kind in FORMATS:
            if folder.stat(f"{name}.{kind}"):
                return StoredVolume(folder, name, kind)
        return None

    def need(self, root: Folder, name: str) -> StoredVolume:
        """Return a volume's image. Raise VolumeMissing if there is none."""
        image = self.find(root, check_name(name))
        if image is None:
            raise VolumeMissing(f"Volume {name} is not in {self.path}.")
        return image

    @contextmanager
    def snapshot(self, volume: str, snapshot: str) -> Iterator[StoredVolume]:
        """Give a snapshot's image while its directory is open. Raise VolumeMissing if there is none."""
        check_name(volume)
        check_name(snapshot)
        with self.root() as root, self.sub(root, SNAPSHOTS) as snapshots, self.sub(snapshots, volume) as shots:
            image = self.find(shots, snapshot) if shots else None
            if image is None:
                raise VolumeMissing(f"Snapshot {snapshot} of volume {volume} is not in {self.path}.")
            yield image

    def images(self, folder: Folder) -> Iterator[tuple[StoredVolume, os.DirEntry[str]]]:
        """Yield the images in a directory; skip files with other kinds of names."""
        for entry in folder.entries():
            name, _dot, kind = entry.name.partition(".")
            for known in FORMATS:
                if kind == known and entry.is_file(follow_symlinks=False):
                    yield StoredVolume(folder, name, known), entry

    def has_volume(self, root: Folder, name: str, size_gib: int) -> bool:
        """Return True if a volume exists with this size. Raise NameTaken if it has another size or the name is a
        snapshot's."""
        with self.sub(root, SNAPSHOTS) as snapshots:
            if snapshots and (owner := self.owner_of(snapshots, name)):
                raise NameTaken(f"{name} is a snapshot of volume {owner}.")
        image = self.find(root, name)
        if image is None:
            return False
        with self.opened(image) as fd:
            size = self.size(image, fd)
        if size != size_gib * GIB:
            raise NameTaken(f"Volume {name} exists with {size / GIB:g} GiB.")
        root.remove(temporary_name(name))
        root.sync()  # an earlier call may have been killed before its sync
        return True

    def claimed_by(self, snapshots: Folder, snapshot: str) -> str:
        """Return the volume that has claimed this snapshot name, even if the snapshot was never finished; empty if
        none."""
        try:
            with files.closing(snapshots.open(f"{snapshot}.of")) as fd:
                return check_name(files.read_start(fd, 64).decode("ascii", "replace"))
        except FileNotFoundError:
            return ""

    def owner_of(self, snapshots: Folder, snapshot: str) -> str:
        """Return the volume whose finished snapshot has this name; empty if there is none."""
        owner = self.claimed_by(snapshots, snapshot)
        with self.sub(snapshots if owner else None, owner) as shots:
            return owner if shots and self.find(shots, snapshot) else ""

    # --- bytes -------------------------------------------------------------------------------------------

    def size(self, image: StoredVolume, fd: int) -> int:
        """Return an open image's size in bytes, as seen by a reader."""
        if image.format == "raw":
            return files.size_of(fd)
        return self.header(image, fd).size

    def listed_size(self, image: StoredVolume, entry: os.DirEntry[str]) -> int:
        """Return a size for a list: 0 for a damaged image."""
        try:
            if image.format == "raw":
                return entry.stat(follow_symlinks=False).st_size
            with self.opened(image) as fd:
                return self.size(image, fd)
        except (FileNotFoundError, BackendError):
            return 0  # a damaged or just deleted file does not hide the others

    def build(self, image: StoredVolume, make: Callable[[int], None]) -> None:
        """Create an image with the bytes that ``make`` writes, completely or not at all."""
        self._refuse_full(image)
        with image.folder.building(image.file, temporary_name(image.name)) as fd:
            make(fd)

    @contextmanager
    def unpacked(self, image: StoredVolume, fd: int) -> Iterator[int]:
        """Give the bytes of a qcow2 image in a raw file without a name, which is deleted when closed."""
        with self._unpacking:
            raw = image.folder.nameless(unpacked_name(image.name))
        with files.closing(raw):
            with self.readable(image, fd) as path:
                commands.qcow2_to_raw(path, raw)
            yield raw

    def volume_file(self, stack: ExitStack, fd: int, *, write: bool) -> BinaryIO:
        """Return a file that reads and writes an open volume; ``stack`` closes it."""
        file = files.VolumeFile(fd, write=write, no_space=lambda: self.no_space("The write did not fit."))
        return cast(BinaryIO, stack.enter_context(file))

    # --- errors ------------------------------------------------------------------------------------------

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Translate an OSError to a backend error that says what to do."""
        try:
            yield
        except RefusedForSpace:
            raise
        except NoSpace as exc:
            raise self.no_space(str(exc)) from exc
        except OSError as exc:
            raise self.explain(exc) from exc

    def _refuse_full(self, image: StoredVolume, length: int = 0) -> None:
        """Raise RefusedForSpace if writing ``length`` bytes leaves less than the space kept for the service."""
        total, free = image.folder.space()
        kept = self.kept(image.folder, total)
        if kept and free - length < kept:
            raise RefusedForSpace(
                f"The disk of {self.path} has {free / MIB:.0f} of {total / MIB:.0f} MiB free, and keeps"
                f" {kept / MIB:.0f} MiB for the service's own files. Delete volumes or snapshots, or make space."
            )


def unpacked_name(name: str) -> str:
    """Return the name that the unpacked file of a qcow2 volume has for a moment."""
    return f".{name}.open"
