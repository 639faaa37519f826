"""Create on LVM against a bare `lvcreate`: `tests/lab/lab-run -- .venv/bin/python -m tests.bench lvm`.

The service runs in this process, to spare the slow lab. Timed is the whole life of the operation: from the request,
through scheduler and manager, to the moment the volume is available. Bare and service take turns, on the same thin
pool.
"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.figures import Figure, Watch, timed

TARGET = 1.15


def measure(quick: bool) -> Iterator[Figure]:
    """Time both in turn; without the lab say so."""
    try:
        from tests.lab.conftest import Disk, in_lab
    except ImportError as exc:
        yield _absent(f"not measured: the plugin is not there ({exc})")
        return
    if not in_lab():
        yield _absent("not measured: run `tests/lab/lab-run -- .venv/bin/python -m tests.bench lvm`")
        return
    disk = Disk(100)
    try:
        yield from _compare(disk.vg, 5 if quick else 20)
    finally:
        disk.close()


def _absent(why: str) -> Figure:
    return Figure(name="create on LVM", target=f"≤ {TARGET} × lvcreate", note=why)


def _compare(vg: str, times: int) -> Iterator[Figure]:
    from blockstore.app.service import Service
    from tests.conftest import Client, backend_section, make_config

    with tempfile.TemporaryDirectory(prefix="blockstore-bench-") as directory:
        lvm = backend_section("lvm", "lvm", volume_group=vg, lvm_type="thin")
        service = Service(make_config(Path(directory), backends=(lvm,)))
        service.start()
        try:
            client = Client(service)
            _bare(vg, "warm"), client.volume()
            watch, bare, ours = Watch(), [], []
            for n in range(times):
                bare.append(_bare(vg, f"bare-{n}"))
                started = time.perf_counter()
                answer = client("POST", "/volumes", {"volume": {"size": 1}})
                client.wait_idle(60)
                ours.append(time.perf_counter() - started)
                status = client.get(f"/volumes/{answer.json['volume']['id']}")["volume"]["status"]
                if status != "available":
                    raise RuntimeError(f"the volume is {status}")
            load = watch.read()
        finally:
            service.stop()
    ratio = statistics.median(ours) / statistics.median(bare)
    yield timed("bare lvcreate -V, thin", bare, load=load)
    figure = timed("create → available on LVM, thin", ours, target=f"≤ {TARGET} × lvcreate", load=load)
    yield dataclasses.replace(figure, met=ratio <= TARGET, note=f"{ratio:.2f} × lvcreate")


def _bare(vg: str, name: str) -> float:
    argv = ["lvcreate", "-y", "-q", "-n", name, "-V", "1g", "--thinpool", f"{vg}-pool", vg]
    started = time.perf_counter()
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return time.perf_counter() - started
