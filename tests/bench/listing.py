"""Detail list: 100 volumes of 1,000, and the same and filtered lists of 100,000; the large database's start."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from urllib.parse import quote

from tests.bench import rows
from tests.bench.client import Client
from tests.bench.figures import Figure, timed
from tests.bench.server import Server, served, state_dir

SMALL = 1000
BASE_TARGET_MS = 7.0
FACTOR = 1.5


def measure(quick: bool) -> Iterator[Figure]:
    """Time each list with one client; what is large is held against the small one of the same run."""
    times = 40 if quick else 200
    large = 20_000 if quick else 100_000
    with state_dir() as directory:
        rows.fill(directory, SMALL)
        with served(directory) as server:
            base = _list(
                server,
                f"list 100 of {SMALL:,}",
                "limit=100",
                100,
                times,
                f"p50 ≤ {BASE_TARGET_MS:g} ms",
                BASE_TARGET_MS,
            )
            yield base
    assert base.median is not None
    limit = FACTOR * base.median
    with state_dir() as directory:
        ids = rows.fill(directory, large)
        with served(directory) as server:
            target = 2.0
            yield Figure(
                name=f"start with {large:,} volumes", target="≤ 2 s", met=server.start_s <= target, unit="s",
                median=server.start_s, samples=1,
            )  # fmt: skip
            for name, (query, expected) in _queries(ids).items():
                yield _list(
                    server, f"list {name} of {large:,}", query, expected, times, f"p50 ≤ {FACTOR} × small", limit
                )
            _, most = server.memory_mib()
            yield Figure(
                name=f"memory after lists of {large:,}", target="≤ 150 MiB", met=most <= 150, unit="MiB", median=most
            )


def _queries(ids: list[str]) -> Mapping[str, tuple[str, int]]:
    """Return query and expected number of volumes, by name."""
    middle = ids[len(ids) // 2]
    pair = quote('{"rack": "r7"}')
    return {
        "100": ("limit=100", 100),
        "100, deep by marker": (f"limit=100&marker={middle}", 100),
        "100 by status": ("limit=100&status=available", 100),
        "100 by rare status": ("limit=100&status=error", 100),
        "1 by name": ("limit=100&name=volume-4711", 1),
        "by metadata": (f"limit=100&metadata={pair}", min(100, len(ids) // 500)),
        "100 of all tenants": ("limit=100&all_tenants=1", 100),
    }


def _list(server: Server, name: str, query: str, expected: int, times: int, target: str, limit_ms: float) -> Figure:
    client = Client(server.port)
    path = f"/volumes/detail?{query}"
    found = client.get(path).count(b'"consumes_quota"')
    if found != expected:
        raise RuntimeError(f"{path} gave {found} volumes instead of {expected}")
    for _ in range(10):
        client.get(path)
    watch, durations = server.watch(), []
    for _ in range(times):
        started = time.perf_counter()
        client.get(path)
        durations.append(time.perf_counter() - started)
    client.close()
    median = 1000 * statistics.median(durations)
    return timed(name, durations, target=target, met=median <= limit_ms, rate=times / sum(durations), load=watch.read())
