"""What may not be asked: each is refused with a sentence that names field and limit, and nothing changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.conftest import SharedService, unknown_id
from tests.conftest import Answer, Client

LONG = "x" * 256
VOLUME, SNAPSHOT, TYPE = "volume", "snapshot", "volume_type"


@pytest.fixture(scope="module")
def admin(sqlite_service: SharedService) -> Client:
    """An administrator with a project of his own."""
    return sqlite_service.admin()


@pytest.fixture(scope="module")
def ids(sqlite_service: SharedService, admin: Client) -> dict[str, str]:
    """A volume, a snapshot and a type to ask for changes of."""
    volume = sqlite_service.volume(admin, size=3)
    return {
        "volume": volume,
        "snapshot": sqlite_service.snapshot(admin, volume, volume_size=3),
        "type": sqlite_service.type_id,
        "other": unknown_id(),
    }


@pytest.fixture(autouse=True)
def _nothing_changes(sqlite_service: SharedService, ids: dict[str, str]) -> Iterator[None]:
    """Compare the whole database before and after each test of this file."""
    before = sqlite_service.contents()
    yield
    assert sqlite_service.contents() == before


def refused(answer: Answer, *words: str, status: int = 400) -> None:
    """Fail unless a request was refused in words that name the matter."""
    assert answer.status == status, (answer.status, answer.body)
    for word in words:
        assert word in answer.message, answer.message


# --- the form of a body --------------------------------------------------------------------------------------

BODIES = [
    (b"", "a JSON object is needed"),
    (b"{", "not valid JSON"),
    (b"size=1", "not valid JSON"),
    (b"[]", "must be a JSON object"),
    (b'"volume"', "must be a JSON object"),
    (b"null", "must be a JSON object"),
    (b"7", "must be a JSON object"),
    (b'{"volume": {"size": NaN}}', "not valid JSON"),
    (b'{"volume": {"size": Infinity}}', "not valid JSON"),
    (b'{"volume": {"size": 1, "name": "\\ud800"}}', "not valid JSON"),
    (b'{"volume": {"size": 1, "name": "\xff"}}', "not valid JSON"),
    (b'\xef\xbb\xbf{"volume": {"size": 1}}', "not valid JSON"),
    (b'{"volume": {"size": 1}} trailing', "not valid JSON"),
    (b'{"volume": {"size": 1, "size": 2}}', "the key size appears twice"),
    (b'{"volume": {"size": 1}, "volume": {"size": 2}}', "the key volume appears twice"),
    (b'{"volume": {"size": 1, "metadata": ' + b'{"a":' * 33 + b"1" + b"}" * 33 + b"}}", "nested more than 32 levels"),
    (b'{"volume": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested more than 32 levels"),
    (b'{"volume": ' + b'{"a":' * 15_000 + b"1" + b"}" * 15_000 + b"}", "nested more than 32 levels"),
    (b"[" * 100_000, "nested more than 32 levels"),
]


@pytest.mark.parametrize("path", ["/volumes", "/volumes/{volume}/action"])
@pytest.mark.parametrize(("raw", "words"), BODIES, ids=lambda value: str(value)[:40])
def test_body_that_is_no_json_object(admin: Client, ids: dict[str, str], path: str, raw: bytes, words: str) -> None:
    refused(admin("POST", path.format(**ids), raw=raw), "Malformed request body", words)


def test_absent_body(admin: Client) -> None:
    refused(admin("POST", "/volumes"), "a JSON object is needed")


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml", "multipart/form-data", "x"]
)
def test_other_content_types(admin: Client, kind: str) -> None:
    answer = admin("POST", "/volumes", {"volume": {"size": 1}}, **{"Content-Type": kind})
    refused(answer, "Unsupported Content-Type", status=415)
    assert "badMediaType" in answer.json


def test_a_body_over_the_limit(admin: Client) -> None:
    answer = admin("POST", "/volumes", raw=b'{"volume": {"size": 1}}' + b" " * 114688)
    assert (answer.status, answer.headers["Content-Type"]) == (413, "text/plain; charset=utf-8")
    assert b"114688 bytes" in answer.body


@pytest.mark.parametrize("body", [{}, {"os-extend": {"new_size": 4}, "revert": {}}])
def test_an_action_needs_one_key(admin: Client, ids: dict[str, str], body: Any) -> None:
    refused(admin("POST", f"/volumes/{ids['volume']}/action", body), "Malformed request body")


@pytest.mark.parametrize("name", ["os-nothing", "", "os-Extend", "x" * 100_000])
def test_an_unknown_action(admin: Client, ids: dict[str, str], name: str) -> None:
    answer = admin("POST", f"/volumes/{ids['volume']}/action", {name: {}})
    refused(answer, "There is no such action: ", "Verify the request body and Content-Type header and try again.")
    assert len(answer.message) < 250


# --- values --------------------------------------------------------------------------------------------------

NOT_TEXT = (7, 1.5, True, [], {})
NOT_AN_OBJECT = (7, "text", True, [], ["a"])
NOT_A_BOOLEAN = (0, 1, 2, "maybe", "", None, [], {}, 1.0)
NOT_A_SIZE = (
    0,
    -1,
    "-1",
    "0",
    1.5,
    "1.5",
    True,
    False,
    [],
    {},
    "",
    " 1",
    "1e3",
    "٣",
    2**31,
    2**63,
    10**30,
    "9" * 21,
    1e300,
)
NOT_A_UUID = ("", "x", "1234", 7, True, [], {}, "'; DROP TABLE volumes; --", f"{unknown_id()}\0", LONG)


def volume_fields() -> Iterator[tuple[str, Any, str]]:
    for size in NOT_A_SIZE:
        yield "size", size, ""
    for name in ("name", "description", "display_name", "display_description", "volume_type", "imageRef", "image_id"):
        for value in (*NOT_TEXT, LONG):
            yield name, value, "at most 255" if value == LONG else "must be a string"
        yield name, "a\0b", "NUL"
    for name in ("snapshot_id", "source_volid", "consistencygroup_id", "backup_id"):
        for value in NOT_A_UUID:
            yield name, value, "must be a uuid"
    for value in NOT_A_BOOLEAN:
        if value is not None:
            yield "multiattach", value, "true or false"
    for value in (*NOT_TEXT, LONG, ""):
        yield "availability_zone", value, ""
    for value in NOT_AN_OBJECT:
        yield "metadata", value, "must be an object"


@pytest.mark.parametrize(("name", "value", "words"), list(volume_fields()), ids=lambda value: repr(value)[:24])
def test_create_volume_with_a_bad_value(admin: Client, name: str, value: Any, words: str) -> None:
    answer = admin("POST", "/volumes", {VOLUME: {"size": 1, name: value}})
    refused(answer, f"Invalid input for field/attribute volume.{name}. Value: ", words)
    assert len(answer.message) < 300


def test_a_huge_size_names_the_limit(admin: Client) -> None:
    refused(admin("POST", "/volumes", {VOLUME: {"size": 2**31}}), "from 1 to 2147483647")


def test_a_number_of_ten_thousand_digits(admin: Client) -> None:
    refused(admin("POST", "/volumes", raw=b'{"volume": {"size": ' + b"9" * 10_000 + b"}}"))


def test_a_size_in_digits_is_a_size(admin: Client) -> None:
    refused(admin("POST", "/volumes", {VOLUME: {"size": "2147483648"}}), "2147483647")


METADATA = [
    ({"": "v"}, "The key must be 1 to 255 characters"),
    ({"k" * 256: "v"}, "The key must be 1 to 255 characters"),
    ({"kéy": "v"}, "The key must be"),
    ({"k\0": "v"}, "The key must be"),
    ({"k\n": "v"}, "The key must be"),
    ({"k": LONG}, "The value has 256 characters; at most 255"),
    ({"k": "a\0"}, "NUL"),
    ({"k": 7}, "The value must be a string"),
    ({"k": None}, "The value must be a string"),
    ({"k": {}}, "The value must be a string"),
    ({f"k{n}": "v" for n in range(1001)}, "It has 1001 keys"),
]


@pytest.mark.parametrize(("pairs", "words"), METADATA, ids=lambda value: str(value)[:24])
def test_metadata_that_may_not_be(admin: Client, ids: dict[str, str], pairs: dict[str, Any], words: str) -> None:
    v, s = ids["volume"], ids["snapshot"]
    refused(admin("POST", "/volumes", {VOLUME: {"size": 1, "metadata": pairs}}), "volume.metadata", words)
    refused(admin("PUT", f"/volumes/{v}", {VOLUME: {"metadata": pairs}}), "volume.metadata", words)
    refused(admin("POST", "/snapshots", {SNAPSHOT: {"volume_id": v, "metadata": pairs}}), "snapshot.metadata", words)
    for noun in (f"volumes/{v}", f"snapshots/{s}"):
        refused(admin("POST", f"/{noun}/metadata", {"metadata": pairs}), "metadata", words)
        refused(admin("PUT", f"/{noun}/metadata", {"metadata": pairs}), "metadata", words)
        if len(pairs) == 1:
            refused(admin("PUT", f"/{noun}/metadata/k", {"meta": pairs}), "meta", words)


def test_slash_is_for_volume_metadata_only(admin: Client, ids: dict[str, str]) -> None:
    body = {"metadata": {"a/b": "v"}}
    refused(admin("PUT", f"/snapshots/{ids['snapshot']}/metadata", body), "metadata.a/b")


@pytest.mark.parametrize("meta", [{}, {"a": "1", "b": "2"}])
def test_one_pair_is_one_pair(admin: Client, ids: dict[str, str], meta: dict[str, str]) -> None:
    for noun in (f"volumes/{ids['volume']}", f"snapshots/{ids['snapshot']}"):
        refused(admin("PUT", f"/{noun}/metadata/a", {"meta": meta}), "exactly 1 are allowed")


def test_a_pair_other_than_that_of_the_url(admin: Client, ids: dict[str, str]) -> None:
    for noun in (f"volumes/{ids['volume']}", f"snapshots/{ids['snapshot']}"):
        refused(admin("PUT", f"/{noun}/metadata/a", {"meta": {"b": "1"}}), "that of the URL: a")
    refused(admin("PUT", f"/types/{ids['type']}/extra_specs/a", {"b": "1"}), "that of the URL: a")


BAD = [
    # method, path, body, words
    ("POST", "/volumes", {VOLUME: {}}, ("volume.size", "It is needed")),
    ("POST", "/volumes", {VOLUME: None}, ("volume", "null")),
    ("POST", "/volumes", {VOLUME: []}, ("volume", "must be an object")),
    ("POST", "/volumes", {}, ("volume", "Missing data")),
    ("POST", "/volumes", {VOLUME: {"size": 1}, "more": 1}, ("more", "Unknown field")),
    ("POST", "/volumes", {VOLUME: {"size": 1, "more": 1}}, ("volume.more", "Unknown field")),
    ("POST", "/volumes", {VOLUME: {"size": 1}, "scheduler_hints": {}}, ("scheduler_hints", "Unknown field")),
    *(
        ("POST", "/volumes", {VOLUME: {"size": 1}, "OS-SCH-HNT:scheduler_hints": hints}, ("OS-SCH-HNT", words))
        for hints, words in (
            ([], "must be an object"),
            ({"same_host": "x"}, "uuid"),
            ({"same_host": [7]}, "uuid"),
            ({"different_host": {}}, "uuid"),
            ({"different_host": [unknown_id()] * 2}, "once"),
            ({"different_host": [unknown_id() for _ in range(101)]}, "at most 100"),
            ({"local_to_instance": "x"}, "uuid"),
        )
    ),
    ("PUT", "/volumes/{volume}", {VOLUME: {}}, ("At least one of name, description, metadata",)),
    ("PUT", "/volumes/{volume}", {VOLUME: {"size": 2}}, ("volume.size", "Unknown field")),
    ("PUT", "/volumes/{volume}", {VOLUME: {"metadata": None}}, ("volume.metadata", "null")),
    ("PUT", "/volumes/{volume}", {VOLUME: {"name": LONG}}, ("volume.name", "at most 255")),
    ("PUT", "/volumes/{volume}/metadata", {"metadata": {}, "more": 1}, ("more", "Unknown field")),
    ("PUT", "/volumes/{volume}/metadata", {}, ("metadata", "Missing data")),
    *(
        ("POST", "/volumes/{volume}/action", {"os-extend": {"new_size": size}}, ("os-extend.new_size",))
        for size in (*NOT_A_SIZE, None, 3, 2)
    ),
    ("POST", "/volumes/{volume}/action", {"os-extend": {}}, ("os-extend.new_size", "Missing data")),
    ("POST", "/volumes/{volume}/action", {"os-extend": None}, ("os-extend", "null")),
    ("POST", "/volumes/{volume}/action", {"os-extend": {"new_size": 4, "x": 1}}, ("os-extend.x", "Unknown field")),
    *(
        ("POST", "/volumes/{volume}/action", {action: {field: value}}, (f"{action}.{field}",))
        for action, field in (("os-set_bootable", "bootable"), ("os-update_readonly_flag", "readonly"))
        for value in NOT_A_BOOLEAN
    ),
    ("POST", "/volumes/{volume}/action", {"os-set_bootable": {}}, ("os-set_bootable.bootable", "Missing data")),
    ("POST", "/volumes/{volume}/action", {"os-reset_status": {}}, ("At least one of status",)),
    ("POST", "/volumes/{volume}/action", {"os-reset_status": {"status": None}}, ("At least one of status",)),
    *(
        ("POST", "/volumes/{volume}/action", {"os-reset_status": {"status": status}}, ("os-reset_status.status",))
        for status in ("", "nothing", "deleting", "reverting", "unmanaging", 7, [], LONG)
    ),
    ("POST", "/volumes/{volume}/action", {"os-reset_status": {"status": "in-use"}}, ("no attachment",)),
    ("POST", "/volumes/{volume}/action", {"os-reset_status": {"attach_status": "attaching"}}, ("attach_status",)),
    ("POST", "/volumes/{volume}/action", {"os-reset_status": {"migration_status": "x"}}, ("migration_status",)),
    ("POST", "/volumes/{volume}/action", {"os-reset_status": {"status": "error", "x": 1}}, ("os-reset_status.x",)),
    ("POST", "/volumes/{volume}/action", {"revert": {"snapshot_id": 7}}, ("revert.snapshot_id", "must be a string")),
    ("POST", "/volumes/{volume}/action", {"revert": "x"}, ("revert", "must be an object")),
    ("POST", "/snapshots", {SNAPSHOT: {}}, ("snapshot.volume_id", "Missing data")),
    *(
        ("POST", "/snapshots", {SNAPSHOT: {"volume_id": value}}, ("snapshot.volume_id",))
        for value in NOT_A_UUID  # null is a volume that cannot be found
    ),
    *(
        (
            "POST",
            "/snapshots",
            {SNAPSHOT: {"volume_id": unknown_id(), "force": value}},
            ("snapshot.force", "true or false"),
        )
        for value in NOT_A_BOOLEAN
        if value is not None
    ),
    *(
        (method, path, {SNAPSHOT: {**extra, name: value}}, (f"snapshot.{name}",))
        for method, path, extra in (
            ("POST", "/snapshots", {"volume_id": unknown_id()}),
            ("PUT", "/snapshots/{snapshot}", {}),
        )
        for name in ("name", "description", "display_name")
        for value in (*NOT_TEXT, LONG, "a\0")
    ),
    ("POST", "/snapshots", {SNAPSHOT: {"volume_id": unknown_id(), "description": "a\nb"}}, ("printable",)),
    ("POST", "/snapshots", {SNAPSHOT: {"volume_id": unknown_id(), "more": 1}}, ("snapshot.more", "Unknown field")),
    ("PUT", "/snapshots/{snapshot}", {SNAPSHOT: {}}, ("At least one of name, description",)),
    ("PUT", "/snapshots/{snapshot}", {SNAPSHOT: {"metadata": {}}}, ("snapshot.metadata", "Unknown field")),
    *(
        ("POST", "/snapshots/{snapshot}/action", {"os-reset_status": {"status": status}}, ("os-reset_status.status",))
        for status in ("", "in-use", None, 7)
    ),
    ("POST", "/snapshots/{snapshot}/action", {"os-reset_status": {}}, ("os-reset_status.status", "Missing data")),
    *(
        (
            "POST",
            "/snapshots/{snapshot}/action",
            {"os-update_snapshot_status": {"status": "creating", "progress": value}},
            ("os-update_snapshot_status.progress", "from 0% to 100%"),
        )
        for value in ("", "%", "80", "101%", "-1%", "1.5%", 80, "٣%", "9" * 99 + "%")
    ),
    *(
        ("POST", "/types", {TYPE: {"name": value}}, ("volume_type.name",))
        for value in ("", "   ", None, LONG, *NOT_TEXT, "a\0")
    ),
    ("POST", "/types", {TYPE: {}}, ("volume_type.name", "Missing data")),
    ("POST", "/types", {TYPE: {"name": "t", "description": "a\tb"}}, ("volume_type.description", "printable")),
    ("POST", "/types", {TYPE: {"name": "t", "is_public": True}}, ("volume_type.is_public", "Unknown field")),
    ("POST", "/types", {TYPE: {"name": "t", "os-volume-type-access:is_public": 1}}, ("true or false",)),
    ("POST", "/types", {TYPE: {"name": "t", "extra_specs": {"k": 7}}}, ("volume_type.extra_specs.k", "string")),
    ("POST", "/types", {TYPE: {"name": "t", "extra_specs": None}}, ("volume_type.extra_specs", "null")),
    ("PUT", "/types/{type}", {TYPE: {}}, ("At least one of name, description, is_public",)),
    ("PUT", "/types/{type}", {TYPE: {"name": None}}, ("At least one of",)),
    ("PUT", "/types/{type}", {TYPE: {"name": "  "}}, ("volume_type.name", "at least 1")),
    ("PUT", "/types/{type}", {TYPE: {"is_public": "x"}}, ("volume_type.is_public",)),
    ("POST", "/types/{type}/action", {"addProjectAccess": {"project": ""}}, ("addProjectAccess.project",)),
    ("POST", "/types/{type}/action", {"addProjectAccess": {}}, ("addProjectAccess.project", "Missing data")),
    ("POST", "/types/{type}/action", {"addProjectAccess": {"project": LONG}}, ("at most 255",)),
    *(
        ("POST", "/types/{type}/extra_specs", {"extra_specs": specs}, ("extra_specs", words))
        for specs, words in (
            ({"a b": "v"}, "The key must be"),
            ({"a/b": "v"}, "The key must be"),
            ({"a": LONG}, "at most 255"),
            ({"a": True}, "string"),
            ([], "object"),
        )
    ),
    ("PUT", "/types/{type}/extra_specs/a", {"a": "1", "b": "2"}, ("exactly 1",)),
    ("PUT", "/types/{type}/extra_specs/a", {"a": 1}, ("string",)),
    ("PUT", "/os-services/enable", {"binary": "cinder-volume"}, ("host", "needed")),
    ("PUT", "/os-services/enable", {"host": "blockstore@memory"}, ("binary is needed",)),
    ("PUT", "/os-services/disable", {"binary": "cinder-volume", "host": "a b"}, ("host", "does not match")),
    ("PUT", "/os-services/disable", {"binary": "", "host": "h"}, ("binary", "at least 1")),
    ("PUT", "/os-services/disable", {"binary": "x", "host": "h", "more": 1}, ("more", "Unknown field")),
    (
        "PUT",
        "/os-services/disable-log-reason",
        {"binary": "cinder-volume", "host": "h", "disabled_reason": LONG},
        ("disabled_reason", "at most 255"),
    ),
    ("PUT", "/os-services/set-log", {"level": "loud"}, ("level", "It must be one of debug, info")),
    ("PUT", "/os-services/set-log", {}, ("level", "Missing data")),
    ("PUT", "/os-services/set-log", {"level": "info", "binary": "x"}, ("binary", "It must be one of")),
    ("PUT", "/os-services/get-log", {"prefix": LONG}, ("prefix", "at most 255")),
]


@pytest.mark.parametrize(("method", "path", "body", "words"), BAD, ids=lambda value: str(value)[:48])
def test_a_body_that_says_what_may_not_be(
    admin: Client, ids: dict[str, str], method: str, path: str, body: Any, words: tuple[str, ...]
) -> None:
    refused(admin(method, path.format(**ids), body), *words)


# --- the query -----------------------------------------------------------------------------------------------

QUERIES = [
    ("limit=-1", "limit"),
    ("limit=x", "limit"),
    ("limit=", "limit"),
    ("limit=1.5", "limit"),
    ("limit=%D9%A3", "limit"),
    (f"limit={2**63}", "limit"),
    ("offset=-1", "offset"),
    (f"offset={10**19}", "offset"),
    ("sort=nothing", "Invalid sort key"),
    ("sort=name;drop table volumes", "Invalid sort key"),
    ("sort=name:up", "Unknown sort direction"),
    ("sort_key=name&sort_dir=ASC", "Unknown sort direction"),
    ("sort_key=name,size", "Invalid sort key"),
    ("sort=name&sort_key=name", "cannot be used with 'sort'"),
    ("sort=name&sort_dir=asc", "cannot be used with 'sort'"),
    (f"sort={','.join(['name'] * 11)}", "At most 10"),
    (f"sort={LONG * 5}", "at most 1024"),
    (f"marker={LONG}", "at most 255"),
    ("name=%00", "NUL"),
    ("a%00b=1", "NUL"),
]


@pytest.mark.parametrize(
    "path", ["/volumes", "/volumes/detail", "/snapshots", "/snapshots/detail", "/types", "/messages"]
)
@pytest.mark.parametrize(("query", "words"), QUERIES, ids=lambda value: str(value)[:32])
def test_a_bad_query(admin: Client, path: str, query: str, words: str) -> None:
    refused(admin("GET", f"{path}?{query}"), words)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/volumes?with_count=maybe", "with_count"),
        ("/volumes?all_tenants=maybe", "all_tenants"),
        ("/volumes?bootable=maybe", "bootable"),
        ("/volumes?created_at=soon", "created_at"),
        ("/volumes?created_at=gt:soon", "created_at"),
        ("/volumes?created_at=after:2026-01-01", "created_at"),
        ("/volumes?created_at=gt:0001-01-01T00:00:00%2B23:59", "created_at"),
        ("/volumes?metadata=x", "metadata"),
        ("/volumes?metadata={}", "metadata"),
        ("/volumes?metadata=[]", "metadata"),
        ("/volumes?metadata=__import__('os')", "metadata"),
        ("/volumes?metadata={'a':open('x')}", "metadata"),
        ("/volumes?metadata={'a':'\\ud800'}", "metadata"),
        ("/volumes?metadata={'a':'\\x00'}", "metadata"),
        (f"/volumes?metadata={'(' * 4000}", "metadata"),
        (f"/volumes?metadata={'-' * 4000}1", "metadata"),
        (f"/volumes?metadata={{'a':'{'x' * 5000}'}}", "metadata"),
        ("/types?is_public=maybe", "is_public"),
        ("/types?extra_specs=x", "extra_specs"),
        ("/snapshots?with_count=2", "with_count"),
        ("/scheduler-stats/get_pools?detail=maybe", "detail"),
        ("/scheduler-stats/get_pools?nothing=1", "Invalid filters nothing"),
    ],
)
def test_a_bad_value_of_a_filter_or_switch(admin: Client, path: str, words: str) -> None:
    refused(admin("GET", path), words)


@pytest.mark.parametrize("query", ["cascade=maybe", "force=maybe", "cascade=2", "force="])
def test_a_bad_switch_of_delete(admin: Client, ids: dict[str, str], query: str) -> None:
    refused(admin("DELETE", f"/volumes/{ids['volume']}?{query}"), query.partition("=")[0], "true or false")


# --- where the reference is open -----------------------------------------------------------------------------


def test_unknown_fields_are_ignored_before_they_were_forbidden(
    sqlite_service: SharedService, ids: dict[str, str]
) -> None:
    nobody = sqlite_service.nobody()  # refused only after the body was found good
    body = {VOLUME: {"size": 1, "more": {"deep": 1}, "backup_id": "ignored before 3.47", "group_id": 7}}
    assert nobody("POST", "/volumes", body, version="3.12").status == 403
    assert nobody("POST", "/volumes", body, version="3.53").status == 400
    assert nobody("PUT", f"/volumes/{ids['volume']}", {VOLUME: {}}, version="3.52").status == 403


def test_unknown_fields_that_the_reference_ignores_always(sqlite_service: SharedService, ids: dict[str, str]) -> None:
    nobody, snapshot = sqlite_service.nobody(), ids["snapshot"]
    assert nobody("PUT", f"/snapshots/{snapshot}/metadata", {"metadata": {}, "more": 1}).status == 403
    assert nobody("PUT", f"/snapshots/{snapshot}/metadata/a", {"meta": {"a": "b"}, "more": 1}).status == 403
    assert (
        nobody("POST", f"/volumes/{ids['volume']}/action", {"revert": {"snapshot_id": snapshot, "more": 1}}).status
        == 403
    )


# --- the caller's own words ----------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["X-Project-Id", "X-User-Id"])
@pytest.mark.parametrize("value", ["a b", "a/b", "x" * 65, "é", "a'b", "../x"])
def test_an_id_that_cannot_be_one(sqlite_service: SharedService, header: str, value: str) -> None:
    refused(Client(sqlite_service.service)("GET", "/volumes", **{header: value}), "1 to 64 letters")


def test_a_project_other_than_that_of_the_url(sqlite_service: SharedService) -> None:
    refused(sqlite_service.member("one")("GET", "/two/volumes"), "Malformed request url")


def test_messages_stay_short_whatever_was_sent(admin: Client, ids: dict[str, str]) -> None:
    huge = {json.dumps({"k": n}) * 20: "v" for n in range(50)}
    for body in ({VOLUME: huge}, {"x" * 50_000: 1}, {VOLUME: {"size": "x" * 100_000}}):
        assert len(admin("POST", "/volumes", body).message) < 400
