"""How much a test tries of what it could try for hours: a sample in `make test`, everything in `make test-long`.

A sample is drawn by the seed that pytest prints at the head of its log; ``TEST_SEED=N`` draws another one. `make test`
draws the same one each time, so that what fails is what was changed; `make test-long` draws a new one.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

LONG = os.environ.get("TEST_LONG") == "1"
SEED = os.environ.setdefault("TEST_SEED", str(random.SystemRandom().randrange(10**6)) if LONG else "1")
"""Kept in the environment, so that it is the same in pytest-xdist's workers and in what tests start."""


def dice(purpose: str) -> random.Random:
    """Return the chance for one purpose; it does not depend on what other tests draw."""
    return random.Random(f"{SEED} {purpose}")


def effort(sample: int, everything: int) -> int:
    """Return how many times to try."""
    return everything if LONG else sample


def one_of(share: int, case: str) -> None:
    """Skip a case unless it is drawn; in a sample one of ``share`` cases is, on average."""
    if not LONG and dice(case).randrange(share):
        pytest.skip(f"a sample: one of {share} cases is drawn by the seed; make test-long tries all")


def steps(purpose: str, numbers: range, stride: int) -> Iterator[int]:
    """Yield the numbers of a range in order; in a sample the first, and one of ``stride`` of the others on average."""
    chance, at = dice(purpose), 0
    while at < len(numbers):
        yield numbers[at]
        at += 1 if LONG else chance.randint(1, 2 * stride - 1)
