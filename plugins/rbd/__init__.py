"""Volumes as images of a Ceph pool; consumers connect to the cluster directly.

    POOL/[NAMESPACE/]VOLUME             a volume
    POOL/VOLUME@SNAPSHOT                a snapshot
    POOL/VOLUME@clone-OTHER             while OTHER is being cloned from VOLUME
    trash: blockstore-gone-VOLUME-...   a deleted volume whose bytes clones still need
    object blockstore-owner             the id of the installation that uses the pool

Clones are layered (format 2, Ceph 13 or newer), so snapshots and parents may be deleted before their clones. Their data
stays in the trash until a background task removes it after the last clone. Another task flattens clones whose chains
are too long.

Group snapshots are not supported. Holding the locks of images to freeze them makes their users' writes fail instead of
wait (tried with Ceph 16: EROFS). Ceph's own groups can freeze images, but their snapshots cannot be cloned.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from blockstore_plugins.rbd import direct, manageable
from blockstore_plugins.rbd.cluster import Cluster, HasSnapshots, Info, Stuck
from blockstore_plugins.rbd.names import HELPER, Names
from blockstore_plugins.rbd.options import RbdOptions, open_cluster, pools_of
from blockstore_plugins.rbd.qos import image_options
from blockstore_plugins.rbd.trash import GONE, Trash
from blockstore_plugins.rbd.users import Users

from blockstore.backends.contract import (
    GIB,
    Backend,
    BackendOptions,
    BackgroundTask,
    Capabilities,
    Capacity,
    DirectConnection,
    Manageable,
    Mode,
    Progress,
    check_name,
    no_progress,
)
from blockstore.backends.options import of_type
from blockstore.errors import BackendError, InUse, NameTaken, NoSpace, VolumeMissing

log = logging.getLogger(__name__)


class RbdBackend(Backend):
    """One pool of a Ceph cluster."""

    Options: ClassVar[type[BackendOptions]] = RbdOptions
    is_direct: ClassVar[bool] = True

    def __init__(self, name: str, options: BackendOptions, state_dir: Path, pool: str = ""):
        super().__init__(name, options, state_dir)
        self._settings = of_type(RbdOptions, options, f"[backend:{name}]")
        self._ceph_pool = pool or self._settings.pools.split(",")[0].strip()
        self._lock = threading.Lock()
        self._made: Cluster | None = None
        self._users = Users(lambda: self._cluster)
        self._names = Names(lambda: self._cluster)
        self._monitors: direct.Monitors | None = None
        self._executor = ThreadPoolExecutor(4, thread_name_prefix="rbd-aside")
        self._trash = Trash(f"{name}/{self._ceph_pool}", lambda: self._cluster, self._settings.max_clone_depth)

    @classmethod
    def open_pools(cls, name: str, options: BackendOptions, state_dir: Path) -> Sequence[Backend]:
        """Return an instance for each configured pool; a single pool keeps the name of the section."""
        pools = pools_of(of_type(RbdOptions, options, f"[backend:{name}]"))
        instances = [cls(name, options, state_dir, pool) for pool in pools]
        if len(instances) > 1:
            for backend, pool in zip(instances, pools, strict=True):
                backend.pool = pool
        return instances

    @property
    def _cluster(self) -> Cluster:
        with self._lock:
            if self._made is None:
                self._made = open_cluster(self._settings, self._ceph_pool)
            return self._made

    # --- health and capacity -----------------------------------------------------------------------------

    def check(self) -> None:
        cluster = self._cluster
        cluster.prove()
        self._monitors = cluster.monitors()
        self._names.load()
        self._trash.find_work()

    def capabilities(self) -> Capabilities:
        return Capabilities(
            snapshots=True,
            clone=True,
            revert=True,
            online_extend=True,
            multiattach=True,
            thin=True,
            qos=True,
            manage=True,
            owner_mark=True,
            storage_protocol="ceph",
        )

    def capacity(self) -> Capacity:
        found = self._cluster.stats()
        return Capacity(total_gib=found.total / GIB, free_gib=found.free / GIB)

    def background_tasks(self) -> Sequence[BackgroundTask]:
        return self._trash.background_tasks.now()

    def list_volumes(self) -> Mapping[str, float]:
        return {name: size / GIB for name, size in self._cluster.sizes().items() if not name.startswith(GONE)}

    def list_snapshots(self) -> Mapping[str, str]:
        rows = self._cluster.all_snapshots()
        return {name: image for image, name, _size in rows if not name.startswith(HELPER)}

    def identity(self) -> str:
        with self._explained():
            fsid, pool_id = self._cluster.identity()
        return ":".join(filter(None, (fsid, str(pool_id), self._settings.namespace)))

    def owner(self) -> str | None:
        with self._explained():
            return self._cluster.owner()

    def change_owner(self, former: str | None, owner: str | None) -> None:
        with self._explained():
            if self._cluster.owner() == former:
                self._cluster.set_owner(owner, replace=former is not None)

    # --- volumes -----------------------------------------------------------------------------------------

    def create_volume(self, name: str, size_gib: int) -> None:
        check_name(name)
        self._names.refuse_for_volume(name)
        with self._explained():
            try:
                self._cluster.create(name, size_gib * GIB)
            except NameTaken:
                if not self._has_volume(name, size_gib):
                    self._cluster.create(name, size_gib * GIB)
        self._names.note(name)

    def delete_volume(self, name: str, progress: Progress = no_progress) -> None:
        check_name(name)
        progress(0)
        self._users.refuse_open(name)
        with self._explained(), self._trash.leaving(name):
            try:
                self._users.patiently(lambda: self._cluster.remove(name))
            except VolumeMissing:
                if self._size(name) is not None:
                    # If the pool is full, rbd reports ENOENT for images that it cannot remove.
                    raise Stuck(f"{name} exists and cannot be removed; is the pool full?") from None
                self.prove_identity()
            except HasSnapshots:
                self._move_to_trash(name)
        self._names.forget(name)
        self._trash.empty_trash()

    def _move_to_trash(self, name: str) -> None:
        """Move an image to the trash if it has only snapshots that clones need. Raise InUse if it has others."""
        cluster = self._cluster
        own = cluster.snapshots(name)
        if others := [snapshot for snapshot in own if not manageable.is_helper(snapshot)]:
            raise InUse(
                f"Volume {name} has snapshots: {', '.join(others)}. Delete them first; those that the API does not show"
                " are managed by `cinder snapshot-manage`, or removed by `rbd snap rm`."
            )
        self._users.refuse_watched(name)  # moving it to the trash would break their access
        for snapshot in own:  # left by an unfinished clone, or by a clone that Cinder made
            with suppress(VolumeMissing):
                self._remove_snapshot(name, snapshot)
        self._trash.move_to_trash(name)

    def extend_volume(self, name: str, size_gib: int) -> None:
        check_name(name)
        with self._explained():
            try:
                self._cluster.resize(name, size_gib * GIB)
            except (VolumeMissing, Stuck, NoSpace):
                raise
            except BackendError:
                size = self._cluster.info(name).size
                if size > size_gib * GIB:
                    raise BackendError(
                        f"Volume {name} is {size / GIB:g} GiB, which is more than {size_gib} GiB."
                    ) from None
                if size < size_gib * GIB:
                    raise

    @contextmanager
    def open_volume(self, name: str, mode: Mode) -> Iterator[BinaryIO]:
        check_name(name)
        with (
            self._explained(),
            self._cluster.open(name, "", write=mode == "r+b") as file,
            self._users.openers.counted(name),
        ):
            yield file

    def direct(self, name: str) -> DirectConnection:
        check_name(name)
        with self._explained():
            self._cluster.info(name)
            if self._monitors is None:
                self._monitors = self._cluster.monitors()
        return direct.of_image(self._settings, self._ceph_pool, name, self._monitors)

    def regions(self, name: str, size_bytes: int) -> Sequence[tuple[int, int]]:
        with self._explained():
            return self._cluster.regions(check_name(name), size_bytes)

    def limit_volume(self, name: str, limits: Mapping[str, int]) -> None:
        with self._explained():
            self._cluster.set_options(check_name(name), image_options(limits))

    # --- snapshots and clones ----------------------------------------------------------------------------

    def create_snapshot(self, volume: str, snapshot: str) -> None:
        check_name(volume)
        self._names.refuse_for_snapshot(check_name(snapshot), volume)
        with self._explained(), suppress(NameTaken):
            self._cluster.snapshot(volume, snapshot)
        self._names.note(snapshot, volume)

    def delete_snapshot(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        check_name(volume)
        check_name(snapshot)
        progress(0)
        with self._explained():
            try:
                self._remove_snapshot(volume, snapshot)
            except VolumeMissing:
                self.prove_identity()
        if self._names.owner(snapshot) == volume:
            self._names.forget(snapshot)

    def _remove_snapshot(self, volume: str, snapshot: str) -> None:
        try:
            self._cluster.remove_snapshot(volume, snapshot)
        except InUse:
            if not self._cluster.is_protected(volume, snapshot):
                raise
            self._unprotect(volume, snapshot)
            self._cluster.remove_snapshot(volume, snapshot)

    def _unprotect(self, volume: str, snapshot: str) -> None:
        """Unprotect a managed snapshot: Cinder protects all its snapshots. Raise InUse if clones of format 1 need
        it."""
        try:
            self._cluster.unprotect(volume, snapshot)
        except InUse as exc:
            clones = self._cluster.old_clones(volume, snapshot)
            if not clones:
                raise
            first, names = clones[0], ", ".join(clones)
            raise InUse(
                f"Snapshot {snapshot} of {volume} cannot be deleted before its clones of the old format: {names}."
                f" Delete each clone, or make it independent: rbd flatten {first}"
            ) from exc

    @contextmanager
    def open_snapshot(self, volume: str, snapshot: str) -> Iterator[BinaryIO]:
        check_name(volume)
        check_name(snapshot)
        with self._explained(), self._cluster.open(volume, snapshot, write=False) as file:
            yield file

    def revert_volume(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        check_name(volume)
        check_name(snapshot)
        progress(0)
        self._users.refuse_open(volume)
        with self._explained():
            self._users.patiently(lambda: self._cluster.rollback(volume, snapshot, progress))

    def create_volume_from_snapshot(
        self, name: str, size_gib: int, volume: str, snapshot: str, progress: Progress = no_progress
    ) -> None:
        for word in (name, volume, snapshot):
            check_name(word)
        self._names.refuse_for_volume(name)
        progress(0)
        with self._explained():
            about = self._executor.submit(self._cluster.info, volume, snapshot)
            try:
                self._cluster.clone(volume, snapshot, name)
            except NameTaken:
                about.result()
                self._complete(name, size_gib, (volume, snapshot))
            else:
                with self._undoing(lambda: self._cluster.remove(name)):
                    self._fit(name, size_gib, about.result())
        self._names.note(name)
        if about.result().is_clone or not self._settings.max_clone_depth:
            self._trash.shorten(name)
        progress(100)

    def clone_volume(self, name: str, size_gib: int, source: str, progress: Progress = no_progress) -> None:
        check_name(name)
        check_name(source)
        self._names.refuse_for_volume(name)
        progress(0)
        helper = f"{HELPER}{name}"
        with self._explained():
            about = self._executor.submit(self._cluster.info, source)
            self._freeze(source, helper, name)
            with self._undoing(lambda: self._cluster.remove_snapshot(source, helper)):
                try:
                    self._cluster.clone(source, helper, name)
                except NameTaken:
                    self._complete(name, size_gib, (source, helper))
                else:
                    with self._undoing(lambda: self._cluster.remove(name)):
                        self._fit(name, size_gib, about.result())
                with suppress(VolumeMissing):
                    self._cluster.remove_snapshot(source, helper)
        self._names.note(name)
        if about.result().is_clone or not self._settings.max_clone_depth:
            self._trash.shorten(name)
        progress(100)

    def _freeze(self, source: str, helper: str, name: str) -> None:
        """Make the snapshot to clone from. Replace one left by a kill, which has old bytes, unless the clone exists."""
        try:
            self._cluster.snapshot(source, helper)
        except NameTaken:
            if self._size(name) is None:
                self._cluster.remove_snapshot(source, helper)
                self._cluster.snapshot(source, helper)

    def _complete(self, name: str, size_gib: int, origin: tuple[str, str]) -> None:
        """Finish an existing clone. Raise NameTaken if the image is another one."""
        found = self._cluster.info(name)
        if found.size < size_gib * GIB and found.parent == origin:
            self._cluster.resize(name, size_gib * GIB)
        elif found.size != size_gib * GIB:
            raise NameTaken(f"Volume {name} exists with {found.size / GIB:g} GiB.")

    def _fit(self, name: str, size_gib: int, source: Info) -> None:
        if source.size > size_gib * GIB:
            raise BackendError(f"A copy of {source.size / GIB:g} GiB does not fit into {size_gib} GiB.")
        if source.size < size_gib * GIB:
            self._cluster.resize(name, size_gib * GIB)

    # --- managing existing volumes -----------------------------------------------------------------------

    def list_manageable(self) -> Sequence[Manageable]:
        return manageable.volumes(self._cluster)

    def list_manageable_snapshots(self) -> Sequence[Manageable]:
        return manageable.snapshots(self._cluster)

    def manage_volume(self, reference: str, name: str) -> int:
        check_name(name)
        self._names.refuse_for_volume(name)
        with self._explained():
            # Grow it before the rename: if space is missing, the image keeps its name and size.
            if reference != name and self._may_take(reference, name):
                whole = self._grow_to_whole(reference)
                self._cluster.rename(reference, name)
                self._names.forget(reference)
            else:
                whole = self._grow_to_whole(name)
        self._names.note(name)
        return whole

    def _grow_to_whole(self, image: str) -> int:
        size = self._cluster.info(image).size
        whole = max(1, -(-size // GIB))
        if size != whole * GIB:
            self._cluster.resize(image, whole * GIB)
        return whole

    def _may_take(self, reference: str, name: str) -> bool:
        """Return True if the image must be renamed; False if a call before a crash did that."""
        if reason := manageable.why_not(reference):
            raise BackendError(reason)
        taken = self._size(name) is not None
        if taken:
            if self._size(reference) is None:
                return False
            raise NameTaken(f"Volume {name} exists already.")
        self._users.refuse_open(reference)
        self._users.refuse_watched(reference)
        return True

    def manage_snapshot(self, volume: str, reference: str, snapshot: str) -> None:
        check_name(volume)
        check_name(snapshot)
        if reason := manageable.why_not(reference):
            raise BackendError(reason)
        with self._explained():
            existing = self._cluster.snapshots(volume)
            if snapshot not in existing:
                size = self._cluster.info(volume, reference).size
                if size != self._cluster.info(volume).size:
                    raise BackendError(f"Snapshot {reference} has {size / GIB:g} GiB, another size than {volume}.")
                if self._names.owner(snapshot) is not None:
                    raise NameTaken(f"{snapshot} exists already.")
                self._cluster.rename_snapshot(volume, reference, snapshot)
                self._names.forget(reference)
        self._names.note(snapshot, volume)

    def _size(self, name: str) -> int | None:
        try:
            return self._cluster.info(name).size
        except VolumeMissing:
            return None

    def _has_volume(self, name: str, size_gib: int) -> bool:
        """Return True if a volume exists with this size. Remove remains of a killed creation. Raise NameTaken if the
        size differs."""
        size = self._size(name)
        if size is None:
            with suppress(VolumeMissing):
                self._cluster.remove(name)
            return False
        if size != size_gib * GIB:
            raise NameTaken(f"Volume {name} exists with {size / GIB:g} GiB.")
        return True

    # --- errors ------------------------------------------------------------------------------------------

    @contextmanager
    def _undoing(self, undo: Callable[[], Any]) -> Iterator[None]:
        """Call ``undo`` if the block fails, and ignore its errors."""
        try:
            yield
        except BaseException:
            with suppress(BackendError):
                undo()
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise NoSpace instead of Stuck if the pool is full: calls time out both in a full pool and without a
        cluster."""
        started = time.monotonic()
        try:
            yield
        except (Stuck, NoSpace) as exc:
            if isinstance(exc, Stuck):
                log.warning("backend %s: given up after %.0f s: %s", self.name, time.monotonic() - started, exc)
            try:
                stats = self._cluster.stats()
            except BackendError:
                raise exc from None
            if isinstance(exc, NoSpace) or stats.free <= stats.total // 50:
                raise NoSpace(
                    f"The pool {stats.pool or self._ceph_pool} is full: {stats.free / GIB:.1f} of"
                    f" {stats.total / GIB:.1f} GiB are free. {exc}"
                ) from exc
            raise
