"""Volumes as images of a Ceph pool; consumers reach the cluster themselves.

    POOL/[NAMESPACE/]VOLUME             a volume
    POOL/VOLUME@SNAPSHOT                a snapshot
    POOL/VOLUME@clone-OTHER             for the moment in which OTHER is cloned from VOLUME
    trash: blockstore-gone-VOLUME-...   a volume that was deleted while clones still need bytes of it
    object blockstore-owner             the id of the installation that uses the pool

Clones are layered (format 2, Ceph 13 or newer), so snapshots and parents may go before their clones: their remains wait
in the trash, and the gardener removes them with the last clone. It also flattens clones that would make a chain too
long.

Group snapshots are not declared. Who keeps the locks of images while it freezes them makes the writes of their users
fail, not wait (tried with Ceph 16: EROFS); Ceph's own groups can do it, but nothing can be cloned from their snapshots.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

from blockstore_plugins.rbd.cluster import Cluster, HasSnapshots, Info, Place, Stuck
from blockstore_plugins.rbd.commands import Commands
from blockstore_plugins.rbd.gardener import GONE, Gardener
from blockstore_plugins.rbd.librbd import Librbd, bindings

from blockstore.backends.contract import (
    GIB,
    Backend,
    BackendOptions,
    Capabilities,
    Capacity,
    Chore,
    Direct,
    Manageable,
    Mode,
    Progress,
    check_name,
    no_progress,
    option,
)
from blockstore.errors import BackendError, InUse, NameTaken, NoSpace, Unreachable, VolumeMissing

log = logging.getLogger(__name__)

_HELPER = "clone-"
_HELPER_OF_CINDER = re.compile(r"volume-[0-9a-f-]{36}\.clone_snap")
_LINGERS_S = 35.0
"""How long the cluster may take a client for alive that was killed."""
_LETS_GO_S = 3.0
_FOREIGN = re.compile(r"[^-/@\0][^/@\0]{0,127}")
_LIMITS = {
    f"{kind}_{unit}_sec{burst}": f"rbd_qos_{prefix}{short}_{end}"
    for kind, prefix in (("total", ""), ("read", "read_"), ("write", "write_"))
    for unit, short in (("iops", "iops"), ("bytes", "bps"))
    for burst, end in (("", "limit"), ("_max", "burst"))
}
"""Words of QoS specs, and the options of an image that they set."""


@dataclass(frozen=True, kw_only=True)
class RbdOptions(BackendOptions):
    """What can be set for pools of a Ceph cluster."""

    pools: str = option("Ceph pools for volumes, separated by commas. Each is a pool of the scheduler.", "volumes")
    data_pool: str = option(
        "Pool for the data of new images, for example with erasure coding; by default Ceph's rbd_default_data_pool.",
        "",
    )
    namespace: str = option("Namespace in the pools. libvirt supports namespaces; os-brick does not.", "")
    ceph_conf: Path = option("Configuration file of the cluster.", Path("/etc/ceph/ceph.conf"))  # noqa: RUF009
    cluster_name: str = option("Name of the cluster for consumers.", "ceph")
    user: str = option(
        "Ceph user, without `client.`; needs the profile rbd on the monitors and on the pools.", "blockstore"
    )
    keyring: Path | None = option(  # noqa: RUF009
        "File with the user's key; by default Ceph's own search path.", None, secret_file=True
    )
    secret_uuid: str = option("Id of the libvirt secret that holds the key; by default the cluster's id.", "")
    max_clone_depth: int = option("Length of a chain of clones before one is flattened in the background.", 5)
    timeout_s: int = option("Seconds until a call to a cluster that does not answer fails.", 30)
    bindings: str = option(
        "Whether to use Ceph's Python bindings (python3-rbd), which are several times as fast as the programs of "
        "ceph-common.",
        "auto",
        choices=("auto", "yes", "no"),
    )


class RbdBackend(Backend):
    """One pool of a Ceph cluster."""

    Options: ClassVar[type[BackendOptions]] = RbdOptions
    is_direct: ClassVar[bool] = True

    def __init__(self, name: str, options: BackendOptions, state_dir: Path, pool: str = ""):
        super().__init__(name, options, state_dir)
        self._settings = cast(RbdOptions, options)
        self._ceph_pool = pool or self._settings.pools.split(",")[0].strip()
        self._lock = threading.Lock()
        self._born = time.monotonic()
        self._made: Cluster | None = None
        self._openers: Counter[str] = Counter()
        self._names: dict[str, str] | None = None
        """Volumes (to nothing) and snapshots (to their volume): no name is given twice."""
        self._monitors: tuple[str, Sequence[tuple[str, str]]] | None = None
        self._aside = ThreadPoolExecutor(4, thread_name_prefix="rbd-aside")
        self._gardener = Gardener(f"{name}/{self._ceph_pool}", lambda: self._cluster, self._settings.max_clone_depth)

    @classmethod
    def open_pools(cls, name: str, options: BackendOptions, state_dir: Path) -> Sequence[Backend]:
        """Return an instance for each pool of the cluster; the only one is named as the section."""
        pools = [word.strip() for word in cast(RbdOptions, options).pools.split(",") if word.strip()]
        made = [cls(name, options, state_dir, pool) for pool in pools]
        if len(made) > 1:
            for backend, pool in zip(made, pools, strict=True):
                backend.pool = pool
        return made

    @property
    def _cluster(self) -> Cluster:
        with self._lock:
            if self._made is None:
                settings = self._settings
                place = Place(
                    pool=self._ceph_pool,
                    namespace=settings.namespace,
                    conf=settings.ceph_conf,
                    cluster_name=settings.cluster_name,
                    user=settings.user,
                    keyring=settings.keyring,
                    timeout_s=settings.timeout_s,
                    data_pool="" if settings.data_pool == self._ceph_pool else settings.data_pool,
                )
                modules = None if settings.bindings == "no" else bindings()
                if modules is None and settings.bindings == "yes":
                    raise Unreachable(
                        "Ceph's Python bindings are not there for this Python: apt-get install python3-rbd;"
                        " or set bindings = auto, to use the programs of ceph-common."
                    )
                self._made = Librbd(place, modules) if modules else Commands(place)
            return self._made

    # --- health and figures ------------------------------------------------------------------------------

    def check(self) -> None:
        cluster = self._cluster
        cluster.prove()
        self._monitors = cluster.monitors()
        self._known()
        self._gardener.look()

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
        found = self._cluster.figures()
        return Capacity(total_gib=found.total / GIB, free_gib=found.free / GIB)

    def chores(self) -> Sequence[Chore]:
        return self._gardener.chores.now()

    def list_volumes(self) -> Mapping[str, float]:
        return {name: size / GIB for name, size in self._cluster.sizes().items() if not name.startswith(GONE)}

    def list_snapshots(self) -> Mapping[str, str]:
        rows = self._cluster.all_snapshots()
        return {name: image for image, name, _size in rows if not name.startswith(_HELPER)}

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
        self._refuse_snapshot(name)
        with self._explained():
            try:
                self._cluster.create(name, size_gib * GIB)
            except NameTaken:
                if not self._is_there(name, size_gib):
                    self._cluster.create(name, size_gib * GIB)
        self._note(name)

    def delete_volume(self, name: str, progress: Progress = no_progress) -> None:
        check_name(name)
        progress(0)
        self._refuse_open(name)
        with self._explained(), self._gardener.leaving(name):
            try:
                self._patiently(lambda: self._cluster.remove(name))
            except VolumeMissing:
                if self._size(name) is not None:
                    # In a full pool rbd says that what it cannot remove is not there.
                    raise Stuck(f"{name} is there and cannot be removed; is the pool full?") from None
                self.prove_identity()
            except HasSnapshots:
                self._bury(name)
        self._forget(name)
        self._gardener.empty_trash()

    def _bury(self, name: str) -> None:
        """Remove an image with snapshots: if they are only what clones need, it waits in the trash for their end."""
        cluster = self._cluster
        own = cluster.snapshots(name)
        if others := [snapshot for snapshot in own if not _is_helper(snapshot)]:
            raise InUse(
                f"Volume {name} has snapshots: {', '.join(others)}. Delete them first; those that the API does not show"
                " are taken over by `cinder snapshot-manage`, or removed by `rbd snap rm`."
            )
        self._refuse_watched(name)  # the trash would take it from under them
        for snapshot in own:  # of a clone that was never finished, or of one that Cinder made
            with suppress(VolumeMissing):
                self._remove_snapshot(name, snapshot)
        self._gardener.bury(name)

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
        with self._explained(), self._cluster.open(name, "", write=mode == "r+b") as file, self._counted(name):
            yield file

    def direct(self, name: str) -> Direct:
        check_name(name)
        with self._explained():
            self._cluster.info(name)
            if self._monitors is None:
                self._monitors = self._cluster.monitors()
        fsid, monitors = self._monitors
        settings = self._settings
        where = f"{self._ceph_pool}/{settings.namespace}" if settings.namespace else self._ceph_pool
        return Direct(
            "rbd",
            {
                "name": f"{where}/{name}",
                "hosts": [host for host, _port in monitors],
                "ports": [port for _host, port in monitors],
                "cluster_name": settings.cluster_name,
                "auth_enabled": True,
                "auth_username": settings.user,
                "secret_type": "ceph",
                "secret_uuid": settings.secret_uuid or fsid,
                "discard": True,
            },
        )

    def regions(self, name: str, size_bytes: int) -> Sequence[tuple[int, int]]:
        with self._explained():
            return self._cluster.regions(check_name(name), size_bytes)

    def limit_volume(self, name: str, limits: Mapping[str, int]) -> None:
        wanted = {ceph: limits.get(word) for word, ceph in _LIMITS.items()}
        with self._explained():
            self._cluster.set_options(
                check_name(name), {ceph: None if value is None else str(value) for ceph, value in wanted.items()}
            )

    # --- snapshots and clones ----------------------------------------------------------------------------

    def create_snapshot(self, volume: str, snapshot: str) -> None:
        check_name(volume)
        if check_name(snapshot).startswith(_HELPER):
            raise BackendError(f"Names of snapshots do not begin with {_HELPER}.")
        owner = self._known().get(snapshot)
        if owner == "":
            raise NameTaken(f"{snapshot} is the name of a volume.")
        if owner not in (None, volume):
            raise NameTaken(f"{snapshot} is a snapshot of volume {owner}.")
        with self._explained(), suppress(NameTaken):
            self._cluster.snapshot(volume, snapshot)
        self._note(snapshot, volume)

    def delete_snapshot(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        check_name(volume)
        check_name(snapshot)
        progress(0)
        with self._explained():
            try:
                self._remove_snapshot(volume, snapshot)
            except VolumeMissing:
                self.prove_identity()
        if self._known().get(snapshot) == volume:
            self._forget(snapshot)

    def _remove_snapshot(self, volume: str, snapshot: str) -> None:
        try:
            self._cluster.remove_snapshot(volume, snapshot)
        except InUse:
            if not self._cluster.is_protected(volume, snapshot):
                raise
            self._unprotect(volume, snapshot)
            self._cluster.remove_snapshot(volume, snapshot)

    def _unprotect(self, volume: str, snapshot: str) -> None:
        """Take the protection from a snapshot that was taken over: Cinder protects all of its. Raises InUse."""
        try:
            self._cluster.unprotect(volume, snapshot)
        except InUse as exc:
            clones = self._cluster.old_clones(volume, snapshot)
            if not clones:
                raise
            first, names = clones[0], ", ".join(clones)
            raise InUse(
                f"Snapshot {snapshot} of {volume} cannot go before its clones of the old format: {names}. Delete each,"
                f" or make it independent: rbd flatten {first}"
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
        self._refuse_open(volume)
        with self._explained():
            self._patiently(lambda: self._cluster.rollback(volume, snapshot, progress))

    def create_volume_from_snapshot(
        self, name: str, size_gib: int, volume: str, snapshot: str, progress: Progress = no_progress
    ) -> None:
        for word in (name, volume, snapshot):
            check_name(word)
        self._refuse_snapshot(name)
        progress(0)
        with self._explained():
            about = self._aside.submit(self._cluster.info, volume, snapshot)
            try:
                self._cluster.clone(volume, snapshot, name)
            except NameTaken:
                about.result()
                self._complete(name, size_gib, (volume, snapshot))
            else:
                with self._undoing(lambda: self._cluster.remove(name)):
                    self._fit(name, size_gib, about.result())
        self._note(name)
        if about.result().is_clone or not self._settings.max_clone_depth:
            self._gardener.shorten(name)
        progress(100)

    def clone_volume(self, name: str, size_gib: int, source: str, progress: Progress = no_progress) -> None:
        check_name(name)
        check_name(source)
        self._refuse_snapshot(name)
        progress(0)
        helper = f"{_HELPER}{name}"
        with self._explained():
            about = self._aside.submit(self._cluster.info, source)
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
        self._note(name)
        if about.result().is_clone or not self._settings.max_clone_depth:
            self._gardener.shorten(name)
        progress(100)

    def _freeze(self, source: str, helper: str, name: str) -> None:
        """Make the snapshot to clone from; one that a kill left holds old bytes, unless it is in use already."""
        try:
            self._cluster.snapshot(source, helper)
        except NameTaken:
            if self._size(name) is None:
                self._cluster.remove_snapshot(source, helper)
                self._cluster.snapshot(source, helper)

    def _complete(self, name: str, size_gib: int, origin: tuple[str, str]) -> None:
        """Finish a clone that is there already; raise NameTaken when it is something else."""
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

    # --- taking over -------------------------------------------------------------------------------------

    def list_manageable(self) -> Sequence[Manageable]:
        return [
            Manageable(reference=name, size_bytes=size, reason=_why_not(name))
            for name, size in self._cluster.sizes().items()
            if not name.startswith(GONE)
        ]

    def list_manageable_snapshots(self) -> Sequence[Manageable]:
        return [
            Manageable(reference=name, size_bytes=size, volume=image, reason=_why_not(name))
            for image, name, size in self._cluster.all_snapshots()
            if not name.startswith(_HELPER) and not image.startswith(GONE)
        ]

    def adopt_volume(self, reference: str, name: str) -> int:
        check_name(name)
        self._refuse_snapshot(name)
        with self._explained():
            # Grown before it is renamed: when there is no room it stays what it was.
            if reference != name and self._may_take(reference, name):
                whole = self._grow_to_whole(reference)
                self._cluster.rename(reference, name)
                self._forget(reference)
            else:
                whole = self._grow_to_whole(name)
        self._note(name)
        return whole

    def _grow_to_whole(self, image: str) -> int:
        size = self._cluster.info(image).size
        whole = max(1, -(-size // GIB))
        if size != whole * GIB:
            self._cluster.resize(image, whole * GIB)
        return whole

    def _may_take(self, reference: str, name: str) -> bool:
        """Say whether it waits to be renamed; False when a former life has done that."""
        if reason := _why_not(reference):
            raise BackendError(reason)
        taken = self._size(name) is not None
        if taken:
            if self._size(reference) is None:
                return False
            raise NameTaken(f"Volume {name} exists already.")
        self._refuse_open(reference)
        self._refuse_watched(reference)
        return True

    def adopt_snapshot(self, volume: str, reference: str, snapshot: str) -> None:
        check_name(volume)
        check_name(snapshot)
        if reason := _why_not(reference):
            raise BackendError(reason)
        with self._explained():
            there = self._cluster.snapshots(volume)
            if snapshot not in there:
                size = self._cluster.info(volume, reference).size
                if size != self._cluster.info(volume).size:
                    raise BackendError(f"Snapshot {reference} has {size / GIB:g} GiB, another size than {volume}.")
                if self._known().get(snapshot) is not None:
                    raise NameTaken(f"{snapshot} exists already.")
                self._cluster.rename_snapshot(volume, reference, snapshot)
                self._forget(reference)
        self._note(snapshot, volume)

    # --- names -------------------------------------------------------------------------------------------

    def _known(self) -> dict[str, str]:
        with self._lock:
            names = self._names
        if names is None:
            names = dict.fromkeys(self._cluster.names(), "")
            names |= {name: image for image, name, _size in self._cluster.all_snapshots()}
            with self._lock:  # another thread may have been quicker, and have noted something since
                self._names = names if self._names is None else self._names
                return self._names
        return names

    def _note(self, name: str, volume: str = "") -> None:
        self._known()[name] = volume

    def _forget(self, name: str) -> None:
        self._known().pop(name, None)

    def _refuse_snapshot(self, name: str) -> None:
        if name.startswith(GONE):
            raise BackendError(f"Names of volumes do not begin with {GONE}.")
        if volume := self._known().get(name):
            raise NameTaken(f"{name} is a snapshot of volume {volume}.")

    def _size(self, name: str) -> int | None:
        try:
            return self._cluster.info(name).size
        except VolumeMissing:
            return None

    def _is_there(self, name: str, size_gib: int) -> bool:
        """Say whether a volume exists with this size; what a kill left of one is removed. Raises NameTaken."""
        size = self._size(name)
        if size is None:
            with suppress(VolumeMissing):
                self._cluster.remove(name)
            return False
        if size != size_gib * GIB:
            raise NameTaken(f"Volume {name} exists with {size / GIB:g} GiB.")
        return True

    # --- who uses it, and errors ---------------------------------------------------------------------------

    @contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        """Remember that a volume is open: the cluster does not know of readers."""
        with self._lock:
            self._openers[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._openers[name] -= 1
                if not self._openers[name]:
                    del self._openers[name]

    def _refuse_open(self, name: str) -> None:
        with self._lock:
            is_open = name in self._openers
        if is_open:
            raise InUse(f"Volume {name} is open in this process.")

    def _refuse_watched(self, name: str) -> None:
        """Refuse what is open for writing, anywhere."""

        def look() -> None:
            if who := self._cluster.watchers(name):
                raise InUse(f"Volume {name} is open at {', '.join(who)}.")

        self._patiently(look)

    def _patiently(self, ask: Callable[[], None]) -> None:
        """Ask; ask again for a moment while an image is in use: a clone that is made independent in the background lets
        go of its parent, and has that open. Soon after our start longer: the cluster takes a client that was killed,
        which may be ourselves in a former life, for alive for half a minute."""
        until = max(self._born + _LINGERS_S, time.monotonic() + _LETS_GO_S)
        while True:
            try:
                return ask()
            except HasSnapshots:
                raise
            except InUse:
                if time.monotonic() > until:
                    raise
                time.sleep(0.25)

    @contextmanager
    def _undoing(self, undo: Callable[[], Any]) -> Iterator[None]:
        """Take back what was made when the rest fails, as far as the cluster lets us."""
        try:
            yield
        except BaseException:
            with suppress(BackendError):
                undo()
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Tell a full pool from a cluster that is away: both let calls wait until they are given up."""
        started = time.monotonic()
        try:
            yield
        except (Stuck, NoSpace) as exc:
            if isinstance(exc, Stuck):
                log.warning("backend %s: given up after %.0f s: %s", self.name, time.monotonic() - started, exc)
            try:
                figures = self._cluster.figures()
            except BackendError:
                raise exc from None
            if isinstance(exc, NoSpace) or figures.free <= figures.total // 50:
                raise NoSpace(
                    f"The pool {figures.pool or self._ceph_pool} is full: {figures.free / GIB:.1f} of"
                    f" {figures.total / GIB:.1f} GiB are free. {exc}"
                ) from exc
            raise


def _is_helper(snapshot: str) -> bool:
    """Return True if a snapshot is nobody's, and made only to clone a volume: by us, or by Cinder before us."""
    return snapshot.startswith(_HELPER) or bool(_HELPER_OF_CINDER.fullmatch(snapshot))


def _why_not(reference: str) -> str | None:
    if not _FOREIGN.fullmatch(reference):
        return f"The name {reference!r} cannot be used: it must not hold '/' or '@', nor begin with '-'."
    if reference.startswith((GONE, _HELPER)):
        return f"{reference} is what blockstore needs for clones."
    return None
