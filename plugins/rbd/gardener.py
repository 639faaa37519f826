"""Work in the background of an rbd pool: the trash of parents whose clones are gone, and clones that are too deep.

A thread that sleeps until something is deleted or cloned. What a kill leaves undone is found again at the next start,
or by the next deletion; nothing here is needed for a volume to be whole.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from blockstore_plugins.rbd.cluster import Cluster

from blockstore.errors import BackendError, VolumeMissing

log = logging.getLogger(__name__)

GONE = "blockstore-gone-"
"""How the name of an image begins that was deleted and is still needed by its clones."""


class _Leave(Exception):
    """The clone is being deleted."""


class Gardener:
    """One thread for one pool."""

    def __init__(self, cluster: Callable[[], Cluster]):
        self._cluster = cluster
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._trash = False
        self._deep: list[str] = []
        self._busy: str | None = None
        self._leaving: set[str] = set()

    def wake(self) -> None:
        """Look into the trash soon."""
        with self._change:
            self._trash = True
            self._begin()

    def flatten(self, image: str) -> None:
        """Make a clone independent soon."""
        with self._change:
            self._deep.append(image)
            self._begin()

    @contextmanager
    def leaving(self, image: str) -> Iterator[None]:
        """Keep off an image that is being deleted: a flatten of it is stopped first."""
        with self._change:
            self._leaving.add(image)
            self._deep = [one for one in self._deep if one != image]
            self._change.wait_for(lambda: self._busy != image)
        try:
            yield
        finally:
            with self._change:
                self._leaving.discard(image)

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until there is nothing to do; say whether that came true in time."""
        with self._change:
            return self._change.wait_for(lambda: self._thread is None, timeout_s)

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="rbd-gardener", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._change:
                self._busy = None
                self._change.notify_all()
                if self._deep:
                    self._busy = self._deep.pop(0)
                elif self._trash:
                    self._trash = False
                else:
                    self._thread = None
                    self._change.notify_all()
                    return
                image = self._busy
            try:
                if image is None:
                    self._empty()
                else:
                    self._flatten(image)
            except BackendError as exc:
                log.info("rbd: left for later: %s", exc)
            except Exception:
                log.exception("rbd: the gardener failed")

    def _flatten(self, image: str) -> None:
        told = 0

        def tell(percent: int) -> None:
            nonlocal told
            if image in self._leaving:
                raise _Leave
            if percent >= told + 10:
                told = percent
                log.info("rbd: %s is being made independent of its parents: %d %%", image, percent)

        try:
            self._cluster().flatten(image, tell)
        except (_Leave, VolumeMissing):
            return
        with self._change:
            self._trash = True  # it may have been the last that needed its parent

    def _empty(self) -> None:
        """Remove what no clone needs any more; each that goes may free its own parent."""
        cluster = self._cluster()
        for name in cluster.names():
            if name.startswith(GONE):  # a kill came between its two steps
                cluster.to_trash(name)
        went = True
        while went:
            went = False
            for image_id, name in cluster.trash().items():
                if not name.startswith(GONE):
                    continue
                try:
                    cluster.remove_from_trash(image_id)
                    went = True
                except BackendError as exc:
                    log.debug("rbd: %s stays in the trash: %s", name, exc)
