"""The memory backend: a pool in the memory of the process, for tests and for experiments.

Configured like any plugin. Its data are lost when the process ends. A service that restarts inside the process with the
same name and state directory finds them again. Never accesses a disk.
"""

from __future__ import annotations

import errno
import io
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, ClassVar, cast

from blockstore.backends.contract import (
    GIB,
    Backend,
    BackendOptions,
    Capabilities,
    Capacity,
    Manageable,
    Mode,
    Progress,
    check_name,
    no_progress,
    option,
)
from blockstore.backends.options import of_type
from blockstore.errors import BackendError, InUse, NameTaken, RefusedForSpace, VolumeMissing

BLOCK = 64 * 1024
_ZEROS = bytes(BLOCK)


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(BackendOptions):
    """The options of a pool in memory."""

    size_gib: int = option("Reported size of the pool in GiB.", 1000)
    latency_s: float = option("Seconds that each call takes, to simulate slow storage.", 0.0)
    thin: bool = option("Thin: volumes take space when they are written. Otherwise when they are created.", True)


@dataclass
class MemoryImage:
    """Bytes of a volume or snapshot: the blocks that were written; blocks are immutable, so copies share them."""

    size_gib: int
    blocks: dict[int, bytes] = field(default_factory=dict)

    def copy(self, size_gib: int) -> MemoryImage:
        """Return an independent image of the same bytes."""
        return MemoryImage(size_gib, dict(self.blocks))


@dataclass
class MemoryPool:
    """The contents of a pool, kept by the process: images by name."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    volumes: dict[str, MemoryImage] = field(default_factory=dict)
    snapshots: dict[str, tuple[str, MemoryImage]] = field(default_factory=dict)
    openers: Counter[str] = field(default_factory=Counter)
    owner: str | None = None
    identity: str = "memory"
    """The same in every process, although each new process finds the pool empty."""


class MemoryBackend(Backend):
    """A pool in memory.

    ``fail`` makes the next call of a method raise: ``backend.fail["create_volume"] = NoSpace("full")``. ``calls``
    lists the actions that this instance was called for, with their first argument.
    """

    Options: ClassVar[type[BackendOptions]] = MemoryOptions

    # Kept for the life of the process, so that tests can restart the service and find the volumes again.
    _pools: ClassVar[dict[tuple[str, Path], MemoryPool]] = {}

    def __init__(self, name: str, options: BackendOptions, state_dir: Path):
        super().__init__(name, options, state_dir)
        self.settings = of_type(MemoryOptions, options, f"[backend:{name}]")
        self.fail: dict[str, Exception] = {}
        self.calls: list[tuple[str, str]] = []
        self._pool = self._pools.setdefault((name, state_dir), MemoryPool())

    # --- health and capacity

    def check(self) -> None:
        self._begin("check")

    def capabilities(self) -> Capabilities:
        thin = self.settings.thin
        return Capabilities(
            snapshots=True,
            clone=True,
            revert=True,
            group_snapshots=True,
            online_extend=True,
            multiattach=True,
            manage=True,
            owner_mark=True,
            thin=thin,
            thick=not thin,
        )

    def capacity(self) -> Capacity:
        self._begin("capacity")
        with self._pool.lock:
            provisioned = sum(image.size_gib for image in self._pool.volumes.values())
            return Capacity(
                total_gib=float(self.settings.size_gib), free_gib=self._free_gib(), provisioned_gib=float(provisioned)
            )

    def list_volumes(self) -> Mapping[str, float]:
        self._begin("list_volumes")
        with self._pool.lock:
            return {name: float(image.size_gib) for name, image in self._pool.volumes.items()}

    def list_snapshots(self) -> Mapping[str, str]:
        self._begin("list_snapshots")
        with self._pool.lock:
            return {name: volume for name, (volume, _image) in self._pool.snapshots.items()}

    def identity(self) -> str:
        self._begin("identity")
        return self._pool.identity

    def owner(self) -> str | None:
        self._begin("owner")
        return self._pool.owner

    def change_owner(self, former: str | None, owner: str | None) -> None:
        self._begin("change_owner")
        with self._pool.lock:
            if self._pool.owner == former:
                self._pool.owner = owner

    # --- volumes

    def create_volume(self, name: str, size_gib: int) -> None:
        self._begin("create_volume", name)
        with self._pool.lock:
            self._add(name, MemoryImage(size_gib))

    def delete_volume(self, name: str, progress: Progress = no_progress) -> None:
        self._begin("delete_volume", name)
        progress(0)
        with self._pool.lock:
            self._refuse_open(name)
            if any(volume == name for volume, _image in self._pool.snapshots.values()):
                raise InUse(f"Volume {name} has snapshots; delete them first.")
            if self._pool.volumes.pop(name, None) is None:
                self.prove_identity()

    def extend_volume(self, name: str, size_gib: int) -> None:
        self._begin("extend_volume", name)
        with self._pool.lock:
            image = self._volume(name)
            if size_gib < image.size_gib:
                raise BackendError(f"Volume {name} is {image.size_gib} GiB, which is more than {size_gib} GiB.")
            self._reserve(size_gib - image.size_gib)
            image.size_gib = size_gib

    @contextmanager
    def open_volume(self, name: str, mode: Mode) -> Iterator[BinaryIO]:
        self._begin("open_volume", name)
        with self._pool.lock:
            image = self._volume(name)
            self._pool.openers[name] += 1
        try:
            with self._opened(image, writable=mode == "r+b") as file:
                yield file
        finally:
            with self._pool.lock:
                self._pool.openers[name] -= 1

    # --- snapshots and copies

    def create_snapshot(self, volume: str, snapshot: str) -> None:
        self._begin("create_snapshot", volume, snapshot)
        with self._pool.lock:
            self._freeze({volume: snapshot})

    def create_group_snapshot(self, snapshots: Mapping[str, str]) -> None:
        self._begin("create_group_snapshot", *snapshots, *snapshots.values())
        with self._pool.lock:
            self._freeze(snapshots)

    def _freeze(self, snapshots: Mapping[str, str]) -> None:
        """Make snapshots, unless all exist. If only some exist, replace them: they are of another instant."""
        images = {volume: self._volume(volume) for volume in snapshots}
        if len(set(snapshots.values())) < len(snapshots):
            raise NameTaken("Two volumes cannot have snapshots of one name.")
        for volume, snapshot in snapshots.items():
            if snapshot in self._pool.volumes:
                raise NameTaken(f"{snapshot} is the name of a volume.")
            owner = self._pool.snapshots.get(snapshot, (volume,))[0]
            if owner != volume:
                raise NameTaken(f"{snapshot} is a snapshot of volume {owner}.")
        missing = {volume for volume, snapshot in snapshots.items() if snapshot not in self._pool.snapshots}
        if missing:
            self._reserve(sum(images[volume].size_gib for volume in missing))
            for volume, image in images.items():
                self._pool.snapshots[snapshots[volume]] = (volume, image.copy(image.size_gib))

    def delete_snapshot(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        self._begin("delete_snapshot", volume, snapshot)
        progress(0)
        with self._pool.lock:
            if self._pool.snapshots.get(snapshot, ("", None))[0] == volume:
                del self._pool.snapshots[snapshot]

    @contextmanager
    def open_snapshot(self, volume: str, snapshot: str) -> Iterator[BinaryIO]:
        self._begin("open_snapshot", volume, snapshot)
        with self._opened(self._snapshot(volume, snapshot), writable=False) as file:
            yield file

    def create_volume_from_snapshot(
        self, name: str, size_gib: int, volume: str, snapshot: str, progress: Progress = no_progress
    ) -> None:
        self._begin("create_volume_from_snapshot", name, volume, snapshot)
        progress(0)
        with self._pool.lock:
            self._add_copy(name, size_gib, self._snapshot(volume, snapshot))

    def clone_volume(self, name: str, size_gib: int, source: str, progress: Progress = no_progress) -> None:
        self._begin("clone_volume", name, source)
        progress(0)
        with self._pool.lock:
            self._add_copy(name, size_gib, self._volume(source))

    def revert_volume(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        self._begin("revert_volume", volume, snapshot)
        progress(0)
        with self._pool.lock:
            image, frozen = self._volume(volume), self._snapshot(volume, snapshot)
            self._refuse_open(volume)
            self._reserve(frozen.size_gib - image.size_gib)
            self._pool.volumes[volume] = frozen.copy(frozen.size_gib)

    # --- managing

    def list_manageable(self) -> Sequence[Manageable]:
        self._begin("list_manageable")
        with self._pool.lock:
            return [
                Manageable(reference=name, size_bytes=image.size_gib * GIB)
                for name, image in self._pool.volumes.items()
            ]

    def list_manageable_snapshots(self) -> Sequence[Manageable]:
        self._begin("list_manageable_snapshots")
        with self._pool.lock:
            return [
                Manageable(reference=name, size_bytes=image.size_gib * GIB, volume=volume)
                for name, (volume, image) in self._pool.snapshots.items()
            ]

    def manage_volume(self, reference: str, name: str) -> int:
        self._begin("manage_volume", name)
        with self._pool.lock:
            if name in self._pool.snapshots:
                raise NameTaken(f"{name} is the name of a snapshot.")
            if name in self._pool.volumes:
                if reference in self._pool.volumes and reference != name:
                    raise NameTaken(f"Volume {name} exists.")
                return self._pool.volumes[name].size_gib
            image = self._volume(reference)
            self._refuse_open(reference)
            self._pool.volumes[name] = self._pool.volumes.pop(reference)
            for shot, (volume, frozen) in self._pool.snapshots.items():
                if volume == reference:
                    self._pool.snapshots[shot] = (name, frozen)
            return image.size_gib

    def manage_snapshot(self, volume: str, reference: str, snapshot: str) -> None:
        self._begin("manage_snapshot", volume, snapshot)
        with self._pool.lock:
            if self._pool.snapshots.get(snapshot, ("",))[0] == volume:
                return
            if snapshot in self._pool.snapshots or snapshot in self._pool.volumes:
                raise NameTaken(f"{snapshot} exists.")
            if self._snapshot(volume, reference).size_gib != self._volume(volume).size_gib:
                raise BackendError(f"Snapshot {reference} has another size than {volume}.")
            self._pool.snapshots[snapshot] = self._pool.snapshots.pop(reference)

    # --- inside

    def _begin(self, method: str, *names: str) -> None:
        """Start an action: record it, wait for ``latency_s``, raise the error that a test has set, check names."""
        if names:
            self.calls.append((method, names[0]))
            if self.settings.latency_s:
                time.sleep(self.settings.latency_s)
        if method in self.fail:
            raise self.fail.pop(method)
        for name in names:
            check_name(name)

    def _volume(self, name: str) -> MemoryImage:
        try:
            return self._pool.volumes[name]
        except KeyError:
            raise VolumeMissing(f"Volume {name} is not in pool {self.name}.") from None

    def _snapshot(self, volume: str, snapshot: str) -> MemoryImage:
        owner, image = self._pool.snapshots.get(snapshot, ("", MemoryImage(0)))
        if owner != volume:
            raise VolumeMissing(f"Snapshot {snapshot} of volume {volume} is not in pool {self.name}.")
        return image

    def _add(self, name: str, image: MemoryImage) -> None:
        """Store an image under a name, unless it is stored already."""
        if name in self._pool.snapshots:
            raise NameTaken(f"{name} is the name of a snapshot.")
        present = self._pool.volumes.get(name)
        if present is None:
            self._reserve(image.size_gib)
            self._pool.volumes[name] = image
        elif present.size_gib != image.size_gib:
            raise NameTaken(f"Volume {name} exists with {present.size_gib} GiB.")

    def _add_copy(self, name: str, size_gib: int, source: MemoryImage) -> None:
        if size_gib < source.size_gib:
            raise BackendError(f"A copy of {source.size_gib} GiB does not fit into {size_gib} GiB.")
        self._add(name, source.copy(size_gib))

    def _refuse_open(self, name: str) -> None:
        if self._pool.openers[name]:
            raise InUse(f"Volume {name} is open.")

    def _reserve(self, size_gib: int) -> None:
        """Raise RefusedForSpace, before any change, if a thick pool lacks the space; a thin pool accepts any size."""
        free_gib = self._free_gib()
        if not self.settings.thin and size_gib > free_gib:
            raise RefusedForSpace(
                f"Pool {self.name} has {free_gib:g} of {self.settings.size_gib} GiB free, not {size_gib} GiB."
            )

    def _free_gib(self) -> float:
        images = [*self._pool.volumes.values(), *(image for _volume, image in self._pool.snapshots.values())]
        if self.settings.thin:
            # Blocks that copies share count once, as they do in memory.
            used = len({id(block) for image in images for block in image.blocks.values()}) * BLOCK / GIB
        else:
            used = float(sum(image.size_gib for image in images))
        return max(0.0, self.settings.size_gib - used)

    def _opened(self, image: MemoryImage, *, writable: bool) -> BinaryIO:
        return cast(BinaryIO, MemoryFile(image, self._pool.lock, writable=writable))


class MemoryFile(io.RawIOBase):
    """An open image: seekable, exactly its size, never grows."""

    def __init__(self, image: MemoryImage, lock: threading.RLock, *, writable: bool):
        self._image, self._lock, self._writable = image, lock, writable
        self._position = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return self._writable

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._lock:
            start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._image.size_gib * GIB}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "A position before the start.")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        with self._lock:
            done = 0
            while done < len(buffer) and (length := self._space(len(buffer) - done)):
                number, within = divmod(self._position, BLOCK)
                buffer[done : done + length] = self._image.blocks.get(number, _ZEROS)[within : within + length]
                self._position += length
                done += length
            return done

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if not self._writable:
            raise io.UnsupportedOperation("This volume is open for reading.")
        with self._lock:
            done = 0
            while done < len(data) and (length := self._space(len(data) - done)):
                number, within = divmod(self._position, BLOCK)
                old = self._image.blocks.get(number, _ZEROS)
                new = bytes(data[done : done + length])
                self._image.blocks[number] = old[:within] + new + old[within + length :]
                self._position += length
                done += length
            if data and not done:
                raise OSError(errno.ENOSPC, "This is past the end of the volume.")
            return done

    def _space(self, wanted: int) -> int:
        """Return how many bytes, from the position on, are in the same block and before the end."""
        return max(0, min(wanted, BLOCK - self._position % BLOCK, self._image.size_gib * GIB - self._position))
