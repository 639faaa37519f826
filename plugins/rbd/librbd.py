"""Asks a cluster through librbd, by the Python bindings that Ceph's packages bring: one connection, no processes.

The bindings are not on PyPI. Those of the distribution are for its own Python; they are loaded from where they lie
when this interpreter has the same ABI, without letting in anything else that lies there.
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

from blockstore_plugins.rbd.cluster import OWNER, Figures, Info, Place, Stuck, below, explain, need_conf, no_pool
from blockstore_plugins.rbd.connections import Connection, connections
from blockstore_plugins.rbd.figures import figures_of, monitors_of

from blockstore.backends.contract import Progress
from blockstore.errors import BackendError, VolumeMissing

DISTRIBUTION = Path("/usr/lib/python3/dist-packages")

_GARDENER = ("blockstore-gardener", "alone", secrets.token_hex(8), "blockstore empties the trash")
"""The lock of who removes what is in the trash: object, name, cookie and description."""
_GARDENER_S = 120
"""How long it outlives a kill; longer than any removal should take."""
_RENEW = 1
"""LIBRADOS_LOCK_FLAG_RENEW, which the bindings do not name."""
_gardening: defaultdict[Place, threading.Lock] = defaultdict(threading.Lock)
"""The same, within this process."""

_lock = threading.Lock()


def bindings() -> tuple[Any, Any] | None:
    """Return the modules rados and rbd; None where there are none for this Python."""
    with _lock:
        found = [_module(name) for name in ("rados", "rbd")]  # rbd needs rados to be there
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
    """A pool, asked through librbd."""

    def __init__(self, place: Place, modules: tuple[Any, Any]):
        self._place = place
        self._rados, self._rbd = modules

    # --- the pool

    def prove(self) -> None:
        """Raise Unreachable unless the pool can be used."""
        need_conf(self._place)
        try:
            with self._asking(f"pool {self._place.spec}") as pool:
                self._rbd.RBD().list(pool)
                # librbd finds a namespace that is not there empty.
                if self._place.namespace and not self._rbd.RBD().namespace_exists(pool, self._place.namespace):
                    raise no_pool(self._place)
        except VolumeMissing as exc:
            raise no_pool(self._place) from exc

    def figures(self) -> Figures:
        """Return what the pool has."""
        quota = self._monitor(prefix="osd pool get-quota", pool=self._place.pool)
        return figures_of(self._place.pool, self._monitor(prefix="df"), quota)

    def identity(self) -> tuple[str, int]:
        """Return the cluster's id and the pool's."""
        need_conf(self._place)
        what = f"pool {self._place.spec}"
        with self._connected(what) as connection, self._explained(what):
            cluster = connection.cluster
            cluster.wait_for_latest_osdmap()
            pool_id = cluster.pool_lookup(self._place.pool)
            if pool_id is None:
                raise no_pool(self._place)
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
        for name in self.names():
            with suppress(VolumeMissing), self._image(name) as image:  # it went meanwhile
                found[name] = int(image.size())
        return found

    def all_snapshots(self) -> Sequence[tuple[str, str, int]]:
        """Return image, name and size of all snapshots."""
        found = []
        for name in self.names():
            with suppress(VolumeMissing), self._image(name) as image:
                found += [(name, str(row["name"]), int(row["size"])) for row in self._listed(image)]
        return found

    # --- images

    def create(self, image: str, size: int) -> None:
        """Make an image."""
        with self._asking(f"image {image}") as pool:
            self._rbd.RBD().create(pool, image, size)

    def info(self, image: str, snapshot: str = "") -> Info:
        """Return what is known of an image or snapshot."""
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
                raise explain(errno.EINVAL, f"image {image}", "it is larger than that")
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
        """Return who has an image open for writing."""
        with self._image(image) as opened:
            return [str(watcher["addr"]) for watcher in opened.watchers_list()]

    # --- snapshots

    def snapshots(self, image: str) -> Sequence[str]:
        """Return the snapshots of an image."""
        with self._image(image) as opened:
            return [str(row["name"]) for row in self._listed(opened)]

    def _listed(self, opened: Any) -> list[Mapping[str, Any]]:
        user = self._rbd.RBD_SNAP_NAMESPACE_TYPE_USER
        return [row for row in opened.list_snaps() if row["namespace"] == user]

    def snapshot(self, image: str, snapshot: str) -> None:
        """Make a snapshot."""
        with self._image(image, write=True, what=f"snapshot {snapshot} of {image}") as opened:
            opened.create_snap(snapshot)

    def remove_snapshot(self, image: str, snapshot: str) -> None:
        """Remove a snapshot."""
        with self._image(image, write=True, what=f"snapshot {snapshot} of {image}") as opened:
            opened.remove_snap(snapshot)

    def rename_snapshot(self, image: str, snapshot: str, to: str) -> None:
        """Rename a snapshot."""
        with self._image(image, write=True, what=f"snapshot {snapshot} of {image}") as opened:
            opened.rename_snap(snapshot, to)

    def rollback(self, image: str, snapshot: str, progress: Progress) -> None:
        """Give an image the bytes of its snapshot."""
        with self._image(image, write=True, what=f"snapshot {snapshot} of {image}") as opened:
            opened.rollback_to_snap(snapshot)
        progress(100)

    # --- clones

    def clone(self, image: str, snapshot: str, to: str) -> None:
        """Make an image of a snapshot."""
        with self._asking(f"{to}, a clone of snapshot {snapshot} of {image}") as pool:
            self._rbd.RBD().clone(pool, image, snapshot, pool, to)

    def parents(self) -> Mapping[str, str]:
        """Return the clones and what is below each."""
        found = {}
        for name in self.names():
            with suppress(VolumeMissing):
                found[name] = self.info(name)
        for image_id, name in self.trash().items():
            with suppress(VolumeMissing):
                found[name] = self.info_in_trash(image_id)
        return below(found)

    def flatten(self, image: str, progress: Progress) -> None:
        """Copy into a clone what it has of its parent."""
        stopped: list[BaseException] = []

        def tell(done: int, total: int) -> int:
            try:
                progress(min(100, done * 100 // max(1, total)))
            except BaseException as exc:  # it must not pass through librbd
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
        """Return what is in the trash."""
        with self._asking("the trash") as pool:
            return {str(row["id"]): str(row["name"]) for row in self._rbd.RBD().trash_list(pool)}

    def info_in_trash(self, image_id: str) -> Info:
        """Return what is known of an image in the trash."""
        what = f"image {image_id} in the trash"
        with self._asking(what) as pool:
            self._prove_there(pool, f"rbd_header.{image_id}")
            with self._rbd.Image(pool, image_id=image_id, read_only=True) as opened:
                return self._info(opened)

    @contextmanager
    def alone_in_trash(self) -> Iterator[None]:
        """Keep others off: librbd takes its process down when two remove the same image at once."""
        what = "the trash"
        with _gardening[self._place]:
            with self._asking(what) as pool, suppress(self._rados.ObjectExists):  # left by a thread that failed
                pool.lock_exclusive(*_GARDENER, duration=_GARDENER_S)
            try:
                yield
            finally:
                with suppress(BackendError), self._asking(what) as pool:
                    pool.unlock(*_GARDENER[:3])

    def to_trash(self, image: str) -> None:
        """Move an image to the trash."""
        with self._asking(f"image {image}") as pool:
            self._rbd.RBD().trash_move(pool, image)

    def remove_from_trash(self, image_id: str) -> None:
        """Remove an image that is in the trash."""
        with self._asking(f"image {image_id} in the trash") as pool:
            pool.lock_exclusive(*_GARDENER, duration=_GARDENER_S, flags=_RENEW)
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
        """Return what the object OWNER holds."""
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
            pool.write_full(OWNER, text)  # an empty one was left by programs that were killed

    def regions(self, image: str, size: int) -> Sequence[tuple[int, int]]:
        """Return what may hold data."""
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
        """Raise what opening an image would that is not there, by the objects that each has one of.

        Of a failed opening librbd 16 may free what another of its threads still holds: the process hangs, or aborts.
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
            code, said, error = connection.cluster.mon_command(json.dumps({**words, "format": "json"}), b"")
        if code:
            raise explain(abs(code), f"pool {self._place.spec}", error)
        return json.loads(said)

    @contextmanager
    def _asking(self, what: str) -> Iterator[Any]:
        """Give the pool; errors of Ceph's become ours, and a connection that is stuck is not used again."""
        with self._connected(what) as connection, self._explained(what):
            try:
                yield connection.pool(self._place.pool, self._place.namespace)
            except (self._rados.Error, self._rbd.Error) as exc:
                if isinstance(_explain(exc, what), Stuck):
                    connections.leave(connection)
                raise

    @contextmanager
    def _connected(self, what: str) -> Iterator[Connection]:
        def connect() -> Any:
            with self._explained(what):
                return self._connect()

        place = self._place
        key = (place.conf, place.cluster_name, place.user, place.keyring, place.timeout_s)
        with connections.use(key, connect) as connection:
            yield connection

    def _connect(self) -> Any:
        place = self._place
        conf = {
            **place.limits(),
            "rbd_default_clone_format": "2",
            "rbd_cache": "false",  # several may have a volume open, and each sees what the others wrote
        }
        if place.keyring is not None:
            conf["keyring"] = str(place.keyring)
        cluster = self._rados.Rados(
            conffile=str(place.conf), rados_id=place.user, clustername=place.cluster_name, conf=conf
        )
        cluster.connect()
        return cluster

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (self._rados.Error, self._rbd.Error) as exc:
            raise _explain(exc, what) from exc


def _explain(exc: Any, what: str) -> BackendError:
    code = abs(getattr(exc, "errno", None) or 0)
    return explain(code, what, str(exc.args[0]) if exc.args else type(exc).__name__)


class ImageFile(io.RawIOBase):
    """An open image, as an unbuffered file that writing cannot make larger."""

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
        """Read at a position; several threads may, at once."""
        with self._explained("an open image"):
            length = min(length, max(0, self._image.size() - offset))
            data: bytes = self._image.read(offset, length) if length else b""
        return data

    def pwrite(self, data: Any, offset: int) -> int:
        """Write at a position; several threads may, at once."""
        if not self._write:
            raise io.UnsupportedOperation("It is open for reading only.")
        with self._explained("an open image"):
            room = self._image.size() - offset
            if len(data) and room <= 0:
                raise OSError(errno.ENOSPC, "This is past the end of the volume.")
            whole = isinstance(data, bytes) and len(data) <= room
            return int(self._image.write(data if whole else bytes(memoryview(data).cast("B")[:room]), offset))

    def flush(self) -> None:
        if self._write and not self.closed:
            with self._explained("an open image"):
                self._image.flush()

    def truncate(self, _size: int | None = None) -> int:
        raise io.UnsupportedOperation("The size of a volume is changed by extend_volume only.")
