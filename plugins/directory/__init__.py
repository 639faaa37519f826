"""Volumes as files in one private directory: the embedded default, needs no root and, for raw, no tool.

    PATH/VOLUME.raw or .qcow2               a volume; the suffix is its format, for ever, and bytes are never asked
    PATH/snapshots/VOLUME/SNAPSHOT.raw      a snapshot: a full, independent copy, sharing blocks where possible
    PATH/snapshots/SNAPSHOT.of              says whose snapshot this name is, so that no name is given twice
    .NAME.tmp                               something unfinished, replaced or removed by the next call for NAME
    .blockstore-owner                       the id of the installation that uses the directory
    .blockstore-identity                    what this directory is, also on another disk or at another place

A thing exists when its file is under its final name; files get there by rename, finished and flushed. No operation
reads a whole directory, except the two that list it. ``store.py`` knows the files, ``file_backend.py`` the volumes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

from blockstore_plugins.directory import commands, files
from blockstore_plugins.directory.file_backend import FileBackend
from blockstore_plugins.directory.store import FORMATS, FileStore, Format

from blockstore.backends.contract import BackendOptions, option
from blockstore.backends.options import of_type


@dataclass(frozen=True, kw_only=True)
class DirectoryOptions(BackendOptions):
    """What can be set for a directory of volumes."""

    path: Path | None = option("Directory for the volumes; by default one in the state directory.", None)  # noqa: RUF009
    format: str = option(
        "Format of new volumes; existing volumes keep their format. qcow2 needs qemu-img.", "raw", choices=FORMATS
    )


class DirectoryBackend(FileBackend):
    """A directory of volumes on a disk of this node."""

    Options: ClassVar[type[BackendOptions]] = DirectoryOptions

    def __init__(self, name: str, options: BackendOptions, state_dir: Path):
        settings = of_type(DirectoryOptions, options, f"[backend:{name}]")
        store = FileStore(settings.path or state_dir / "volumes", state_dir, self.not_recognised)
        super().__init__(name, options, state_dir, store, cast(Format, settings.format))
        self._parents = settings.path is None

    def check(self) -> None:
        if self.file_format == "qcow2":
            commands.need_qemu_img()
        with self.store.explained():
            if not self.recognised:  # else what is missing is a disk not mounted
                # Of a path somebody chose only the last part is made: a parent that is missing is one, too.
                files.make_root(self.path, parents=self._parents)
            with self.store.root() as root:
                root.prove_writable()
