"""Every GET at every microversion, by an administrator and by a member: the fields that Cinder shows, and no others.

``response_fields.tsv`` has the facts. A request costs a millisecond: it is handed to the application itself.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from blockstore.api import ROUTE_TABLES
from blockstore.db.models import new_id, now
from blockstore.microversions import MAXIMUM
from tests.api.conftest import SharedService
from tests.api.test_samples import Scene

VERSIONS = range(MAXIMUM.minor + 1)
TYPES: dict[str, Any] = {
    "string": str, "integer": int, "boolean": bool, "array": list, "object": dict, "any": object,
}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """One field of a reply."""

    type: type
    nullable: bool
    since: int
    admin_only: bool
    present: str


def _facts() -> dict[str, dict[str, Field]]:
    found: dict[str, dict[str, Field]] = {}
    for line in (Path(__file__).parent / "response_fields.tsv").read_text().splitlines()[1:]:
        noun, name, kind, null, since, seen_by, present = line.split("\t")
        field = Field(TYPES[kind], null == "null", int(since.partition(".")[2]), seen_by == "admin", present)
        found.setdefault(noun, {})[name] = field
    return found


FACTS = _facts()


@dataclass(frozen=True)
class Get:
    """One GET: where its items are in the reply, and of which kinds they are."""

    path: str
    items: str
    """Keys that lead to the items; [] goes through a list. Empty for the reply itself."""
    kinds: str = ""
    """Names in FACTS, with +; empty: the keys are the caller's."""
    since: int = 0
    admin_only: bool = False
    detail: bool = False
    without: frozenset[str] = frozenset()
    beside: frozenset[str] = frozenset()
    """Keys beside that of the items."""
    may_be_empty: bool = False

    def __str__(self) -> str:
        return f"{self.path} {self.items}"


def gets() -> Iterator[Get]:
    """Yield every GET that this service offers."""
    v, s, a, t = "/volumes/{volume}", "/snapshots/{snapshot}", "/attachments/{attachment}", "/types/{type}"
    for path in ("/volumes", "/volumes/detail", "/snapshots", "/snapshots/detail"):
        noun = path.split("/")[1]
        kinds = {"volumes": "volume {}", "snapshots": "snapshot summary+snapshot {}"}[noun]
        kinds = kinds.format("detail") if "detail" in path else f"{noun[:-1]} summary"
        yield Get(path, f"{noun}[]", kinds)
        yield Get(f"{path}?limit=1", f"{noun}[].links[]" if noun == "volumes" else f"{noun}_links[]", "link",
                  beside=frozenset({noun, f"{noun}_links"}))  # fmt: skip
    yield Get(v, "volume", "volume detail")
    yield Get("/volumes/{used}", "volume.attachments[]", "volume attachment item", may_be_empty=True)
    yield Get("/volumes/summary", "volume-summary", "volume-summary", 12)
    yield Get(f"{v}/metadata", "metadata")
    yield Get(f"{v}/metadata/name", "meta")
    yield Get(f"{v}/encryption", "", "", beside=frozenset({"encryption_key_id"}))
    yield Get(s, "snapshot", "snapshot summary+snapshot detail")
    yield Get(f"{s}/metadata", "metadata")
    yield Get(f"{s}/metadata/key", "meta")
    yield Get("/attachments", "attachments[]", "attachment summary", 27)
    yield Get("/attachments/detail", "attachments[]", "attachment summary+attachment detail", 27)
    yield Get(a, "attachment", "attachment summary+attachment detail", 27)
    for place in ("/volume-transfers", "/os-volume-transfer"):
        yield Get(place, "transfers[]", "transfer summary")
        yield Get(f"{place}/detail", "transfers[]", "transfer detail")
        yield Get(f"{place}/{{transfer}}", "transfer", "transfer detail")
        yield Get(f"{place}/{{transfer}}", "transfer.links[]", "link")
    access = frozenset({"os-volume-type-access:is_public"})
    yield Get("/types", "volume_types[]", "volume_type")
    yield Get(t, "volume_type", "volume_type")
    yield Get("/types/default", "volume_type", "volume_type", without=access)
    yield Get("/types/{private}/os-volume-type-access", "volume_type_access[]", "volume_type_access", 0, True)
    yield Get(f"{t}/extra_specs", "extra_specs")
    yield Get(f"{t}/extra_specs/multiattach", "", beside=frozenset({"multiattach"}))
    yield Get("/types/{private}/encryption", "", "volume type encryption", 0, True)
    yield Get("/types/{private}/encryption/provider", "", "", 0, True, beside=frozenset({"provider"}))
    yield Get("/default-types", "default_types[]", "default_type", 62, True)
    yield Get("/default-types/other", "default_type", "default_type", 62, True)
    yield Get("/qos-specs", "qos_specs[]", "qos_specs", 0, True)
    yield Get("/qos-specs/{qos}", "qos_specs", "qos_specs", 0, True, beside=frozenset({"links"}))
    yield Get("/qos-specs/{qos}", "links[]", "link", 0, True, beside=frozenset({"qos_specs"}))
    yield Get("/qos-specs/{limits}/associations", "qos_associations[]", "qos_associations", 0, True)
    yield Get("/os-quota-sets/{project}", "quota_set", "quota_set")
    yield Get("/os-quota-sets/{project}/defaults", "quota_set", "quota_set")
    yield Get("/os-quota-class-sets/default", "quota_class_set", "quota_set", 0, True)
    yield Get("/limits", "limits", "limits")
    yield Get("/limits", "limits.absolute", "absolute limits")
    yield Get("/os-availability-zone", "availabilityZoneInfo[]", "availabilityZoneInfo")
    yield Get("/extensions", "extensions[]", "extension")
    yield Get("/extensions/qos-specs", "extension", "extension")
    yield Get("/resource_filters", "resource_filters[]", "resource_filters", 33)
    yield Get("/messages", "messages[]", "message", 3)
    yield Get("/messages/{message}", "message", "message", 3)
    yield Get("/messages/{message}", "message.links[]", "link", 3)
    yield Get("/os-services", "services[]", "service", 0, True)
    yield Get("/os-hosts", "hosts[]", "hosts list", 0, True)
    yield Get("/os-hosts/blockstore@memory", "host[].resource", "host show", 0, True)
    yield Get("/clusters", "clusters[]", "", 7, True)
    yield Get("/clusters/detail", "clusters[]", "", 7, True)
    yield Get("/scheduler-stats/get_pools", "pools[]", "pool", 0, True)
    yield Get("/scheduler-stats/get_pools?detail=true", "pools[]", "pool", 0, True, detail=True)
    yield Get("/capabilities/blockstore@memory", "", "capabilities", 0, True)
    for noun, new, old in (
        ("volume", "/manageable_volumes", "/os-volume-manage"),
        ("snapshot", "/manageable_snapshots", "/os-snapshot-manage"),
    ):
        kinds = "manageable volume" if noun == "volume" else "manageable volume+manageable snapshot"
        for place, since in ((new, 8), (old, 0)):
            for more, detail in (("", False), ("/detail", True)):
                yield Get(
                    f"{place}{more}?host=blockstore@memory%23memory",
                    f"manageable-{noun}s[]",
                    kinds,
                    since,
                    True,
                    detail,
                )
    for path in ("/groups", "/groups/detail"):
        yield Get(path, "groups[]", "", 13)
    for path in ("/group_snapshots", "/group_snapshots/detail"):
        yield Get(path, "group_snapshots[]", "", 14)
    yield Get("/group_types", "group_types[]", "", 11)
    for noun in ("backups", "consistencygroups", "cgsnapshots"):
        yield Get(f"/{noun}", f"{noun}[]")
        yield Get(f"/{noun}/detail", f"{noun}[]")


GETS = tuple(gets())


class Asker:
    """Hands requests to the application without a client between."""

    def __init__(self, shared_service: SharedService, project: str, roles: str) -> None:
        self._application = shared_service.service.app
        self._project = project
        self._environ = {
            "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "SERVER_NAME": "localhost", "SERVER_PORT": "80",
            "HTTP_HOST": "localhost", "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.version": (1, 0), "wsgi.url_scheme": "http",
            "wsgi.errors": io.StringIO(), "wsgi.multithread": True, "wsgi.multiprocess": False, "wsgi.run_once": False,
            "HTTP_X_PROJECT_ID": project, "HTTP_X_ROLES": roles, "HTTP_X_USER_ID": "u1",
        }  # fmt: skip

    def __call__(self, path: str, minor: int) -> tuple[int, Any]:
        path, _, query = path.partition("?")
        statuses: list[str] = []
        environ = {
            **self._environ, "PATH_INFO": f"/v3/{self._project}{path}", "QUERY_STRING": query,
            "HTTP_OPENSTACK_API_VERSION": f"volume 3.{minor}", "wsgi.input": io.BytesIO(),
        }  # fmt: skip
        body = b"".join(self._application(environ, lambda status, _headers, _exc=None: statuses.append(status)))
        status = int(statuses[0].split()[0])
        return status, json.loads(body) if status == 200 else body


@pytest.fixture(scope="module")
def scene(sqlite_service: SharedService) -> Scene:
    """A project that has one of everything."""
    scene = Scene(sqlite_service)
    scene.ids["project"] = scene.project
    specs = {"extra_specs": {"multiattach": "<is> False", "secret": "x"}}
    assert scene("POST", f"/types/{scene.ids['type']}/extra_specs", specs).status == 200
    found = scene("GET", f"/qos-specs/{scene.ids['limits']}/associate?vol_type_id={scene.ids['type']}")
    assert found.status == 202
    scene.ids["used"] = sqlite_service.volume(
        scene.client.as_(scene.project), status="in-use", attach_status="attached"
    )
    owner = scene.client.as_(scene.project)
    times = {"attached_at": now(), "instance_uuid": new_id(), "attach_mode": "rw"}
    sqlite_service.attachment(owner, scene.ids["used"], status="attached", **times)
    return scene


@pytest.fixture(scope="module")
def askers(sqlite_service: SharedService, scene: Scene) -> dict[str, Asker]:
    """Return who asks."""
    return {
        "admin": Asker(sqlite_service, scene.project, "admin,member,reader"),
        "member": Asker(sqlite_service, scene.project, "member,reader"),
    }


def found_in(document: Any, items: str) -> Iterator[Any]:
    """Yield the items that keys lead to."""
    if not items:
        yield document
        return
    key, _, rest = items.partition(".")
    inner = document[key.removesuffix("[]")]
    for item in inner if key.endswith("[]") else [inner]:
        yield from found_in(item, rest)


PER_TYPE = re.compile(r"(volumes|gigabytes|snapshots)_.+")


def wrong_with(item: Any, get: Get, minor: int, who: str) -> Iterator[str]:
    """Yield what is wrong with an item."""
    kinds: dict[str, Field] = {}
    for name in get.kinds.split("+"):
        kinds |= FACTS[name]
    known = {
        name: field
        for name, field in kinds.items()
        if field.since <= minor
        and (who == "admin" or not field.admin_only)
        and name not in get.without
        and (field.present != "detail" or get.detail)
        and (field.present != "cinder-volume" or item["binary"] == "cinder-volume")
    }
    have = {name for name in item if get.kinds != "quota_set" or not PER_TYPE.fullmatch(name)}
    yield from (f"has {name}" for name in sorted(have - known.keys()))
    yield from (f"lacks {name}" for name in sorted(known.keys() - have) if known[name].present != "sometimes")
    for name in have & known.keys():
        value, field = item[name], known[name]
        if value is None:
            if not field.nullable:
                yield f"{name} is null"
        elif not isinstance(value, field.type) or (field.type is int and isinstance(value, bool)):
            yield f"{name} is {value!r}"


@pytest.mark.parametrize("get", GETS, ids=str)
def test_each_version_shows_what_cinder_shows(get: Get, scene: Scene, askers: dict[str, Asker]) -> None:
    path = get.path.format(**scene.ids)
    top = {get.items.partition(".")[0].removesuffix("[]")} if get.items else set()
    wrong = []
    for who, ask in askers.items():
        for minor in VERSIONS:
            status, reply = ask(path, minor)
            expected = 404 if minor < get.since else 403 if get.admin_only and who == "member" else 200
            if status != expected:
                wrong.append(f"3.{minor} {who}: {status}")
                continue
            if status != 200:
                continue
            keys = set(reply) - ({name for name in reply if name.endswith("_links")} - get.beside)
            if (get.items or not get.kinds) and keys != top | get.beside:
                wrong.append(f"3.{minor} {who}: keys {sorted(keys)}")
            items = list(found_in(reply, get.items)) if get.kinds else []
            if get.kinds and not items and not get.may_be_empty:
                wrong.append(f"3.{minor} {who}: nothing")
            wrong += [f"3.{minor} {who}: {words}" for item in items for words in wrong_with(item, get, minor, who)]
    assert wrong == []


LEFT_OUT = {
    "/qos-specs/X/associate", "/qos-specs/X/disassociate", "/qos-specs/X/disassociate_all",  # they change something
    "/volumes/X/encryption/X",  # Cinder gives the bare value
    "/clusters/X", "/groups/X", "/group_snapshots/X", "/group_types/X", "/group_types/X/group_specs",
    "/group_types/X/group_specs/X", "/backups/X", "/backups/X/export_record", "/consistencygroups/X",
    "/cgsnapshots/X",  # there are none
    "/scheduler-stats/explain",  # Cinder has it not
}  # fmt: skip


def test_no_get_is_left_out() -> None:
    offered = {path for table in ROUTE_TABLES for method, path in table.routes if method == "GET"}
    asked = {get.path.partition("?")[0] for get in GETS}
    left = {
        re.sub(r"<\w+>", "X", path)
        for path in offered
        if path not in asked and not any(re.fullmatch(re.sub(r"<\w+>", "[^/]+", path), one) for one in asked - offered)
    }
    assert left == LEFT_OUT
    assert len({get.path for get in GETS}) >= 60
