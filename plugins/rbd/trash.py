"""Work in the background of an rbd pool: the trash of parents whose clones are gone, and clones that are too deep.

What a kill or a cluster that is away leaves undone is found again on the storage, at the next start or look; nothing
here is needed for a volume to be whole.
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
"""How the name of an image begins that was deleted and is still needed by its clones."""

_TRASH, _CHAINS = "", "*"
"""Subjects of background tasks that are no image's."""


class Trash:
    """Keeps one pool tidy."""

    def __init__(self, name: str, cluster: Callable[[], Cluster], max_depth: int):
        self.background_tasks = BackgroundTasks(name)
        self._cluster = cluster
        self._max_depth = max_depth
        self._must_look = True
        self._must_empty = False
        """Something could not be removed from the trash that no clone needs."""
        self._burying = threading.Lock()
        self._is_any_there = False

    def look(self) -> None:
        """Look for all that is left to do, unless that has been done and nothing failed since."""
        if self._must_look or self._must_empty:
            self._must_empty = False
            self._begin_to_empty()
        if self._must_look:
            self._must_look = False
            self.background_tasks.add(
                _CHAINS, "looking for chains of clones that are too long", self._kept(self._find_deep)
            )

    def empty_trash(self) -> None:
        """Remove soon what no clone needs any more, if anything lies there."""
        if self._is_any_there:
            self._begin_to_empty()

    def _begin_to_empty(self) -> None:
        self.background_tasks.add(_TRASH, "emptying the trash", self._kept(self._empty))

    def shorten(self, image: str) -> None:
        """Make a clone independent soon, if its chain of parents is too long."""
        what = f"making {image} independent of its parents"
        self.background_tasks.add(image, what, self._kept(lambda progress: self._shorten(image, progress)))

    @contextmanager
    def leaving(self, image: str) -> Iterator[None]:
        """Keep off an image that is being deleted: a flatten of it is stopped first."""
        with self.background_tasks.leaving(image):
            try:
                yield
            except BaseException:
                self._must_look = True  # it stays, and its flatten was given up
                raise

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until there is nothing to do; say whether that came true in time."""
        return self.background_tasks.wait_idle(timeout_s)

    def _kept(self, work: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """Return work that is looked for again when the cluster did not let it be done."""

        def do(progress: Progress) -> None:
            try:
                work(progress)
            except BackendError:
                self._must_look = True
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
            self.empty_trash()  # it may have been the last that needed its parent

    def _is_deep(self, image: str, parent: Callable[[str], str | None]) -> bool:
        """Say whether more images lie below one than may; those of other pools count as one."""
        below = parent(image)
        depth = 0
        while below is not None and depth <= self._max_depth:
            depth += 1
            below = parent(below) if below else None
        return depth > self._max_depth

    # --- the trash

    def move_to_trash(self, image: str) -> None:
        """Put an image into the trash, where it waits for the end of its clones."""
        cluster = self._cluster()
        gone = f"{GONE}{image}-{secrets.token_hex(4)}"
        with self._burying:
            self._is_any_there = True
            try:
                cluster.rename(image, gone)
            except NoSpace as exc:
                raise NoSpace(
                    f"Clones need bytes of {image}, and a full pool takes not even its new name: delete the clones"
                    f" first, or make space. {exc}"
                ) from exc
            try:
                cluster.to_trash(gone)
            except BackendError:
                if gone in cluster.trash().values():  # the trash of another process was quicker
                    return
                with suppress(BackendError):
                    cluster.rename(gone, image)
                raise

    def _empty(self, _progress: Progress) -> None:
        """Remove what no clone needs any more; each that goes may free its own parent."""
        cluster = self._cluster()
        self._is_any_there = False  # a burial while this goes on counts
        with self._burying:
            for name in cluster.names():
                if name.startswith(GONE):  # a kill came between the two steps of a burial
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
        """Let the others go on where one cannot go; unless the cluster does not answer."""
        try:
            yield
        except Stuck:
            raise
        except HasSnapshots:
            log.debug("rbd: %s stays: clones need it", name)
        except BackendError as exc:
            self._must_empty = True  # Ceph lets go of what a killed process had open after half a minute
            log.info("rbd: %s is left for later: %s", name, exc)
