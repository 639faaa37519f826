"""Keeps chains of layers short, in the background: removes unused layers, and merges a layer into its only child layer.

A layer is only replaced by one that reads the same. Files of volumes are never changed. Layers below a volume in use
are not changed until the use ends. If a consumer opens a layer while it is replaced, the old layer is kept under
another name.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from blockstore_plugins.directory import files
from blockstore_plugins.directory.files import Folder
from blockstore_plugins.nfs.layers import LAYER, SUPERSEDED, Layers, ShareFile

from blockstore.backends.contract import Progress

_LOCK_FILE = ".tender"


@dataclass(frozen=True)
class Graph:
    """The files and layers of a share, and the layer below each."""

    below: Mapping[str, str | None]
    """By file: the layer directly below it."""
    referenced: Sequence[str]
    """The files of volumes and snapshots."""
    used: Sequence[str]
    """The files of volumes that may be open."""
    layers: Sequence[str]

    def on_top(self) -> Mapping[str, Sequence[str]]:
        """Return the files and layers directly on each layer."""
        found: dict[str, list[str]] = defaultdict(list)
        for file, layer in self.below.items():
            if layer is not None:
                found[layer].append(file)
        return found

    def chain(self, file: str) -> Sequence[str]:
        """Return the layers below a file, the nearest first."""
        found: list[str] = []
        layer = self.below[file]
        while layer is not None and layer not in found:
            found.append(layer)
            layer = self.below.get(layer)
        return found

    def deepest(self) -> int:
        """Return the largest number of layers below a volume or snapshot."""
        return max((len(self.chain(file)) for file in self.referenced), default=0)

    def unused(self) -> set[str]:
        """Return the layers with no file or layer on them."""
        return set(self.layers) - set(self.on_top())

    def busy(self) -> set[str]:
        """Return the layers below volumes that may be open."""
        return {layer for file in self.used for layer in self.chain(file)}

    def steps(self, most: int) -> Iterator[tuple[str, str]]:
        """Yield each layer to replace and its new backing layer; empty: no backing layer.

        A layer is merged with the layer below if it is the only one on that layer. In a chain of more than ``most``
        layers, the middle layer gets no backing layer.
        """
        on_top = self.on_top()
        for layer in self.layers:
            below = self.below.get(layer)
            if below is not None and on_top[below] == [layer]:
                yield layer, self.below.get(below) or ""
        for file in self.referenced:
            chain = self.chain(file)
            if len(chain) > most:
                yield chain[most // 2], ""


class LayerMerger:
    """Merges and removes the layers of one share."""

    def __init__(
        self,
        layers: Layers,
        referenced: Callable[[Folder], Iterable[ShareFile]],
        is_used: Callable[[ShareFile, int], bool],
        most: int,
    ):
        """``referenced`` returns the files of volumes and snapshots that may have layers.

        ``is_used`` takes a file and its open descriptor, and returns True if a consumer may have the file open.
        ``most`` is the largest allowed depth of a chain.
        """
        self._layers = layers
        self._named = referenced
        self._is_used = is_used
        self._most = most
        self._lock: int | None = None
        self.deepest = 0
        self.waits = True
        """True if work is left that nothing else will start, or if the share was not examined yet."""

    def merge(self, root: Folder, progress: Progress) -> None:
        """Remove unused layers and merge chains until nothing is left that can be done now."""
        if not root.hidden(LAYER) and not root.hidden(SUPERSEDED):
            self.deepest, self.waits = 0, False
            return
        if not self._is_mine(root):
            self.waits = True  # another process merges the layers of this share, and may end
            return
        while True:
            progress(0)
            went, self.waits = self._remove(root)
            if went:
                continue
            graph = self._read_graph(root)
            self.deepest = graph.deepest()
            steps, busy = list(graph.steps(self._most)), graph.busy()
            layer, backing = next((step for step in steps if step[0] not in busy), ("", ""))
            if not layer:
                self.waits |= bool(steps)
                return
            self._layers.replace(root, layer, backing, progress, partial(self._is_busy, root, layer))

    def _is_busy(self, root: Folder, layer: str) -> bool:
        return layer in self._read_graph(root).busy()

    def leave(self) -> None:
        """Release the lock of the share, because it was mounted again."""
        if self._lock is not None:
            with suppress(OSError):
                os.close(self._lock)
        self._lock, self.waits = None, True

    def _is_mine(self, root: Folder) -> bool:
        """Return True if this process holds, or just got, the lock for merging layers of the share."""
        if self._lock is None:
            if root.stat(_LOCK_FILE) is None:
                with root.building(_LOCK_FILE, f"{_LOCK_FILE}.tmp"):
                    pass
            fd = root.open(_LOCK_FILE, write=True)
            if files.lock_image(fd):
                self._lock = fd
            else:
                os.close(fd)
        return self._lock is not None

    def _remove(self, root: Folder) -> tuple[bool, bool]:
        """Remove unreferenced layers. Return (removed any, deferred any); a removal may free the layer below."""
        went = waits = False
        self._layers.unguard()
        began = self._layers.began()
        graph = self._read_graph(root)
        busy = graph.busy()
        for spent in root.hidden(SUPERSEDED):
            with files.closing(root.open(spent, write=True, names=3)) as fd:  # NFS adds a name to an open file
                closed = spent.replace(SUPERSEDED, LAYER) not in busy and files.lock_image(fd)
            went |= closed and root.remove(spent)
            waits |= not closed
        unused = graph.unused()
        if unused:
            # Read the graph twice: files renamed during one listing may be missing from it.
            for layer in unused & self._read_graph(root).unused():
                removed = self._layers.remove(root, layer, began)
                went |= removed
                waits |= not removed
        return went, waits

    def _read_graph(self, root: Folder) -> Graph:
        """Read the graph of the share. Raise BackendError if a file cannot be read: its layers would be unknown."""
        below: dict[str, str | None] = {}
        used: list[str] = []

        def read_file(file: ShareFile, label: str, *, is_image: bool) -> None:
            # A missing file was deleted meanwhile; ``Layers.remove`` detects renamed files.
            with suppress(FileNotFoundError), files.closing(file.folder.open(file.file, names=3)) as fd:
                below[label] = self._layers.header(fd, label).backing
                if is_image and below[label] is not None and self._is_used(file, fd):
                    used.append(label)

        for file in self._named(root):  # each file is read while its folder is open
            read_file(file, str(file.folder.label / file.file), is_image=True)
        referenced = list(below)
        layers, spent = (
            [name for name in root.hidden(kind) if not name.endswith(".tmp")] for kind in (LAYER, SUPERSEDED)
        )
        for name in (*layers, *spent):
            read_file(ShareFile(root, name), name, is_image=False)
        return Graph(below, referenced, used, layers)
