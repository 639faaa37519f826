"""Start to first answer, and memory of a service that does nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from tests.bench.figures import Figure, Load, Watch, quantile
from tests.bench.server import served, state_dir


def measure(quick: bool) -> Iterator[Figure]:
    """Start on an empty directory, which brings up the database, and again on what that left."""
    first, again, memory = [], [], []
    watch = Watch()
    for _ in range(3 if quick else 7):
        with state_dir() as directory:
            with served(directory) as server:
                first.append(server.start_s)
            with served(directory) as server:
                again.append(server.start_s)
                time.sleep(1)
                memory.append(server.memory_mib()[0])
    load = watch.read()
    yield _start("start, empty, new database", first, load)
    yield _start("start, empty, second time", again, load)
    idle = statistics.median(memory)
    yield Figure(
        name="memory idle", target="≤ 80 MiB", met=idle <= 80, unit="MiB", median=idle, samples=len(memory), load=load
    )


def _start(name: str, seconds: list[float], load: Load) -> Figure:
    median = statistics.median(seconds)
    return Figure(
        name=name, target="≤ 0.6 s", met=median <= 0.6, unit="s", median=median, p95=quantile(seconds, 95),
        samples=len(seconds), load=load,
    )  # fmt: skip
