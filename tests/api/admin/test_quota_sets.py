"""Limits of projects and of classes, as administrators set them; and that nobody passes one."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from blockstore.accounting import quotas
from blockstore.app.service import Service
from blockstore.config import QuotaConfig
from blockstore.errors import OverQuota
from tests import sampling
from tests.api.conftest import SharedService
from tests.conftest import Client


def test_limits_of_a_project(shared_service: SharedService) -> None:
    admin, member = shared_service.admin(), shared_service.member()
    project = member.headers["X-Project-Id"]
    place = f"/os-quota-sets/{project}"
    before = member.get(place)["quota_set"]
    assert before["id"] == project
    assert before["volumes___DEFAULT__"] == -1
    changed = admin("PUT", place, {"quota_set": {"volumes": 5, "volumes___DEFAULT__": "3", "tenant_id": project}})
    assert changed.status == 200
    assert (changed.json["quota_set"]["volumes"], changed.json["quota_set"]["volumes___DEFAULT__"]) == (5, 3)
    assert "id" not in changed.json["quota_set"]
    assert member.get(place)["quota_set"]["volumes"] == 5
    assert member.get("/limits")["limits"]["absolute"]["maxTotalVolumes"] == 5
    assert member.get(f"{place}?usage=True")["quota_set"]["volumes"] == {"limit": 5, "in_use": 0, "reserved": 0}
    assert member.get(f"{place}/defaults")["quota_set"] == before
    assert admin("DELETE", place).status == 200
    assert member.get(place)["quota_set"] == before


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ({"volumes": -2}, "volumes"), ({"volumes": 2**31}, "volumes"), ({"volumes": "many"}, "volumes"),
        ({"volumes": True}, "volumes"), ({"apples": 1}, "apples"), ({"volumes_nothing": 1}, "volumes_nothing"),
        ([], "quota_set"),
    ],
)  # fmt: skip
def test_limits_that_may_not_be(sqlite_service: SharedService, limits: Any, field: str) -> None:
    answer = sqlite_service.admin()("PUT", "/os-quota-sets/p", {"quota_set": limits})
    assert answer.status == 400
    assert field in answer.message


def test_no_limit_below_what_is_used(service: Service) -> None:
    admin = Client(service, **{"X-Project-Id": "p"})
    admin.volume(size=4)
    for limits in ({"volumes": 0}, {"gigabytes": 3}, {"gigabytes___DEFAULT__": 3}):
        answer = admin("PUT", "/os-quota-sets/p", {"quota_set": limits})
        assert answer.status == 400
        assert "already" in answer.message
    for limits in ({"volumes": 1}, {"gigabytes": -1}, {"per_volume_gigabytes": 1}):
        assert admin("PUT", "/os-quota-sets/p", {"quota_set": limits}).status == 200
    assert admin("POST", "/volumes", {"volume": {"size": 2}}).status == 413


def test_others_are_not_told(sqlite_service: SharedService) -> None:
    member = sqlite_service.member()
    for suffix in ("", "/defaults", "?usage=true"):
        assert member("GET", f"/os-quota-sets/another{suffix}").status == 403


def test_the_class_default_is_everybody_s(service: Service) -> None:
    admin = Client(service, **{"X-Project-Id": "p"})
    assert admin("PUT", "/os-quota-class-sets/default", {"quota_class_set": {"volumes": 1}}).status == 200
    assert admin.get("/os-quota-class-sets/default")["quota_class_set"]["volumes"] == 1
    assert admin.get("/os-quota-class-sets/other")["quota_class_set"]["volumes"] == -1
    assert admin.get("/os-quota-sets/q")["quota_set"]["volumes"] == 1
    admin.volume()
    assert admin("POST", "/volumes", {"volume": {"size": 1}}).status == 413
    assert admin("PUT", "/os-quota-sets/p", {"quota_set": {"volumes": 2}}).status == 200
    admin.volume()


def test_a_type_has_limits_of_its_own_which_follow_its_name(service: Service) -> None:
    admin = Client(service, **{"X-Project-Id": "p"})
    kind = admin("POST", "/types", {"volume_type": {"name": "old"}}).json["volume_type"]["id"]
    assert admin("PUT", "/os-quota-sets/p", {"quota_set": {"volumes_old": 1}}).status == 200
    volume = admin.volume(volume_type="old")["id"]
    assert admin("PUT", f"/types/{kind}", {"volume_type": {"name": "new"}}).status == 200
    entry = admin.get("/os-quota-sets/p?usage=true")["quota_set"]["volumes_new"]
    assert entry == {"limit": 1, "in_use": 1, "reserved": 0}
    refused = admin("POST", "/volumes", {"volume": {"size": 1, "volume_type": "new"}})
    assert refused.status == 413
    admin.volume()  # of another type
    admin("DELETE", f"/volumes/{volume}")
    admin.wait_idle()
    assert admin("DELETE", f"/types/{kind}").status == 202
    assert "volumes_new" not in admin.get("/os-quota-sets/p")["quota_set"]


# --- exactness ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_of_a_hundred_at_once_on_a_quota_of_one_exactly_one_wins_each_time(service: Service) -> None:
    limits, db = QuotaConfig(volumes=1, gigabytes=-1), service.db
    rounds = sampling.effort(50, 1000) if db.is_sqlite else sampling.effort(15, 100)  # it waits for the others' row

    def take(project: str) -> bool:
        try:
            with db.write() as session:
                quotas.charge(session, limits, project, "t", volumes=1, gigabytes=1)
        except OverQuota:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        for number in range(rounds):
            assert sum(threads.map(take, [f"project {number}"] * 100)) == 1
    with db.read() as session:
        assert quotas.usage(session, "project 7") == {"volumes": 1, "gigabytes": 1, "volumes_t": 1, "gigabytes_t": 1}


@pytest.mark.slow
def test_many_operations_leave_no_drift(service: Service) -> None:
    """Charges, refunds, refusals, in transactions that are committed or rolled back."""
    if not service.db.is_sqlite:
        pytest.skip("the arithmetic is the same; races are tested above")
    chance, limits = sampling.dice("quota"), QuotaConfig(volumes=50, gigabytes=400, snapshots=30)
    held: list[tuple[str, str, dict[str, int]]] = []
    done, wanted_steps = 0, sampling.effort(15_000, 100_000)
    while done < wanted_steps:
        kept = list(held)
        try:
            with service.db.write() as session:
                for _ in range(200):
                    done += 1
                    _one_step(chance, session, limits, kept)
                if chance.random() < 0.1:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            continue
        held = kept
    wanted: Counter[tuple[str, str]] = Counter()
    for project, kind, amounts in held:
        for resource, amount in amounts.items():
            wanted[project, resource] += amount
            wanted[project, f"{resource}_{kind}"] += amount
    with service.db.read() as session:
        found = Counter({(p, r): n for p in ("a", "b", "c") for r, n in quotas.usage(session, p).items()})
    assert +found == +wanted


def _one_step(chance: random.Random, session: Any, limits: QuotaConfig, held: list[Any]) -> None:
    if held and chance.random() < 0.45:
        project, kind, amounts = held.pop(chance.randrange(len(held)))
        quotas.refund(session, project, kind, **amounts)
        return
    project, kind = chance.choice("abc"), chance.choice("xy")
    amounts = {"volumes": chance.randint(0, 1), "snapshots": chance.randint(0, 1), "gigabytes": chance.randint(0, 20)}
    savepoint = session.begin_nested()
    try:
        quotas.charge(session, limits, project, kind, **amounts)
    except OverQuota:
        savepoint.rollback()
        return
    savepoint.commit()
    held.append((project, kind, amounts))
