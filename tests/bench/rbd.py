"""Each action on Ceph against the bare `rbd` commands of it, by programs and by librbd; on a cluster in memory."""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.figures import Figure, Watch, timed

if TYPE_CHECKING:
    from blockstore_plugins.rbd import RbdBackend

    from tests.ceph.conftest import Ceph

PROGRAMS, LIBRBD = 1.2, 1.0
"""At most so many times the bare commands."""


def measure(quick: bool) -> Iterator[Figure]:
    """Take turns: bare, by programs, by librbd."""
    if shutil.which("ceph-osd") is None:
        yield Figure(name="rbd", target=f"≤ {PROGRAMS} × rbd", note="not measured: run tests/ceph/install.sh")
        return
    from tests.ceph.conftest import down, up

    place = Path(tempfile.mkdtemp(prefix="ceph-", dir="/var/tmp"))
    ceph = up(place / "c", "--size", "16G")
    try:
        yield from _compare(ceph, place, 5 if quick else 15)
    finally:
        down(ceph)
        shutil.rmtree(place)


def _compare(ceph: Ceph, place: Path, times: int) -> Iterator[Figure]:
    ways = {
        "rbd by programs": ceph.backend(place, bindings="no"),
        "rbd by librbd": ceph.backend(place, bindings="auto"),
    }
    bare: dict[str, list[float]] = {}
    ours: dict[tuple[str, str], list[float]] = {}
    watch = Watch()
    for _ in range(times):
        for action, seconds in _bare(ceph):
            bare.setdefault(action, []).append(seconds)
        for way, backend in ways.items():
            for action, seconds in _ours(backend):
                ours.setdefault((way, action), []).append(seconds)
    load = watch.read()
    for action, seconds in bare.items():
        base = statistics.median(seconds)
        yield timed(f"bare rbd: {action}", seconds, load=load)
        for way, limit in zip(ways, (PROGRAMS, LIBRBD), strict=True):
            mine = ours[way, action]
            ratio = statistics.median(mine) / base
            figure = timed(f"{way}: {action}", mine, target=f"≤ {limit:g} × rbd", load=load)
            yield dataclasses.replace(figure, met=ratio <= limit, note=f"{ratio:.2f} × rbd")


def _clock(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _bare(ceph: Ceph) -> Iterator[tuple[str, float]]:
    """Time what a person would type; the last of a clone takes the snapshot away again, that it was made from."""
    one, two = f"volumes/bare-{uuid.uuid4()}", f"volumes/bare-{uuid.uuid4()}"
    who = ["--conf", str(ceph.conf), "--id", "cinder", "--keyring", str(ceph.keyring)]

    def rbd(*commands: str) -> float:
        return _clock(lambda: [_run(["rbd", *who, *command.split()]) for command in commands])

    yield "create", rbd(f"create --size 1G {one}")
    yield "snapshot", rbd(f"snap create --no-progress {one}@s")
    clone = f"clone --rbd-default-clone-format 2 {one}@t {two}"
    yield "clone", rbd(f"snap create --no-progress {one}@t", clone, f"snap rm --no-progress {one}@t")
    yield "delete", rbd(f"rm --no-progress {two}")
    yield "delete a snapshot", rbd(f"snap rm --no-progress {one}@s")
    rbd(f"rm --no-progress {one}")


def _ours(backend: RbdBackend) -> Iterator[tuple[str, float]]:
    one, two, shot = f"volume-{uuid.uuid4()}", f"volume-{uuid.uuid4()}", f"snap-{uuid.uuid4()}"
    yield "create", _clock(lambda: backend.create_volume(one, 1))
    yield "snapshot", _clock(lambda: backend.create_snapshot(one, shot))
    yield "clone", _clock(lambda: backend.clone_volume(two, 1, one))
    yield "delete", _clock(lambda: backend.delete_volume(two))
    yield "delete a snapshot", _clock(lambda: backend.delete_snapshot(one, shot))
    backend.delete_volume(one)


def _run(argv: list[str]) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True)
