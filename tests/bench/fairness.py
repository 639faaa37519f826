"""Two tenants: how long one waits for a volume while the other creates and deletes as fast as it can.

The busy tenant's clients are a process of their own, so that only the service is shared by the two.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event

from tests.bench.client import Client, closed_loop
from tests.bench.figures import Figure, quantile, timed
from tests.bench.server import Server, served, state_dir

LOOPS = 16
PAUSE_S = 0.002
BUSY_PAUSE_S = 0.02
MOST_TIMES_IDLE = 3


def measure(quick: bool) -> Iterator[Figure]:
    """Create one volume after the other, alone and beside 16 loops of another project."""
    count = 150 if quick else 1000
    with state_dir() as directory, served(directory) as server:
        client = Client(server.port, server.tenant("other"))
        for _ in range(20):
            _create(client)
        watch = server.watch()
        idle = [_create(client) for _ in range(count)]
        yield timed("create → available, alone", idle, load=watch.read())
        with _busy(server) as busy:
            watch = server.watch()
            beside = [_create(client) for _ in range(count)]
            load = watch.read()
        times = quantile(beside, 99) / quantile(idle, 99)
        medians = statistics.median(beside) / statistics.median(idle)
        yield timed(
            f"create → available, beside {LOOPS} loops",
            beside,
            target=f"p99 ≤ {MOST_TIMES_IDLE} × alone",
            met=times <= MOST_TIMES_IDLE,
            load=load,
            note=f"p99 {times:.1f} ×, median {medians:.1f} × alone; the loops made and removed {busy[0]:.0f} a second",
        )


def _create(client: Client) -> float:
    """Return the seconds until a new volume is available; then remove it."""
    started = time.perf_counter()
    volume_id = client.create()
    client.wait_available(volume_id, PAUSE_S)
    ended = time.perf_counter()
    client.delete_and_wait(volume_id, PAUSE_S)
    return ended - started


@contextlib.contextmanager
def _busy(server: Server) -> Iterator[list[float]]:
    """Let the busy tenant work inside; afterwards the list holds its rate."""
    token = server.tenant("busy")
    spawn = multiprocessing.get_context("spawn")
    stop, rates, rate = spawn.Event(), spawn.SimpleQueue(), [0.0]
    process = spawn.Process(target=_loop, args=(server.port, token, stop, rates), daemon=True)
    process.start()
    try:
        rates.get()  # it has begun
        time.sleep(1)
        yield rate
    finally:
        stop.set()
        rate[0] = rates.get()
        process.join(30)


def _loop(port: int, token: str, stop: Event, rates: multiprocessing.SimpleQueue[float]) -> None:
    rates.put(0.0)

    def work(client: Client) -> bool:
        volume_id = client.create()
        client.wait_available(volume_id, BUSY_PAUSE_S)
        client.delete_and_wait(volume_id, BUSY_PAUSE_S)
        return not stop.is_set()

    rates.put(closed_loop(port, LOOPS, work, token)[1])
