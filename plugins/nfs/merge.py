"""Keeps chains of layers short, in the background: removes what nothing lies on, merges what only one layer lies on.

A layer is only ever replaced by one that reads the same, files of volumes are never touched, and what lies below a
volume that is in use stays as it is until that ends. Should somebody open it just then, the old layer is kept for them
under another name.
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
from blockstore_plugins.nfs.layers import LAYER, SUPERSEDED, Chain, Layers

from blockstore.backends.contract import Progress

_TENDER = ".tender"


@dataclass(frozen=True)
class Graph:
    """What lies on what."""

    below: Mapping[str, str | None]
    """By file: the layer that it lies on."""
    referenced: Sequence[str]
    """The files of volumes and snapshots."""
    used: Sequence[str]
    """Those of volumes that somebody may have open."""
    layers: Sequence[str]

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
        return max((len(self.chain(file)) for file in self.referenced), default=0)

    def unused(self) -> set[str]:
        """Return the layers on which nothing lies."""
        return set(self.layers) - set(self.on_top())

    def busy(self) -> set[str]:
        """Return the layers that somebody may have open."""
        return {layer for file in self.used for layer in self.chain(file)}

    def steps(self, most: int) -> Iterator[tuple[str, str]]:
        """Yield layers that are to be replaced, each with what it is to lie on then; an empty word is nothing.

        A layer takes in the one below it if nothing else lies on that; half-way down a chain of more than ``most``,
        one is to stand alone.
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
    """Tends the layers of one share."""

    def __init__(
        self,
        layers: Layers,
        referenced: Callable[[Folder], Iterable[Chain]],
        is_used: Callable[[Chain, int], bool],
        most: int,
    ):
        """``referenced`` gives the files of volumes and snapshots that may lie on layers; ``is_used`` says of one,
        which is open, whether somebody else may have it open; ``most`` is the depth to keep to.
        """
        self._layers = layers
        self._named = referenced
        self._is_used = is_used
        self._most = most
        self._lock: int | None = None
        self.deepest = 0
        self.waits = True
        """Something is left to do, which nobody will ask for; or nobody has looked yet."""

    def merge(self, root: Folder, progress: Progress) -> None:
        """Do what there is to do."""
        if not root.hidden(LAYER) and not root.hidden(SUPERSEDED):
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
            steps, busy = list(graph.steps(self._most)), graph.busy()
            layer, backing = next((step for step in steps if step[0] not in busy), ("", ""))
            if not layer:
                self.waits |= bool(steps)
                return
            self._layers.replace(root, layer, backing, progress, partial(self._is_busy, root, layer))

    def _is_busy(self, root: Folder, layer: str) -> bool:
        return layer in self._look(root).busy()

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
        self._layers.unguard()
        began = self._layers.began()
        graph = self._look(root)
        busy = graph.busy()
        for spent in root.hidden(SUPERSEDED):
            with files.closing(root.open(spent, write=True, names=3)) as fd:  # one is NFS's, while it is open here
                closed = spent.replace(SUPERSEDED, LAYER) not in busy and files.lock_image(fd)
            went |= closed and root.remove(spent)
            waits |= not closed
        unused = graph.unused()
        if unused:
            # Looked at twice: a list that is made while others rename must not be what a layer's end hangs on.
            for layer in unused & self._look(root).unused():
                removed = self._layers.remove(root, layer, began)
                went |= removed
                waits |= not removed
        return went, waits

    def _look(self, root: Folder) -> Graph:
        """Read what lies on what. Raises BackendError when a file cannot be read: it may lie on anything."""
        below: dict[str, str | None] = {}
        used: list[str] = []

        def look(one: Chain, shown: str, *, is_image: bool) -> None:
            # One that is gone was deleted meanwhile; what gets another name is looked out for.
            with suppress(FileNotFoundError), files.closing(one.folder.open(one.file, names=3)) as fd:
                below[shown] = self._layers.header(fd, shown).backing
                if is_image and below[shown] is not None and self._is_used(one, fd):
                    used.append(shown)

        for one in self._named(root):  # each is looked at while its folder is open
            look(one, str(one.folder.shown / one.file), is_image=True)
        referenced = list(below)
        layers, spent = (
            [name for name in root.hidden(kind) if not name.endswith(".tmp")] for kind in (LAYER, SUPERSEDED)
        )
        for name in (*layers, *spent):
            look(Chain(root, name), name, is_image=False)
        return Graph(below, referenced, used, layers)
