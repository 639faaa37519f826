"""Volumes and snapshots that others made are listed, managed and let go, and nothing is counted wrong."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from blockstore.api.http import waiting
from blockstore.app.service import Service
from blockstore.backends.contract import Backend, Manageable
from blockstore.config import ServiceConfig
from blockstore.db.models import QuotaUsage, Volume
from blockstore.errors import NoSpace
from tests.api.conftest import at_once
from tests.conftest import Answer, Client, backend_section
from tests.crash.invariants import check

HOST = "blockstore@a"


@pytest.fixture(params=["memory", "directory"])
def api(start_service: Callable[..., Service], database_url: str, request: pytest.FixtureRequest) -> Client:
    return Client(start_service(database_url=database_url, backends=(backend_section("a", request.param),)))


@pytest.fixture
def backend(api: Client) -> Backend:
    (found,) = api.service.backends.values()
    return found


def idle(api: Client) -> None:
    assert api.service.bus.wait_idle(60)


def foreign(backend: Backend, name: str, text: bytes = b"theirs") -> str:
    """Make a volume behind the service's back; return its reference."""
    backend.create_volume(name, 1)
    with backend.open_volume(name, "r+b") as file:
        file.write(text)
    return {one.name: one.reference for one in backend.list_manageable()}[name]


def listed(api: Client, path: str = "/manageable_volumes/detail", **query: Any) -> list[dict[str, Any]]:
    words = "&".join(f"{key}={value}" for key, value in {"host": HOST, **query}.items())
    answer = api("GET", f"{path}?{words}")
    assert answer.status == 200, answer.body
    (found,) = answer.json.values()
    return list(found)


def manage(api: Client, reference: Any, **more: Any) -> Any:
    return api("POST", "/manageable_volumes", {"volume": {"host": HOST, "ref": reference, **more}})


def managed(api: Client, reference: str, **more: Any) -> dict[str, Any]:
    answer = manage(api, {"source-name": reference}, **more)
    assert answer.status == 202, answer.body
    idle(api)
    found: dict[str, Any] = api("GET", f"/volumes/{answer.json['volume']['id']}").json["volume"]
    return found


def used(api: Client, resource: str) -> int:
    with api.service.db.read() as session:
        return session.execute(select(QuotaUsage.in_use).where(QuotaUsage.resource == resource)).scalar() or 0


def first(backend: Backend, name: str, length: int = 6) -> bytes:
    with backend.open_volume(name, "rb") as file:
        return file.read(length)


def test_a_foreign_volume_is_listed_taken_over_and_used(api: Client, backend: Backend) -> None:
    reference = foreign(backend, "foreign")
    (item,) = listed(api)
    assert item == {
        "reference": {"source-name": reference}, "size": 1, "safe_to_manage": True, "reason_not_safe": None,
        "cinder_id": None, "extra_info": None,
    }  # fmt: skip
    volume = managed(api, reference, name="mine", bootable=True, metadata={"k": "v"})
    assert (volume["status"], volume["size"], volume["name"]) == ("available", 1, "mine")
    assert (volume["bootable"], volume["metadata"]) == ("true", {"k": "v"})
    assert first(backend, f"volume-{volume['id']}") == b"theirs"
    assert (used(api, "volumes"), used(api, "gigabytes")) == (1, 1)
    (item,) = listed(api)
    assert (item["safe_to_manage"], item["reason_not_safe"], item["cinder_id"]) == (
        False, "already managed", volume["id"],
    )  # fmt: skip
    again = manage(api, item["reference"])
    assert again.status == 400
    assert volume["id"] in again.message
    copy = foreign(backend, f"copy-of-volume-{volume['id']}")
    assert managed(api, copy)["status"] == "available"
    check(api.service.db, api.service.backends)


def test_let_go_and_taken_back(api: Client, backend: Backend) -> None:
    """Volume and snapshot survive with their bytes, and are not counted meanwhile."""
    volume = managed(api, foreign(backend, "foreign"))
    shot = api("POST", "/snapshots", {"snapshot": {"volume_id": volume["id"]}}).json["snapshot"]
    idle(api)
    refused = api("POST", f"/volumes/{volume['id']}/action", {"os-unmanage": {}})
    assert refused.status == 400
    assert "snapshot" in refused.message
    assert api("POST", f"/snapshots/{shot['id']}/action", {"os-unmanage": {}}).status == 202
    assert api("GET", f"/snapshots/{shot['id']}").status == 404
    assert (used(api, "snapshots"), used(api, "gigabytes")) == (0, 1)
    (item,) = listed(api, "/manageable_snapshots/detail")
    assert (item["safe_to_manage"], item["cinder_id"]) == (True, None)
    assert item["source_reference"] == listed(api)[0]["reference"]
    body = {"snapshot": {"volume_id": volume["id"], "ref": item["reference"], "name": "back"}}
    back = api("POST", "/manageable_snapshots", body)
    assert (back.status, back.json["snapshot"]["status"]) == (202, "creating")
    idle(api)
    snapshot_id = back.json["snapshot"]["id"]
    assert api("GET", f"/snapshots/{snapshot_id}").json["snapshot"]["status"] == "available"
    with backend.open_snapshot(f"volume-{volume['id']}", f"snap-{snapshot_id}") as file:
        assert file.read(6) == b"theirs"
    check(api.service.db, api.service.backends)
    api("DELETE", f"/snapshots/{snapshot_id}")
    idle(api)
    assert api("POST", f"/volumes/{volume['id']}/action", {"os-unmanage": None}).status == 202
    assert api("GET", f"/volumes/{volume['id']}").status == 404
    assert (used(api, "volumes"), used(api, "gigabytes")) == (0, 0)
    (item,) = listed(api)
    returned = managed(api, item["reference"]["source-name"])
    assert first(backend, f"volume-{returned['id']}") == b"theirs"
    check(api.service.db, api.service.backends)


def test_what_cannot_be_taken_over_says_why_and_counts_for_nothing(api: Client, backend: Backend) -> None:
    reference = foreign(backend, "foreign")
    missing = managed(api, reference.replace("foreign", "nothing"))
    backend_fails = foreign(backend, "foreign-2")
    project = missing["os-vol-tenant-attr:tenant_id"]
    api("PUT", f"/os-quota-sets/{project}", {"quota_set": {"gigabytes": 0}})
    over = managed(api, backend_fails)
    for volume, why in ((missing, "There is no volume"), (over, "exceeds allowed")):
        assert (volume["status"], volume["size"]) == ("error", 0)  # compat: shown as error
        with api.service.db.read() as session:
            assert session.get_one(Volume, volume["id"]).status == "error_managing"
        messages = api("GET", f"/messages?resource_uuid={volume['id']}").json["messages"]
        assert why in messages[0]["user_message"], messages
    assert (used(api, "volumes"), used(api, "gigabytes")) == (0, 0)
    assert {one.reference for one in backend.list_manageable()} == {reference, backend_fails}
    check(api.service.db, api.service.backends)
    for volume in (missing, over):
        assert api("DELETE", f"/volumes/{volume['id']}").status == 202
    idle(api)
    assert {one.reference for one in backend.list_manageable()} == {reference, backend_fails}
    check(api.service.db, api.service.backends)


def test_a_backend_that_fails_leaves_the_volume_where_it_was(api: Client, backend: Backend, monkeypatch: Any) -> None:
    reference = foreign(backend, "foreign")

    def fail(*_args: Any) -> int:
        raise NoSpace("There is no space to grow.")

    monkeypatch.setattr(backend, "manage_volume", fail)
    volume = managed(api, reference)
    assert (volume["status"], volume["os-vol-host-attr:host"]) == ("error", None)
    assert (used(api, "volumes"), used(api, "gigabytes")) == (0, 0)
    check(api.service.db, api.service.backends)
    assert first(backend, "foreign") == b"theirs"


def test_pages(api: Client, backend: Backend) -> None:
    references = sorted(foreign(backend, f"disk{number}") for number in range(5))
    backend.extend_volume("disk3", 2)
    names = [one["reference"]["source-name"] for one in listed(api, "/manageable_volumes")]
    assert names == references[::-1]
    assert set(listed(api, "/manageable_volumes")[0]) == {"reference", "size", "safe_to_manage"}
    names = [one["reference"]["source-name"] for one in listed(api, sort="size:desc,reference:asc")]
    assert names == [references[3], *references[:3], references[4]]
    got: list[str] = []
    while page := listed(
        api, limit=2, sort="reference:asc", **({"marker": json.dumps({"source-name": got[-1]})} if got else {})
    ):
        got += [one["reference"]["source-name"] for one in page]
    assert got == references
    assert [one["reference"]["source-name"] for one in listed(api, offset=4, sort="reference:asc")] == references[4:]
    for bad in ("sort=name", "marker=unknown", "limit=-1", "sort_dir=up", "cluster=c"):
        answer = api("GET", f"/manageable_volumes?host={HOST}&{bad}")
        assert answer.status == 400, bad
    assert api("GET", "/manageable_volumes").status == 400
    assert api("GET", "/manageable_volumes?host=nowhere").status == 400


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"ref": {}}, "source-name"),
        ({"ref": {"source-id": "x"}}, "source-name"),
        ({"ref": 7}, "source-name"),
        ({"ref": "x\ny"}, "printable"),
        ({"ref": "x\0y"}, "printable"),
        ({"ref": "x" * 256}, "255 characters"),
        ({"ref": "x", "host": "nowhere"}, "no pool nowhere"),
        ({"ref": "x", "host": None}, "host"),
        ({"ref": "x", "cluster": "c"}, "cluster"),
        ({"ref": "x", "volume_type": "none"}, "none"),
        ({"ref": "x", "size": 3}, "size"),
    ],
)
def test_bad_bodies_are_refused_by_name(api: Client, fields: dict[str, Any], said: str) -> None:
    answer = api("POST", "/manageable_volumes", {"volume": {"host": HOST, **fields}})
    assert answer.status == 400
    assert said in answer.message
    assert api("GET", "/volumes").json["volumes"] == []


def test_a_reserved_volume_is_not_let_go(api: Client, backend: Backend) -> None:
    volume = managed(api, foreign(backend, "foreign"))
    assert api("POST", f"/volumes/{volume['id']}/action", {"os-reserve": {}}).status == 202
    answer = api("POST", f"/volumes/{volume['id']}/action", {"os-unmanage": {}})
    assert answer.status == 400
    assert "attaching" in answer.message


def test_a_pool_that_hangs_is_told_of_in_time_and_holds_up_no_other(
    start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = (backend_section("a", "memory"), backend_section("b", "memory"))
    api = Client(start_service(backends=sections))
    stuck, there, opened = api.service.backends["blockstore@a#a"], threading.Event(), []

    def hang() -> list[Manageable]:
        opened.append(True)
        assert there.wait(120)
        return []

    def asked(pool: str, within_s: float) -> Answer:
        object.__setattr__(api.service.config.service, "attach_timeout_s", within_s)
        return api("GET", f"/manageable_volumes?host=blockstore@{pool}")

    monkeypatch.setattr(stuck, "list_manageable", hang)
    for _ in range(3):
        answer = asked("a", 0.2)
        assert (answer.status, answer.message) == (
            503, "blockstore@a#a has not answered within 0.2 s which volumes it has; does its storage hang?",
        )  # fmt: skip
        assert asked("b", 60).status == 200
    assert len(opened) == 1
    there.set()
    assert asked("a", 60).json == {"manageable-volumes": []}


def test_a_stop_does_not_wait_for_a_pool_that_hangs(
    start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    api = Client(start_service(backends=(backend_section("a", "memory"),), service=ServiceConfig(attach_timeout_s=0.1)))
    there, manageable_lister = threading.Event(), api.service.manageable_lister
    monkeypatch.setattr(api.service.backends["blockstore@a#a"], "list_manageable", lambda: there.wait(120) and [])
    assert api("GET", "/manageable_volumes?host=blockstore@a").status == 503
    assert not manageable_lister.stop()
    there.set()
    while not manageable_lister.stop():
        time.sleep(0.01)


def test_who_finds_no_room_to_wait_is_told_at_once(
    api: Client, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = threading.Event()
    monkeypatch.setattr(waiting, "MOST", 0)
    monkeypatch.setattr(waiting, "KEPT", 0)
    monkeypatch.setattr(backend, "list_manageable_snapshots", lambda: there.wait(120) and [])
    answer = api("GET", f"/manageable_snapshots?host={HOST}")
    there.set()
    monkeypatch.undo()
    assert listed(api, "/manageable_snapshots") == []
    assert answer.status == 503
    assert "ask again later for the snapshots" in answer.message


def test_what_another_section_has_on_the_same_storage_is_not_taken_over(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    sections = tuple(backend_section(name, "directory", path=str(tmp_path / "pool")) for name in ("a", "b"))
    api = Client(start_service(backends=sections))
    made = api("POST", "/volumes", {"volume": {"size": 1}}).json["volume"]["id"]
    idle(api)
    pool = api("GET", f"/volumes/{made}").json["volume"]["os-vol-host-attr:host"]
    other = next(name.partition("#")[0] for name in api.service.backends if name != pool)
    (item,) = listed(api, host=other)
    assert (item["safe_to_manage"], item["cinder_id"]) == (False, made)
    answer = api("POST", "/manageable_volumes", {"volume": {"host": other, "ref": item["reference"]}})
    assert answer.status == 400
    assert made in answer.message


def test_a_snapshot_that_is_managed_is_not_taken_away_from_its_row(api: Client, backend: Backend) -> None:
    volume = managed(api, foreign(backend, "foreign"))["id"]
    shot = api("POST", "/snapshots", {"snapshot": {"volume_id": volume}}).json["snapshot"]["id"]
    idle(api)
    (item,) = listed(api, "/manageable_snapshots/detail")
    again = api("POST", "/manageable_snapshots", {"snapshot": {"volume_id": volume, "ref": item["reference"]}})
    assert again.status == 400
    assert shot in again.message
    assert api("GET", f"/snapshots/{shot}").json["snapshot"]["status"] == "available"
    check(api.service.db, api.service.backends)


@pytest.mark.parametrize(
    "reference", ["../state/blockstore.db", "/etc/passwd", "snapshots", ".", "..", "%s", "-rf", "é"]
)
def test_a_reference_is_something_that_the_pool_lists_and_nothing_else(
    api: Client, backend: Backend, reference: str
) -> None:
    there = foreign(backend, "foreign")
    volume = managed(api, reference)
    assert (volume["status"], volume["size"], volume["os-vol-host-attr:host"]) == ("error", 0, None)
    (message,) = api("GET", f"/messages?resource_uuid={volume['id']}").json["messages"]
    assert f"There is no volume {reference} on" in message["user_message"]
    assert [one.reference for one in backend.list_manageable()] == [there]
    check(api.service.db, api.service.backends)


def test_of_two_who_take_the_same_over_one_gets_it(api: Client, backend: Backend) -> None:
    reference = foreign(backend, "foreign")
    answers = at_once(4, lambda _number: manage(api, reference))
    assert [answer.status for answer in answers] == [202] * 4
    idle(api)
    ids = [answer.json["volume"]["id"] for answer in answers]
    found = [api("GET", f"/volumes/{one}").json["volume"] for one in ids]
    assert sorted(volume["status"] for volume in found) == ["available", "error", "error", "error"]
    assert (used(api, "volumes"), used(api, "gigabytes")) == (1, 1)
    check(api.service.db, api.service.backends)


def test_members_neither_take_over_nor_let_go(api: Client, backend: Backend) -> None:
    volume = managed(api, foreign(backend, "foreign"))["id"]
    body = {"volume": {"host": HOST, "ref": foreign(backend, "foreign-2")}}
    member = api.as_("other")
    assert member("GET", f"/manageable_volumes?host={HOST}").status == 403
    assert member("POST", "/manageable_volumes", body).status == 403
    assert member("POST", "/manageable_snapshots", {"snapshot": {"volume_id": volume, "ref": "x"}}).status == 403
    assert member("POST", f"/volumes/{volume}/action", {"os-unmanage": {}}).status == 403
