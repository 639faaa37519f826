"""How slow the processor is at present: limits of processor time are for one that does nothing else.

Others who share the processor take its caches and the other half of its core, so that the same work takes more seconds.
"""

from __future__ import annotations

import json
import time

USUAL_S = 0.0017
"""Seconds that the work takes on a quiet machine."""
_TEXT = json.dumps([{"name": f"n{number}", "size": number, "tags": ["a", "b"]} for number in range(1000)])


def slowness() -> float:
    """Return how many times as long as usual work takes at present; at least 1."""
    return max(1.0, min(_work_s() for _ in range(5)) / USUAL_S)


def _work_s() -> float:
    began = time.thread_time()
    found = json.loads(_TEXT)
    counts: dict[str, int] = {}
    for one in found:
        for key, value in one.items():
            counts[f"{key} {value}"] = counts.get(key, 0) + len(str(value))
    assert json.dumps(sorted(counts))
    return time.thread_time() - began
