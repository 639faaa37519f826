"""Reservations cannot drift: random requests and random failures, and they equal the sum of the rows every time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from blockstore.accounting import reservations
from blockstore.app.service import Service
from blockstore.backends.memory import MemoryBackend
from blockstore.config import QuotaConfig
from blockstore.db import migrations
from blockstore.db.session import Database
from blockstore.errors import BackendError, InUse, NoSpace, Unreachable
from tests.conftest import Client, backend_section
from tests.crash.invariants import check


@pytest.fixture
def db(tmp_path: Path, database_url: str) -> Iterator[Database]:
    """An empty database of each kind."""
    db = Database(database_url or f"sqlite:///{tmp_path / 'blockstore.db'}")
    migrations.upgrade(db)
    yield db
    db.dispose()


def reserve(db: Database, **amounts: Any) -> None:
    with db.write() as session:
        reservations.reserve(session, "pool", **amounts)


def noted(db: Database) -> tuple[int, int, int]:
    with db.read() as session:
        usage = reservations.usage_by_pool(session)["pool"]
        return usage.volumes, usage.volume_gib, usage.snapshot_gib


def test_reservations_add_up(db: Database) -> None:
    reserve(db, volumes=1, volume_gib=6)
    reserve(db, snapshot_gib=4)
    assert noted(db) == (1, 6, 4)


def test_a_release_gives_back_and_one_of_no_pool_does_nothing(db: Database) -> None:
    reserve(db, volumes=1, volume_gib=6)
    with db.write() as session:
        reservations.release_capacity(session, "pool", volumes=1, volume_gib=6)
        reservations.release_capacity(session, None, volumes=1, volume_gib=6)
    assert noted(db) == (0, 0, 0)


def test_many_threads_reserve_and_none_is_lost(db: Database) -> None:
    """16 threads, a pool that nobody has reserved of yet."""
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: reserve(db, volumes=1, volume_gib=2), range(60)))
    assert noted(db) == (60, 120, 0)


# --- the property ------------------------------------------------------------------------------------------

FAILURES = (BackendError("no"), NoSpace("full"), InUse("busy"), Unreachable("away"), RuntimeError("bug"))
METHODS = (
    "create_volume", "delete_volume", "extend_volume", "create_snapshot", "delete_snapshot", "revert_volume",
    "create_volume_from_snapshot", "clone_volume",
)  # fmt: skip
VERBS = (
    "create",
    "copy",
    "clone",
    "snapshot",
    "extend",
    "revert",
    "delete",
    "cascade",
    "delete snapshot",
    "force",
    "reset",
)

step = st.tuples(
    st.sampled_from(VERBS),
    st.integers(0, 2**16),
    st.none() | st.tuples(st.sampled_from(METHODS), st.sampled_from(FAILURES)),
    st.booleans(),
)


def ask(api: Client, verb: str, dice: random.Random) -> None:
    """Ask for something; what is refused is refused."""
    nothing = "00000000-0000-4000-8000-000000000000"
    volume_id = dice.choice([v["id"] for v in api.get("/volumes")["volumes"]] or [nothing])
    shots = api.get("/snapshots")["snapshots"]
    shot = dice.choice(shots or [{"id": nothing, "volume_id": volume_id}])
    size = dice.randint(1, 3)
    method, path, body = {
        "create": ("POST", "/volumes", {"volume": {"size": size}}),
        "copy": ("POST", "/volumes", {"volume": {"snapshot_id": shot["id"], "size": size}}),
        "clone": ("POST", "/volumes", {"volume": {"source_volid": volume_id, "size": size}}),
        "snapshot": ("POST", "/snapshots", {"snapshot": {"volume_id": volume_id}}),
        "extend": ("POST", f"/volumes/{volume_id}/action", {"os-extend": {"new_size": size + 1}}),
        "revert": ("POST", f"/volumes/{shot['volume_id']}/action", {"revert": {"snapshot_id": shot["id"]}}),
        "delete": ("DELETE", f"/volumes/{volume_id}", None),
        "cascade": ("DELETE", f"/volumes/{volume_id}?cascade=true", None),
        "delete snapshot": ("DELETE", f"/snapshots/{shot['id']}", None),
        "force": ("DELETE", f"/volumes/{volume_id}?cascade=true&force=true", None),
        "reset": ("POST", f"/volumes/{volume_id}/action", {"os-reset_status": {"status": "error"}}),
    }[verb]
    answer = api(method, path, body)
    assert answer.status < 500, answer.body


@pytest.fixture
def small(start_service: Callable[..., Service], database_url: str) -> Client:
    """Two small pools and a small quota, so that refusals happen."""
    pool = {"max_over_subscription_ratio": "1"}
    return Client(
        start_service(
            database_url=database_url,
            quota=QuotaConfig(volumes=8, snapshots=5, gigabytes=24),
            backends=(
                backend_section("one", "memory", pool, size_gib="12", thin="no"),
                backend_section("two", "memory", pool, size_gib="9", thin="no"),
            ),
        )
    )


def test_random_requests_and_failures_leave_every_figure_exact(small: Client) -> None:
    """After each request, once nothing runs, rows, quota, reservations and storage agree."""
    backends = [backend for backend in small.service.backends.values() if isinstance(backend, MemoryBackend)]

    @settings(
        max_examples=15,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(step, min_size=5, max_size=25))
    def run(steps: list[Any]) -> None:
        for verb, seed, failure, wait in steps:
            if failure is not None:
                for backend in backends:
                    backend.fail[failure[0]] = failure[1]
            ask(small, verb, random.Random(seed))
            if wait:
                small.wait_idle()
                for backend in backends:
                    backend.fail.clear()
        small.wait_idle()
        for backend in backends:
            backend.fail.clear()
        check(small.service.db, small.service.backends, explained=False)

    run()
    for volume in small.get("/volumes")["volumes"]:
        small("DELETE", f"/volumes/{volume['id']}?cascade=true&force=true")
        small.wait_idle()
    check(small.service.db, small.service.backends, explained=False)
    assert small.get("/volumes") == {"volumes": []}
    assert small.get("/limits")["limits"]["absolute"]["totalGigabytesUsed"] == 0
