"""Snapshots and clones without copies, for shares without server-side copy: qcow2 files on frozen layers.

    PATH/.layer-ID.qcow2    a layer: never written again; images on it read their unwritten parts from it
    PATH/.spent-ID.qcow2    a layer replaced by an equal one with a shorter chain, kept for consumers that have it open
    PATH/.tender            lock file of the process that merges and removes layers; see ``merge.py``
    PATH/.NAME.qcow2.next   the new file of a volume whose old file is being renamed to a layer

To freeze a volume, its file is renamed to a layer, and an empty file on that layer takes its place. A snapshot or clone
is another empty file on the layer. (A hard link would avoid the moment without a volume, but NFS keeps a removed open
file under a third name.) Files name the layer below them without a path. This is right for consumers: they open only
volumes, which are in PATH. For ``qemu-img`` this process makes a private folder of links to files that it has opened
and checked, so that no name on the share is followed.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from blockstore_plugins.directory import commands, files
from blockstore_plugins.directory.commands import Header
from blockstore_plugins.directory.files import Folder

from blockstore import private_files
from blockstore.backends.contract import Progress, no_progress
from blockstore.errors import BackendError, InUse

LAYER, SUPERSEDED = ".layer-", ".spent-"
_LEFT = re.compile(r"\.layer-.*\.tmp|.*\.next\.tmp")
_WAITING = re.compile(r"\.([A-Za-z][^.]*\.qcow2)\.next")
_NAME = re.compile(r"\.layer-[0-9a-f]{16}\.qcow2")
GUARDED_S = 120
"""Seconds for which a new layer is locked against writers: a client with cached names may take it for the volume."""
_DEEPEST = 100
"""More layers than merging ever leaves: a longer chain is circular."""


class ShareFile(NamedTuple):
    """A file that holds a volume or snapshot, or a layer."""

    folder: Folder
    file: str


class Layers:
    """The layers of one share."""

    def __init__(self, views: Path):
        """``views``: a directory on this node for the links that ``qemu-img`` opens."""
        self._views = views
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        self._touched: set[str] = set()
        self._renames = 0
        self._changing = threading.Lock()
        """Held while names are exchanged. Meanwhile no layer is opened by name, and ``mend`` repairs nothing."""
        self._guarded: list[tuple[float, int]] = []
        """Monotonic time at which each lock ends, and the descriptor that holds the lock."""
        self.in_doubt = True
        """True if a kill or a lost server may have interrupted an exchange of names."""
        self._is_new = True

    def header(self, fd: int, label: str) -> Header:
        """Read a header. Raise BackendError if its backing file is not a layer."""
        header = commands.read_header(files.read_start(fd, commands.HEADER_LENGTH), label)
        if header.backing is not None and (
            not _NAME.fullmatch(header.backing) or header.backing_format != "qcow2"  # else qemu would guess it
        ):
            raise commands.names_another(label)
        return header

    # --- freezing ----------------------------------------------------------------------------------------

    @contextmanager
    def frozen(self, root: Folder, source: ShareFile, *, is_open: bool) -> Iterator[tuple[str, int]]:
        """Give a layer with the image's present bytes, and the image's size in bytes.

        ``is_open``: a consumer may have the image open. Such a file may be written at any moment, and its consumer
        cannot be moved to another file: so it is copied. Raise InUse if the file is written during every try of the
        copy.
        """
        new = new_layer()
        with self.holding(new), ExitStack() as below:
            with files.closing(source.folder.open(source.file, write=True)) as fd:
                header = self.header(fd, str(source.folder.label / source.file))
                layer = new
                if header.backing is not None:
                    below.enter_context(self.holding(header.backing))
                    if not _is_written(fd, header):
                        layer = header.backing
                if layer == new:
                    self._freeze(root, source, fd, new, header.size, is_open=is_open)
            yield layer, header.size

    def _freeze(self, root: Folder, source: ShareFile, fd: int, layer: str, size: int, *, is_open: bool) -> None:
        if is_open or not files.lock_image(fd):
            with root.building(layer, f"{layer}.tmp") as copy:
                files.copy(fd, copy, str(source.folder.label / source.file), no_progress)
            return
        waiting = f".{source.file}.next"
        with self._changing, self._doubting():
            with source.folder.building(waiting, f"{waiting}.tmp") as overlay:
                commands.create_overlay(overlay, layer, size)
            source.folder.rename(source.file, layer, root)
            source.folder.rename(waiting, source.file)
        # A consumer that just opened the file by the volume's name has no lock yet; it can get none for writing.
        kept = os.dup(fd)  # shares the lock
        files.let_read(kept)
        with self._lock:
            self._guarded.append((time.monotonic() + GUARDED_S, kept))

    def unguard(self, *, everything: bool = False) -> None:
        """Release the locks of layers after ``GUARDED_S``; with ``everything``, release all, as after the mount is
        lost."""
        with self._lock:
            due = [fd for until, fd in self._guarded if everything or until <= time.monotonic()]
            self._guarded = [guarded for guarded in self._guarded if guarded[1] not in due]
            for fd in due:
                os.close(fd)

    @contextmanager
    def _doubting(self) -> Iterator[None]:
        """Set ``in_doubt`` if the block fails: a rename without an answer may have happened."""
        try:
            yield
        except BaseException:
            self.in_doubt = True
            raise

    def replace(self, root: Folder, layer: str, backing: str, tell: Progress, is_busy: Callable[[], bool]) -> None:
        """Replace a layer by one that reads the same and lies on ``backing``; empty: no backing layer.

        Raise InUse if the layer came into use before the exchange.
        """
        label = str(root.label / layer)
        with self._doubting(), ExitStack() as swap, root.building(layer, f"{layer}.tmp") as new:
            with files.closing(root.open(layer)) as old:
                files.copy(old, new, label, no_progress)
                with self._view(root, old=old, new=new) as view:
                    commands.rebase(f"{view}/new.qcow2", backing, tell)
                    files.flush(new)
                    commands.prove_equal(f"{view}/old.qcow2", f"{view}/new.qcow2")
            swap.enter_context(self._changing)  # held until the new layer has its name
            if is_busy():
                raise InUse(f"{label} is in use again.")
            root.link(layer, layer.replace(LAYER, SUPERSEDED))

    # --- reading -----------------------------------------------------------------------------------------

    def chain(self, root: Folder, fd: int, label: str, kept: ExitStack) -> dict[str, int]:
        """Open the layers below an open image, the nearest first; ``kept`` closes them."""
        found: dict[str, int] = {}
        backing = self.header(fd, label).backing
        while backing is not None:
            if backing in found or len(found) == _DEEPEST:
                raise BackendError(f"The layers below {label} form a loop, or are more than {_DEEPEST}.")
            try:
                with self._changing:
                    below = kept.enter_context(files.closing(root.open(backing)))
            except FileNotFoundError:
                raise BackendError(f"{label} needs the layer {backing}, which is no longer on the share.") from None
            found[backing] = below
            backing = self.header(below, str(root.label / backing)).backing
        return found

    @contextmanager
    def readable(self, root: Folder, fd: int, label: str) -> Iterator[str]:
        """Give a path by which qemu-img may open an image and the layers below it."""
        if self.header(fd, label).backing is None:
            yield commands.path_of(fd)
            return
        with self._view(root, image=fd) as view:
            yield f"{view}/image.qcow2"

    @contextmanager
    def _view(self, root: Folder, **images: int) -> Iterator[Path]:
        private_files.make_directory(self._views)
        with tempfile.TemporaryDirectory(dir=self._views) as directory, ExitStack() as kept:
            view = Path(directory)
            for name, fd in images.items():
                links = {f"{name}.qcow2": fd, **self.chain(root, fd, name, kept)}
                for link, below in links.items():
                    if not (view / link).is_symlink():
                        (view / link).symlink_to(commands.path_of(below))
            yield view

    # --- removing layers ---------------------------------------------------------------------------------

    @contextmanager
    def holding(self, layer: str) -> Iterator[None]:
        """Keep a layer from being removed while a file is put on it."""
        with self._lock:
            self._held[layer] += 1
            self._touched.add(layer)
        try:
            yield
        finally:
            with self._lock:
                self._held[layer] -= 1

    @contextmanager
    def renaming(self) -> Iterator[None]:
        """Mark a rename of a file: a list made meanwhile may miss the file, and no layer is removed because of that
        list."""
        with self._lock:
            self._renames += 1
        try:
            yield
        finally:
            with self._lock:
                self._renames += 1

    def began(self) -> int:
        """Note the start of a list. Layers held now or later are not removed because of it. Return the count of
        renames."""
        with self._lock:
            self._touched = {layer for layer, count in self._held.items() if count}
            return self._renames

    def remove(self, root: Folder, layer: str, began: int) -> bool:
        """Remove a layer that is unused by the list started at ``began``. Return True if the layer is gone."""
        with self._lock:
            if layer in self._touched or self._renames != began or self.in_doubt:
                return False
            try:
                with files.closing(root.open(layer, write=True)) as fd:
                    if not files.lock_image(fd):
                        return False
            except FileNotFoundError:
                return True
            return root.remove(layer)

    def mend(self, root: Folder, folders: Iterable[Folder]) -> None:
        """Complete or undo exchanges that a kill or a lost server interrupted; ``folders`` are the directories of
        images."""
        with self._changing:
            if not self.in_doubt:
                return
            for folder in folders:
                for name in folder.hidden("."):
                    if found := _WAITING.fullmatch(name):
                        self._mend_frozen(root, folder, name, found[1])
                    elif self._is_new and _LEFT.fullmatch(name):
                        folder.remove(name)
            superseded = {_number(root, name): name for name in root.hidden(SUPERSEDED)}
            for layer in root.hidden(LAYER):
                if not layer.endswith(".tmp") and (twin := superseded.get(_number(root, layer))):
                    root.remove(twin)  # the replacement has not taken the layer's place
            if self._is_new:
                shutil.rmtree(self._views, ignore_errors=True)
            self.in_doubt = self._is_new = False

    def _mend_frozen(self, root: Folder, folder: Folder, waiting: str, file: str) -> None:
        """Complete an interrupted freeze: give the waiting file the volume's name. Remove it if the volume was not
        renamed."""
        with files.closing(folder.open(waiting)) as fd:
            layer = self.header(fd, waiting).backing
        if layer is not None and root.stat(layer) is not None and folder.stat(file) is None:
            folder.rename(waiting, file)
        else:
            folder.remove(waiting)


def new_layer() -> str:
    """Return a name for a layer."""
    return f"{LAYER}{secrets.token_hex(8)}.qcow2"


def _number(folder: Folder, name: str) -> int:
    """Return the inode number of a file, asked of the server; the file may have several names."""
    with files.closing(folder.open(name, names=3)) as fd:
        return os.fstat(fd).st_ino


def _is_written(fd: int, header: Header) -> bool:
    """Return True if the image was written since it was put on its layer; otherwise its table is all zeros."""
    return any(os.pread(fd, header.map_length, header.map_offset))
