"""Background tasks of an rbd pool: purges deleted parents whose clones are gone, and flattens clones of long chains.

Work left undone by a kill or an unreachable cluster is found on the storage at the next start or health check. No
volume depends on it to be complete.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from blockstore_plugins.rbd.cluster import Cluster, HasSnapshots, Stuck

from blockstore.backends.background import BackgroundTasks
from blockstore.backends.contract import Progress
from blockstore.errors import BackendError, NoSpace, VolumeMissing

log = logging.getLogger(__name__)

GONE = "blockstore-gone-"
"""Prefix of the names of deleted images that clones still need."""

_TRASH, _CHAINS = "", "*"
"""Subjects of the background tasks that do not belong to one image."""


class Trash:
    """Purges the trash and shortens the chains of clones of one pool."""

    def __init__(self, name: str, cluster: Callable[[], Cluster], max_depth: int):
        self.background_tasks = BackgroundTasks(name)
        self._cluster = cluster
        self._max_depth = max_depth
        self._must_search = True
        self._must_empty = False
        """True if an image that no clone needs could not be removed from the trash."""
        self._burying = threading.Lock()
        self._is_any_there = False

    def find_work(self) -> None:
        """Find all work left to do, unless this was done and nothing failed since."""
        if self._must_search or self._must_empty:
            self._must_empty = False
            self._begin_to_empty()
        if self._must_search:
            self._must_search = False
            self.background_tasks.add(
                _CHAINS, "looking for chains of clones that are too long", self._kept(self._find_deep)
            )

    def empty_trash(self) -> None:
        """Begin to remove images that no clone needs any more, if the trash is not known to be empty."""
        if self._is_any_there:
            self._begin_to_empty()

    def _begin_to_empty(self) -> None:
        self.background_tasks.add(_TRASH, "emptying the trash", self._kept(self._empty))

    def shorten(self, image: str) -> None:
        """Begin to flatten a clone if its chain of parents is too long."""
        what = f"making {image} independent of its parents"
        self.background_tasks.add(image, what, self._kept(lambda progress: self._shorten(image, progress)))

    @contextmanager
    def leaving(self, image: str) -> Iterator[None]:
        """Exclude background tasks from an image that is being deleted: a running flatten is stopped first."""
        with self.background_tasks.leaving(image):
            try:
                yield
            except BaseException:
                self._must_search = True  # the image stays, and its flatten was stopped
                raise

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no task is left; return False on timeout."""
        return self.background_tasks.wait_idle(timeout_s)

    def _kept(self, work: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """Return ``work`` so that the next health check looks for it again if it fails."""

        def do(progress: Progress) -> None:
            try:
                work(progress)
            except BackendError:
                self._must_search = True
                raise

        return do

    # --- chains

    def _find_deep(self, _progress: Progress) -> None:
        parents = self._cluster().parents()
        for image in parents:
            if not image.startswith(GONE) and self._is_deep(image, parents.get):
                self.shorten(image)

    def _shorten(self, image: str, progress: Progress) -> None:
        if self._is_deep(image, self._cluster().parent):
            try:
                self._cluster().flatten(image, progress)
            except VolumeMissing:
                return
            self.empty_trash()  # this may have been the last clone of its parent

    def _is_deep(self, image: str, parent: Callable[[str], str | None]) -> bool:
        """Return True if an image has more ancestors than allowed; an ancestor in another pool ends the chain."""
        below = parent(image)
        depth = 0
        while below is not None and depth <= self._max_depth:
            depth += 1
            below = parent(below) if below else None
        return depth > self._max_depth

    # --- the trash

    def move_to_trash(self, image: str) -> None:
        """Move an image to the trash, where it stays until its clones are gone."""
        cluster = self._cluster()
        gone = f"{GONE}{image}-{secrets.token_hex(4)}"
        with self._burying:
            self._is_any_there = True
            try:
                cluster.rename(image, gone)
            except NoSpace as exc:
                raise NoSpace(
                    f"Clones need data of {image}, and it cannot be renamed in a full pool: delete the clones first,"
                    f" or make space. {exc}"
                ) from exc
            try:
                cluster.to_trash(gone)
            except BackendError:
                if gone in cluster.trash().values():  # another process moved it to the trash first
                    return
                with suppress(BackendError):
                    cluster.rename(gone, image)
                raise

    def _empty(self, _progress: Progress) -> None:
        """Remove the images that no clone needs any more; each removal may free the image's own parent."""
        cluster = self._cluster()
        self._is_any_there = False  # set again by a deletion that happens meanwhile
        with self._burying:
            for name in cluster.names():
                if name.startswith(GONE):  # a kill came between the two steps of move_to_trash
                    self._is_any_there = True
                    with self._left_behind(name):
                        cluster.to_trash(name)
        went = self._ours_in_trash() != {}
        while went:
            went = False
            with cluster.alone_in_trash():
                for image_id, name in self._ours_in_trash().items():
                    with self._left_behind(name):
                        cluster.remove_from_trash(image_id)
                        went = True
        if self._ours_in_trash():
            self._is_any_there = True

    def _ours_in_trash(self) -> Mapping[str, str]:
        return {image_id: name for image_id, name in self._cluster().trash().items() if name.startswith(GONE)}

    @contextmanager
    def _left_behind(self, name: str) -> Iterator[None]:
        """Log it if an image cannot be removed, so that the others are removed; re-raise Stuck."""
        try:
            yield
        except Stuck:
            raise
        except HasSnapshots:
            log.debug("rbd: %s stays: clones need it", name)
        except BackendError as exc:
            self._must_empty = True  # Ceph releases images of a killed process after half a minute
            log.info("rbd: %s is postponed: %s", name, exc)
