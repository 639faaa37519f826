"""Show: one volume by id."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from tests.bench import rows
from tests.bench.client import Client, closed_loop
from tests.bench.figures import Figure, timed
from tests.bench.server import served, state_dir


def measure(quick: bool) -> Iterator[Figure]:
    """Ask with one client, with eight, and with as many as a busy lab has."""
    with state_dir() as directory:
        path = f"/volumes/{rows.fill(directory, 1000)[500]}"
        with served(directory) as server:
            for clients in (1, 8, 64):
                closed_loop(server.port, clients, until(0.3, path))
                watch = server.watch()
                durations, rate = closed_loop(server.port, clients, until(2.0 if quick else 6.0, path))
                median = 1000 * statistics.median(durations)
                p99 = 1000 * sorted(durations)[int(len(durations) * 0.99)]
                target, met = {
                    1: ("p50 ≤ 1.5 ms", median <= 1.5),
                    8: ("≥ 800/s", rate >= 800),
                    64: ("≥ 1,200/s, p99 ≤ 120 ms", rate >= 1200 and p99 <= 120),
                }[clients]
                yield timed(
                    f"show, {clients} client{'s' * (clients > 1)}",
                    durations,
                    target=target,
                    met=met,
                    rate=rate,
                    load=watch.read(),
                )


def until(seconds: float, path: str):
    """Return work that shows a volume until so many seconds are over."""
    end = time.perf_counter() + seconds

    def work(client: Client) -> bool:
        if time.perf_counter() > end:
            return False
        client.get(path)
        return True

    return work
