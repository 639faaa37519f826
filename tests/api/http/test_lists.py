"""Lists: every filter, sort key, comparison, count and page, on both databases, for administrators and members."""

from __future__ import annotations

import datetime
import itertools
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert

from blockstore.api.http import listing
from blockstore.db.models import Attachment, Message, Snapshot, SnapshotMetadata, Volume, VolumeMetadata, new_id
from tests.api.conftest import POOL, SharedService, unknown_id
from tests.conftest import Client

T0 = datetime.datetime(2026, 1, 1, 12)
VOLUME_KEYS = (
    "id", "name", "display_name", "size", "status", "availability_zone", "bootable", "created_at", "updated_at", "host",
    "volume_type_id", "user_id", "project_id",
)  # fmt: skip
SNAPSHOT_KEYS = (
    "id", "name", "display_name", "status", "volume_id", "created_at", "updated_at", "user_id", "project_id",
    "volume_size",
)  # fmt: skip
ATTACHMENT_KEYS = (
    "id", "volume_id", "attach_status", "instance_uuid", "instance_id", "attach_mode", "attached_host", "mountpoint",
    "created_at", "attach_time",
)  # fmt: skip
ATTACHMENT_COLUMNS = {
    "attach_status": "status", "instance_id": "instance_uuid", "attached_host": "host_name",
    "attach_time": "attached_at",
}  # fmt: skip
MESSAGE_KEYS = (
    "id", "event_id", "resource_type", "resource_uuid", "request_id", "message_level", "created_at", "expires_at",
)  # fmt: skip
TYPE_KEYS = ("id", "name", "description", "is_public", "created_at")


class Shelf:
    """A project with rows that differ in every column, with ties and with nulls."""

    def __init__(self, shared_service: SharedService) -> None:
        self.shared_service = shared_service
        self.member = shared_service.member()
        self.project = self.member.headers["X-Project-Id"]
        self.admin = shared_service.admin(self.project)
        self.volumes = [self._volume(n) for n in range(24)]
        self.snapshots = [self._snapshot(n) for n in range(12)]
        self.attachments = [self._attachment(n) for n in range(14)]
        self.messages = [self._message(n) for n in range(9)]
        tables: tuple[tuple[Any, list[dict[str, Any]]], ...] = (
            (Volume, self.volumes),
            (Snapshot, self.snapshots),
            (Attachment, self.attachments),
            (Message, self.messages),
        )
        with shared_service.db.write() as session:
            for model, rows in tables:
                session.execute(insert(model), rows)
            # What os-initialize_connection made is in no list.
            session.execute(insert(Attachment), [self._attachment(2) | {"legacy": True}])
            session.execute(
                insert(VolumeMetadata),
                [{"volume_id": v["id"], "key": "n", "value": str(i % 2)} for i, v in enumerate(self.volumes)]
                + [{"volume_id": v["id"], "key": "all", "value": "it's"} for v in self.volumes],
            )
            session.execute(
                insert(SnapshotMetadata),
                [{"snapshot_id": s["id"], "key": "n", "value": str(i % 3)} for i, s in enumerate(self.snapshots)],
            )

    def _volume(self, n: int) -> dict[str, Any]:
        return {
            "id": new_id(),
            "project_id": self.project,
            "user_id": None if n % 3 == 0 else f"u{n % 2}",
            "name": None if n % 4 == 0 else ["alpha", "Beta_1", "100%", "αβγ"][n % 4],
            "description": None if n % 2 else f"about {n}",
            "size": n % 5 + 1,
            "status": ["available", "in-use", "error"][n % 3],
            "attach_status": "detached",
            "migration_status": None if n % 2 else "success",
            "availability_zone": None if n % 6 == 0 else f"az{n % 2}",
            "host": None if n % 5 == 0 else POOL,
            "volume_type_id": self.shared_service.type_id,
            "bootable": n % 3 == 0,
            "multiattach": False,
            "admin_metadata": {},
            "group_id": "b" * 36 if n == 7 else None,
            "consumes_quota": n % 8 != 0,
            # ties among the times of creation
            "created_at": T0 + datetime.timedelta(hours=n // 3),
            "updated_at": None if n % 3 == 0 else T0 + datetime.timedelta(days=n % 4),
        }

    def _snapshot(self, n: int) -> dict[str, Any]:
        volume = self.volumes[n % 5]
        return {
            "id": new_id(),
            "project_id": self.project,
            "user_id": None if n % 2 else "u",
            "volume_id": volume["id"],
            "name": None if n % 3 == 0 else f"s{n % 2}",
            "volume_size": n % 3 + 1,
            "status": ["available", "error"][n % 2],
            "consumes_quota": n % 4 != 0,
            "created_at": T0 + datetime.timedelta(minutes=n // 2),
            "updated_at": None if n % 2 else T0,
        }

    def _attachment(self, n: int) -> dict[str, Any]:
        statuses = ["reserved", "connecting", "attaching", "attached", "disconnecting", "error_attaching"]
        return {
            "id": new_id(),
            "project_id": self.project,
            "volume_id": self.volumes[n % 5]["id"],
            "status": statuses[n % 6],
            "legacy": False,
            "instance_uuid": None if n % 3 == 0 else f"{n % 2}" * 36,
            "host_name": None if n % 4 == 0 else f"h{n % 2}",
            "mountpoint": None if n % 5 == 0 else f"/dev/vd{n % 3}",
            "attach_mode": None if n % 6 == 0 else ["ro", "rw"][n % 2],
            "created_at": T0 + datetime.timedelta(minutes=n // 3),
            "attached_at": None if n % 2 else T0 + datetime.timedelta(days=n % 3),
        }

    def _message(self, n: int) -> dict[str, Any]:
        return {
            "id": new_id(),
            "project_id": self.project,
            "request_id": None if n % 2 else f"req-{n}",
            "resource_type": "VOLUME" if n % 3 else None,
            "resource_uuid": self.volumes[n]["id"] if n % 3 else None,
            "event_id": f"VOLUME_VOLUME_00{n % 2}_001",
            "action_id": "001",
            "detail_id": "001",
            "message_level": "ERROR",
            "user_message": "m",
            "created_at": T0 + datetime.timedelta(seconds=n // 2),
            # far away: those that have expired are removed once in a while
            "expires_at": None if n % 4 else T0 + datetime.timedelta(days=36500),
        }

    def volumes_where(self, **wanted: Any) -> set[str]:
        return {v["id"] for v in self.volumes if all(v[name] == value for name, value in wanted.items())}


@pytest.fixture(scope="module")
def shelf(shared_service: SharedService) -> Shelf:
    """One shelf for each database; nothing here changes it."""
    return Shelf(shared_service)


def ids_of(client: Client, path: str, version: str = "3.71", **query: str) -> set[str]:
    reply = client.get(f"{path}?{urlencode(query)}", version=version)
    items = next(value for name, value in reply.items() if not name.endswith(("_links", "count")))
    found = [item["id"] for item in items]
    assert len(found) == len(set(found))
    return set(found)


# --- pages ---------------------------------------------------------------------------------------------------


def walk(client: Client, path: str, query: dict[str, str], limit: int) -> list[str]:
    """Follow the links from the first page to the last, and return every id on the way."""
    found: list[str] = []
    url = f"{path}?{urlencode({**query, 'limit': str(limit)})}"
    for _ in range(100):
        reply = client.get(url)
        links = [value for name, value in reply.items() if name.endswith("_links")]
        items = next(value for name, value in reply.items() if not name.endswith(("_links", "count")))
        assert len(items) <= limit
        found += [item["id"] for item in items]
        # compat: a page that is exactly full has a link, also when nothing follows
        assert bool(links) == (len(items) == limit)
        if not links:
            return found
        link = urlsplit(links[0][0]["href"])
        assert links[0][0]["rel"] == "next"
        assert dict(parse_qsl(link.query))["marker"] == found[-1]
        assert {k: v for k, v in parse_qsl(link.query) if k != "marker"} == {**query, "limit": str(limit)}
        assert link.path == f"/v3{path}"
        url = f"{path}?{link.query}"
    raise AssertionError("the links never end")


@pytest.mark.parametrize(
    ("path", "keys", "rows"),
    [
        ("/volumes", VOLUME_KEYS, "volumes"),
        ("/volumes/detail", VOLUME_KEYS, "volumes"),
        ("/snapshots", SNAPSHOT_KEYS, "snapshots"),
        ("/snapshots/detail", SNAPSHOT_KEYS, "snapshots"),
        ("/attachments", ATTACHMENT_KEYS, "attachments"),
        ("/attachments/detail", ATTACHMENT_KEYS, "attachments"),
        ("/messages", MESSAGE_KEYS, "messages"),
    ],
)
def test_walking_the_pages_meets_each_row_once(shelf: Shelf, path: str, keys: tuple[str, ...], rows: str) -> None:
    everything = {row["id"] for row in getattr(shelf, rows)}
    sorts = st.lists(
        st.tuples(st.sampled_from(keys), st.sampled_from(["", ":asc", ":desc"])).map("".join), min_size=0, max_size=3
    )

    @settings(
        max_examples=12,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(sort=sorts, limit=st.integers(1, len(everything) + 1))
    def check(sort: list[str], limit: int) -> None:
        found = walk(shelf.admin, path, {"sort": ",".join(sort)} if sort else {}, limit)
        assert len(found) == len(everything)
        assert set(found) == everything

    check()


@pytest.mark.parametrize(
    ("path", "keys", "rows"),
    [
        ("/volumes", VOLUME_KEYS, "volumes"),
        ("/snapshots", SNAPSHOT_KEYS, "snapshots"),
        ("/attachments", ATTACHMENT_KEYS, "attachments"),
    ],
)
def test_each_sort_key_sorts_both_ways_with_nulls_below_all(
    shelf: Shelf, path: str, keys: tuple[str, ...], rows: str
) -> None:
    column = {"display_name": "name", **ATTACHMENT_COLUMNS}
    by_id = {row["id"]: row for row in getattr(shelf, rows)}
    for key, direction in itertools.product(keys, ("asc", "desc")):
        values = [by_id[i][column.get(key, key)] for i in walk(shelf.admin, path, {"sort": f"{key}:{direction}"}, 11)]
        older = shelf.admin.get(f"{path}?sort_key={key}&sort_dir={direction}")[path[1:]]
        assert [by_id[item["id"]][column.get(key, key)] for item in older] == values
        upwards = values if direction == "asc" else values[::-1]
        gaps = [value is None for value in upwards]
        assert gaps == sorted(gaps, reverse=True), (key, direction)
        if key not in ("name", "display_name"):  # their operation is the database's own
            known = [value for value in upwards if value is not None]
            assert known == sorted(known), (key, direction)


@pytest.mark.parametrize(("path", "keys", "total"), [("/volumes", VOLUME_KEYS, 24), ("/snapshots", SNAPSHOT_KEYS, 12)])
def test_each_key_is_paged_beside_one_of_the_other_direction(
    shelf: Shelf, path: str, keys: tuple[str, ...], total: int
) -> None:
    for key, (one, other) in itertools.product(keys, (("asc", "desc"), ("desc", "asc"))):
        for sort in (f"{key}:{one},id:{other}", f"status:{one},{key}:{other}"):
            assert len(set(walk(shelf.admin, path, {"sort": sort}, 9))) == total, sort


@pytest.mark.parametrize(("path", "keys"), [("/types", TYPE_KEYS), ("/messages", MESSAGE_KEYS)])
def test_each_sort_key_of_the_other_lists(shelf: Shelf, path: str, keys: tuple[str, ...]) -> None:
    for key in keys:
        assert shelf.admin("GET", f"{path}?sort={key}:asc").status == 200


def test_the_newest_come_first_unless_told_otherwise(shelf: Shelf) -> None:
    times = [v["created_at"] for v in shelf.member.get("/volumes/detail")["volumes"]]
    assert times == sorted(times, reverse=True)


def test_snapshots_are_sorted_by_name_since_3_30(shelf: Shelf) -> None:
    assert shelf.member("GET", "/snapshots?sort=name", version="3.29").status == 400
    assert shelf.member("GET", "/snapshots?sort=name", version="3.30").status == 200


def test_messages_have_no_pages_before_3_5(shelf: Shelf) -> None:
    assert len(ids_of(shelf.member, "/messages", "3.4", limit="2")) == 9
    assert len(ids_of(shelf.member, "/messages", "3.5", limit="2")) == 2


def test_limit_offset_and_marker(shelf: Shelf) -> None:
    everything = [v["id"] for v in shelf.member.get("/volumes")["volumes"]]

    def page(query: str) -> list[str]:
        return [v["id"] for v in shelf.member.get(f"/volumes?{query}")["volumes"]]

    assert page("limit=3&offset=2") == everything[2:5]
    assert page(f"limit=3&marker={everything[4]}") == everything[5:8]
    assert page(f"limit=3&offset=1&marker={everything[4]}") == everything[6:9]
    assert page("offset=1000") == []
    assert page(f"offset={2**63 - 1}&limit={2**63 - 1}") == []
    assert page(f"marker={everything[-1]}") == []
    assert shelf.member.get("/volumes?limit=0") == {"volumes": []}
    assert "volumes_links" not in shelf.member.get("/volumes")


def test_a_marker_must_be_visible(shelf: Shelf) -> None:
    stranger = shelf.shared_service.member()
    foreign = shelf.shared_service.volume(stranger)
    for marker in (foreign, unknown_id(), "x", "' OR 1=1 --"):
        answer = shelf.member("GET", f"/volumes?marker={quote(marker)}")
        assert (answer.status, answer.message) == (404, f"Volume {marker} could not be found.")
    assert shelf.admin("GET", f"/volumes?marker={foreign}").status == 404
    assert shelf.admin("GET", f"/volumes?marker={foreign}&all_tenants=1").status == 200


def test_a_large_limit_is_lowered(shared_service: SharedService, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    core = shared_service.service.app.extensions["blockstore"]
    lowered = dataclasses.replace(core.config, service=dataclasses.replace(core.config.service, max_limit=5))
    monkeypatch.setitem(shared_service.service.app.extensions, "blockstore", dataclasses.replace(core, config=lowered))
    for query in ("", "?limit=9", "?limit=5"):
        reply = shelf.member.get(f"/volumes{query}")
        assert len(reply["volumes"]) == 5
        assert "volumes_links" in reply


@pytest.mark.parametrize("path", ["/volumes", "/volumes/detail", "/snapshots", "/snapshots/detail"])
def test_with_count_counts_what_the_filters_leave(shelf: Shelf, path: str) -> None:
    total = 24 if path.startswith("/volumes") else 12
    assert shelf.member.get(f"{path}?with_count=true&limit=2")["count"] == total
    assert shelf.member.get(f"{path}?with_count=True&status=available")["count"] == len(
        ids_of(shelf.member, path, status="available")
    )
    assert shelf.member.get(f"{path}?with_count=1&limit=0")["count"] == total
    marker = shelf.member.get(f"{path}?limit=1")[path.split("/")[1]][0]["id"]
    assert shelf.member.get(f"{path}?with_count=1&marker={marker}")["count"] == total
    assert "count" not in shelf.member.get(f"{path}?with_count=false")


def test_with_count_is_an_unknown_filter_before_3_45(shelf: Shelf) -> None:
    assert shelf.admin.get("/volumes?with_count=1", version="3.44") == {"volumes": []}
    assert shelf.member("GET", "/volumes?with_count=1", version="3.44").status == 400
    assert len(ids_of(shelf.member, "/volumes", "3.30", with_count="1")) == 24


# --- filters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/volumes", "/volumes/detail"])
def test_filters_of_volumes(shelf: Shelf, path: str) -> None:
    def filtered(**query: str) -> set[str]:
        found = ids_of(shelf.member, path, **query)
        assert found == ids_of(shelf.admin, path, **query)
        return found

    assert filtered(status="error") == shelf.volumes_where(status="error")
    assert filtered(name="100%") == shelf.volumes_where(name="100%")
    assert filtered(name="αβγ") == shelf.volumes_where(name="αβγ")
    assert filtered(size="3") == shelf.volumes_where(size=3)
    assert filtered(availability_zone="az1") == shelf.volumes_where(availability_zone="az1")
    assert filtered(migration_status="success") == shelf.volumes_where(migration_status="success")
    assert filtered(bootable="true") == shelf.volumes_where(bootable=True)
    assert filtered(bootable="False") == shelf.volumes_where(bootable=False)
    assert filtered(group_id="b" * 36) == shelf.volumes_where(group_id="b" * 36)
    assert filtered(consumes_quota="false") == shelf.volumes_where(consumes_quota=False)
    assert filtered(metadata="{'n': '1'}") == {v["id"] for v in shelf.volumes[1::2]}
    assert filtered(metadata='{"n": "0", "all": "it\'s"}') == {v["id"] for v in shelf.volumes[::2]}
    assert filtered(metadata="{'n': '1', 'all': 'no'}") == set()
    assert filtered(glance_metadata="{'a': 'b'}") == set()
    assert filtered(status="error", size="3") == shelf.volumes_where(status="error", size=3)


@pytest.mark.parametrize("size", ["", "x", "-1", "3.0", "2147483647", "2147483648", "99999999999", "٣", "3 OR 1=1"])
def test_a_size_that_nothing_has(shelf: Shelf, size: str) -> None:
    assert ids_of(shelf.member, "/volumes", size=size) == set()


def test_an_administrator_filters_by_any_column(shelf: Shelf) -> None:
    volume = shelf.volumes[1]
    for name in (
        "id",
        "host",
        "user_id",
        "project_id",
        "volume_type_id",
        "display_name",
        "attach_status",
        "description",
    ):
        value = volume["name"] if name == "display_name" else volume[name]
        found = ids_of(shelf.admin, "/volumes", **{name: str(value)}) if value is not None else {volume["id"]}
        assert volume["id"] in found, name
    assert ids_of(shelf.admin, "/volumes", host=POOL.partition("#")[0]) == ids_of(shelf.admin, "/volumes", host=POOL)
    assert ids_of(shelf.admin, "/volumes", nothing="1") == set()
    assert ids_of(shelf.admin, "/volumes", admin_metadata="{}") == set()
    assert ids_of(shelf.admin, "/snapshots", nothing="1") == set()


def test_a_member_filters_by_what_the_list_allows(shelf: Shelf) -> None:
    for path in ("/volumes", "/snapshots"):
        for name in ("host", "project_id", "nothing", "name~", "id"):
            answer = shelf.member("GET", f"{path}?{name}=x")
            assert (answer.status, answer.message) == (400, f"Invalid filters {name} are found in query options.")
            assert len(ids_of(shelf.member, path, "3.30", **{name: "x"})) in (24, 12)
    answer = shelf.member("GET", "/volumes?b=1&a=1")
    assert answer.message == "Invalid filters a, b are found in query options."


def test_filters_of_snapshots(shelf: Shelf) -> None:
    def wanted(**values: Any) -> set[str]:
        return {s["id"] for s in shelf.snapshots if all(s[k] == v for k, v in values.items())}

    def filtered(**query: str) -> set[str]:
        return ids_of(shelf.member, "/snapshots", **query)

    assert filtered(status="error") == wanted(status="error")
    assert filtered(name="s1") == wanted(name="s1")
    assert filtered(volume_id=shelf.volumes[2]["id"]) == wanted(volume_id=shelf.volumes[2]["id"])
    assert filtered(consumes_quota="true") == wanted(consumes_quota=True)
    assert filtered(metadata="{'n': '2'}") == {s["id"] for s in shelf.snapshots[2::3]}
    in_zone = {v["id"] for v in shelf.volumes if v["availability_zone"] == "az1"}
    assert filtered(availability_zone="az1") == {s["id"] for s in shelf.snapshots if s["volume_id"] in in_zone}
    assert ids_of(shelf.admin, "/snapshots", volume_size="2") == wanted(volume_size=2)


@pytest.mark.parametrize("path", ["/attachments", "/attachments/detail"])
def test_filters_of_attachments(shelf: Shelf, path: str) -> None:
    def wanted(**values: Any) -> set[str]:
        return {a["id"] for a in shelf.attachments if all(a[k] == v for k, v in values.items())}

    def filtered(**query: str) -> set[str]:
        return ids_of(shelf.member, path, **query)

    volume = shelf.volumes[2]["id"]
    assert filtered(volume_id=volume) == wanted(volume_id=volume) != set()
    assert filtered(instance_id="1" * 36) == wanted(instance_uuid="1" * 36) != set()
    for name in ("status", "attach_status"):
        for value in ("reserved", "attached", "error_attaching"):
            assert filtered(**{name: value}) == wanted(status=value) != set()
        # A status of the service's own is found by the word under which it is shown.
        assert filtered(**{name: "attaching"}) == wanted(status="attaching") | wanted(status="connecting")
        assert filtered(**{name: "detaching"}) == wanted(status="disconnecting") != set()
        assert filtered(**{name: "nothing"}) == set()
    assert filtered(status="attached", volume_id=volume) == wanted(status="attached", volume_id=volume)
    for name, value in (("attach_mode", "ro"), ("mountpoint", "/dev/vd1"), ("attached_host", "h1")):
        assert ids_of(shelf.admin, path, **{name: value}) == wanted(**{ATTACHMENT_COLUMNS.get(name, name): value})
        answer = shelf.member("GET", f"{path}?{name}={value}")
        assert (answer.status, answer.message) == (400, f"Invalid filters {name} are found in query options.")
        assert len(ids_of(shelf.member, path, "3.30", **{name: value})) == 14
    assert {item["status"] for item in shelf.member.get(path)["attachments"]} == {
        "reserved", "attaching", "attached", "detaching", "error_attaching",
    }  # fmt: skip


def test_a_marker_of_attachments_must_be_visible(shelf: Shelf) -> None:
    stranger = shelf.shared_service.member()
    foreign = shelf.shared_service.attachment(stranger, shelf.shared_service.volume(stranger))
    for marker in (foreign, unknown_id(), "x"):
        answer = shelf.member("GET", f"/attachments?marker={marker}")
        assert (answer.status, answer.message) == (404, f"Volume attachment {marker} could not be found.")


def test_filters_of_messages(shelf: Shelf) -> None:
    def wanted(**values: Any) -> set[str]:
        return {m["id"] for m in shelf.messages if all(m[k] == v for k, v in values.items())}

    for name, value in (
        ("event_id", "VOLUME_VOLUME_001_001"),
        ("resource_type", "VOLUME"),
        ("resource_uuid", shelf.volumes[1]["id"]),
        ("request_id", "req-2"),
        ("message_level", "ERROR"),
    ):
        assert ids_of(shelf.member, "/messages", **{name: value}) == wanted(**{name: value})
        assert len(ids_of(shelf.member, "/messages", "3.4", **{name: value})) == 9


@pytest.mark.parametrize(
    ("path", "name", "value", "since"),
    [
        ("/volumes", "glance_metadata", "{'a': 'b'}", 4),
        ("/volumes", "group_id", "b" * 36, 10),
        ("/volumes", "consumes_quota", "false", 65),
        ("/snapshots", "metadata", "{'n': '1'}", 22),
        ("/snapshots", "consumes_quota", "false", 65),
        ("/types", "extra_specs", "{'multiattach': 'x'}", 52),
    ],
)
def test_a_filter_is_dropped_before_its_version(shelf: Shelf, path: str, name: str, value: str, since: int) -> None:
    everything = ids_of(shelf.member, path)
    assert ids_of(shelf.member, path, f"3.{since - 1}", **{name: value}) == everything
    assert ids_of(shelf.member, path, f"3.{since}", **{name: value}) < everything


def test_bootable_is_strict_since_3_2(shelf: Shelf) -> None:
    assert shelf.member("GET", "/volumes?bootable=maybe", version="3.2").status == 400
    assert shelf.member("GET", "/volumes?bootable=maybe", version="3.1").status == 200


LIKE = [
    ("name~", "eta", {"Beta_1"}),
    ("name~", "BETA", {"Beta_1"}),
    ("name~", "_", {"Beta_1"}),
    ("name~", "%", {"100%"}),
    ("name~", "0%", {"100%"}),
    ("name~", "\\", set()),
    ("name~", "/", set()),
    ("name~", "β", {"αβγ"}),
    ("display_name~", "alph", set()),
    ("status~", "vail", None),
    ("size~", "1", set()),
    ("nothing~", "1", set()),
    ("metadata~", "1", set()),
]


@pytest.mark.parametrize(("key", "value", "names"), LIKE)
def test_like_matches_a_part_and_nothing_is_a_wildcard(
    shelf: Shelf, key: str, value: str, names: set[str] | None
) -> None:
    found = ids_of(shelf.admin, "/volumes", **{key: value})
    if names is None:
        assert found == shelf.volumes_where(status="available")
    else:
        assert found == {v["id"] for v in shelf.volumes if v["name"] in names}


def test_like_is_for_administrators_at_every_version(shelf: Shelf) -> None:
    found = ids_of(shelf.admin, "/volumes", **{"name~": "eta"})
    assert found
    for version in ("3.0", "3.31", "3.33", "3.34"):
        assert ids_of(shelf.admin, "/volumes", version, **{"name~": "eta"}) == found
        assert ids_of(shelf.admin, "/snapshots", version, **{"name~": "s"}) != set()
    assert len(ids_of(shelf.member, "/volumes", "3.30", **{"name~": "eta"})) == 24  # dropped, like all it may not use


HOURS = {f"{h:02}": (T0 + datetime.timedelta(hours=h)).isoformat() for h in range(9)}


@pytest.mark.parametrize(
    ("value", "hours"),
    [
        (f"gt:{HOURS['05']}", {6, 7}),
        (f"gte:{HOURS['05']}", {5, 6, 7}),
        (f"lt:{HOURS['02']}", {0, 1}),
        (f"lte:{HOURS['02']}", {0, 1, 2}),
        (f"eq:{HOURS['03']}", {3}),
        (f"neq:{HOURS['03']}", {0, 1, 2, 4, 5, 6, 7}),
        (f"gt:{HOURS['01']},lt:{HOURS['04']}", {2, 3}),
        (f"gte:{HOURS['01']}+01:00", {0, 1, 2, 3, 4, 5, 6, 7}),
        (f"gte:{HOURS['05']}Z", {5, 6, 7}),
        ("gt:2026-01-02", set()),
    ],
)
def test_times_are_compared(shelf: Shelf, value: str, hours: set[int]) -> None:
    wanted = {v["id"] for i, v in enumerate(shelf.volumes) if i // 3 in hours}
    assert ids_of(shelf.member, "/volumes", created_at=value) == wanted


def test_a_time_that_is_null_is_neither_before_nor_after(shelf: Shelf) -> None:
    updated = {v["id"] for v in shelf.volumes if v["updated_at"] is not None}
    assert ids_of(shelf.member, "/volumes", updated_at="gt:2000-01-01") == updated
    assert ids_of(shelf.member, "/volumes", updated_at="lte:2000-01-01") == set()


def test_times_are_equal_before_3_60(shelf: Shelf) -> None:
    assert len(ids_of(shelf.member, "/volumes", "3.59", created_at=HOURS["03"])) == 3
    assert shelf.member("GET", "/volumes?created_at=gt:2026-01-01", version="3.59").status == 400


@pytest.mark.parametrize("value", ["' OR 1=1 --", "'; DROP TABLE volumes; --", '" OR ""="', "%", "_", "*", "\\", "%27"])
def test_a_filter_is_a_value_and_never_sql(shelf: Shelf, value: str) -> None:
    for name in ("name", "status", "availability_zone", "id", "host", "name~"):
        found = ids_of(shelf.admin, "/volumes", **{name: value})
        assert found <= shelf.volumes_where(name="100%") | shelf.volumes_where(name="Beta_1")
    assert ids_of(shelf.member, "/volumes", metadata=str({"n": value})) == set()
    assert ids_of(shelf.member, "/volumes", metadata=str({value: "1"})) == set()
    assert len(ids_of(shelf.member, "/volumes")) == 24


def test_of_a_key_that_stands_twice_the_last_counts(shelf: Shelf) -> None:
    reply = shelf.member.get("/volumes?status=nothing&status=error")
    assert {v["id"] for v in reply["volumes"]} == shelf.volumes_where(status="error")


def test_all_tenants_of_a_member_is_nothing(shelf: Shelf) -> None:
    for value in ("1", "true", "maybe", ""):
        assert len(ids_of(shelf.member, "/volumes", all_tenants=value)) == 24
        assert len(ids_of(shelf.member, "/snapshots", all_tenants=value)) == 12
    assert shelf.admin("GET", "/volumes?all_tenants=maybe").status == 400
    assert len(ids_of(shelf.admin, "/snapshots", all_tenants="maybe")) == 12


def test_totals(shelf: Shelf) -> None:
    totals = shelf.member.get("/volumes/summary")["volume-summary"]
    assert totals == {
        "total_count": 24,
        "total_size": sum(v["size"] for v in shelf.volumes),
        "metadata": {"n": ["0", "1"], "all": ["it's"]},
    }


# --- pools and services --------------------------------------------------------------------------------------


def test_filters_of_pools(shelf: Shelf) -> None:
    def pools(query: str, version: str = "3.71") -> list[str]:
        reply = shelf.admin.get(f"/scheduler-stats/get_pools?{query}", version=version)
        return [pool["name"] for pool in reply["pools"]]

    assert pools("") == pools(f"name={quote(POOL)}") == pools("volume_type=__DEFAULT__") == [POOL]
    assert pools("name=other") == []
    assert pools("name=other", "3.27") == [POOL]
    assert pools("nothing=1", "3.30") == [POOL]
    assert shelf.admin("GET", "/scheduler-stats/get_pools?nothing=1", version="3.31").status == 400
    assert shelf.admin("GET", "/scheduler-stats/get_pools?volume_type=nothing").status == 404


def test_filters_of_services(shelf: Shelf) -> None:
    def services(query: str) -> list[str]:
        return [service["binary"] for service in shelf.admin.get(f"/os-services?{query}")["services"]]

    assert services("") == ["cinder-scheduler", "cinder-volume"]
    assert services("binary=cinder-volume") == services("host=blockstore@memory") == ["cinder-volume"]
    assert services("host=nowhere") == []


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("created_at=" + ",".join(["gt:2026-01-01T00:00:00"] * 11), "At most 10 comparisons are allowed."),
        ("metadata={'a':0x" + "f" * 4000 + "}", "It holds a number that is too long."),
        ("metadata={'a':[1]}", "Its keys and values must be strings, numbers or None."),
    ],
)
def test_a_filter_that_would_cost_too_much_is_refused(sqlite_service: SharedService, query: str, sentence: str) -> None:
    answer = sqlite_service.member()("GET", f"/volumes?{query}")
    assert (answer.status, answer.message.endswith(sentence)) == (400, True), answer.body


def test_a_pattern_longer_than_any_value_matches_nothing(sqlite_service: SharedService) -> None:
    assert sqlite_service.admin().get("/volumes?name~=" + "x" * 8_000) == {"volumes": []}


# --- pages that end early ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noun", "most", "length"),
    [("volumes", 3000, 200), ("volumes", 2500, 1), ("snapshots", 1000, 200)],
    ids=["volumes", "many-volumes", "snapshots"],
)
def test_a_page_ends_before_it_is_too_long_for_one_reply(
    api: Client, monkeypatch: pytest.MonkeyPatch, noun: str, most: int, length: int
) -> None:
    monkeypatch.setattr(listing, "MOST_CHARACTERS", most)
    pairs = {f"k{number}": "v" * length for number in range(2)}
    volumes = [api.volume(metadata=pairs) for _ in range(5)]
    made = volumes if noun == "volumes" else [api.snapshot(volumes[0]["id"], metadata=pairs) for _ in range(5)]
    seen, path, pages = [], f"/{noun}/detail", 0
    while path:
        page = api.get(path)
        seen += [(row["id"], row["metadata"]) for row in page[noun]]
        assert len(page[noun]) <= 2
        links = page.get(f"{noun}_links", [])
        path = links[0]["href"].partition("/v3")[2] if links else ""
        pages += 1
    assert pages == 3
    assert sorted(seen, key=str) == sorted(((row["id"], pairs) for row in made), key=str)
