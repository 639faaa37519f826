"""Volumes as files in one private directory: the embedded default. It needs no root and, for raw, no tool.

    PATH/VOLUME.raw or .qcow2               a volume; only the suffix tells the format, which never changes
    PATH/snapshots/VOLUME/SNAPSHOT.raw      a snapshot: a full, independent copy, sharing blocks where possible
    PATH/snapshots/SNAPSHOT.of              the volume of this snapshot, so that no name is used twice
    .NAME.tmp                               an unfinished file; the next call for NAME replaces or removes it
    .blockstore-owner                       the id of the installation that uses the directory
    .blockstore-identity                    the identity of this directory, also on another disk or path

A volume or snapshot exists if its file has its final name. Files get this name by a rename, finished and flushed. Only
the operations that list volumes or snapshots read a whole directory. ``store.py`` handles the files,
``file_backend.py`` the volumes.
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
    """Options for a directory of volumes."""

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
            if not self.recognised:  # otherwise a missing path is an unmounted disk
                # Of a configured path make only the last part: a missing parent may also be an unmounted disk.
                files.make_root(self.path, parents=self._parents)
            with self.store.root() as root:
                root.prove_writable()
