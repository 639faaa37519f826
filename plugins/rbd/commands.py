"""Asks a cluster through ``rbd`` and ``ceph`` of ceph-common: argv, and what their exit codes and JSON mean.

About 60 ms for each call; where Ceph's Python bindings are installed, ``librbd.py`` takes this file's place.
"""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from blockstore_plugins.rbd.cluster import (
    LONG_S,
    OWNER,
    Figures,
    Info,
    Place,
    Stuck,
    below,
    explain,
    need_conf,
    no_pool,
)
from blockstore_plugins.rbd.figures import figures_of, monitors_of
from blockstore_plugins.rbd.nbd_file import NbdFile

from blockstore.backends.contract import Progress
from blockstore.backends.process import follow, have, missing_tool, run
from blockstore.errors import BackendError, NameTaken, ToolFailed, ToolTimeout, Unreachable, VolumeMissing

PACKAGE = "ceph-common"

_ERRNO = re.compile(r"\[errno (\d+)\]")


class Commands:
    """A pool, asked through programs."""

    def __init__(self, place: Place):
        self._place = place
        self._who = ["--conf", str(place.conf), "--id", place.user, "--cluster", place.cluster_name]
        if place.keyring is not None:
            self._who += ["--keyring", str(place.keyring)]
        self._limits = [
            word for name, value in place.limits().items() for word in (f"--{name.replace('_', '-')}", value)
        ]

    # --- the pool

    def prove(self) -> None:
        """Raise Unreachable unless the pool can be used."""
        _need_tools()
        need_conf(self._place)
        try:
            self._rbd("ls", self._place.spec, what=f"pool {self._place.spec}")
        except VolumeMissing as exc:
            raise no_pool(self._place) from exc

    def figures(self) -> Figures:
        """Return what the pool has."""
        quota = self._ceph("osd", "pool", "get-quota", self._place.pool)
        return figures_of(self._place.pool, self._ceph("df"), quota)

    def identity(self) -> tuple[str, int]:
        """Return the cluster's id and the pool's."""
        _need_tools()
        need_conf(self._place)
        dump = self._ceph("osd", "dump")
        for pool in dump["pools"]:
            if pool["pool_name"] == self._place.pool:
                return str(dump["fsid"]), int(pool["pool"])
        raise no_pool(self._place)

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
        self._rbd("create", "--size", f"{size}B", self._at(image), what=f"image {image}")

    def info(self, image: str, snapshot: str = "") -> Info:
        """Return what is known of an image or snapshot."""
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
        """Return who has an image open for writing."""
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
        self._snap("rm", image, snapshot, timeout_s=LONG_S)

    def rename_snapshot(self, image: str, snapshot: str, to: str) -> None:
        """Rename a snapshot."""
        self._rbd("snap", "rename", self._at(image, snapshot), self._at(image, to), what=_name(image, snapshot))

    def rollback(self, image: str, snapshot: str, progress: Progress) -> None:
        """Give an image the bytes of its snapshot."""
        self._follow("snap", "rollback", self._at(image, snapshot), what=_name(image, snapshot), progress=progress)

    def _snap(self, verb: str, image: str, snapshot: str, *, timeout_s: float | None = None) -> None:
        words = ("snap", verb, "--no-progress", self._at(image, snapshot))
        self._rbd(*words, what=_name(image, snapshot), timeout_s=timeout_s)

    # --- clones

    def clone(self, image: str, snapshot: str, to: str) -> None:
        """Make an image of a snapshot."""
        words = ("clone", "--rbd-default-clone-format", "2", self._at(image, snapshot), self._at(to))
        self._rbd(*words, what=f"{to}, a clone of {_name(image, snapshot)}")

    def parents(self) -> Mapping[str, str]:
        """Return the clones and what is below each."""
        found = {str(row["image"]): self._info(row) for row in self._long() if "snapshot" not in row}
        for image_id, name in self.trash().items():
            with suppress(VolumeMissing):
                found[name] = self.info_in_trash(image_id)
        return below(found)

    def flatten(self, image: str, progress: Progress) -> None:
        """Copy into a clone what it has of its parent."""
        self._follow("flatten", self._at(image), what=f"image {image}", progress=progress)

    def trash(self) -> Mapping[str, str]:
        """Return what is in the trash."""
        rows = self._json("trash", "ls", self._place.spec, what="the trash")
        return {str(row["id"]): str(row["name"]) for row in rows}

    def info_in_trash(self, image_id: str) -> Info:
        """Return what is known of an image in the trash."""
        where = ("--pool", self._place.pool, "--namespace", self._place.namespace)
        what = f"image {image_id} in the trash"
        return self._info(self._json("info", "--image-id", image_id, *where, what=what))

    def alone_in_trash(self) -> AbstractContextManager[None]:
        """Do nothing: of two programs that remove the same image, one fails."""
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
        there = {row["name"] for row in self._json("config", "image", "ls", self._at(image), what=f"image {image}")
                 if row.get("source") == "image"}  # fmt: skip
        for name, value in options.items():
            if value is not None:
                self._rbd("config", "image", "set", self._at(image), name, value, what=f"image {image}")
            elif name in there:
                self._rbd("config", "image", "rm", self._at(image), name, what=f"image {image}")

    def owner(self) -> str | None:
        """Return what the object OWNER holds."""
        try:
            return self._rados("get", OWNER, "-").strip() or None
        except VolumeMissing:
            return None

    def set_owner(self, owner: str | None, *, replace: bool) -> None:
        """Write the object OWNER, or remove it."""
        if owner is None:
            with suppress(VolumeMissing):
                self._rados("rm", OWNER)
            return
        if not replace:
            try:
                self._rados("create", OWNER)
            except NameTaken:
                if self.owner() is not None:
                    return
        with tempfile.NamedTemporaryFile("w", prefix="blockstore-") as file:
            file.write(f"{owner}\n")
            file.flush()
            self._rados("put", OWNER, file.name)

    def _rados(self, *words: str) -> str:
        where = ["--pool", self._place.pool]
        if self._place.namespace:
            where += ["--namespace", self._place.namespace]
        argv = ("rados", *self._who, *self._limits, *where, *words)
        what = f"object {OWNER}"
        with _explained(what):
            try:
                return run(argv, timeout_s=self._place.timeout_s * 3 + 5, package=PACKAGE)
            except ToolFailed as exc:
                for code in (errno.ENOENT, errno.EEXIST):  # `rados` exits with 1 whatever it was
                    if f"{OWNER}: ({code})" in exc.stderr:
                        raise explain(code, what, "") from exc
                raise

    # --- bytes

    def regions(self, image: str, size: int) -> Sequence[tuple[int, int]]:
        """Return what may hold data."""
        rows = self._json("diff", "--whole-object", self._at(image), what=f"image {image}", timeout_s=LONG_S)
        # compat: "exists" comes as the string "true" or "false"
        data = [(int(row["offset"]), int(row["length"])) for row in rows if str(row["exists"]).lower() == "true"]
        return sorted((offset, min(length, size - offset)) for offset, length in data if offset < size)

    @contextmanager
    def open(self, image: str, snapshot: str, *, write: bool) -> Iterator[BinaryIO]:
        """Open the bytes by a qemu-nbd of our own, which ends when we let go or die.

        qemu opens an image as a writer even to read it, so what lies in a full pool cannot be opened; librbd can.
        """
        self.info(image, snapshot)  # qemu's words for what is missing are no words to go by
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
        with _explained(what):
            argv = ("rbd", *self._who, *self._limits, *words)
            return run(argv, timeout_s=timeout_s or self._place.timeout_s * 3 + 5, package=PACKAGE)

    def _follow(self, *words: str, what: str, progress: Progress) -> None:
        with _explained(what):
            follow(("rbd", *self._who, *self._limits, *words), progress, timeout_s=LONG_S, package=PACKAGE)

    def _ceph(self, *words: str) -> Any:
        limit = str(self._place.timeout_s)
        with _explained(f"pool {self._place.spec}"):
            argv = ("ceph", *self._who, "--connect-timeout", limit, "--format", "json", *words)
            return json.loads(run(argv, timeout_s=self._place.timeout_s + 5, package=PACKAGE))


def _need_tools() -> None:
    for tool, package in (("rbd", PACKAGE), ("ceph", PACKAGE), ("qemu-nbd", "qemu-utils qemu-block-extra")):
        if not have(tool):
            raise Unreachable(missing_tool(tool, package))


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except ToolTimeout as exc:
        raise Stuck(f"The Ceph cluster does not answer, with {what}: {exc}") from exc
    except ToolFailed as exc:
        lines = [line.rpartition(": ")[2] if " -1 " in line else line for line in exc.stderr.splitlines()]
        said = " ".join(lines)
        told = _ERRNO.search(said) if exc.code == 1 else None  # `ceph` exits with 1 whatever it was
        failed: BackendError = explain(int(told[1]) if told else exc.code, what, said)
        raise failed from exc


def _name(image: str, snapshot: str) -> str:
    return f"snapshot {snapshot} of {image}" if snapshot else f"image {image}"


def _escaped(text: str) -> str:
    """Return a word for qemu's ``rbd:`` form, in which these signs have a meaning."""
    return "".join("\\" + sign if sign in ":@=\\" else sign for sign in os.fspath(text))
