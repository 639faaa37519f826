"""Quota cannot drift: whatever happens, what is noted equals the sum of the rows; and nobody passes a limit."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blockstore.accounting import quotas
from blockstore.config import QuotaConfig
from blockstore.db import migrations
from blockstore.db.session import Database
from blockstore.errors import OverQuota
from tests.conftest import UNLIMITED

TYPE = "a-type"


@pytest.fixture
def db(tmp_path: Path, database_url: str) -> Iterator[Database]:
    """An empty database of each kind."""
    db = Database(database_url or f"sqlite:///{tmp_path / 'blockstore.db'}")
    migrations.upgrade(db)
    yield db
    db.dispose()


def used(db: Database, project: str = "p") -> dict[str, int]:
    with db.read() as session:
        return {name: amount for name, amount in quotas.usage(session, project).items() if "_" not in name}


def charge(db: Database, limits: QuotaConfig, project: str = "p", **amounts: int) -> None:
    with db.write() as session:
        quotas.charge(session, limits, project, TYPE, **amounts)


def test_a_charge_is_noted_and_a_refund_takes_it_back(db: Database) -> None:
    charge(db, UNLIMITED, volumes=1, gigabytes=5)
    charge(db, UNLIMITED, volumes=1, gigabytes=7)
    with db.write() as session:
        quotas.refund(session, "p", TYPE, volumes=1, gigabytes=5)
    assert used(db) == {"volumes": 1, "gigabytes": 7}
    assert used(db, "other") == {}


def test_the_limit_itself_is_allowed_and_one_more_is_not(db: Database) -> None:
    limits = QuotaConfig(volumes=2, gigabytes=10, snapshots=0)
    charge(db, limits, volumes=2, gigabytes=10)
    with pytest.raises(OverQuota, match=r"Maximum number of volumes allowed \(2\) exceeded"):
        charge(db, limits, volumes=1)
    with pytest.raises(OverQuota, match="Requested 1G, quota is 10G and 10G has been consumed"):
        charge(db, limits, gigabytes=1)
    with pytest.raises(OverQuota, match=r"Maximum number of snapshots allowed \(0\) exceeded"):
        charge(db, limits, snapshots=1)
    assert used(db) == {"volumes": 2, "gigabytes": 10}


def test_a_refusal_charges_nothing_of_the_same_request(db: Database) -> None:
    """Volumes are charged first; the gigabytes that do not fit take that back."""
    with pytest.raises(OverQuota, match="gigabytes quota"):
        charge(db, QuotaConfig(volumes=10, gigabytes=3), volumes=1, gigabytes=4)
    assert used(db).get("volumes", 0) == 0


def test_a_limit_lowered_below_the_use_refuses_and_breaks_nothing(db: Database) -> None:
    charge(db, UNLIMITED, volumes=5)
    with pytest.raises(OverQuota):
        charge(db, QuotaConfig(volumes=3), volumes=1)
    with db.write() as session:
        quotas.refund(session, "p", TYPE, volumes=5)
    assert used(db) == {"volumes": 0}


@pytest.mark.parametrize(("limit", "size", "fits"), [(-1, 10**6, True), (5, 5, True), (5, 6, False), (0, 1, False)])
def test_the_size_of_one_volume(db: Database, limit: int, size: int, fits: bool) -> None:
    limits = QuotaConfig(per_volume_gigabytes=limit)
    with db.read() as session:
        if fits:
            quotas.check_volume_size(session, limits, "p", size)
            return
    with (
        db.read() as session,
        pytest.raises(OverQuota, match=f"Requested volume size {size}G is larger than maximum allowed limit {limit}G"),
    ):
        quotas.check_volume_size(session, limits, "p", size)


def test_many_threads_take_exactly_what_there_is(db: Database) -> None:
    """16 threads want 80 of 30 places; a project's first charge races too."""
    limits = QuotaConfig(volumes=30, gigabytes=-1)

    def take(number: int) -> bool:
        try:
            charge(db, limits, volumes=1, gigabytes=number % 3)
        except OverQuota:
            return False
        return True

    with ThreadPoolExecutor(16) as threads:
        won = list(threads.map(take, range(80)))
    assert sum(won) == 30
    assert used(db)["volumes"] == 30
    assert used(db)["gigabytes"] == sum(number % 3 for number, it in enumerate(won) if it)
