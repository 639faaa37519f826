"""Calls that end when a test lets them: who waits for one waits until then, however slow the machine is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

GIVEN_UP_S = 600
"""When a test has failed that lets its calls end no more."""


def held(call: Callable[..., Any], over: threading.Event) -> Callable[..., Any]:
    """Return a call that does not end before ``over`` is set."""

    def do(*arguments: Any, **named: Any) -> Any:
        try:
            return call(*arguments, **named)
        finally:
            assert over.wait(GIVEN_UP_S)

    return do


@contextmanager
def holding(monkeypatch: pytest.MonkeyPatch, thing: object, *methods: str) -> Iterator[None]:
    """Let the calls of some methods of a thing end after the block."""
    over = threading.Event()
    for method in methods:
        monkeypatch.setattr(thing, method, held(getattr(thing, method), over))
    try:
        yield
    finally:
        over.set()
