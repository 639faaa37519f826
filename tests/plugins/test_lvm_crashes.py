"""Killed before any process of the LVM plugin, an action is completed by the next call; without LVM."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from blockstore_plugins.lvm import LvmBackend

from blockstore.backends import process
from tests.crash.steps import Steps

from .fake_lvm import FakeLv, FakeLvm
from .test_lvm import backend, fake, make

__all__ = ["backend", "fake"]  # fixtures

ACTIONS: dict[str, Callable[[LvmBackend], None]] = {
    "create": lambda b: b.create_volume("n", 1),
    "clone": lambda b: b.clone_volume("n", 2, "v"),
    "from snapshot": lambda b: b.create_volume_from_snapshot("n", 3, "v", "s"),
    "extend": lambda b: b.extend_volume("v", 5),
    "snapshot": lambda b: b.create_snapshot("v", "t"),
    "revert": lambda b: b.revert_volume("v", "s"),
    "delete snapshot": lambda b: b.delete_snapshot("v", "s"),
}


@pytest.mark.parametrize("what", ACTIONS)
def test_killed_at_every_process_and_asked_again(
    backend: LvmBackend, fake: FakeLvm, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill before any of its processes, an action asked again ends as if there had been no kill."""
    backend.create_volume("v", 1)
    backend.create_snapshot("v", "s")
    backend.extend_volume("v", 2)
    action, ready = ACTIONS[what], _state(fake)
    action(backend)
    wanted = _state(fake)
    kind = "thin" if backend.capabilities().thin else "thick"
    for step in itertools.count(1):
        _restore(fake, ready)
        steps = Steps()
        with monkeypatch.context() as patch:
            patch.setattr(process, "run", steps.wrap(fake.run))
            if not steps.crashed(step, lambda: action(make(kind))):
                break
        again = make(kind)
        assert set(again.list_volumes()) - {"n"} == {"v"}
        assert {"s": "v"}.items() <= again.list_snapshots().items() or what == "delete snapshot"
        action(again)
        assert _state(fake) == wanted, step
    assert step > 1


def _state(fake: FakeLvm) -> dict[str, dict[str, Any]]:
    # What is active may differ: looking again activates what it finds inactive.
    return {
        name: {**vars(lv), "tags": set(lv.tags), "origin": lv.origin if lv.kind == "s" else "", "active": True}
        for name, lv in fake.lvs.items()
    }


def _restore(fake: FakeLvm, state: dict[str, dict[str, Any]]) -> None:
    fake.lvs = {name: FakeLv(**{**fields, "tags": set(fields["tags"])}) for name, fields in state.items()}
