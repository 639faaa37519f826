"""The built-in identity: what checking a token adds to a request, and how long a login takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from tests.bench import rows
from tests.bench.client import closed_loop
from tests.bench.figures import Figure, timed
from tests.bench.server import CONFIG, served, state_dir
from tests.bench.showing import until

MOST_ADDED_MS = 1.0
MOST_LOGIN_MS = 150.0


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
