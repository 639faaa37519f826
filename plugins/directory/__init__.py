"""Volumes as files in one private directory: the embedded default, needs no root and, for raw, no tool.

    PATH/VOLUME.raw or .qcow2               a volume; the suffix is its format, for ever, and bytes are never asked
    PATH/snapshots/VOLUME/SNAPSHOT.raw      a snapshot: a full, independent copy, sharing blocks where possible
    PATH/snapshots/SNAPSHOT.of              says whose snapshot this name is, so that no name is given twice
    .NAME.tmp                               something unfinished, replaced or removed by the next call for NAME
    .blockstore-owner                       the id of the installation that uses the directory
    .blockstore-identity                    what this directory is, also on another disk or at another place

A thing exists when its file is under its final name; files get there by rename, finished and flushed. No operation
reads a whole directory, except the two that list it. Other file-based plugins may extend the class.
"""

from __future__ import annotations

import errno
import functools
import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar, Literal, NamedTuple, cast

from blockstore_plugins.directory import commands, files
from blockstore_plugins.directory.files import Folder

from blockstore.backends.contract import (
    GIB,
    Backend,
    BackendOptions,
    Capabilities,
    Capacity,
    Located,
    Manageable,
    Mode,
    Progress,
    check_name,
    no_progress,
    option,
)
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

_SNAPSHOTS = "snapshots"
_OWNER = ".blockstore-owner"
_ELSEWHERE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM)
"""What the directory below a mount point answers, when nothing is mounted."""
_IDENTITY = ".blockstore-identity"
_marking = threading.Lock()
"""Held while a mark is made: several sections of one installation may have the same directory."""

MIB = 2**20
_KEPT = 256 * MIB
_KEPT_PART = 16
"""Of a disk that the service's own files share, so much is kept for them: of a small one at most this part."""


@dataclass(frozen=True, kw_only=True)
class DirectoryOptions(BackendOptions):
    """What can be set for a directory of volumes."""

    path: Path | None = option("Directory for the volumes; by default one in the state directory.", None)  # noqa: RUF009
    format: str = option(
        "Format of new volumes; existing volumes keep their format. qcow2 needs qemu-img.", "raw", choices=FORMATS
    )


class Image(NamedTuple):
    """A file that holds a volume or snapshot."""

    folder: Folder
    name: str
    format: Format

    @property
    def file(self) -> str:
        """The name of the file."""
        return f"{self.name}.{self.format}"

    @property
    def shown(self) -> str:
        """The path, for people."""
        return str(self.folder.shown / self.file)


class DirectoryBackend(Backend):
    """A directory of volumes."""

    Options: ClassVar[type[BackendOptions]] = DirectoryOptions

    def __init__(self, name: str, options: BackendOptions, state_dir: Path):
        super().__init__(name, options, state_dir)
        settings = cast(DirectoryOptions, options)
        self.path = settings.path or state_dir / "volumes"
        self._parents = settings.path is None
        self._format = cast(Format, settings.format)
        self._openers: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._proved: tuple[int, ...] | None = None
        """The file that held the recorded identity when it was read last."""

    @property
    def file_format(self) -> str:
        return self._format

    # --- health and figures ------------------------------------------------------------------------------

    def check(self) -> None:
        if self._format == "qcow2":
            commands.need_qemu_img()
        with self._explained():
            if not self.recognised:  # else what is missing is a disk not mounted
                # Of a path somebody chose only the last part is made: a parent that is missing is one, too.
                files.make_root(self.path, parents=self._parents)
            with self._root() as root:
                root.prove_writable()

    def capabilities(self) -> Capabilities:
        raw = self._format == "raw"
        return Capabilities(
            snapshots=True,
            clone=True,
            revert=True,
            online_extend=raw,
            multiattach=raw,
            thin=True,
            manage=True,
            owner_mark=True,
            storage_protocol="file",
        )

    def capacity(self) -> Capacity:
        with self._explained(), self._root() as root:
            total, free = root.room()
            kept = self._kept(root, total)
        # No provisioned_gib: it would cost a stat of every file, and the service knows it anyway.
        return Capacity(total_gib=(total - kept) / GIB, free_gib=max(0, free - kept) / GIB)

    def _kept(self, root: Folder, total: int) -> int:
        """Return the bytes that no copy may take, because the service's own files are on the same disk."""
        with suppress(OSError):
            if os.fstat(root.fd).st_dev == self.state_dir.parent.stat().st_dev:
                return min(_KEPT, total // _KEPT_PART)
        return 0

    def list_volumes(self) -> Mapping[str, float]:
        with self._explained(), self._root() as root:
            return {image.name: self._listed_size(image, entry) / GIB for image, entry in self._images(root)}

    def list_snapshots(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        with self._explained(), self._root() as root, self._sub(root, _SNAPSHOTS) as snapshots:
            for entry in snapshots.entries() if snapshots else ():
                if not entry.is_dir(follow_symlinks=False):
                    continue
                owner = entry.name if self._find(root, entry.name) else ""
                with self._sub(snapshots, entry.name) as shots:
                    found.update((image.name, owner) for image, _entry in (self._images(shots) if shots else ()))
        return found

    def recognise(self, identity: str) -> None:
        if identity != self.recognised:
            self._proved = None
        super().recognise(identity)

    def identity(self) -> str:
        with self._explained():
            return self._identity()

    def _identity(self) -> str:
        try:
            with Folder.open_any(self.path) as root:  # a mount point without its disk is somebody else's
                return self._marked_by(root, _IDENTITY) or ""
        except (FileNotFoundError, NotADirectoryError):
            return ""

    def owner(self) -> str | None:
        with self._explained(), self._root() as root:
            return self._marked_by(root, _OWNER)

    def change_owner(self, former: str | None, owner: str | None) -> None:
        with _marking, self._explained(), self._root() as root:
            if self._marked_by(root, _OWNER) != former:
                return
            if owner is None:
                root.remove(_OWNER)
                root.sync()
                return
            if self._marked_by(root, _IDENTITY) is None:  # first: an owner's mark may come with a takeover, too
                self._mark_once(root, _IDENTITY, f".identity-{owner}", _identity(secrets.token_hex(8)))
            if former is None:
                self._mark_once(root, _OWNER, f".owner-{owner}", _mark(owner))
            elif former != owner:
                for left in (*root.hidden(".owner-"), *root.hidden(".identity-")):  # by a kill; with two names
                    root.remove(left)
                with root.building(_OWNER, _temporary(f"owner-{owner}")) as fd:
                    files.write_start(fd, _mark(owner))
            root.sync()

    @staticmethod
    def _mark_once(root: Folder, name: str, fresh: str, text: bytes) -> None:
        """Make a mark unless there is one: of two that write at once, the first stays."""
        with root.building(fresh, _temporary(fresh.removeprefix("."))) as fd:
            files.write_start(fd, text)
        with suppress(FileExistsError):
            root.link(fresh, name)
        root.remove(fresh)

    @staticmethod
    def _marked_by(root: Folder, name: str) -> str | None:
        try:
            return next(iter(root.read_fresh(name, 64, names=2).decode("ascii", "replace").split()), None)
        except FileNotFoundError:
            return None

    # --- volumes -----------------------------------------------------------------------------------------

    def create_volume(self, name: str, size_gib: int) -> None:
        def make(fd: int) -> None:
            if self._format == "raw":
                files.set_size(fd, size_gib * GIB)
            else:
                commands.create_qcow2(fd, size_gib)

        with self._named(name) as root:
            if not self._is_there(root, name, size_gib):
                self._build(Image(root, name, self._format), make)

    def delete_volume(self, name: str, progress: Progress = no_progress) -> None:
        with self._named(name) as root:
            progress(0)
            with self._sub(root, _SNAPSHOTS) as snapshots, self._sub(snapshots, name) as shots:
                if shots and any(True for _image in self._images(shots)):
                    raise InUse(f"Volume {name} has snapshots; delete them first.")
                image = self._find(root, name)
                if image:
                    self._refuse_open(image)
                    root.remove(image.file)
                root.remove(_temporary(name))
                root.remove(_unpacked_name(name))
                root.sync()
                if snapshots:
                    snapshots.remove_sub(name)

    def extend_volume(self, name: str, size_gib: int) -> None:
        with self._named(name) as root:
            image = self._need(root, name)
            with self._opened(image, write=True) as fd:
                size = self._size(image, fd)
                if size > size_gib * GIB:
                    raise BackendError(f"Volume {name} is {size / GIB:g} GiB, which is more than {size_gib} GiB.")
                if image.format == "raw":
                    files.set_size(fd, size_gib * GIB)
                elif size < size_gib * GIB:
                    self._refuse_open(image, fd)
                    with self._readable(image, fd) as path:
                        commands.resize_qcow2(path, size_gib)
                files.flush(fd)

    @contextmanager
    def open_volume(self, name: str, mode: Mode) -> Iterator[BinaryIO]:
        """Open the bytes. A qcow2 volume is unpacked for it and, when opened for writing, packed again in the end."""
        with ExitStack() as stack:
            with self._explained():
                root = stack.enter_context(self._root())
                image = self._need(root, name)
                fd = stack.enter_context(self._opened(image, write=mode == "r+b"))
                stack.enter_context(self._counted(name))
                if image.format == "qcow2":
                    fd = stack.enter_context(self._unpacked(image, fd))
            yield self._volume_file(stack, fd, write=mode == "r+b")
            if mode == "r+b":
                with self._explained():
                    files.flush(fd)
                    if image.format == "qcow2":
                        self._build(image, lambda target: commands.raw_to_qcow2(fd, target))

    def locate(self, name: str) -> Located:
        with self._named(name) as root:
            image = self._need(root, name)
            return Located(self.path / image.file, image.format)

    def regions(self, name: str, size_bytes: int) -> Iterable[tuple[int, int]]:
        with self._named(name) as root:
            image = self._need(root, name)
            if image.format != "raw":
                return [(0, size_bytes)]
            with self._opened(image) as fd:
                return [(start, end - start) for start, end in files.data_of(fd, size_bytes)]

    # --- snapshots and copies ----------------------------------------------------------------------------

    def create_snapshot(self, volume: str, snapshot: str) -> None:
        with self._named(volume, snapshot) as root:
            source = self._need(root, volume)
            if self._find(root, snapshot):
                raise NameTaken(f"{snapshot} is the name of a volume.")
            with root.make_sub(_SNAPSHOTS) as snapshots:
                owner = self._owner(snapshots, snapshot)
                if owner not in ("", volume):
                    raise NameTaken(f"{snapshot} is a snapshot of volume {owner}.")
                if owner == volume:
                    snapshots.sync()
                    return
                with snapshots.building(f"{snapshot}.of", _temporary(snapshot)) as claim:
                    files.write_start(claim, volume.encode())
                try:
                    with snapshots.make_sub(volume) as shots:
                        self._build_copy(Image(shots, snapshot, source.format), source)
                except BaseException:
                    snapshots.remove(f"{snapshot}.of")
                    raise

    def delete_snapshot(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        with self._named(volume, snapshot) as root, self._sub(root, _SNAPSHOTS) as snapshots:
            progress(0)
            if not snapshots:
                return
            with self._sub(snapshots, volume) as shots:
                if shots:
                    image = self._find(shots, snapshot)
                    if image:
                        shots.remove(image.file)
                    shots.remove(_temporary(snapshot))
                    shots.sync()
            snapshots.remove(_temporary(snapshot))
            if self._claimed_by(snapshots, snapshot) == volume:
                snapshots.remove(f"{snapshot}.of")

    @contextmanager
    def open_snapshot(self, volume: str, snapshot: str) -> Iterator[BinaryIO]:
        with ExitStack() as stack:
            with self._explained():
                image = stack.enter_context(self._snapshot(volume, snapshot))
                fd = stack.enter_context(self._opened(image))
                if image.format == "qcow2":
                    fd = stack.enter_context(self._unpacked(image, fd))
            yield self._volume_file(stack, fd, write=False)

    def create_volume_from_snapshot(
        self, name: str, size_gib: int, volume: str, snapshot: str, progress: Progress = no_progress
    ) -> None:
        with self._named(name) as root:
            if not self._is_there(root, name, size_gib):
                with self._snapshot(volume, snapshot) as source:
                    self._build_copy(Image(root, name, source.format), source, size_gib, progress)

    def clone_volume(self, name: str, size_gib: int, source: str, progress: Progress = no_progress) -> None:
        with self._named(name, source) as root:
            if not self._is_there(root, name, size_gib):
                image = self._need(root, source)
                self._build_copy(Image(root, name, image.format), image, size_gib, progress)

    def revert_volume(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        with self._named(volume, snapshot) as root:
            image = self._need(root, volume)
            with self._snapshot(volume, snapshot) as source:
                self._refuse_open(image)
                self._build_copy(image, source, progress=progress)

    # --- taking over -------------------------------------------------------------------------------------

    def list_manageable(self) -> Sequence[Manageable]:
        with self._explained(), self._root() as root:
            return [self._manageable(image) for image, _entry in self._images(root)]

    def list_manageable_snapshots(self) -> Sequence[Manageable]:
        found = []
        with self._explained(), self._root() as root, self._sub(root, _SNAPSHOTS) as snapshots:
            for entry in snapshots.entries() if snapshots else ():
                volume = self._find(root, entry.name) if entry.is_dir(follow_symlinks=False) else None
                with self._sub(snapshots if volume else None, entry.name) as shots:
                    for image, _entry in self._images(shots) if shots else ():
                        found.append(self._manageable(image, volume.file if volume else ""))
        return found

    def _manageable(self, image: Image, volume: str = "") -> Manageable:
        size, reason = 0, None
        try:
            with self._opened(image) as fd:
                size = self._size(image, fd)
        except BackendError as exc:
            reason = str(exc)
        return Manageable(reference=image.file, name=image.name, size_bytes=size, volume=volume, reason=reason)

    def adopt_volume(self, reference: str, name: str) -> int:
        """Take over a file of the pool's directory; its suffix says the format, and it must be private and ours."""
        with self._named(name) as root:
            image = self._find(root, name)
            if image is None:
                image = self._foreign(root, reference)
                self._refuse_snapshots(root, image, name)
                with self._opened(image, write=True) as fd:
                    self._refuse_open(image, fd)
                    whole = self._grow_to_whole(image, fd)
                root.rename(image.file, f"{name}.{image.format}")
                return whole
            if image.file != reference and root.stat(reference) is not None:
                raise NameTaken(f"Volume {name} exists already.")
            root.sync()
            with self._opened(image, write=True) as fd:
                return self._grow_to_whole(image, fd)

    def _foreign(self, folder: Folder, reference: str) -> Image:
        name, _dot, kind = reference.rpartition(".")
        for known in FORMATS:
            if kind == known:
                image = Image(folder, check_name(name), known)
                if folder.stat(image.file) is None:
                    raise VolumeMissing(f"{image.shown} is not there.")
                return image
        raise BackendError(f"{reference!r} does not end in .raw or .qcow2, and bytes are not asked for their format.")

    def _refuse_snapshots(self, root: Folder, image: Image, name: str) -> None:
        with self._sub(root, _SNAPSHOTS) as snapshots, self._sub(snapshots, image.name) as shots:
            if snapshots and (owner := self._owner(snapshots, name)):
                raise NameTaken(f"{name} is a snapshot of volume {owner}.")
            if shots and any(True for _image in self._images(shots)):
                raise BackendError(f"{image.shown} has snapshots, which would be lost; remove them first.")
            if snapshots:
                snapshots.remove_sub(image.name)

    def _grow_to_whole(self, image: Image, fd: int) -> int:
        size = self._size(image, fd)
        whole = max(1, -(-size // GIB))
        if size != whole * GIB:
            if image.format == "raw":
                files.set_size(fd, whole * GIB)
            else:
                with self._readable(image, fd) as path:
                    commands.resize_qcow2(path, whole)
            files.flush(fd)
        return whole

    def adopt_snapshot(self, volume: str, reference: str, snapshot: str) -> None:
        with self._named(volume, snapshot) as root, root.make_sub(_SNAPSHOTS) as snapshots:
            source = self._need(root, volume)
            if self._find(root, snapshot) or self._claimed_by(snapshots, snapshot) not in ("", volume):
                raise NameTaken(f"{snapshot} exists already.")
            with snapshots.make_sub(volume) as shots:
                if self._find(shots, snapshot):
                    shots.sync()
                    return
                image = self._foreign(shots, reference)
                with self._opened(source) as whole, self._opened(image) as part:
                    if self._size(source, whole) != self._size(image, part):
                        raise BackendError(f"{image.shown} has another size than its volume {volume}.")
                if not self._claimed_by(snapshots, snapshot):
                    with snapshots.building(f"{snapshot}.of", _temporary(snapshot)) as claim:
                        files.write_start(claim, volume.encode())
                shots.rename(image.file, f"{snapshot}.{image.format}")
                snapshots.remove(f"{image.name}.of")

    # --- finding -----------------------------------------------------------------------------------------

    def _root(self) -> Folder:
        """Open the pool's directory. Raises Unreachable when it is another one than is recorded.

        One stat of the mark: what was unmounted since the last look would else be taken for deleted.
        """
        try:
            root = self._open_root()
        except OSError as exc:
            if self.recognised and exc.errno in _ELSEWHERE:
                raise NotRecognised(str(self._explain(exc))) from exc
            raise
        if not self.recognised:
            return root
        try:
            found = root.stat(_IDENTITY, names=2)
            place = (found.st_dev, found.st_ino, found.st_ctime_ns) if found else None
            if place is None or place != self._proved:
                self._prove_mark(root)
                self._proved = place
        except BaseException:
            root.close()
            raise
        return root

    def _prove_mark(self, root: Folder) -> None:
        identity = self._marked_by(root, _IDENTITY) or ""
        if self.recognised and identity != self.recognised:
            raise self.not_recognised(identity)

    def _open_root(self) -> Folder:
        return Folder.open_root(self.path)

    @contextmanager
    def _named(self, *names: str) -> Iterator[Folder]:
        """Check names, then give the pool's directory; errors of the operating system become sentences."""
        for name in names:
            check_name(name)
        with self._explained(), self._root() as root:
            yield root

    @contextmanager
    def _sub(self, folder: Folder | None, name: str) -> Iterator[Folder | None]:
        sub = folder.open_sub(name) if folder else None
        try:
            yield sub
        finally:
            if sub:
                sub.close()

    def _find(self, folder: Folder, name: str) -> Image | None:
        for kind in FORMATS:
            if folder.stat(f"{name}.{kind}"):
                return Image(folder, name, kind)
        return None

    def _need(self, root: Folder, name: str) -> Image:
        image = self._find(root, check_name(name))
        if image is None:
            raise VolumeMissing(f"Volume {name} is not in {self.path}.")
        return image

    @contextmanager
    def _snapshot(self, volume: str, snapshot: str) -> Iterator[Image]:
        check_name(volume)
        check_name(snapshot)
        with self._root() as root, self._sub(root, _SNAPSHOTS) as snapshots, self._sub(snapshots, volume) as shots:
            image = self._find(shots, snapshot) if shots else None
            if image is None:
                raise VolumeMissing(f"Snapshot {snapshot} of volume {volume} is not in {self.path}.")
            yield image

    def _images(self, folder: Folder) -> Iterator[tuple[Image, os.DirEntry[str]]]:
        """Yield the images in a directory; what has another kind of name is not ours and is passed over."""
        for entry in folder.entries():
            name, _dot, kind = entry.name.partition(".")
            for known in FORMATS:
                if kind == known and entry.is_file(follow_symlinks=False):
                    yield Image(folder, name, known), entry

    def _is_there(self, root: Folder, name: str, size_gib: int) -> bool:
        """Say whether a volume exists with this size; one of another size, or a snapshot, raises NameTaken."""
        with self._sub(root, _SNAPSHOTS) as snapshots:
            if snapshots and (owner := self._owner(snapshots, name)):
                raise NameTaken(f"{name} is a snapshot of volume {owner}.")
        image = self._find(root, name)
        if image is None:
            return False
        with self._opened(image) as fd:
            size = self._size(image, fd)
        if size != size_gib * GIB:
            raise NameTaken(f"Volume {name} exists with {size / GIB:g} GiB.")
        root.remove(_temporary(name))
        root.sync()  # a former call may have been killed before it did
        return True

    def _claimed_by(self, snapshots: Folder, snapshot: str) -> str:
        """Return the volume that this snapshot name was given to, even when the snapshot was never finished."""
        try:
            with files.closing(snapshots.open(f"{snapshot}.of")) as fd:
                return check_name(files.read_start(fd, 64).decode("ascii", "replace"))
        except FileNotFoundError:
            return ""

    def _owner(self, snapshots: Folder, snapshot: str) -> str:
        """Return the volume whose finished snapshot has this name, or nothing."""
        owner = self._claimed_by(snapshots, snapshot)
        with self._sub(snapshots if owner else None, owner) as shots:
            return owner if shots and self._find(shots, snapshot) else ""

    # --- bytes -------------------------------------------------------------------------------------------

    @contextmanager
    def _opened(self, image: Image, *, write: bool = False) -> Iterator[int]:
        try:
            fd = image.folder.open(image.file, write=write)
        except FileNotFoundError:
            raise VolumeMissing(f"{image.shown} is gone.") from None
        with files.closing(fd):
            yield fd

    def _size(self, image: Image, fd: int) -> int:
        if image.format == "raw":
            return files.size_of(fd)
        return self._header(image, fd).size

    def _header(self, image: Image, fd: int) -> commands.Header:
        """Read a qcow2 header; refuse one that sends its reader to another file."""
        header = commands.read_header(files.read_start(fd, commands.HEADER_LENGTH), image.shown)
        if header.backing is not None:
            raise commands.names_another(image.shown)
        return header

    @contextmanager
    def _readable(self, image: Image, fd: int) -> Iterator[str]:
        """Give the path under which qemu-img may open a qcow2 image."""
        self._header(image, fd)
        yield commands.path_of(fd)

    def _listed_size(self, image: Image, entry: os.DirEntry[str]) -> int:
        try:
            if image.format == "raw":
                return entry.stat(follow_symlinks=False).st_size
            with self._opened(image) as fd:
                return self._size(image, fd)
        except (FileNotFoundError, BackendError):
            return 0  # one file that is damaged, or was just deleted, does not hide the others

    def _build(self, image: Image, make: Callable[[int], None]) -> None:
        """Put what ``make`` writes under the image's name, whole or not at all."""
        self._refuse_full(image)
        with image.folder.building(image.file, _temporary(image.name)) as fd:
            make(fd)

    def _build_copy(
        self, image: Image, source: Image, size_gib: int | None = None, progress: Progress = no_progress
    ) -> None:
        """Build a copy of an image, larger if wished."""
        with self._opened(source) as source_fd:
            size = self._size(source, source_fd)
            if size_gib is not None and size > size_gib * GIB:
                raise BackendError(f"A copy of {source.name}, {size / GIB:g} GiB, does not fit into {size_gib} GiB.")

            def make(fd: int) -> None:
                files.copy(source_fd, fd, source.shown, progress, functools.partial(self._refuse_full, image))
                if size_gib is None or size == size_gib * GIB:
                    return
                if image.format == "raw":
                    files.set_size(fd, size_gib * GIB)
                else:
                    with self._readable(image, fd) as path:
                        commands.resize_qcow2(path, size_gib)

            self._build(image, make)

    @contextmanager
    def _unpacked(self, image: Image, fd: int) -> Iterator[int]:
        """Give the bytes of a qcow2 image in a raw file without a name, gone when closed."""
        with self._lock:
            raw = image.folder.nameless(_unpacked_name(image.name))
        with files.closing(raw):
            with self._readable(image, fd) as path:
                commands.qcow2_to_raw(path, raw)
            yield raw

    def _volume_file(self, stack: ExitStack, fd: int, *, write: bool) -> BinaryIO:
        file = files.VolumeFile(fd, write=write, no_space=lambda: self._no_space("The write did not fit."))
        return cast(BinaryIO, stack.enter_context(file))

    @contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        """Remember that a volume is open, for file systems such as NFS that cannot tell."""
        with self._lock:
            self._openers[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._openers[name] -= 1
                if not self._openers[name]:
                    del self._openers[name]

    def _refuse_open(self, image: Image, fd: int | None = None) -> None:
        with self._lock:
            is_open = image.name in self._openers
        if not is_open and fd is None:
            with self._opened(image, write=True) as own:
                is_open = files.is_open_elsewhere(own)
        elif fd is not None:
            is_open = is_open or files.is_open_elsewhere(fd)
        if is_open:
            raise InUse(f"Volume {image.name} is open: something on this machine uses {image.shown}.")

    # --- errors ------------------------------------------------------------------------------------------

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn an error of the operating system into a sentence that says what to do."""
        try:
            yield
        except RefusedForSpace:
            raise
        except NoSpace as exc:
            raise self._no_space(str(exc)) from exc
        except OSError as exc:
            raise self._explain(exc) from exc

    def _explain(self, exc: OSError) -> BackendError:
        said = exc.strerror or str(exc)
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            return self._no_space(f"{said}.")
        if exc.errno == errno.EFBIG:
            return NoSpace(f"The file system of {self.path} cannot hold a file that large ({said}).")
        todo = {
            errno.ENOENT: f"Mount its disk, or make it: mkdir -m 700 {self.path}",
            errno.ENOTDIR: "The option path must name a directory.",
            errno.EACCES: f"It must belong to uid {os.geteuid()} alone: chown {os.geteuid()} {self.path}; "
            f"chmod 700 {self.path}",
            errno.EROFS: "It is mounted read-only; remount it read-write.",
        }
        todo[errno.EPERM] = todo[errno.EACCES]
        hint = todo.get(exc.errno or 0, "Look at the kernel's messages: dmesg")
        return Unreachable(f"Directory {self.path} cannot be used: {said}. {hint}")

    def _refuse_full(self, image: Image, length: int = 0) -> None:
        """Raise RefusedForSpace when so many bytes would leave less than what is kept for the service."""
        total, free = image.folder.room()
        kept = self._kept(image.folder, total)
        if kept and free - length < kept:
            raise RefusedForSpace(
                f"The disk of {self.path} has {free / MIB:.0f} of {total / MIB:.0f} MiB free, and keeps"
                f" {kept / MIB:.0f} MiB for the service's own files. Delete volumes or snapshots, or make space."
            )

    def _no_space(self, said: str) -> NoSpace:
        try:
            with self._root() as root:
                total, free = root.room()
        except OSError:
            return NoSpace(said)
        return NoSpace(f"{said} {self.path} has {free / GIB:.1f} of {total / GIB:.1f} GiB free.")


def _mark(owner: str) -> bytes:
    return f"{owner}\nThe installation of blockstore that uses this directory; see `blockstore backend`.\n".encode()


def _identity(word: str) -> bytes:
    return (
        f"{word}\nBy this blockstore knows the directory, wherever it is mounted; see `blockstore backend`.\n".encode()
    )


def _temporary(name: str) -> str:
    return f".{name}.tmp"


def _unpacked_name(name: str) -> str:
    return f".{name}.open"
