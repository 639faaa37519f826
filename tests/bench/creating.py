"""Create and delete, on the directory backend: from the request to the status that a client sees; memory under load."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Iterator

from tests.bench.client import Client, closed_loop
from tests.bench.figures import Figure, quantile, timed
from tests.bench.server import Server, served, state_dir

OPEN_RATE = 20
OPEN_PAUSE_S = 0.002
CLOSED_PAUSE_S = 0.02
"""Eight clients that asked every 2 ms would measure show, not create."""


def measure(quick: bool) -> Iterator[Figure]:
    """Create at 20 a second, then by 8 clients as fast as they can, then delete all of it."""
    with state_dir() as directory, served(directory) as server:
        warm = [_create(server.port) for _ in range(10)]
        yield _open_loop(server, 100 if quick else 600)
        ids = [*warm, *_ids(server)]
        yield _create_by_eight(server, 3.0 if quick else 10.0)
        ids = _ids(server)
        yield _delete_by_eight(server, ids[:300] if quick else ids[:1500])
        _, most = server.memory_mib()
        yield Figure(
            name="memory under load", target="≤ 110 MiB", met=most <= 110, unit="MiB", median=most,
            note="VmHWM after the creates and deletes above",
        )  # fmt: skip


def _create(port: int) -> str:
    client = Client(port)
    volume_id = client.create()
    client.wait_available(volume_id, OPEN_PAUSE_S)
    client.close()
    return volume_id


def _ids(server: Server) -> list[str]:
    import json

    client, found, marker = Client(server.port), [], ""
    while True:
        page = json.loads(client.get(f"/volumes?limit=1000{marker}"))["volumes"]
        found += [volume["id"] for volume in page]
        if len(page) < 1000:
            return found
        marker = f"&marker={page[-1]['id']}"


def _open_loop(server: Server, count: int) -> Figure:
    """A create begins every 50 ms, whether or not those before have ended; timed from when it was due."""
    durations: list[float] = []
    clients = [Client(server.port) for _ in range(8)]
    gate = threading.Semaphore(len(clients))
    watch, begin = server.watch(), time.perf_counter() + 0.1

    def one(client: Client, due: float) -> None:
        client.wait_available(client.create(), OPEN_PAUSE_S)
        durations.append(time.perf_counter() - due)
        clients.append(client)
        gate.release()

    threads = []
    for n in range(count):
        due = begin + n / OPEN_RATE
        time.sleep(max(0.0, due - time.perf_counter()))
        gate.acquire()
        threads.append(threading.Thread(target=one, args=(clients.pop(0), due)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    median, p99 = statistics.median(durations), quantile(durations, 99)
    return timed(
        f"create → available, {OPEN_RATE}/s",
        durations,
        target="p50 ≤ 20, p99 ≤ 100 ms",
        met=len(durations) == count and median <= 0.020 and p99 <= 0.100,
        rate=count / (time.perf_counter() - begin),
        load=watch.read(),
    )


def _create_by_eight(server: Server, seconds: float) -> Figure:
    watch, until = server.watch(), time.perf_counter() + seconds

    def work(client: Client) -> bool:
        if time.perf_counter() > until:
            return False
        client.wait_available(client.create(), CLOSED_PAUSE_S)
        return True

    durations, rate = closed_loop(server.port, 8, work)
    return timed(
        "create → available, 8 clients", durations, target="≥ 100/s", met=rate >= 100, rate=rate, load=watch.read()
    )


def _delete_by_eight(server: Server, ids: list[str]) -> Figure:
    watch, left, lock = server.watch(), iter(ids), threading.Lock()

    def work(client: Client) -> bool:
        with lock:
            mine = list(itertools.islice(left, 1))
        if not mine:
            return False
        client.delete_and_wait(mine[0], CLOSED_PAUSE_S)
        return True

    durations, rate = closed_loop(server.port, 8, work)
    return timed("delete → gone, 8 clients", durations, target="≥ 100/s", met=rate >= 100, rate=rate, load=watch.read())
