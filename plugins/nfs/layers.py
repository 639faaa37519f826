"""Snapshots and clones without copies, for shares that copy nothing by themselves: qcow2 files on frozen layers.

    PATH/.layer-ID.qcow2    a layer: never written again; what lies on it reads it wherever it holds nothing itself
    PATH/.spent-ID.qcow2    a layer whose place a shorter equal has taken, for those who still have it open
    PATH/.tender            locked by the one process that merges and removes layers; see ``tending.py``

A volume that is frozen gets a second name, the layer's, and is replaced by an empty file on that layer; a snapshot or
clone is another such file. At every instant each name leads to a whole image. Files name the layer below them without a
path, which is right for consumers, who open volumes only, in PATH; this process gives ``qemu-img`` a private folder of
links to files that it has opened and proved itself, so that no name on the share is followed.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from blockstore_plugins.directory import commands, files
from blockstore_plugins.directory.commands import Header
from blockstore_plugins.directory.files import Folder

from blockstore.backends.contract import Progress, no_progress
from blockstore.errors import BackendError

LAYER, SPENT = ".layer-", ".spent-"
_NAME = re.compile(r"\.layer-[0-9a-f]{16}\.qcow2")
_DEEPEST = 100
"""More layers than merging ever leaves: such a chain leads in a circle."""


class Named(NamedTuple):
    """A file that holds a volume or snapshot, or a layer."""

    folder: Folder
    file: str


class Layers:
    """The layers of one share."""

    def __init__(self, state_dir: Path):
        self._state_dir = state_dir
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        self._touched: set[str] = set()
        self._renames = 0
        self.in_doubt = True
        """A kill or a server that went away may have left a file with two names."""

    def header(self, fd: int, shown: str) -> Header:
        """Read a header; refuse one that sends its reader to anything but a layer."""
        header = commands.read_header(files.read_start(fd, commands.HEADER_LENGTH), shown)
        if header.backing is not None and (
            not _NAME.fullmatch(header.backing) or header.backing_format != "qcow2"  # else qemu would guess
        ):
            raise commands.names_another(shown)
        return header

    # --- freezing ----------------------------------------------------------------------------------------

    @contextmanager
    def frozen(self, root: Folder, source: Named, *, is_open: bool) -> Iterator[tuple[str, int]]:
        """Give the layer that holds an image's present bytes, and the image's size in bytes.

        ``is_open``: somebody in this process has it open. What may be written at any moment is copied, for nobody can
        be made to go on in another file. Raises: InUse when such a file never rests.
        """
        new = new_layer()
        with self.holding(new), ExitStack() as below:
            with files.closing(source.folder.open(source.file, write=True)) as fd:
                header = self.header(fd, str(source.folder.shown / source.file))
                layer = new
                if header.backing is not None:
                    below.enter_context(self.holding(header.backing))
                    if not _is_written(fd, header):
                        layer = header.backing
                if layer == new:
                    self._freeze(root, source, fd, new, header.size, is_open=is_open)
            yield layer, header.size

    def _freeze(self, root: Folder, source: Named, fd: int, layer: str, size: int, *, is_open: bool) -> None:
        if is_open or not files.lock_image(fd):
            with root.building(layer, f"{layer}.tmp") as copy:
                files.copy(fd, copy, str(source.folder.shown / source.file), no_progress)
            return
        with self._doubting(), source.folder.building(source.file, f".{source.file}.tmp") as overlay:
            commands.create_overlay(overlay, layer, size)
            source.folder.link(source.file, root, layer)
            root.sync()

    @contextmanager
    def _doubting(self) -> Iterator[None]:
        """Remember, if the block fails, that nobody knows how far it came: an unanswered rename may have happened."""
        try:
            yield
        except BaseException:
            self.in_doubt = True
            raise

    def replace(self, root: Folder, layer: str, backing: str, tell: Progress) -> None:
        """Put in a layer's place one that reads the same and lies on ``backing``, or on nothing when that is empty."""
        shown = str(root.shown / layer)
        with files.closing(root.open(layer)) as old, self._doubting(), root.building(layer, f"{layer}.tmp") as new:
            files.copy(old, new, shown, no_progress)
            with self._view(root, old=old, new=new) as view:
                commands.rebase(f"{view}/new.qcow2", backing, tell)
                files.flush(new)
                commands.prove_equal(f"{view}/old.qcow2", f"{view}/new.qcow2")
            root.link(layer, root, f"{SPENT}{secrets.token_hex(8)}.qcow2")

    # --- reading -----------------------------------------------------------------------------------------

    def chain(self, root: Folder, fd: int, shown: str, kept: ExitStack) -> dict[str, int]:
        """Open the layers below an open image, the nearest first; ``kept`` closes them."""
        found: dict[str, int] = {}
        backing = self.header(fd, shown).backing
        while backing is not None:
            if backing in found or len(found) == _DEEPEST:
                raise BackendError(f"The layers below {shown} lead in a circle, or are more than {_DEEPEST}.")
            try:
                below = kept.enter_context(files.closing(root.open(backing)))
            except FileNotFoundError:
                raise BackendError(f"{shown} lies on {backing}, which is not on the share any more.") from None
            found[backing] = below
            backing = self.header(below, str(root.shown / backing)).backing
        return found

    @contextmanager
    def readable(self, root: Folder, fd: int, shown: str) -> Iterator[str]:
        """Give the path under which qemu-img may open an image, with what lies below it."""
        if self.header(fd, shown).backing is None:
            yield commands.path_of(fd)
            return
        with self._view(root, image=fd) as view:
            yield f"{view}/image.qcow2"

    @contextmanager
    def _view(self, root: Folder, **images: int) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="view-", dir=self._state_dir) as made, ExitStack() as kept:
            view = Path(made)
            for name, fd in images.items():
                links = {f"{name}.qcow2": fd, **self.chain(root, fd, name, kept)}
                for link, below in links.items():
                    if not (view / link).is_symlink():
                        (view / link).symlink_to(commands.path_of(below))
            yield view

    # --- what must not go --------------------------------------------------------------------------------

    @contextmanager
    def holding(self, layer: str) -> Iterator[None]:
        """Keep a layer while something is put on it."""
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
        """Have nothing removed because of a list in which a file that gets another name was missed."""
        with self._lock:
            self._renames += 1
        try:
            yield
        finally:
            with self._lock:
                self._renames += 1

    def began(self) -> int:
        """Note that a list is being made; what is touched from now on is not removed because of it."""
        with self._lock:
            self._touched = {layer for layer, count in self._held.items() if count}
            return self._renames

    def remove(self, root: Folder, layer: str, began: int) -> bool:
        """Remove a layer on which, by the list that was begun then, nothing lies; say whether it is gone."""
        with self._lock:
            if layer in self._touched or self._renames != began:
                return False
            try:
                # One that has two names is just being made.
                with files.closing(root.open(layer, write=True)) as fd:
                    if not files.lock_image(fd):
                        return False
            except FileNotFoundError:
                return True
            return root.remove(layer)

    def mend(self, root: Folder, named: Callable[[], Iterable[Named]]) -> None:
        """Take back the second name of what a kill, or a server that went away, left half-way."""
        for view in self._state_dir.glob("view-*"):
            for link in view.iterdir():
                link.unlink()
            view.rmdir()
        twins: dict[str, int] = {}
        for name in (*root.hidden(LAYER), *root.hidden(SPENT)):
            if name.endswith(".tmp"):
                root.remove(name)
                continue
            number, names = _file(Named(root, name))
            if names > 1:
                twins[name] = number
        if twins:
            spent = {number: name for name, number in twins.items() if name.startswith(SPENT)}
            others = {_file(one)[0] for one in named()}
            for layer, number in twins.items():
                if layer.startswith(SPENT):
                    continue
                if number in spent:  # its shorter equal was not yet in its place
                    root.remove(spent[number])
                elif number in others:  # the volume was not yet replaced by a file on it
                    root.remove(layer)
        self.in_doubt = False


def new_layer() -> str:
    """Return a name for a layer."""
    return f"{LAYER}{secrets.token_hex(8)}.qcow2"


def _file(one: Named) -> tuple[int, int]:
    """Return the number of the file that the server has under a name, asked anew, and how many names that has."""
    try:
        with files.closing(one.folder.open(one.file, names=2)) as fd:
            found = os.fstat(fd)
    except (FileNotFoundError, BackendError):
        return 0, 0
    return found.st_ino, found.st_nlink


def _is_written(fd: int, header: Header) -> bool:
    """Say whether anything was written since the image was put on its layer; else its table is all zeros."""
    return any(os.pread(fd, header.map_length, header.map_offset))
