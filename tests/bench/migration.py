"""The copy of a move against `qemu-img convert` of the same data; and with the proof, which that one does not make."""

from __future__ import annotations

import dataclasses
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.figures import Figure, Watch

if TYPE_CHECKING:
    from tests.ceph.conftest import Ceph

LEAST = 0.9
DATA_MIB = 512


def measure(quick: bool) -> Iterator[Figure]:
    """Take turns, from a directory to a directory, and to and from Ceph where it is installed."""
    from blockstore_plugins.directory import DirectoryBackend, DirectoryOptions

    with tempfile.TemporaryDirectory(prefix="blockstore-bench-", dir="/var/tmp") as directory:
        place = Path(directory)
        disks = []
        for name in ("one", "two"):
            disks.append(DirectoryBackend(name, DirectoryOptions(path=place / name), place))
            disks[-1].check()
        times = 3 if quick else 7
        yield from _compare("directory to directory", disks[0], disks[1], times, None)
        if shutil.which("ceph-osd") is None:
            yield Figure(name="move to Ceph", note="not measured: run tests/ceph/install.sh")
            return
        from tests.ceph.conftest import down, up

        ceph_place = Path(tempfile.mkdtemp(prefix="ceph-", dir="/var/tmp"))
        ceph = up(ceph_place / "c", "--size", "16G")
        try:
            pool = ceph.backend(place)
            yield from _compare("directory to rbd", disks[0], pool, times, ceph)
            yield from _compare("rbd to directory", pool, disks[1], times, ceph)
        finally:
            down(ceph)
            shutil.rmtree(ceph_place)


def _compare(what: str, source: Any, target: Any, times: int, ceph: Ceph | None) -> Iterator[Figure]:
    from blockstore.backends.contract import GIB
    from blockstore.manager.copying import COPY_SHARE, copy_volume

    name = f"volume-{uuid.uuid4()}"
    source.create_volume(name, 1)
    with source.open_volume(name, "r+b") as file:
        for _ in range(DATA_MIB):
            file.write(os.urandom(2**20))
    theirs: list[float] = []
    ours: list[float] = []
    proved: list[float] = []
    watch = Watch()
    for _ in range(times):
        for rates, is_ours in ((theirs, False), (ours, True)):
            to = f"volume-{uuid.uuid4()}"
            target.create_volume(to, 1)
            marks: list[float] = []

            def note(percent: int, marks: list[float] = marks) -> None:
                if percent == COPY_SHARE:  # told when all is written, and again when it is flushed and the proof begins
                    marks.append(time.perf_counter())

            started = time.perf_counter()
            if is_ours:
                copy_volume(source, name, target, to, GIB, note)
                proved.append(DATA_MIB / (time.perf_counter() - started))
                rates.append(DATA_MIB / (marks[1] - started))
            else:
                # writeback: it flushes in the end, as we do
                argv = ["qemu-img", "convert", "-n", "-t", "writeback", "-f", "raw", "-O", "raw"]
                subprocess.run([*argv, _url(source, name, ceph), _url(target, to, ceph)], check=True)
                rates.append(DATA_MIB / (time.perf_counter() - started))
            target.delete_volume(to)
    source.delete_volume(name)
    load = watch.read()
    base, mine = statistics.median(theirs), statistics.median(ours)
    yield Figure(name=f"qemu-img convert, {what}", unit="MiB/s", median=base, samples=times, load=load)
    figure = Figure(name=f"move, {what}", unit="MiB/s", median=mine, samples=times, load=load)
    yield dataclasses.replace(
        figure, target=f"≥ {LEAST} × qemu-img", met=mine >= LEAST * base, note=f"{mine / base:.2f} × qemu-img"
    )
    yield Figure(
        name=f"move and proof, {what}", unit="MiB/s", median=statistics.median(proved), samples=times, load=load
    )


def _url(backend: Any, name: str, ceph: Ceph | None) -> str:
    located = backend.locate(name)
    if located is not None:
        return str(located.path)
    assert ceph is not None
    return f"rbd:volumes/{name}:id=cinder:keyring={ceph.keyring}:conf={ceph.conf}"
