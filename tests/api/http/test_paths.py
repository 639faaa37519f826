"""Paths of requests: slashes that a client writes twice, and keys that hold some."""

from __future__ import annotations

from typing import Any

import pytest

from blockstore.api.http.paths import Normalized
from tests.api.conftest import SharedService, unknown_id
from tests.conftest import Client

KEYS = (
    "a/b",
    "/a",
    "a/",
    "a//b",
    "a b",
    " a",
    "a.b",
    ".a",
    "a.json",
    "a/b.json",
    ".json",
    "a:b",
    "/",
    "action",
    "a-_.: /z",
)


@pytest.mark.parametrize(
    ("asked", "routed"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/v3", "/v3"),
        ("/v3/", "/v3/"),
        ("//v3//", "/v3/"),
        ("/v3/P//os-quota-sets///P", "/v3/P/os-quota-sets/P"),
        ("/v3//volumes/", "/v3/volumes/"),
        ("/v3/P/volumes/1/action//", "/v3/P/volumes/1/action/"),
        ("/identity//v3/", "/identity/v3/"),
        ("/v3/volumes/1/metadata/", "/v3/volumes/1/metadata/"),
        ("/v3//P/volumes//1//metadata/a//b/", "/v3/P/volumes/1/metadata/a//b/"),
        ("/v3/snapshots/1/metadata//", "/v3/snapshots/1/metadata//"),
        ("/v3/types//1/extra_specs//a", "/v3/types/1/extra_specs//a"),
        ("/v3/P/x//metadata/a//b", "/v3/P/x/metadata/a/b"),
        ("", ""),
    ],
)
def test_slashes_are_merged_but_in_keys(asked: str, routed: str) -> None:
    paths = ("/volumes/<v>/metadata/<key>", "/snapshots/<s>/metadata/<key>", "/types/<t>/extra_specs/<key>", "/volumes")
    seen: list[str] = []
    Normalized(lambda environ, _start: seen.append(environ["PATH_INFO"]), paths)({"PATH_INFO": asked}, None)
    assert seen == [routed]


def test_repeated_slashes_are_taken_and_one_at_the_end_leads_nowhere(sqlite_service: SharedService) -> None:
    admin = sqlite_service.admin()
    project, volume = admin.headers["X-Project-Id"], sqlite_service.volume(admin)
    for path in (f"/volumes/{volume}", "/volumes/detail", f"/os-quota-sets/{project}", "/types.json"):
        plain = admin.get(f"/{project}{path}")
        assert admin.get(f"/{project}/{path}") == plain
        assert admin.get(f"//{project}/{path.replace('/', '//')}") == plain
        assert admin("GET", f"/{project}{path}/").status == 404
    action = {"os-set_bootable": {"bootable": True}}
    assert admin("POST", f"//volumes//{volume}//action", action).status == 200


def quoted(key: str) -> str:
    """Return a key as clients put it into a path: every odd character as %XX."""
    return "".join(c if c.isalnum() else f"%{ord(c):02X}" for c in key)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("prefix", ["", "/P"])
def test_each_pair_is_shown_changed_and_removed_by_its_key(
    sqlite_service: SharedService, key: str, prefix: str
) -> None:
    """As Cinder accepts slashes when volumes, snapshots and types are created, they can be in any."""
    admin = sqlite_service.admin(project="P")
    volume = sqlite_service.volume(admin)
    pairs = {key: "1", "other": "2"}
    snapshot = admin.snapshot(admin.volume(metadata=pairs)["id"], metadata=pairs)["id"]
    named = {"volume_type": {"name": f"{key}{prefix} {unknown_id()}", "extra_specs": pairs}}
    kind = admin("POST", "/types", named).json["volume_type"]["id"]
    admin("PUT", f"/volumes/{volume}/metadata", {"metadata": pairs})
    wrapped: Any
    for place, wrapped in (
        (f"/volumes/{volume}/metadata", lambda pair: {"meta": pair}),
        (f"/snapshots/{snapshot}/metadata", lambda pair: {"meta": pair}),
        (f"/types/{kind}/extra_specs", lambda pair: pair),
    ):
        address = f"{prefix}{place}/{quoted(key)}"
        assert admin.get(address) == wrapped({key: "1"})
        changed = admin("PUT", address, wrapped({key: "3"}))
        assert (changed.status, changed.json) == (200, wrapped({key: "3"}))
        assert admin.get(address) == wrapped({key: "3"})
        assert admin("DELETE", address).status in (200, 202)
        assert admin("GET", address).status == 404
        (left,) = admin.get(f"{prefix}{place}").values()
        assert left == {"other": "2"}
    assert admin("DELETE", f"/types/{kind}").status == 202


def test_a_server_may_leave_the_slash_quoted(sqlite_service: SharedService) -> None:
    """As cheroot does."""
    admin = sqlite_service.admin()
    volume = sqlite_service.volume(admin)
    admin("PUT", f"/volumes/{volume}/metadata", {"metadata": {"a/b": "1"}})
    assert admin.get(f"/volumes/{volume}/metadata/a%252Fb") == {"meta": {"a/b": "1"}}


@pytest.mark.parametrize("key", ["%C3%BC", "%FF", "%25", "%3F", "%23", "%0A", "a%20%20", "%F0%9F%98%80"])
def test_a_key_that_cannot_be_is_not_found(sqlite_service: SharedService, key: str) -> None:
    admin = sqlite_service.admin()
    volume = sqlite_service.volume(admin)
    for method in ("GET", "DELETE"):
        assert admin(method, f"/volumes/{volume}/metadata/{key}").status == 404
    assert admin("PUT", f"/volumes/{volume}/metadata/{key}", {"meta": {"a": "b"}}).status in (400, 404)


def test_keys_in_bodies_may_hold_slashes(sqlite_service: SharedService) -> None:
    admin = sqlite_service.admin()
    volume = sqlite_service.volume(admin)
    place = f"/volumes/{volume}/action"
    assert admin("POST", place, {"os-set_image_metadata": {"metadata": {"a/b": "1", "c": "2"}}}).status == 200
    assert admin("POST", place, {"os-unset_image_metadata": {"key": "a/b"}}).status == 200
    assert admin("POST", place, {"os-show_image_metadata": None}).json == {"metadata": {"c": "2"}}
    made = admin("POST", "/qos-specs", {"qos_specs": {"name": "slashes", "a/b": "1", "c": "2"}})
    specs = f"/qos-specs/{made.json['qos_specs']['id']}"
    assert admin("PUT", specs, {"qos_specs": {"a/b": "3"}}).status == 200
    assert admin("PUT", f"{specs}/delete_keys", {"keys": ["a/b"]}).status == 202
    assert admin.get(specs)["qos_specs"]["specs"] == {"c": "2"}
    assert admin("DELETE", specs).status == 202


def test_a_path_says_who_asks_however_it_is_written(sqlite_service: SharedService) -> None:
    """No second spelling of a path gets around what the first is refused."""
    member: Client = sqlite_service.member()
    foreign = sqlite_service.volume(sqlite_service.member())
    for path in (f"//volumes//{foreign}", f"/other-project//volumes/{foreign}/"):
        assert member("GET", path).status in (400, 404)
    assert member("GET", "//os-services").status == 403


@pytest.mark.parametrize(
    "path", ["/volumes/a%00b", "/os-quota-sets/%00", "/default-types/%00", "/types/a/extra_specs/%00"]
)
def test_a_name_with_nul_is_nobodys(shared_service: SharedService, path: str) -> None:
    """PostgreSQL would fail to look for it."""
    assert shared_service.admin()("GET", path).status == 404
