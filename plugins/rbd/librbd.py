"""Accesses a cluster through librbd, by Ceph's own Python bindings: one connection, no processes.

The bindings are not on PyPI. The distribution packages them for its own Python. If this interpreter has the same ABI,
they are loaded from the distribution's directory; no other module of that directory becomes importable.
"""

from __future__ import annotations

import errno
import importlib
import importlib.machinery
import importlib.util
import io
import json
import os
import secrets
import sys
import sysconfig
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from blockstore_plugins.rbd import access
from blockstore_plugins.rbd.cluster import (
    OWNER,
    TRASH,
    Info,
    PoolAccess,
    PoolStats,
    Stuck,
    clone_name,
    explain,
    remove_for_good,
)
from blockstore_plugins.rbd.connections import ClusterConnection, connections
from blockstore_plugins.rbd.headers import Headers, Parent
from blockstore_plugins.rbd.pool_stats import data_pool_of, monitors_of, stats_with

from blockstore.backends.contract import Progress
from blockstore.errors import BackendError, VolumeMissing

DISTRIBUTION = Path("/usr/lib/python3/dist-packages")

_TRASH_LOCK = ("blockstore-gardener", "alone", secrets.token_hex(8), "blockstore empties the trash")
"""The lock for removing images from the trash: object, name, cookie and description."""
_TRASH_LOCK_S = 120
"""Duration of the lock, in seconds, after its holder was killed; longer than any removal should take."""
_RENEW = 1
"""LIBRADOS_LOCK_FLAG_RENEW, which the bindings do not name."""
_FULL_FORCE = 128
"""LIBRADOS_OPERATION_FULL_FORCE, which the bindings do not name."""
_NOT_ALLOWED = (errno.EACCES, errno.EPERM)
"""Errors for missing caps; only a new connection gets new caps from the cluster."""
_trash_locks: defaultdict[PoolAccess, threading.Lock] = defaultdict(threading.Lock)
"""The same lock within this process, by pool."""

_lock = threading.Lock()


def bindings() -> tuple[Any, Any] | None:
    """Return the modules rados and rbd; None if this Python cannot load them."""
    with _lock:
        found = [_module(name) for name in ("rados", "rbd")]  # rbd needs rados to be loaded
    return None if None in found else (found[0], found[1])


def _module(name: str) -> Any:
    with suppress(ImportError):
        return importlib.import_module(name)
    file = DISTRIBUTION / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not file.exists():
        return None
    loader = importlib.machinery.ExtensionFileLoader(name, str(file))
    spec = importlib.util.spec_from_file_location(name, file, loader=loader)
    if spec is None:
        return None
    try:
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        loader.exec_module(module)
    except ImportError:
        sys.modules.pop(name, None)
        return None
    return module


class Librbd:
    """A pool, accessed through librbd."""

    def __init__(self, place: PoolAccess, modules: tuple[Any, Any]):
        self._place = place
        self._rados, self._rbd = modules
        self._may_blocklist = False

    # --- the pool

    def prove(self) -> None:
        """Raise Unreachable unless the pool can be used."""
        access.need_conf(self._place)
        access.need_keyring(self._place)
        with self._asking(f"pool {self._place.spec}") as pool:
            self._rbd.RBD().list(pool)
            # librbd lists a missing namespace as empty.
            if self._place.namespace and not self._rbd.RBD().namespace_exists(pool, self._place.namespace):
                raise access.no_pool(self._place)
            self._prepare_for_full(pool)
        data_pool = self._data_pool()
        if data_pool:
            self._prove_data_pool(data_pool)
        if not self._may_blocklist:
            self._prove_may_blocklist()
            self._may_blocklist = True

    def _prepare_for_full(self, pool: Any) -> None:
        """Make the objects that removing images needs, even if the pool is full already: a full pool takes no new
        objects."""
        for name in (TRASH, _TRASH_LOCK[0]):
            try:
                pool.stat(name)
            except self._rados.ObjectNotFound:
                with self._rados.WriteOpCtx() as op:
                    op.new(0)
                    pool.operate_write_op(op, name, flags=_FULL_FORCE)

    def _prove_data_pool(self, data_pool: str) -> None:
        what = f"pool {data_pool}"
        with self._connected(what) as connection, self._explained(what):
            try:
                self._rbd.RBD().list(connection.pool(data_pool, self._place.namespace))
            except (self._rados.ObjectNotFound, self._rados.PermissionDeniedError, self._rbd.PermissionError) as exc:
                connections.leave(connection)
                raise access.no_data_pool(self._place, data_pool) from exc

    def _prove_may_blocklist(self) -> None:
        what = f"client.{self._place.user}"
        for command in access.BLOCKLIST:
            words = {"prefix": command, f"{command.split()[1]}op": "add", "addr": access.UNPARSABLE, "expire": 1.0}
            with self._connected(what) as connection, self._explained(what):
                code, _out, message = connection.cluster.mon_command(json.dumps(words), b"")
                if abs(code) in _NOT_ALLOWED:
                    connections.leave(connection)
                    raise access.may_not_blocklist(self._place)
            if abs(code) == errno.ETIMEDOUT:
                raise explain(errno.ETIMEDOUT, what, message)
            if not access.is_unknown(message):
                return

    def _data_pool(self) -> str:
        """Return the data pool of new images; empty if the data is in the pool itself."""
        if self._place.data_pool:
            return self._place.data_pool
        with self._asking(f"pool {self._place.spec}") as pool:
            return data_pool_of(self._place.pool, self._rbd.RBD().config_list(pool))

    def stats(self) -> PoolStats:
        """Return the capacity of the pool, or of the data pool if there is one."""
        return stats_with(
            self._place.pool,
            self._data_pool(),
            self._monitor(prefix="df"),
            lambda pool: self._monitor(prefix="osd pool get-quota", pool=pool),
        )

    def identity(self) -> tuple[str, int]:
        """Return the cluster's id and the pool's id."""
        access.need_conf(self._place)
        what = f"pool {self._place.spec}"
        with self._connected(what) as connection, self._explained(what):
            cluster = connection.cluster
            cluster.wait_for_latest_osdmap()
            pool_id = cluster.pool_lookup(self._place.pool)
            if pool_id is None:
                raise access.no_pool(self._place)
            connection.keep_pool(self._place.pool, int(pool_id))
            return str(cluster.get_fsid()), int(pool_id)

    def monitors(self) -> tuple[str, Sequence[tuple[str, str]]]:
        """Return the cluster's id and its monitors."""
        return monitors_of(self._monitor(prefix="mon dump"))

    def names(self) -> Sequence[str]:
        """Return the images."""
        with self._asking(f"pool {self._place.spec}") as pool:
            return list(self._rbd.RBD().list(pool))

    def sizes(self) -> Mapping[str, int]:
        """Return the images with their sizes."""
        found = {}
        for name, image_id in self._ids().items():
            with suppress(VolumeMissing), self._headers(f"image {name}") as headers:  # removed meanwhile
                found[name] = headers.size(image_id) if image_id else self.info(name).size
        return found

    def all_snapshots(self) -> Sequence[tuple[str, str, int]]:
        """Return image, name and size of all snapshots."""
        found = []
        for name, image_id in self._ids().items():
            with suppress(VolumeMissing), self._headers(f"image {name}") as headers:
                snapshots = headers.snapshots(image_id) if image_id else self._snapshots_of_old(name)
                found += [(name, snapshot, size) for snapshot, size in snapshots]
        return found

    def _ids(self) -> Mapping[str, str]:
        """Return the images with their ids; the id is empty for an image of format 1."""
        with self._asking(f"pool {self._place.spec}") as pool:
            return {str(row["name"]): str(row["id"]) for row in self._rbd.RBD().list2(pool)}

    @contextmanager
    def _headers(self, what: str) -> Iterator[Headers]:
        with self._asking(what) as pool:
            yield Headers(pool)

    # --- images

    def create(self, image: str, size: int) -> None:
        """Make an image."""
        with self._asking(f"image {image}") as pool:
            self._rbd.RBD().create(pool, image, size, data_pool=self._place.data_pool or None)

    def info(self, image: str, snapshot: str = "") -> Info:
        """Return size and parent of an image or snapshot."""
        with self._image(image, snapshot) as opened:
            return self._info(opened)

    def _info(self, opened: Any) -> Info:
        size = int(opened.size())
        try:
            parent = opened.get_parent_image_spec()
        except self._rbd.ImageNotFound:
            return Info(size, None, is_clone=False)
        here = None
        at = (parent["pool_name"], parent.get("pool_namespace") or "")
        if at == (self._place.pool, self._place.namespace):
            here = (str(parent["image_name"]), str(parent["snap_name"]))
        return Info(size, here, is_clone=True)

    def resize(self, image: str, size: int) -> None:
        """Grow an image."""
        with self._image(image, write=True) as opened:
            if opened.size() > size:
                raise explain(errno.EINVAL, f"image {image}", "it is larger already")
            opened.resize(size)

    def remove(self, image: str) -> None:
        """Remove an image."""
        with self._asking(f"image {image}") as pool:
            self._rbd.RBD().remove(pool, image)

    def rename(self, image: str, to: str) -> None:
        """Rename an image."""
        with self._asking(f"image {image} to {to}") as pool:
            self._rbd.RBD().rename(pool, image, to)

    def watchers(self, image: str) -> Sequence[str]:
        """Return the addresses of the clients that have an image open for writing."""
        with self._image(image) as opened:
            return [str(watcher["addr"]) for watcher in opened.watchers_list()]

    # --- snapshots

    def snapshots(self, image: str) -> Sequence[str]:
        """Return the snapshots of an image."""
        with self._headers(f"image {image}") as headers:
            try:
                image_id = headers.image_id(image)
            except self._rados.ObjectNotFound:
                return [name for name, _size in self._snapshots_of_old(image)]
            return [name for name, _size in headers.snapshots(image_id)]

    def _snapshots_of_old(self, image: str) -> Sequence[tuple[str, int]]:
        with self._image(image) as opened:
            return [(str(row["name"]), int(row["size"])) for row in opened.list_snaps()]

    def snapshot(self, image: str, snapshot: str) -> None:
        """Make a snapshot."""
        with self._image(image, write=True, what=f"snapshot {snapshot} of {image}") as opened:
            opened.create_snap(snapshot)

    def remove_snapshot(self, image: str, snapshot: str) -> None:
        """Remove a snapshot."""
        remove_for_good(self, image, snapshot)

    def ask_to_remove_snapshot(self, image: str, snapshot: str) -> None:
        """Ask for the removal of a snapshot."""
        with self._image(image, write=True, what=f"snapshot {snapshot} of {image}") as opened:
            opened.remove_snap(snapshot)

    def is_protected(self, image: str, snapshot: str) -> bool:
        """Return True if a snapshot is protected."""
        with self._image(image, what=f"snapshot {snapshot} of {image}") as opened:
            return bool(opened.is_protected_snap(snapshot))

    def unprotect(self, image: str, snapshot: str) -> None:
        """Unprotect a snapshot."""
        with self._image(image, write=True, what=f"snapshot {snapshot} of {image}") as opened:
            opened.unprotect_snap(snapshot)

    def old_clones(self, image: str, snapshot: str) -> Sequence[str]:
        """Return the clones of format 1 of a snapshot."""
        with self._image(image, snapshot) as opened:
            clones = list(opened.list_children2())
        return [name for clone in clones if (name := self._old_clone(clone))]

    def _old_clone(self, clone: Mapping[str, Any]) -> str | None:
        pool, namespace = str(clone["pool"]), str(clone.get("pool_namespace") or "")
        what = f"pool {pool}"
        # The user may not be allowed to read the clone's pool.
        with suppress(BackendError), self._connected(what) as connection, self._explained(what):
            if Headers(connection.pool(pool, namespace)).is_of_new_format(str(clone["id"])):
                return None
        return clone_name(pool, namespace, clone)

    def rename_snapshot(self, image: str, snapshot: str, to: str) -> None:
        """Rename a snapshot."""
        with self._image(image, write=True, what=f"snapshot {snapshot} of {image}") as opened:
            opened.rename_snap(snapshot, to)

    def rollback(self, image: str, snapshot: str, progress: Progress) -> None:
        """Restore an image from its snapshot."""
        with self._image(image, write=True, what=f"snapshot {snapshot} of {image}") as opened:
            opened.rollback_to_snap(snapshot)
        progress(100)

    # --- clones

    def clone(self, image: str, snapshot: str, to: str) -> None:
        """Make an image from a snapshot."""
        with self._asking(f"{to}, a clone of snapshot {snapshot} of {image}") as pool:
            self._rbd.RBD().clone(pool, image, snapshot, pool, to, data_pool=self._place.data_pool or None)

    def parents(self) -> Mapping[str, str]:
        """Return the parent image of each clone."""
        trash = self.trash()
        names = {**{image_id: name for name, image_id in self._ids().items() if image_id}, **trash}
        found = {}
        for image_id, name in names.items():
            with suppress(VolumeMissing), self._headers(f"image {name}") as headers:
                if parent := headers.parent(image_id):
                    found[name] = names.get(parent.image_id, "") if self._is_here(parent) else ""
        return found

    def parent(self, image: str) -> str | None:
        """Return the parent image of a clone."""
        with self._headers(f"image {image}") as headers:
            try:
                image_id = headers.image_id(image)
            except self._rados.ObjectNotFound:
                ids = [image_id for image_id, name in self.trash().items() if name == image]
                if not ids:
                    return None
                (image_id,) = ids[:1]
            try:
                parent = headers.parent(image_id)
                if parent is None:
                    return None
                return self._name(headers, parent.image_id) if self._is_here(parent) else ""
            except self._rados.ObjectNotFound:  # removed meanwhile
                return None

    def _name(self, headers: Headers, image_id: str) -> str:
        try:
            return headers.name(image_id)
        except self._rados.ObjectNotFound:
            return self.trash().get(image_id, "")

    def _is_here(self, parent: Parent) -> bool:
        with self._asking(f"pool {self._place.spec}") as pool:
            return (parent.pool_id, parent.namespace) == (pool.get_pool_id(), self._place.namespace)

    def flatten(self, image: str, progress: Progress) -> None:
        """Copy the data that a clone shares with its parent into the clone."""
        stopped: list[BaseException] = []

        def tell(done: int, total: int) -> int:
            try:
                progress(min(100, done * 100 // max(1, total)))
            except BaseException as exc:  # exceptions must not pass through librbd
                stopped[:] = [exc]
                return -errno.ECANCELED
            return 0

        try:
            with self._image(image, write=True) as opened:
                opened.flatten(on_progress=tell)
        except BackendError:
            if not stopped:
                raise
        if stopped:
            raise stopped[0]

    def trash(self) -> Mapping[str, str]:
        """Return id and name of each image in the trash."""
        with self._asking("the trash") as pool:
            return {str(row["id"]): str(row["name"]) for row in self._rbd.RBD().trash_list(pool)}

    @contextmanager
    def alone_in_trash(self) -> Iterator[None]:
        """Hold the lock of the trash: librbd crashes its process when two clients remove the same image at once."""
        what = "the trash"
        with _trash_locks[self._place]:
            with self._asking(what) as pool, suppress(self._rados.ObjectExists):  # left by a failed thread
                pool.lock_exclusive(*_TRASH_LOCK, duration=_TRASH_LOCK_S)
            try:
                yield
            finally:
                with suppress(BackendError), self._asking(what) as pool:
                    pool.unlock(*_TRASH_LOCK[:3])

    def to_trash(self, image: str) -> None:
        """Move an image to the trash."""
        with self._asking(f"image {image}") as pool:
            self._rbd.RBD().trash_move(pool, image)

    def remove_from_trash(self, image_id: str) -> None:
        """Remove an image that is in the trash."""
        with self._asking(f"image {image_id} in the trash") as pool:
            pool.lock_exclusive(*_TRASH_LOCK, duration=_TRASH_LOCK_S, flags=_RENEW)
            self._rbd.RBD().trash_remove(pool, image_id)

    def set_options(self, image: str, options: Mapping[str, str | None]) -> None:
        """Set options of an image."""
        with self._image(image, write=True) as opened:
            for name, value in options.items():
                key = f"conf_{name}"
                if value is not None:
                    opened.metadata_set(key, value)
                else:
                    with suppress(KeyError):
                        opened.metadata_remove(key)

    # --- bytes

    def owner(self) -> str | None:
        """Return the content of the object OWNER."""
        with suppress(VolumeMissing), self._asking(f"object {OWNER}") as pool:
            return pool.read(OWNER, 64).decode("ascii", "replace").strip() or None
        return None

    def set_owner(self, owner: str | None, *, replace: bool) -> None:
        """Write the object OWNER, or remove it."""
        with self._asking(f"object {OWNER}") as pool:
            if owner is None:
                with suppress(self._rados.ObjectNotFound):
                    pool.remove_object(OWNER)
                return
            text = f"{owner}\n".encode()
            if not replace:
                try:
                    with self._rados.WriteOpCtx() as op:
                        op.new(self._rados.LIBRADOS_CREATE_EXCLUSIVE)
                        op.write_full(text)
                        pool.operate_write_op(op, OWNER)
                    return
                except self._rados.ObjectExists:
                    if pool.read(OWNER, 64):
                        return
            pool.write_full(OWNER, text)  # an empty object was left by killed programs

    def regions(self, image: str, size: int) -> Sequence[tuple[int, int]]:
        """Return the regions that may hold data."""
        found: list[tuple[int, int]] = []

        def note(offset: int, length: int, exists: bool) -> None:
            if exists:
                found.append((offset, length))

        with self._image(image) as opened:
            opened.diff_iterate(0, min(size, opened.size()), None, note, True, True)
        return sorted(found)

    @contextmanager
    def open(self, image: str, snapshot: str, *, write: bool) -> Iterator[BinaryIO]:
        """Open the bytes."""
        with self._image(image, snapshot, write=write) as opened:
            file = ImageFile(opened, self._explained, write=write)
            yield cast(BinaryIO, file)
            file.flush()

    # --- the connection

    @contextmanager
    def _image(self, image: str, snapshot: str = "", *, write: bool = False, what: str = "") -> Iterator[Any]:
        what = what or (f"snapshot {snapshot} of {image}" if snapshot else f"image {image}")
        with self._asking(what) as pool:
            self._prove_there(pool, f"rbd_id.{image}", f"{image}.rbd")
            opened = self._rbd.Image(pool, image, read_only=not write)
            try:
                if snapshot:
                    opened.set_snap(snapshot)
                yield opened
            finally:
                opened.close()

    def _prove_there(self, pool: Any, *objects: str) -> None:
        """Raise ObjectNotFound if an image is missing; each image has one of these objects.

        If opening an image fails, librbd 16 may free memory that another of its threads still uses: the process hangs
        or aborts.
        """
        for name in objects:
            try:
                pool.stat(name)
            except self._rados.ObjectNotFound:
                if name == objects[-1]:
                    raise
            else:
                return

    def _monitor(self, **words: str) -> Any:
        what = f"pool {self._place.spec}"
        with self._connected(what) as connection, self._explained(what):
            code, output, error = connection.cluster.mon_command(json.dumps({**words, "format": "json"}), b"")
        if code:
            raise explain(abs(code), f"pool {self._place.spec}", error)
        return json.loads(output)

    @contextmanager
    def _asking(self, what: str) -> Iterator[Any]:
        """Give the pool; translate Ceph's errors, and do not use a stuck connection again."""
        with self._connected(what) as connection, self._explained(what):
            try:
                pool = connection.pool(self._place.pool, self._place.namespace)
            except self._rados.ObjectNotFound as exc:
                raise access.no_pool(self._place) from exc
            try:
                yield pool
            except (self._rados.Error, self._rbd.Error) as exc:
                if isinstance(_explain(exc, what), Stuck) or _code(exc) in _NOT_ALLOWED:
                    connections.leave(connection)
                raise

    @contextmanager
    def _connected(self, what: str) -> Iterator[ClusterConnection]:
        def connect() -> Any:
            with self._explained(what):
                return self._connect()

        place = self._place
        key = (place.conf, place.cluster_name, place.user, place.keyring, place.timeout_s)
        with connections.use(key, connect) as connection:
            yield connection

    def _connect(self) -> Any:
        place = self._place
        access.need_keyring(place)
        conf = {
            **place.limits(),
            "rbd_default_clone_format": "2",
            "rbd_cache": "false",  # several clients may have a volume open and must see each other's writes
        }
        if place.keyring is not None:
            conf["keyring"] = str(place.keyring)
        cluster = self._rados.Rados(
            conffile=str(place.conf), rados_id=place.user, clustername=place.cluster_name, conf=conf
        )
        try:
            cluster.connect()
        except self._rados.Error as exc:
            searched = str(cluster.conf_get("keyring") or "").split(",")
            raise access.not_connected(place, _code(exc), _said(exc), searched) from exc
        return cluster

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (self._rados.Error, self._rbd.Error) as exc:
            raise _explain(exc, what) from exc


def _explain(exc: Any, what: str) -> BackendError:
    return explain(_code(exc), what, _said(exc))


def _code(exc: Any) -> int:
    return abs(int(getattr(exc, "errno", None) or 0))


def _said(exc: Any) -> str:
    return str(exc.args[0]) if exc.args else type(exc).__name__


class ImageFile(io.RawIOBase):
    """An open image, as an unbuffered file of fixed size."""

    def __init__(self, image: Any, explained: Any, *, write: bool):
        self._image = image
        self._explained = explained
        self._write = write
        self._position = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return self._write

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        self._position = max(0, (self._image.size() if start is None else start) + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        part = memoryview(buffer).cast("B")
        data = self.read(len(part))
        part[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        data = self.pread(self._image.size() if size < 0 else size, self._position)
        self._position += len(data)
        return data

    def write(self, data: Any) -> int:
        written = self.pwrite(data, self._position)
        self._position += written
        return written

    def pread(self, length: int, offset: int) -> bytes:
        """Read at a position; safe for several threads at once."""
        with self._explained("an open image"):
            length = min(length, max(0, self._image.size() - offset))
            data: bytes = self._image.read(offset, length) if length else b""
        return data

    def pwrite(self, data: Any, offset: int) -> int:
        """Write at a position; safe for several threads at once."""
        if not self._write:
            raise io.UnsupportedOperation("It is open for reading only.")
        with self._explained("an open image"):
            space = self._image.size() - offset
            if len(data) and space <= 0:
                raise OSError(errno.ENOSPC, "This is past the end of the volume.")
            whole = isinstance(data, bytes) and len(data) <= space
            return int(self._image.write(data if whole else bytes(memoryview(data).cast("B")[:space]), offset))

    def flush(self) -> None:
        if self._write and not self.closed:
            with self._explained("an open image"):
                self._image.flush()

    def truncate(self, _size: int | None = None) -> int:
        raise io.UnsupportedOperation("The size of a volume is changed by extend_volume only.")
