"""The built-in identity: what checking a token adds to a request, and how long a login takes."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tests.bench import rows
from tests.bench.client import Client, closed_loop
from tests.bench.figures import Figure, timed
from tests.bench.server import CONFIG, served, state_dir
from tests.bench.showing import until

MOST_ADDED_MS = 1.0
MOST_LOGIN_MS = 150.0
FLOOD = 160
MOST_GROWTH_MIB = 24.0
"""What a flood of logins may leave behind: its threads, and less than one more hash."""
MOST_FLOODED_MS = 250.0
"""The 99th percentile of what another tenant sees meanwhile: it was 8.7 s with 100 logins."""


def measure(quick: bool) -> Iterator[Figure]:
    """Show a volume without authentication and with it, in turns; then log in again and again."""
    medians: dict[str, list[float]] = {"none": [], "builtin": []}
    for _ in range(2 if quick else 4):
        for auth, found in medians.items():
            with state_dir() as directory:
                path = f"/volumes/{rows.fill(directory, 1000)[500]}"
                with served(directory, f"[service]\nauth = {auth}\n{CONFIG}") as server:
                    closed_loop(server.port, 1, until(0.3, path))
                    durations, _rate = closed_loop(server.port, 1, until(1.5, path))
                    found.append(statistics.median(durations))
    added = [with_token - without for without, with_token in zip(medians["none"], medians["builtin"], strict=True)]
    yield timed(
        "token check, added to a show",
        added,
        target=f"p50 ≤ {MOST_ADDED_MS:g} ms",
        met=1000 * statistics.median(added) <= MOST_ADDED_MS,
    )
    yield from _flood()
    with state_dir() as directory, served(directory, f"[service]\nauth = builtin\n{CONFIG}") as server:
        logins = []
        for _ in range(20 if quick else 60):
            started = time.perf_counter()
            server.token()
            logins.append(time.perf_counter() - started)
        yield timed(
            "login by password",
            logins,
            target=f"p50 ≤ {MOST_LOGIN_MS:g} ms",
            met=1000 * statistics.median(logins) <= MOST_LOGIN_MS,
        )


def _flood() -> Iterator[Figure]:
    """Show a volume again and again while many log in at once with wrong passwords; note memory before and after."""
    with state_dir() as directory:
        path = f"/volumes/{rows.fill(directory, 1000)[500]}"
        with served(directory, f"[service]\nauth = builtin\n{CONFIG}") as server:
            closed_loop(server.port, 1, until(1.0, path))
            idle, _ = server.memory_mib()
            statuses: Counter[int] = Counter()
            ended = threading.Event()

            def flood() -> None:
                with ThreadPoolExecutor(FLOOD) as guessers:
                    for _ in range(2):  # the first 160 find an empty queue, the others a service that has had it
                        statuses.update(guessers.map(partial(_guess, server.port), range(FLOOD)))
                ended.set()

            flooding = threading.Thread(target=flood)
            flooding.start()
            shown, _ = closed_loop(server.port, 1, lambda client: bool(client.get(path)) and not ended.is_set())
            flooding.join()
            after, most = server.memory_mib()
        yield timed(
            f"show while 2 x {FLOOD} log in wrongly",
            shown,
            target=f"p99 \u2264 {MOST_FLOODED_MS:g} ms",
            met=1000 * statistics.quantiles(shown, n=100)[98] <= MOST_FLOODED_MS,
            note=", ".join(f"{count} x {status}" for status, count in sorted(statuses.items())),
        )
        yield Figure(
            name="memory after the flood",
            unit="MiB",
            median=after,
            target=f"\u2264 idle + {MOST_GROWTH_MIB:g} MiB",
            met=after <= idle + MOST_GROWTH_MIB,
            note=f"idle {idle:.0f} MiB, at most {most:.0f} MiB",
        )


def _guess(port: int, number: int) -> int:
    """Log in as somebody with a wrong password; return the status."""
    user = {"name": f"user-{number}", "domain": {"id": "default"}, "password": "wrong"}
    auth = {"identity": {"methods": ["password"], "password": {"user": user}}}
    client = Client(port)
    try:
        return client("POST", "/identity/v3/auth/tokens", {"auth": auth})[0]
    finally:
        client.close()
