"""Where volumes go, and what is told when they go nowhere: the scheduler, asked over HTTP."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import func, select

from blockstore.app.service import Service
from blockstore.config import QuotaConfig, SchedulerConfig
from blockstore.db.models import OperationRow, PoolUsage, QuotaUsage, Snapshot, Volume
from blockstore.errors import NoSpace
from tests.conftest import Answer, Client, backend_section

T = TypeVar("T")
Start = Callable[..., Service]


def in_threads(number: int, work: Callable[[Client, int], T], api: Client) -> list[T]:
    """Do something many times at once, each with a client of its own."""
    done: list[T] = []
    gate = threading.Barrier(min(number, 16))
    numbers = iter(range(number))
    lock = threading.Lock()

    def run() -> None:
        client = Client(api.service, **api.headers)
        gate.wait()
        while True:
            with lock:
                n = next(numbers, None)
            if n is None:
                return
            done.append(work(client, n))

    threads = [threading.Thread(target=run) for _ in range(min(number, 16))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == number
    return done


def assert_reservations_are_exact(service: Service) -> None:
    """Compare what the reservations and the quota say with the rows they stand for; and no operation is left open."""
    with service.db.read() as session:
        pools: Counter[tuple[str, str]] = Counter()
        quota: Counter[tuple[str, str]] = Counter()
        for volume in session.scalars(select(Volume)):
            if volume.host:
                pools[volume.host, "volumes"] += 1
                pools[volume.host, "volume_gib"] += volume.size
            quota[volume.project_id, "volumes"] += 1
            quota[volume.project_id, "gigabytes"] += volume.size
        for snapshot in session.scalars(select(Snapshot)):
            if snapshot.host:
                pools[snapshot.host, "snapshot_gib"] += snapshot.volume_size
            quota[snapshot.project_id, "snapshots"] += 1
            quota[snapshot.project_id, "gigabytes"] += snapshot.volume_size
        said = Counter(
            {
                (usage.pool, name): getattr(usage, name)
                for usage in session.scalars(select(PoolUsage))
                for name in ("volumes", "volume_gib", "snapshot_gib")
            }
        )
        usages = session.scalars(select(QuotaUsage)).all()
        charged = Counter({(u.project_id, u.resource): u.in_use for u in usages if "_" not in u.resource})
        assert +said == +pools
        assert +charged == +quota
        assert session.scalar(select(func.count()).select_from(OperationRow).where(OperationRow.state == "open")) == 0


def statuses(api: Client) -> Counter[str]:
    return Counter(volume["status"] for volume in api.get("/volumes/detail")["volumes"])


def messages_of(api: Client, volume_id: str) -> list[str]:
    return [m["user_message"] for m in api.get(f"/messages?resource_uuid={volume_id}")["messages"]]


def pool(name: str = "memory", *, thin: bool = True, size_gib: int = 10, **options: Any) -> Any:
    """A pool that promises what it has and no more."""
    settings = {"max_over_subscription_ratio": "1", **options}
    return backend_section(name, "memory", settings, size_gib=str(size_gib), thin="yes" if thin else "no")


@pytest.mark.parametrize("thin", [True, False], ids=["thin", "thick"])
def test_a_hundred_at_once_into_a_pool_with_room_for_ten(start_service: Start, database_url: str, thin: bool) -> None:
    service = start_service(database_url=database_url, backends=(pool(thin=thin),))
    api = Client(service)
    answers = in_threads(100, lambda client, _: client("POST", "/volumes", {"volume": {"size": 1}}), api)
    assert Counter(answer.status for answer in answers) == {202: 100}
    api.wait_idle(60)
    assert statuses(api) == {"available": 10, "error": 90}
    for volume in api.get("/volumes/detail?status=error")["volumes"]:
        (told,) = messages_of(api, volume["id"])
        assert "blockstore@memory#memory" in told
        assert "CapacityFilter" in told
        assert re.search(r"\b0 GiB\b.*\b1 GiB\b|\b1 GiB\b.*\b0 GiB\b", told), told
        assert volume["os-vol-host-attr:host"] is None
    assert len(service.backends["blockstore@memory#memory"].list_volumes()) == 10
    assert_reservations_are_exact(service)
    assert api.get("/scheduler-stats/get_pools?detail=1")["pools"][0]["capabilities"]["allocated_capacity_gb"] == 10
    # What failed is deleted, what is deleted makes room.
    for volume in api.get("/volumes/detail?status=error")["volumes"]:
        assert api("DELETE", f"/volumes/{volume['id']}").status == 202
    api.wait_idle()
    freed = api.get("/volumes?limit=1")["volumes"][0]["id"]
    assert api("DELETE", f"/volumes/{freed}").status == 202
    api.wait_idle()
    service.report()
    assert api.volume(size=1)["status"] == "available"
    assert_reservations_are_exact(service)


def test_snapshots_and_growth_are_reserved_too(start_service: Start, database_url: str) -> None:
    service = start_service(database_url=database_url, backends=(pool(thin=False),))
    api = Client(service)
    volume = api.volume(size=4)
    snapshot = api.snapshot(volume["id"])
    assert snapshot["status"] == "available"
    assert api.snapshot(volume["id"])["status"] == "error"  # 4 + 4 of 10 are taken
    assert api.action(f"volumes/{volume['id']}", "os-extend", {"new_size": 7}).status == 202
    after = api.get(f"/volumes/{volume['id']}")["volume"]
    assert (after["size"], after["status"]) == (4, "available")
    assert any("CapacityFilter" in told for told in messages_of(api, volume["id"]))
    assert api.action(f"volumes/{volume['id']}", "os-extend", {"new_size": 6}).status == 202
    assert api.get(f"/volumes/{volume['id']}")["volume"]["size"] == 6
    assert_reservations_are_exact(service)


def two_pools(start_service: Start, **parts: Any) -> Client:
    """Two pools of which the scheduler likes ``big`` better."""
    return Client(start_service(backends=(pool("big", size_gib=100), pool("small", size_gib=50)), **parts))


BIG, SMALL = "blockstore@big#big", "blockstore@small#small"


def test_a_create_that_fails_tries_the_next_pool(start_service: Start) -> None:
    api = two_pools(start_service)
    api.service.backends[BIG].fail["create_volume"] = NoSpace("full")  # type: ignore[attr-defined]
    volume = api.volume()
    assert (volume["status"], volume["os-vol-host-attr:host"]) == ("available", SMALL)
    assert messages_of(api, volume["id"]) == []
    assert_reservations_are_exact(api.service)


def test_a_create_gives_up_when_every_pool_has_failed(start_service: Start) -> None:
    api = two_pools(start_service)
    for name in (BIG, SMALL):
        api.service.backends[name].fail["create_volume"] = NoSpace("full")  # type: ignore[attr-defined]
    volume = api.volume()
    assert volume["status"] == "error"
    (told,) = messages_of(api, volume["id"])
    assert BIG in told
    assert SMALL in told
    assert "tried already" in told
    assert_reservations_are_exact(api.service)


def test_a_create_gives_up_after_max_attempts(start_service: Start) -> None:
    api = two_pools(start_service, scheduler=SchedulerConfig(max_attempts=1))
    api.service.backends[BIG].fail["create_volume"] = NoSpace("it is full")  # type: ignore[attr-defined]
    volume = api.volume()
    assert (volume["status"], volume["os-vol-host-attr:host"]) == ("error", BIG)
    (told,) = messages_of(api, volume["id"])
    assert "it is full" in told
    assert_reservations_are_exact(api.service)
    assert api("DELETE", f"/volumes/{volume['id']}").status == 202
    api.wait_idle()
    assert_reservations_are_exact(api.service)


def test_a_copy_stays_with_its_source(start_service: Start) -> None:
    api = two_pools(start_service)
    source = api.volume(metadata={"a": "b"})
    assert source["os-vol-host-attr:host"] == BIG
    api("PUT", "/os-services/disable", {"binary": "cinder-volume", "host": "blockstore@big"})
    assert api.volume()["os-vol-host-attr:host"] == SMALL
    copy = api.volume(source_volid=source["id"])
    assert copy["status"] == "error"
    (told,) = messages_of(api, copy["id"])
    assert f"the source is on {BIG}" in told


def test_hints_keep_volumes_together_or_apart(start_service: Start) -> None:
    api = two_pools(start_service)

    def placed(hints: Any) -> str | None:
        body = {"volume": {"size": 1}, "OS-SCH-HNT:scheduler_hints": hints}
        answer = api("POST", "/volumes", body)
        assert answer.status == 202, answer.body
        api.wait_idle()
        volume = api.get(f"/volumes/{answer.json['volume']['id']}")["volume"]
        return str(volume["os-vol-host-attr:host"]) if volume["status"] == "available" else None

    first = api.volume()
    assert first["os-vol-host-attr:host"] == BIG
    assert placed({"same_host": first["id"]}) == BIG
    assert placed({"different_host": [first["id"]]}) == SMALL
    assert placed({"different_host": first["id"], "same_host": [first["id"]]}) is None
    assert placed({"whatever": {"a": [1]}}) == BIG
    assert placed(None) == BIG


def make_type(api: Client, name: str, **specs: str) -> str:
    answer = api("POST", "/types", {"volume_type": {"name": name, "extra_specs": specs}})
    assert answer.status == 200, answer.body
    return str(answer.json["volume_type"]["id"])


def test_a_type_selects_a_backend(start_service: Start) -> None:
    api = two_pools(start_service)
    small = make_type(api, "small", volume_backend_name="small")
    make_type(api, "nowhere", volume_backend_name="nowhere")
    assert api.volume(volume_type="small")["os-vol-host-attr:host"] == SMALL
    assert api.volume(volume_type=small)["volume_type"] == "small"
    lost = api.volume(volume_type="nowhere")
    assert lost["status"] == "error"
    (told,) = messages_of(api, lost["id"])
    assert told.count("CapabilitiesFilter") == 2
    reply = api.get("/scheduler-stats/get_pools?volume_type=small")
    assert reply == {"pools": [{"name": SMALL}]}


def test_zones(start_service: Start) -> None:
    backends = (pool("a", availability_zone="az-a"), pool("b", availability_zone="az-b", size_gib=20), pool("c"))
    api = Client(start_service(backends=backends))
    hosts = {"az-a": "blockstore@a#a", "az-b": "blockstore@b#b", "nova": "blockstore@c#c"}
    for zone, host in hosts.items():
        volume = api.volume(availability_zone=zone)
        assert (volume["os-vol-host-attr:host"], volume["availability_zone"]) == (host, zone)
    assert api.volume()["availability_zone"] == "nova"
    make_type(api, "zoned", **{"RESKEY:availability_zones": "az-a,az-b"})
    chosen = api.volume(volume_type="zoned")
    assert (chosen["os-vol-host-attr:host"], chosen["availability_zone"]) == ("blockstore@b#b", "az-b")
    api("PUT", "/os-services/disable", {"binary": "cinder-volume", "host": "blockstore@a"})
    zones = {
        z["zoneName"]: z["zoneState"]["available"] for z in api.get("/os-availability-zone")["availabilityZoneInfo"]
    }
    assert zones == {"az-a": False, "az-b": True, "nova": True}


def test_a_type_keeps_its_volumes_in_its_zones(start_service: Start) -> None:
    """However they come there: made, copied, retyped, moved, taken over; and what is explained is what is done."""
    service = start_service(
        backends=(pool("a", availability_zone="az1"), pool("b", availability_zone="az2"), pool("c")),
    )
    api = Client(service)
    far = make_type(api, "far", **{"RESKEY:availability_zones": "az2"})
    refused = api("POST", "/volumes", {"volume": {"size": 1, "volume_type": "far", "availability_zone": "az1"}})
    assert (refused.status, "Availability zone 'az1' is invalid." in refused.message) == (400, True)
    assert api("GET", f"/scheduler-stats/explain?size=1&volume_type={far}&availability_zone=az1").status == 400
    assert api.get(f"/scheduler-stats/explain?size=1&volume_type={far}")["explanation"]["winner"] == "blockstore@b#b"
    assert api.get("/scheduler-stats/explain?size=1")["explanation"]["winner"] == "blockstore@c#c"
    near = api.volume(availability_zone="az1")
    for source in ({"source_volid": near["id"]}, {"snapshot_id": api.snapshot(near["id"])["id"]}):
        answer = api("POST", "/volumes", {"volume": {"volume_type": "far", **source}})
        assert (answer.status, "Availability zone 'az1' is invalid." in answer.message) == (400, True)
    never = make_type(api, "never", **{"RESKEY:availability_zones": "mars"})
    answer = api("POST", "/volumes", {"volume": {"size": 1, "volume_type": never}})
    assert answer.status == 400
    assert answer.message.startswith("Volume type is only supported in these availability zones: mars.")
    api.wait_idle()

    other = api.volume(availability_zone="az1")["id"]
    api.action(f"volumes/{other}", "os-retype", {"new_type": "far", "migration_policy": "never"})
    assert api.get(f"/volumes/{other}")["volume"]["volume_type"] == "__DEFAULT__"
    assert "AvailabilityZoneFilter" in messages_of(api, other)[0]
    api.action(f"volumes/{other}", "os-retype", {"new_type": "far", "migration_policy": "on-demand"})
    moved = api.get(f"/volumes/{other}")["volume"]
    assert (moved["volume_type"], moved["availability_zone"], moved["status"]) == ("far", "az2", "available")
    api.action(f"volumes/{other}", "os-migrate_volume", {"host": "blockstore@a"})
    assert api.get(f"/volumes/{other}")["volume"]["availability_zone"] == "az2"
    assert api("GET", "/volumes?availability_zone=az2").json["volumes"][0]["id"] == other
    service.backends["blockstore@a#a"].create_volume("found", 1)
    wanted = {"host": "blockstore@a#a", "ref": {"source-name": "found"}, "volume_type": "far"}
    taken = api("POST", "/manageable_volumes", {"volume": wanted}).json["volume"]["id"]
    api.wait_idle()
    assert api.get(f"/volumes/{taken}")["volume"]["status"] == "error"


def test_a_default_zone_without_a_backend_refuses_at_once(
    start_service: Start, caplog: pytest.LogCaptureFixture
) -> None:
    api = Client(start_service(backends=(pool("a", availability_zone="az1"),)))
    assert "availability_zone is nova, and no backend is in that zone" in caplog.text
    refused = api("POST", "/volumes", {"volume": {"size": 1}})
    assert (refused.status, refused.message) == (400, "Availability zone 'nova' is invalid. Name one of az1.")
    assert api.get("/volumes") == {"volumes": []}
    assert api.volume(availability_zone="az1")["status"] == "available"
    zones = api.get("/os-availability-zone")["availabilityZoneInfo"]
    assert zones == [{"zoneName": "az1", "zoneState": {"available": True}}]


def test_a_disabled_service_takes_nothing_new(start_service: Start, database_url: str) -> None:
    api = Client(start_service(database_url=database_url))
    body = {"binary": "cinder-volume", "host": "blockstore@memory", "disabled_reason": "spring cleaning"}
    assert api("PUT", "/os-services/disable-log-reason", body).status == 200
    service = api.get("/os-services?binary=cinder-volume")["services"][0]
    assert (service["status"], service["disabled_reason"]) == ("disabled", "spring cleaning")
    volume = api.volume()
    assert volume["status"] == "error"
    assert "spring cleaning" in messages_of(api, volume["id"])[0]
    assert api("PUT", "/os-services/enable", body | {"disabled_reason": "x"}).status == 400
    del body["disabled_reason"]
    assert api("PUT", "/os-services/enable", body).status == 200
    assert api.volume()["status"] == "available"
    assert api.get("/os-services?binary=cinder-volume")["services"][0]["disabled_reason"] is None


# --- quota ---------------------------------------------------------------------------------------------------


def test_a_hundred_at_once_on_a_quota_of_one(start_service: Start, database_url: str) -> None:
    service = start_service(database_url=database_url, quota=QuotaConfig(volumes=1))
    api = Client(service)
    answers = in_threads(100, lambda client, _: client("POST", "/volumes", {"volume": {"size": 1}}), api)
    assert Counter(answer.status for answer in answers) == {202: 1, 413: 99}
    refused = next(answer for answer in answers if answer.status == 413)
    assert refused.headers["Retry-After"] == "0"
    assert refused.json["overLimit"] == {
        "code": 413,
        "message": "VolumeLimitExceeded: Maximum number of volumes allowed (1) exceeded for quota 'volumes'.",
        "retryAfter": "0",
    }
    api.wait_idle()
    assert statuses(api) == {"available": 1}
    assert_reservations_are_exact(service)


def test_gigabytes_and_snapshots_are_limited(start_service: Start, database_url: str) -> None:
    quota = QuotaConfig(volumes=10, gigabytes=10, snapshots=1, per_volume_gigabytes=6)
    api = Client(start_service(database_url=database_url, quota=quota))

    def refused(answer: Answer, words: str) -> None:
        assert (answer.status, words in answer.message) == (413, True), answer.body

    refused(
        api("POST", "/volumes", {"volume": {"size": 7}}),
        "Requested volume size 7G is larger than maximum allowed limit 6G",
    )
    volume = api.volume(size=4)
    api.snapshot(volume["id"])
    refused(
        api("POST", "/volumes", {"volume": {"size": 3}}),
        "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed gigabytes quota. Requested 3G,"
        " quota is 10G and 8G has been consumed.",
    )
    refused(
        api("POST", "/snapshots", {"snapshot": {"volume_id": volume["id"]}}),
        "SnapshotLimitExceeded: Maximum number of snapshots allowed (1) exceeded",
    )
    refused(api.action(f"volumes/{volume['id']}", "os-extend", {"new_size": 7}), "maximum allowed limit 6G")
    refused(api.action(f"volumes/{volume['id']}", "os-extend", {"new_size": 13}), "maximum allowed limit 6G")
    assert api.action(f"volumes/{volume['id']}", "os-extend", {"new_size": 6}).status == 202
    refused(api("POST", "/volumes", {"volume": {"size": 1}}), "10G has been consumed")
    limits = api.get("/limits")["limits"]["absolute"]
    assert (limits["totalGigabytesUsed"], limits["totalSnapshotsUsed"], limits["maxTotalVolumeGigabytes"]) == (
        10,
        1,
        10,
    )
    assert_reservations_are_exact(api.service)


def test_the_largest_sizes_are_counted(start_service: Start, database_url: str) -> None:
    """Sums of sizes go beyond what one size may be."""
    api = Client(start_service(database_url=database_url))
    for _ in range(3):
        answer = api("POST", "/volumes", {"volume": {"size": 2**31 - 1}})
        assert answer.status == 202, answer.body
    api.wait_idle()
    assert api.get("/volumes/summary")["volume-summary"]["total_size"] == 3 * (2**31 - 1)
    assert api.get("/limits")["limits"]["absolute"]["totalGigabytesUsed"] == 3 * (2**31 - 1)
    assert_reservations_are_exact(api.service)


# --- races ---------------------------------------------------------------------------------------------------


def in_parallel(api: Client, works: Iterable[Callable[[Client], Answer]]) -> list[Answer]:
    """Start every work at once and return their answers, in no order."""
    listed = list(works)
    return in_threads(len(listed), lambda client, n: listed[n](client), api)


def test_eight_threads_delete_the_same_volumes(api: Client) -> None:
    volumes = [api.volume(settle=False)["id"] for _ in range(20)]
    api.wait_idle()
    deletes = [lambda client, v=v: client("DELETE", f"/volumes/{v}") for v in volumes for _ in range(8)]
    answers = in_parallel(api, deletes)
    assert Counter(a.status for a in answers)[202] == 20
    assert {a.status for a in answers} <= {202, 400, 404}
    api.wait_idle()
    assert api.get("/volumes") == {"volumes": []}
    deleted = [
        name for method, name in api.service.backends["blockstore@memory#memory"].calls if method == "delete_volume"
    ]  # type: ignore[attr-defined]
    assert len(deleted) == len(set(deleted)) == 20
    assert_reservations_are_exact(api.service)


@pytest.mark.parametrize("times", range(3))
def test_a_copy_is_made_while_its_snapshot_is_deleted(api: Client, times: int) -> None:
    volume = api.volume()
    snapshots = [api.snapshot(volume["id"])["id"] for _ in range(6)]
    in_parallel(
        api,
        [
            work
            for s in snapshots
            for work in (
                lambda client, s=s: client("POST", "/volumes", {"volume": {"snapshot_id": s}}),
                lambda client, s=s: client("DELETE", f"/snapshots/{s}"),
            )
        ],
    )
    api.wait_idle()
    assert api.get("/snapshots") == {"snapshots": []}
    assert set(statuses(api)) <= {"available", "error"}
    for failed in api.get("/volumes?status=error")["volumes"]:
        assert len(messages_of(api, failed["id"])) == 1
    assert_reservations_are_exact(api.service)


def test_a_snapshot_is_taken_while_its_volume_is_deleted(api: Client) -> None:
    volumes = [api.volume(settle=False)["id"] for _ in range(16)]
    api.wait_idle()
    answers = in_parallel(
        api,
        [
            work
            for v in volumes
            for work in (
                lambda client, v=v: client("DELETE", f"/volumes/{v}"),
                lambda client, v=v: client("POST", "/snapshots", {"snapshot": {"volume_id": v}}),
            )
        ],
    )
    assert {answer.status for answer in answers} <= {202, 400, 404}
    api.wait_idle()
    # Of the two exactly one was granted: a volume with its snapshot, or neither.
    assert Counter(answer.status for answer in answers)[202] == 16
    left = {v["id"] for v in api.get("/volumes?status=available")["volumes"]}
    assert left == {v["id"] for v in api.get("/volumes")["volumes"]}
    assert {s["volume_id"] for s in api.get("/snapshots")["snapshots"]} == left
    assert_reservations_are_exact(api.service)


def test_one_of_many_makes_a_type(api: Client) -> None:
    body = {"volume_type": {"name": "wanted", "extra_specs": {"a": "b"}}}
    answers = in_parallel(api, [lambda client: client("POST", "/types", body)] * 8)
    assert Counter(answer.status for answer in answers) == {200: 1, 409: 7}
    type_id = next(answer for answer in answers if answer.status == 200).json["volume_type"]["id"]
    specs = [
        lambda client, n=n: client("POST", f"/types/{type_id}/extra_specs", {"extra_specs": {"k": str(n)}})
        for n in range(8)
    ]
    assert {answer.status for answer in in_parallel(api, specs)} <= {200, 409}
    works = [lambda client: client("DELETE", f"/types/{type_id}")] * 4
    works += [lambda client: client("POST", "/volumes", {"volume": {"size": 1, "volume_type": "wanted"}})] * 4
    answers = in_parallel(api, works)
    assert {answer.status for answer in answers} <= {202, 400, 404, 409}
    api.wait_idle()
    assert_reservations_are_exact(api.service)


def test_of_writers_with_one_etag_one_wins(api: Client) -> None:
    volume = api.volume(metadata={"a": "0"})["id"]
    etag = api("GET", f"/volumes/{volume}/metadata").headers["Etag"]
    writes = [
        lambda client, n=n: client(
            "PUT", f"/volumes/{volume}/metadata", {"metadata": {"a": str(n)}}, **{"If-Match": f'"{etag}"'}
        )
        for n in range(1, 9)
    ]
    answers = in_parallel(api, writes)
    assert Counter(answer.status for answer in answers) == {200: 1, 412: 7}
    (written,) = [answer.json for answer in answers if answer.status == 200]
    assert api("GET", f"/volumes/{volume}/metadata").json == written


def test_metadata_written_by_many_keeps_every_key(api: Client) -> None:
    volume = api.volume()["id"]
    writes = [
        lambda client, n=n: client("POST", f"/volumes/{volume}/metadata", {"metadata": {f"k{n}": "v", "all": str(n)}})
        for n in range(16)
    ]
    assert {answer.status for answer in in_parallel(api, writes)} == {200}
    assert len(api.get(f"/volumes/{volume}")["volume"]["metadata"]) == 17


def test_extends_of_one_volume_do_not_add_up(api: Client) -> None:
    volume = api.volume()["id"]
    extends = [
        lambda client, n=n: client("POST", f"/volumes/{volume}/action", {"os-extend": {"new_size": n}})
        for n in range(2, 10)
    ]
    answers = in_parallel(api, extends)
    assert {answer.status for answer in answers} <= {202, 400}
    api.wait_idle()
    assert api.get(f"/volumes/{volume}")["volume"]["status"] == "available"
    assert_reservations_are_exact(api.service)


def test_the_log_tells_why_as_the_message_does(
    start_service: Start, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    api = Client(start_service(backends=(pool(size_gib=1),)))
    answer = api("POST", "/volumes", {"volume": {"size": 2}})
    api.wait_idle()
    (told,) = messages_of(api, answer.json["volume"]["id"])
    assert told.startswith(
        "schedule allocate volume: No pool can take the volume. blockstore@memory#memory: CapacityFilter: "
    )
    assert "blockstore@memory#memory: CapacityFilter" in caplog.text
    (message,) = api.get("/messages")["messages"]
    assert message["event_id"] == "VOLUME_VOLUME_001_003"
    assert message["request_id"] == answer.headers["x-openstack-request-id"]
    assert api("DELETE", f"/messages/{message['id']}").status == 204
    assert api("DELETE", f"/messages/{message['id']}").status == 404


def test_a_hint_says_nothing_of_another_project_s_volume(start_service: Callable[..., Service]) -> None:
    """It is taken as one that names nothing, so that nobody learns where, or whether, the volume is."""
    api = Client(start_service())
    foreign = api.as_("owner").volume()["id"]
    curious = api.as_("curious")
    said = []
    for named in (foreign, "11111111-1111-4111-8111-111111111111"):
        body = {"volume": {"size": 1}, "OS-SCH-HNT:scheduler_hints": {"same_host": [named]}}
        answer = curious("POST", "/volumes", body)
        curious.wait_idle()
        (message,) = curious.get(f"/messages?resource_uuid={answer.json['volume']['id']}")["messages"]
        said.append(message["user_message"].replace(message["request_id"], "ID"))
    assert said[0] == said[1]
