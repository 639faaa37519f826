"""Volumes as files over a store: every operation of the contract that does not depend on the kind of storage.

Used by ``DirectoryBackend``; other plugins that keep volumes as files may extend the class. Differences between a local
disk and a share are in the store (``FileStore``), never here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, ClassVar

from blockstore_plugins.directory import commands, files, marks
from blockstore_plugins.directory.files import Folder, temporary_name
from blockstore_plugins.directory.store import FORMATS, SNAPSHOTS, FileStore, Format, StoredVolume, unpacked_name

from blockstore.backends.contract import (
    GIB,
    Backend,
    BackendOptions,
    Capabilities,
    Capacity,
    Manageable,
    Mode,
    Progress,
    VolumeLocation,
    check_name,
    no_progress,
)
from blockstore.errors import BackendError, InUse, NameTaken, VolumeMissing


class FileBackend(Backend):
    """Volumes as files."""

    storage_protocol: ClassVar[str] = "file"
    """The storage protocol that the API reports."""

    def __init__(self, name: str, options: BackendOptions, state_dir: Path, store: FileStore, new_format: Format):
        """Keep the store and the format of new volumes; access no files."""
        super().__init__(name, options, state_dir)
        self.store = store
        self._format: Format = new_format

    @property
    def path(self) -> Path:
        """The directory that holds the volumes."""
        return self.store.path

    @property
    def file_format(self) -> Format:
        return self._format

    # --- health and capacity -----------------------------------------------------------------------------

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
            storage_protocol=self.storage_protocol,
        )

    def capacity(self) -> Capacity:
        with self.store.explained(), self.store.root() as root:
            total, free = root.space()
            kept = self.store.kept(root, total)
        # No provisioned_gib: it would need a stat of every file, and the service knows it anyway.
        return Capacity(total_gib=(total - kept) / GIB, free_gib=max(0, free - kept) / GIB)

    def list_volumes(self) -> Mapping[str, float]:
        with self.store.explained(), self.store.root() as root:
            return {image.name: self.store.listed_size(image, entry) / GIB for image, entry in self.store.images(root)}

    def list_snapshots(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        with self.store.explained(), self.store.root() as root, self.store.sub(root, SNAPSHOTS) as snapshots:
            for entry in snapshots.entries() if snapshots else ():
                if not entry.is_dir(follow_symlinks=False):
                    continue
                owner = entry.name if self.store.find(root, entry.name) else ""
                with self.store.sub(snapshots, entry.name) as shots:
                    found.update((image.name, owner) for image, _entry in (self.store.images(shots) if shots else ()))
        return found

    def recognise(self, identity: str) -> None:
        self.store.recognise(identity)
        super().recognise(identity)

    def identity(self) -> str:
        with self.store.explained():
            return self.store.identity()

    def owner(self) -> str | None:
        with self.store.explained(), self.store.root() as root:
            return marks.read(root, marks.OWNER)

    def change_owner(self, former: str | None, owner: str | None) -> None:
        with self.store.explained(), self.store.root() as root:
            marks.change_owner(root, former, owner)

    # --- volumes -----------------------------------------------------------------------------------------

    def create_volume(self, name: str, size_gib: int) -> None:
        def make(fd: int) -> None:
            if self._format == "raw":
                files.set_size(fd, size_gib * GIB)
            else:
                commands.create_qcow2(fd, size_gib)

        with self.store.named(name) as root:
            if not self.store.has_volume(root, name, size_gib):
                self.store.build(StoredVolume(root, name, self._format), make)

    def delete_volume(self, name: str, progress: Progress = no_progress) -> None:
        with self.store.named(name) as root:
            progress(0)
            with self.store.sub(root, SNAPSHOTS) as snapshots, self.store.sub(snapshots, name) as shots:
                if shots and any(True for _image in self.store.images(shots)):
                    raise InUse(f"Volume {name} has snapshots; delete them first.")
                image = self.store.find(root, name)
                if image:
                    self.store.refuse_open(image)
                    root.remove(image.file)
                root.remove(temporary_name(name))
                root.remove(unpacked_name(name))
                root.sync()
                if snapshots:
                    snapshots.remove_sub(name)

    def extend_volume(self, name: str, size_gib: int) -> None:
        with self.store.named(name) as root:
            image = self.store.need(root, name)
            with self.store.opened(image, write=True) as fd:
                size = self.store.size(image, fd)
                if size > size_gib * GIB:
                    raise BackendError(f"Volume {name} is {size / GIB:g} GiB, which is more than {size_gib} GiB.")
                if image.format == "raw":
                    files.set_size(fd, size_gib * GIB)
                elif size < size_gib * GIB:
                    self.store.refuse_open(image, fd)
                    with self.store.readable(image, fd) as path:
                        commands.resize_qcow2(path, size_gib)
                files.flush(fd)

    @contextmanager
    def open_volume(self, name: str, mode: Mode) -> Iterator[BinaryIO]:
        """Open the bytes. A qcow2 volume is unpacked to a raw file and, if opened for writing, packed again at the
        end."""
        with ExitStack() as stack:
            with self.store.explained():
                root = stack.enter_context(self.store.root())
                image = self.store.need(root, name)
                fd = stack.enter_context(self.store.opened(image, write=mode == "r+b"))
                stack.enter_context(self.store.openers.counted(name))
                if image.format == "qcow2":
                    fd = stack.enter_context(self.store.unpacked(image, fd))
            yield self.store.volume_file(stack, fd, write=mode == "r+b")
            if mode == "r+b":
                with self.store.explained():
                    files.flush(fd)
                    if image.format == "qcow2":
                        self.store.build(image, lambda target: commands.raw_to_qcow2(fd, target))

    def locate(self, name: str) -> VolumeLocation:
        with self.store.named(name) as root:
            image = self.store.need(root, name)
            return VolumeLocation(self.path / image.file, image.format)

    def regions(self, name: str, size_bytes: int) -> Iterable[tuple[int, int]]:
        with self.store.named(name) as root:
            image = self.store.need(root, name)
            if image.format != "raw":
                return [(0, size_bytes)]
            with self.store.opened(image) as fd:
                return [(start, end - start) for start, end in files.data_of(fd, size_bytes)]

    # --- snapshots and copies ----------------------------------------------------------------------------

    def create_snapshot(self, volume: str, snapshot: str) -> None:
        with self.store.named(volume, snapshot) as root:
            source = self.store.need(root, volume)
            if self.store.find(root, snapshot):
                raise NameTaken(f"{snapshot} is the name of a volume.")
            with root.make_sub(SNAPSHOTS) as snapshots:
                owner = self.store.owner_of(snapshots, snapshot)
                if owner not in ("", volume):
                    raise NameTaken(f"{snapshot} is a snapshot of volume {owner}.")
                if owner == volume:
                    snapshots.sync()
                    return
                with snapshots.building(f"{snapshot}.of", temporary_name(snapshot)) as claim:
                    files.write_start(claim, volume.encode())
                try:
                    with snapshots.make_sub(volume) as shots:
                        self.store.copy(StoredVolume(shots, snapshot, source.format), source)
                except BaseException:
                    snapshots.remove(f"{snapshot}.of")
                    raise

    def delete_snapshot(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        with self.store.named(volume, snapshot) as root, self.store.sub(root, SNAPSHOTS) as snapshots:
            progress(0)
            if not snapshots:
                return
            with self.store.sub(snapshots, volume) as shots:
                if shots:
                    image = self.store.find(shots, snapshot)
                    if image:
                        shots.remove(image.file)
                    shots.remove(temporary_name(snapshot))
                    shots.sync()
            snapshots.remove(temporary_name(snapshot))
            if self.store.claimed_by(snapshots, snapshot) == volume:
                snapshots.remove(f"{snapshot}.of")

    @contextmanager
    def open_snapshot(self, volume: str, snapshot: str) -> Iterator[BinaryIO]:
        with ExitStack() as stack:
            with self.store.explained():
                image = stack.enter_context(self.store.snapshot(volume, snapshot))
                fd = stack.enter_context(self.store.opened(image))
                if image.format == "qcow2":
                    fd = stack.enter_context(self.store.unpacked(image, fd))
            yield self.store.volume_file(stack, fd, write=False)

    def create_volume_from_snapshot(
        self, name: str, size_gib: int, volume: str, snapshot: str, progress: Progress = no_progress
    ) -> None:
        with self.store.named(name) as root:
            if not self.store.has_volume(root, name, size_gib):
                with self.store.snapshot(volume, snapshot) as source:
                    self.store.copy(StoredVolume(root, name, source.format), source, size_gib, progress)

    def clone_volume(self, name: str, size_gib: int, source: str, progress: Progress = no_progress) -> None:
        with self.store.named(name, source) as root:
            if not self.store.has_volume(root, name, size_gib):
                image = self.store.need(root, source)
                self.store.copy(StoredVolume(root, name, image.format), image, size_gib, progress)

    def revert_volume(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        with self.store.named(volume, snapshot) as root:
            image = self.store.need(root, volume)
            with self.store.snapshot(volume, snapshot) as source:
                self.store.refuse_open(image)
                self.store.copy(image, source, progress=progress)

    # --- managing existing volumes -----------------------------------------------------------------------

    def list_manageable(self) -> Sequence[Manageable]:
        with self.store.explained(), self.store.root() as root:
            return [self._manageable(image) for image, _entry in self.store.images(root)]

    def list_manageable_snapshots(self) -> Sequence[Manageable]:
        found = []
        with self.store.explained(), self.store.root() as root, self.store.sub(root, SNAPSHOTS) as snapshots:
            for entry in snapshots.entries() if snapshots else ():
                volume = self.store.find(root, entry.name) if entry.is_dir(follow_symlinks=False) else None
                with self.store.sub(snapshots if volume else None, entry.name) as shots:
                    for image, _entry in self.store.images(shots) if shots else ():
                        found.append(self._manageable(image, volume.file if volume else ""))
        return found

    def _manageable(self, image: StoredVolume, volume: str = "") -> Manageable:
        size, reason = 0, None
        try:
            with self.store.opened(image) as fd:
                size = self.store.size(image, fd)
        except BackendError as exc:
            reason = str(exc)
        return Manageable(reference=image.file, name=image.name, size_bytes=size, volume=volume, reason=reason)

    def manage_volume(self, reference: str, name: str) -> int:
        """Manage a file of the pool's directory. Its suffix tells the format; the file must be private and this user's
        own."""
        with self.store.named(name) as root:
            image = self.store.find(root, name)
            if image is None:
                image = self._foreign(root, reference)
                self._refuse_snapshots(root, image, name)
                with self.store.opened(image, write=True) as fd:
                    self.store.refuse_open(image, fd)
                    whole = self._grow_to_whole(image, fd)
                root.rename(image.file, f"{name}.{image.format}")
                return whole
            if image.file != reference and root.stat(reference) is not None:
                raise NameTaken(f"Volume {name} exists already.")
            root.sync()
            with self.store.opened(image, write=True) as fd:
                return self._grow_to_whole(image, fd)

    def _foreign(self, folder: Folder, reference: str) -> StoredVolume:
        name, _dot, kind = reference.rpartition(".")
        for known in FORMATS:
            if kind == known:
                image = StoredVolume(folder, check_name(name), known)
                if folder.stat(image.file) is None:
                    raise VolumeMissing(f"{image.label} does not exist.")
                return image
        raise BackendError(f"{reference!r} does not end in .raw or .qcow2, and the format is not read from the data.")

    def _refuse_snapshots(self, root: Folder, image: StoredVolume, name: str) -> None:
        with self.store.sub(root, SNAPSHOTS) as snapshots, self.store.sub(snapshots, image.name) as shots:
            if snapshots and (owner := self.store.owner_of(snapshots, name)):
                raise NameTaken(f"{name} is a snapshot of volume {owner}.")
            if shots and any(True for _image in self.store.images(shots)):
                raise BackendError(f"{image.label} has snapshots, which would be lost; delete them first.")
            if snapshots:
                snapshots.remove_sub(image.name)

    def _grow_to_whole(self, image: StoredVolume, fd: int) -> int:
        size = self.store.size(image, fd)
        whole = max(1, -(-size // GIB))
        if size != whole * GIB:
            if image.format == "raw":
                files.set_size(fd, whole * GIB)
            else:
                with self.store.readable(image, fd) as path:
                    commands.resize_qcow2(path, whole)
            files.flush(fd)
        return whole

    def manage_snapshot(self, volume: str, reference: str, snapshot: str) -> None:
        with self.store.named(volume, snapshot) as root, root.make_sub(SNAPSHOTS) as snapshots:
            source = self.store.need(root, volume)
            if self.store.find(root, snapshot) or self.store.claimed_by(snapshots, snapshot) not in ("", volume):
                raise NameTaken(f"{snapshot} exists already.")
            with snapshots.make_sub(volume) as shots:
                if self.store.find(shots, snapshot):
                    shots.sync()
                    return
                image = self._foreign(shots, reference)
                with self.store.opened(source) as whole, self.store.opened(image) as part:
                    if self.store.size(source, whole) != self.store.size(image, part):
                        raise BackendError(f"{image.label} has another size than its volume {volume}.")
                if not self.store.claimed_by(snapshots, snapshot):
                    with snapshots.building(f"{snapshot}.of", temporary_name(snapshot)) as claim:
                        files.write_start(claim, volume.encode())
                shots.rename(image.file, f"{snapshot}.{image.format}")
                snapshots.remove(f"{image.name}.of")
