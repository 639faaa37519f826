"""LVM in the lab: `tests/lab/lab-run -- .venv/bin/python -m tests.bench lvm`. (to be written)"""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.figures import Figure


def measure(quick: bool) -> Iterator[Figure]:
    yield Figure(name="create on LVM", target="≤ 1.15 × lvcreate", note="not measured")
