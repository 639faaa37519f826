"""Accesses a cluster through ``rbd`` and ``ceph`` of ceph-common: builds argv, interprets exit codes and JSON.

A call takes about 60 ms. Where Ceph's Python bindings are installed, ``librbd.py`` is used instead.
"""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from blockstore_plugins.rbd import access
from blockstore_plugins.rbd.cluster import (
    LONG_S,
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
from blockstore_plugins.rbd.nbd_file import NbdFile
from blockstore_plugins.rbd.pool_stats import data_pool_of, monitors_of, stats_with

from blockstore.backends.contract import Progress
from blockstore.backends.process import follow, have, missing_tool, run
from blockstore.errors import BackendError, NameTaken, ToolFailed, ToolTimeout, Unreachable, VolumeMissing

PACKAGE = "ceph-common"

_ERRNO = re.compile(r"\[errno (\d+)\]|: \((\d+)\) ")
_NOT_CONNECTED = re.compile(r"couldn't connect to (?:the )?cluster(?:: \((\d+)\))?|error connecting to the cluster")
_NO_POOL = "error opening pool"
_KEYRINGS = re.compile(r"unable to find a keyring on ([^:\n]+):")


class Commands:
    """A pool, accessed through programs."""

    def __init__(self, place: PoolAccess):
        self._place = place
        self._who = ["--conf", str(place.conf), "--id", place.user, "--cluster", place.cluster_name]
        if place.keyring is not None:
            self._who += ["--keyring", str(place.keyring)]
        self._limits = [
            word for name, value in place.limits().items() for word in (f"--{name.replace('_', '-')}", value)
        ]
        self._is_prepared = False
        self._data_pool: str | None = None
        """The data pool as found by the last health check."""

    # --- the pool

    def prove(self) -> None:
        """Raise Unreachable unless the pool can be used."""
        _need_tools()
        access.need_conf(self._place)
        access.need_keyring(self._place)
        with ThreadPoolExecutor(4) as threads:  # each check runs a program, which is slow to start
            futures: list[Future[str | None]] = [threads.submit(self._prove_pool), threads.submit(self._find_data_pool)]
            if not self._is_prepared:
                futures += [threads.submit(self._prepare_for_full), threads.submit(self._prove_may_blocklist)]
            _, found, *_ = [future.result() for future in futures]
        self._data_pool = found or ""
        self._is_prepared = True
        if self._data_pool:
            self._prove_data_pool(self._data_pool)

    def _prove_pool(self) -> None:
        try:
            self._rbd("ls", self._place.spec, what=f"pool {self._place.spec}")
        except VolumeMissing as exc:  # the namespace
            raise access.no_pool(self._place) from exc

    def _prepare_for_full(self) -> None:
        with suppress(NameTaken, Stuck):  # Stuck: the pool is full already
            self._rados(TRASH, "create")

    def _prove_data_pool(self, data_pool: str) -> None:
        try:
            self._rbd("ls", data_pool, what=f"pool {data_pool}")
        except (VolumeMissing, Unreachable) as exc:
            raise access.no_data_pool(self._place, data_pool) from exc

    def _prove_may_blocklist(self) -> None:
        for command in access.BLOCKLIST:
            argv = ("ceph", *self._who, "--connect-timeout", str(self._place.timeout_s), *command.split())
            try:
                run((*argv, "add", access.UNPARSABLE, "1"), timeout_s=self._place.timeout_s + 5, package=PACKAGE)
            except ToolTimeout as exc:
                raise Stuck(f"The Ceph cluster does not answer, with client.{self._place.user}: {exc}") from exc
            except ToolFailed as exc:
                if exc.code in (errno.EACCES, errno.EPERM):
                    raise access.may_not_blocklist(self._place) from exc
                if access.is_unknown(exc.stderr):
                    continue
            return

    def _find_data_pool(self) -> str:
        """Return the data pool of new images; empty if the data is in the pool itself."""
        if self._place.data_pool:
            return self._place.data_pool
        options = self._json("config", "pool", "ls", self._place.pool, what=f"pool {self._place.pool}")
        return data_pool_of(self._place.pool, options)

    def stats(self) -> PoolStats:
        """Return the capacity of the pool, or of the data pool if there is one."""
        return stats_with(
            self._place.pool,
            self._find_data_pool() if self._data_pool is None else self._data_pool,
            self._ceph("df"),
            lambda pool: self._ceph("osd", "pool", "get-quota", pool),
        )

    def identity(self) -> tuple[str, int]:
        """Return the cluster's id and the pool's id."""
        _need_tools()
        access.need_conf(self._place)
        dump = self._ceph("osd", "dump")
        for pool in dump["pools"]:
            if pool["pool_name"] == self._place.pool:
                return str(dump["fsid"]), int(pool["pool"])
        raise access.no_pool(self._place)

    def monitors(self) -> tuple[str, Sequence[tuple[str, str]]]:
        """Return the cluster's id and its monitors."""
        return monitors_of(self._ceph("mon", "dump"))

    def names(self) -> Sequence[str]:
        """Return the images."""
        return [str(name) for name in self._json("ls", self._place.spec, what=f"pool {self._place.spec}")]

    def sizes(self) -> Mapping[str, int]:
        """Return the images with their sizes."""
        return {str(row["image"]): int(row["size"]) for row in self._long() if "snapshot" not in row}

    def all_snapshots(self) -> Sequence[tuple[str, str, int]]:
        """Return image, name and size of all snapshots."""
        return [
            (str(row["image"]), str(row["snapshot"]), int(row["size"])) for row in self._long() if "snapshot" in row
        ]

    def _long(self) -> Sequence[Mapping[str, Any]]:
        rows: Sequence[Mapping[str, Any]] = self._json(
            "ls", "--long", self._place.spec, what=f"pool {self._place.spec}", timeout_s=LONG_S
        )
        return rows

    # --- images

    def create(self, image: str, size: int) -> None:
        """Make an image."""
        self._rbd("create", "--size", f"{size}B", *self._data(), self._at(image), what=f"image {image}")

    def _data(self) -> Sequence[str]:
        return ("--data-pool", self._place.data_pool) if self._place.data_pool else ()

    def info(self, image: str, snapshot: str = "") -> Info:
        """Return size and parent of an image or snapshot."""
        return self._info(self._json("info", self._at(image, snapshot), what=_name(image, snapshot)))

    def _info(self, found: Mapping[str, Any]) -> Info:
        parent = found.get("parent")
        here = None
        if parent and (parent["pool"], parent.get("pool_namespace", "")) == (self._place.pool, self._place.namespace):
            here = (str(parent["image"]), str(parent["snapshot"]))
        return Info(int(found["size"]), here, bool(parent))

    def resize(self, image: str, size: int) -> None:
        """Grow an image."""
        self._rbd("resize", "--no-progress", "--size", f"{size}B", self._at(image), what=f"image {image}")

    def remove(self, image: str) -> None:
        """Remove an image."""
        self._rbd("rm", "--no-progress", self._at(image), what=f"image {image}", timeout_s=LONG_S)

    def rename(self, image: str, to: str) -> None:
        """Rename an image."""
        self._rbd("rename", self._at(image), self._at(to), what=f"image {image} to {to}")

    def watchers(self, image: str) -> Sequence[str]:
        """Return the addresses of the clients that have an image open for writing."""
        found = self._json("status", self._at(image), what=f"image {image}")
        return [str(watcher["address"]) for watcher in found.get("watchers", ())]

    # --- snapshots

    def snapshots(self, image: str) -> Sequence[str]:
        """Return the snapshots of an image."""
        return [str(row["name"]) for row in self._json("snap", "ls", self._at(image), what=f"image {image}")]

    def snapshot(self, image: str, snapshot: str) -> None:
        """Make a snapshot."""
        self._snap("create", image, snapshot)

    def remove_snapshot(self, image: str, snapshot: str) -> None:
        """Remove a snapshot."""
        remove_for_good(self, image, snapshot)

    def ask_to_remove_snapshot(self, image: str, snapshot: str) -> None:
        """Ask for the removal of a snapshot."""
        self._snap("rm", image, snapshot, timeout_s=LONG_S)

    def is_protected(self, image: str, snapshot: str) -> bool:
        """Return True if a snapshot is protected."""
        found = self._json("info", self._at(image, snapshot), what=_name(image, snapshot))
        return str(found.get("protected")).lower() == "true"

    def unprotect(self, image: str, snapshot: str) -> None:
        """Unprotect a snapshot."""
        self._rbd("snap", "unprotect", self._at(image, snapshot), what=_name(image, snapshot))

    def old_clones(self, image: str, snapshot: str) -> Sequence[str]:
        """Return the clones of format 1 of a snapshot."""
        clones = self._json("children", "--all", self._at(image, snapshot), what=_name(image, snapshot))
        return [name for clone in clones if (name := self._old_clone(clone))]

    def _old_clone(self, clone: Mapping[str, Any]) -> str | None:
        pool, namespace = str(clone["pool"]), str(clone.get("pool_namespace") or "")
        where = ("--pool", pool, "--namespace", namespace, "--image-id", str(clone["id"]))
        with suppress(BackendError):  # the user may not be allowed to read the clone's pool
            if "clone-child" in self._json("info", *where, what=f"image {clone['image']}").get("op_features", ()):
                return None
        return clone_name(pool, namespace, clone)

    def rename_snapshot(self, image: str, snapshot: str, to: str) -> None:
        """Rename a snapshot."""
        self._rbd("snap", "rename", self._at(image, snapshot), self._at(image, to), what=_name(image, snapshot))

    def rollback(self, image: str, snapshot: str, progress: Progress) -> None:
        """Restore an image from its snapshot."""
        self._follow("snap", "rollback", self._at(image, snapshot), what=_name(image, snapshot), progress=progress)

    def _snap(self, verb: str, image: str, snapshot: str, *, timeout_s: float | None = None) -> None:
        words = ("snap", verb, "--no-progress", self._at(image, snapshot))
        self._rbd(*words, what=_name(image, snapshot), timeout_s=timeout_s)

    # --- clones

    def clone(self, image: str, snapshot: str, to: str) -> None:
        """Make an image from a snapshot."""
        words = ("clone", "--rbd-default-clone-format", "2", *self._data(), self._at(image, snapshot), self._at(to))
        self._rbd(*words, what=f"{to}, a clone of {_name(image, snapshot)}")

    def parents(self) -> Mapping[str, str]:
        """Return the parent image of each clone."""
        found = {str(row["image"]): self._info(row) for row in self._long() if "snapshot" not in row}
        for image_id, name in self.trash().items():
            with suppress(VolumeMissing):
                found[name] = self._info_in_trash(image_id)
        return {name: one.parent[0] if one.parent else "" for name, one in found.items() if one.is_clone}

    def parent(self, image: str) -> str | None:
        """Return the parent image of a clone."""
        try:
            found = self.info(image)
        except VolumeMissing:
            ids = [image_id for image_id, name in self.trash().items() if name == image]
            if not ids:
                return None
            found = self._info_in_trash(ids[0])
        return found.parent[0] if found.parent else "" if found.is_clone else None

    def flatten(self, image: str, progress: Progress) -> None:
        """Copy the data that a clone shares with its parent into the clone."""
        self._follow("flatten", self._at(image), what=f"image {image}", progress=progress)

    def trash(self) -> Mapping[str, str]:
        """Return id and name of each image in the trash."""
        rows = self._json("trash", "ls", self._place.spec, what="the trash")
        return {str(row["id"]): str(row["name"]) for row in rows}

    def _info_in_trash(self, image_id: str) -> Info:
        where = ("--pool", self._place.pool, "--namespace", self._place.namespace)
        what = f"image {image_id} in the trash"
        return self._info(self._json("info", "--image-id", image_id, *where, what=what))

    def alone_in_trash(self) -> AbstractContextManager[None]:
        """Do nothing: if two programs remove the same image, one of them fails."""
        return nullcontext()

    def to_trash(self, image: str) -> None:
        """Move an image to the trash."""
        self._rbd("trash", "mv", self._at(image), what=f"image {image}")

    def remove_from_trash(self, image_id: str) -> None:
        """Remove an image that is in the trash."""
        self._rbd(
            "trash", "rm", "--no-progress", self._at(image_id), what=f"image {image_id} in the trash", timeout_s=LONG_S
        )

    def set_options(self, image: str, options: Mapping[str, str | None]) -> None:
        """Set options of an image."""
        present = {row["name"] for row in self._json("config", "image", "ls", self._at(image), what=f"image {image}")
                 if row.get("source") == "image"}  # fmt: skip
        for name, value in options.items():
            if value is not None:
                self._rbd("config", "image", "set", self._at(image), name, value, what=f"image {image}")
            elif name in present:
                self._rbd("config", "image", "rm", self._at(image), name, what=f"image {image}")

    def owner(self) -> str | None:
        """Return the content of the object OWNER."""
        try:
            return self._rados(OWNER, "get", "-").strip() or None
        except VolumeMissing:
            return None

    def set_owner(self, owner: str | None, *, replace: bool) -> None:
        """Write the object OWNER, or remove it."""
        if owner is None:
            with suppress(VolumeMissing):
                self._rados(OWNER, "rm")
            return
        if not replace:
            try:
                self._rados(OWNER, "create")
            except NameTaken:
                if self.owner() is not None:
                    return
        with tempfile.NamedTemporaryFile("w", prefix="blockstore-") as file:
            file.write(f"{owner}\n")
            file.flush()
            self._rados(OWNER, "put", file.name)

    def _rados(self, name: str, verb: str, *words: str) -> str:
        where = ["--pool", self._place.pool]
        if self._place.namespace:
            where += ["--namespace", self._place.namespace]
        argv = ("rados", *self._who, *self._limits, *where, verb, name, *words)
        what = f"object {name}"
        with self._explained(what):
            return run(argv, timeout_s=self._place.timeout_s * 3 + 5, package=PACKAGE)

    # --- bytes

    def regions(self, image: str, size: int) -> Sequence[tuple[int, int]]:
        """Return the regions that may hold data."""
        rows = self._json("diff", "--whole-object", self._at(image), what=f"image {image}", timeout_s=LONG_S)
        # compat: "exists" comes as the string "true" or "false"
        data = [(int(row["offset"]), int(row["length"])) for row in rows if str(row["exists"]).lower() == "true"]
        return sorted((offset, min(length, size - offset)) for offset, length in data if offset < size)

    @contextmanager
    def open(self, image: str, snapshot: str, *, write: bool) -> Iterator[BinaryIO]:
        """Open the bytes through a new qemu-nbd, which ends when its socket is closed or this process dies.

        qemu opens an image as a writer even to read it: images in a full pool cannot be opened. librbd can open them.
        """
        self.info(image, snapshot)  # qemu's errors do not tell what is missing
        with tempfile.TemporaryDirectory(prefix="blockstore-") as folder:
            socket = Path(folder) / "nbd"
            mode = () if write else ("--read-only",)
            argv = (
                "qemu-nbd",
                "--fork",
                "-f",
                "raw",
                "--cache=none",
                *mode,
                "-k",
                str(socket),
                self._url(image, snapshot),
            )
            try:
                run(argv, timeout_s=self._place.timeout_s + 10, package="qemu-utils qemu-block-extra")
            except ToolFailed as exc:
                raise Unreachable(f"{_name(image, snapshot)} cannot be opened: {exc}") from exc
            with NbdFile(socket, write=write, timeout_s=self._place.timeout_s + 10) as file:
                yield cast(BinaryIO, file)

    def _url(self, image: str, snapshot: str) -> str:
        options = {"conf": str(self._place.conf), "id": self._place.user, "rbd_cache": "false", **self._place.limits()}
        if self._place.keyring is not None:
            options["keyring"] = str(self._place.keyring)
        words = [f"{name}={_escaped(value)}" for name, value in options.items()]
        at = "/".join(_escaped(part) for part in (*self._place.spec.split("/"), image))
        return ":".join([f"rbd:{at}" + (f"@{_escaped(snapshot)}" if snapshot else ""), *words])

    # --- the programs

    def _at(self, image: str, snapshot: str = "") -> str:
        return f"{self._place.spec}/{image}" + (f"@{snapshot}" if snapshot else "")

    def _json(self, *words: str, what: str, timeout_s: float | None = None) -> Any:
        return json.loads(self._rbd(*words, "--format", "json", what=what, timeout_s=timeout_s) or "null")

    def _rbd(self, *words: str, what: str, timeout_s: float | None = None) -> str:
        with self._explained(what):
            argv = ("rbd", *self._who, *self._limits, *words)
            return run(argv, timeout_s=timeout_s or self._place.timeout_s * 3 + 5, package=PACKAGE)

    def _follow(self, *words: str, what: str, progress: Progress) -> None:
        with self._explained(what):
            follow(("rbd", *self._who, *self._limits, *words), progress, timeout_s=LONG_S, package=PACKAGE)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except ToolTimeout as exc:
            raise Stuck(f"The Ceph cluster does not answer, with {what}: {exc}") from exc
        except ToolFailed as exc:
            raise self._explain(exc, what) from exc

    def _explain(self, exc: ToolFailed, what: str) -> BackendError:
        lines = [line.rpartition(": ")[2] if " -1 " in line else line for line in exc.stderr.splitlines()]
        message = " ".join(lines)
        code = exc.code
        if code == 1:  # `ceph` and `rados` exit with 1 for every error
            errno_match = _ERRNO.search(exc.stderr)
            code = int(errno_match[1] or errno_match[2]) if errno_match else 0
        if refused := _NOT_CONNECTED.search(exc.stderr):
            keyrings = _KEYRINGS.search(exc.stderr)
            searched = keyrings[1].split(",") if keyrings else ()
            return access.not_connected(self._place, int(refused[1] or code), message, searched)
        if code == errno.ENOENT and _NO_POOL in exc.stderr:
            return access.no_pool(self._place)
        return explain(code, what, message)

    def _ceph(self, *words: str) -> Any:
        limit = str(self._place.timeout_s)
        with self._explained(f"pool {self._place.spec}"):
            argv = ("ceph", *self._who, "--connect-timeout", limit, "--format", "json", *words)
            return json.loads(run(argv, timeout_s=self._place.timeout_s + 5, package=PACKAGE))


def _need_tools() -> None:
    for tool, package in (("rbd", PACKAGE), ("ceph", PACKAGE), ("qemu-nbd", "qemu-utils qemu-block-extra")):
        if not have(tool):
            raise Unreachable(missing_tool(tool, package))


def _name(image: str, snapshot: str) -> str:
    return f"snapshot {snapshot} of {image}" if snapshot else f"image {image}"


def _escaped(text: str) -> str:
    """Return a text escaped for qemu's ``rbd:`` syntax, in which these characters have a meaning."""
    return "".join("\\" + sign if sign in ":@=\\" else sign for sign in os.fspath(text))
