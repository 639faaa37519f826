"""Keeps chains of layers short, in the background: removes what nothing lies on, merges what only one layer lies on.

A layer is only ever replaced by one that reads the same, and files of volumes are never touched, so that consumers may
go on meanwhile. What somebody still has open, as QEMU's locks tell, stays under another name until it is closed.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from blockstore_plugins.directory import files
from blockstore_plugins.directory.files import Folder
from blockstore_plugins.nfs.layers import LAYER, SPENT, Layers, Named

from blockstore.backends.contract import Progress

_TENDER = ".tender"


@dataclass(frozen=True)
class Graph:
    """What lies on what."""

    below: Mapping[str, str | None]
    """By file: the layer that it lies on."""
    named: Sequence[str]
    """The files of volumes and snapshots."""
    layers: Sequence[str]
    spent: Sequence[str]

    def on_top(self) -> Mapping[str, Sequence[str]]:
        """Return by layer what lies on it."""
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
        """Return how many layers lie below a volume or snapshot at most."""
        return max((len(self.chain(file)) for file in self.named), default=0)


class Tender:
    """Tends the layers of one share."""

    def __init__(self, layers: Layers, named: Callable[[Folder], Iterable[Named]], most: int):
        """``named`` gives the files of volumes and snapshots that may lie on layers, ``most`` the depth to keep to."""
        self._layers = layers
        self._named = named
        self._most = most
        self._lock: int | None = None
        self.deepest = 0
        self.waits = True
        """Something is left to do, as soon as somebody closes what they have open; or nobody has looked yet."""

    def tend(self, root: Folder, progress: Progress) -> None:
        """Do what there is to do."""
        if not root.hidden(LAYER) and not root.hidden(SPENT):
            self.deepest, self.waits = 0, False
            return
        if not self._is_mine(root):
            self.waits = True  # another process tends this share, and may end
            return
        while True:
            progress(0)
            went, self.waits = self._remove(root)
            if went:
                continue
            graph = self._look(root)
            self.deepest = graph.deepest()
            step = _merge(graph) or _shorten(graph, self._most)
            if step is None:
                return
            layer, backing = step
            self._layers.replace(root, layer, backing, progress)

    def leave(self) -> None:
        """Let others tend the share, which is mounted anew."""
        if self._lock is not None:
            with suppress(OSError):
                os.close(self._lock)
        self._lock, self.waits = None, True

    def _is_mine(self, root: Folder) -> bool:
        """Say whether this is the one process that tends the share."""
        if self._lock is None:
            if root.stat(_TENDER) is None:
                with root.building(_TENDER, f"{_TENDER}.tmp"):
                    pass
            fd = root.open(_TENDER, write=True)
            if files.lock_image(fd):
                self._lock = fd
            else:
                os.close(fd)
        return self._lock is not None

    def _remove(self, root: Folder) -> tuple[bool, bool]:
        """Remove what nobody needs; say whether something went, and so may what it lay on, and whether some waits."""
        went = waits = False
        for spent in root.hidden(SPENT):
            with files.closing(root.open(spent, write=True)) as fd:
                closed = files.lock_image(fd)
                went |= closed and root.remove(spent)
                waits |= not closed
        began = self._layers.began()
        unused = _unused(self._look(root))
        if unused:
            # Looked at twice: a list that is made while others rename must not be what a layer's end hangs on.
            for layer in unused & _unused(self._look(root)):
                removed = self._layers.remove(root, layer, began)
                went |= removed
                waits |= not removed
        return went, waits

    def _look(self, root: Folder) -> Graph:
        """Read what lies on what. Raises BackendError when a file cannot be read: it may lie on anything."""
        below: dict[str, str | None] = {}

        def look(one: Named, shown: str) -> None:
            # One that is gone was deleted meanwhile; what gets another name is looked out for.
            with suppress(FileNotFoundError), files.closing(one.folder.open(one.file)) as fd:
                below[shown] = self._layers.header(fd, shown).backing

        for one in self._named(root):  # each is looked at while its folder is open
            look(one, str(one.folder.shown / one.file))
        named = list(below)
        layers, spent = ([name for name in root.hidden(kind) if not name.endswith(".tmp")] for kind in (LAYER, SPENT))
        for name in (*layers, *spent):
            look(Named(root, name), name)
        return Graph(below, named, layers, spent)


def _unused(graph: Graph) -> set[str]:
    return set(graph.layers) - set(graph.on_top())


def _merge(graph: Graph) -> tuple[str, str] | None:
    """Return a layer that is to take in the one below it, which nothing else needs, and what it lies on then."""
    on_top = graph.on_top()
    for layer in graph.layers:
        below = graph.below.get(layer)
        if below is not None and on_top[below] == [layer]:
            return layer, graph.below.get(below) or ""
    return None


def _shorten(graph: Graph, most: int) -> tuple[str, str] | None:
    """Return a layer half-way down a chain that is too long; it is to stand alone."""
    for file in graph.named:
        chain = graph.chain(file)
        if len(chain) > most:
            return chain[most // 2], ""
    return None
