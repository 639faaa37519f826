"""Who may do what, and who sees what: policies, roles, and the walls between projects."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import blockstore
from blockstore.api import ROUTE_TABLES
from blockstore.api.http.routes import Endpoint
from blockstore.db.models import Message, Transfer, TypeAccess, VolumeType, now
from blockstore.policy.rules import RULES, Level
from blockstore.schemas.snapshots import SNAPSHOT
from blockstore.schemas.unsupported import AnythingBody
from blockstore.schemas.volumes import VOLUME
from tests.api.conftest import SharedService, unknown_id
from tests.conftest import Client

BODIES: dict[str, Any] = {
    "PUT /volumes/<volume_id>": {"volume": {"name": "x"}},
    "PUT /snapshots/<snapshot_id>": {"snapshot": {"name": "x"}},
    "POST /volumes/<volume_id>/metadata": {"metadata": {}},
    "PUT /volumes/<volume_id>/metadata": {"metadata": {}},
    "PUT /volumes/<volume_id>/metadata/<key>": {"meta": {"k": "v"}},
    "POST /snapshots/<snapshot_id>/metadata": {"metadata": {}},
    "PUT /snapshots/<snapshot_id>/metadata": {"metadata": {}},
    "PUT /snapshots/<snapshot_id>/metadata/<key>": {"meta": {"k": "v"}},
    "os-extend": {"os-extend": {"new_size": 9}},
    "revert": {"revert": {"snapshot_id": unknown_id()}},
    "os-set_bootable": {"os-set_bootable": {"bootable": True}},
    "os-update_readonly_flag": {"os-update_readonly_flag": {"readonly": True}},
    "os-reset_status": {"os-reset_status": {"status": "error"}},
    "os-force_delete": {"os-force_delete": {}},
    "os-update_snapshot_status": {"os-update_snapshot_status": {"status": "creating"}},
    "os-reserve": {"os-reserve": {}},
    "os-unreserve": {"os-unreserve": {}},
    "os-begin_detaching": {"os-begin_detaching": {}},
    "os-roll_detaching": {"os-roll_detaching": {}},
    "os-attach": {"os-attach": {"instance_uuid": unknown_id(), "mountpoint": "/dev/vdb"}},
    "os-detach": {"os-detach": {}},
    "os-initialize_connection": {"os-initialize_connection": {"connector": {"initiator": "iqn.2026-01.test:a"}}},
    "os-terminate_connection": {"os-terminate_connection": {"connector": {"initiator": "iqn.2026-01.test:a"}}},
    "os-force_detach": {"os-force_detach": {}},
    "os-extend_volume_completion": {"os-extend_volume_completion": {"error": False}},
    "POST /attachments": {"attachment": {"volume_uuid": unknown_id()}},
    "PUT /attachments/<attachment_id>": {"attachment": {"connector": {"initiator": "iqn.2026-01.test:a"}}},
    "os-complete": {"os-complete": {}},
    "POST /volumes": {"volume": {"size": 1}},
    "POST /snapshots": {"snapshot": {"volume_id": unknown_id()}},
    "POST /types": {"volume_type": {"name": "never"}},
    "PUT /types/<type_id>": {"volume_type": {"name": "never"}},
    "POST /types/<type_id>/extra_specs": {"extra_specs": {"k": "v"}},
    "PUT /types/<type_id>/extra_specs/<key>": {"k": "v"},
    "addProjectAccess": {"addProjectAccess": {"project": "p"}},
    "removeProjectAccess": {"removeProjectAccess": {"project": "p"}},
    "PUT /os-services/enable": {"binary": "cinder-volume", "host": "nowhere"},
    "PUT /os-services/disable": {"binary": "cinder-volume", "host": "nowhere"},
    "PUT /os-services/disable-log-reason": {"binary": "cinder-volume", "host": "nowhere", "disabled_reason": "x"},
    "PUT /os-services/freeze": {"host": "nowhere"},
    "PUT /os-services/thaw": {"host": "nowhere"},
    "os-retype": {"os-retype": {"new_type": "never"}},
    "os-unmanage": {"os-unmanage": {}},
    "POST /manageable_volumes": {"volume": {"host": "nowhere", "ref": "x"}},
    "POST /os-volume-manage": {"volume": {"host": "nowhere", "ref": "x"}},
    "POST /manageable_snapshots": {"snapshot": {"volume_id": unknown_id(), "ref": "x"}},
    "POST /os-snapshot-manage": {"snapshot": {"volume_id": unknown_id(), "ref": "x"}},
    "os-migrate_volume": {"os-migrate_volume": {"host": "nowhere"}},
    "os-migrate_volume_completion": {"os-migrate_volume_completion": {"new_volume": unknown_id()}},
    "POST /os-services/drain": {"drain": {"host": "nowhere"}},
    "os-set_image_metadata": {"os-set_image_metadata": {"metadata": {"k": "v"}}},
    "os-unset_image_metadata": {"os-unset_image_metadata": {"key": "k"}},
    "os-show_image_metadata": {"os-show_image_metadata": {}},
    "POST /volume-transfers": {"transfer": {"volume_id": unknown_id()}},
    "POST /os-volume-transfer": {"transfer": {"volume_id": unknown_id()}},
    "POST /volume-transfers/<transfer_id>/accept": {"accept": {"auth_key": "k"}},
    "POST /os-volume-transfer/<transfer_id>/accept": {"accept": {"auth_key": "k"}},
    "POST /types/<type_id>/encryption": {"encryption": {"provider": "luks", "control_location": "front-end"}},
    "PUT /types/<type_id>/encryption/<encryption_id>": {"encryption": {"cipher": "x"}},
    "POST /qos-specs": {"qos_specs": {"name": "never"}},
    "PUT /qos-specs/<qos_id>": {"qos_specs": {"k": "v"}},
    "PUT /qos-specs/<qos_id>/delete_keys": {"keys": ["k"]},
    "PUT /default-types/<for_project>": {"default_type": {"volume_type": "never"}},
    "PUT /os-hosts/<host_name>": {"status": "enable"},
    "PUT /clusters/enable": {"name": "never"},
    "PUT /clusters/disable": {"name": "never"},
    "POST /workers/cleanup": {},
    "PUT /os-quota-sets/<target_project>": {"quota_set": {"volumes": 1}},
    "PUT /os-quota-class-sets/<class_name>": {"quota_class_set": {}},
    "PUT /os-services/get-log": {},
    "PUT /os-services/set-log": {"level": "info", "server": "nowhere"},
}
"""A good body for each endpoint that takes one."""

ENDPOINTS = [
    (method, path, name, endpoint)
    for table in ROUTE_TABLES
    for (method, path), target in table.routes.items()
    for name, endpoint in ([("", target)] if isinstance(target, Endpoint) else target.items())
]
by_name = pytest.mark.parametrize(
    ("method", "path", "name", "endpoint"), ENDPOINTS, ids=[f"{m} {p} {n}".strip() for m, p, n, _ in ENDPOINTS]
)


def body_of(method: str, path: str, name: str, endpoint: Endpoint) -> Any:
    if endpoint.body is None:
        return None
    if endpoint.body is AnythingBody:
        return {name: {}} if name else {}
    return BODIES[name or f"{method} {path}"]


def place(path: str, **ids: str) -> str:
    return re.sub(r"<(\w+)>", lambda m: {"key": "k", "alias": "os-services", **ids}.get(m[1], "") or unknown_id(), path)


@by_name
def test_a_caller_without_the_role_is_told_the_rule(
    sqlite_service: SharedService, method: str, path: str, name: str, endpoint: Endpoint
) -> None:
    level = RULES[endpoint.policy]
    callers = {
        Level.ANYONE: [],
        Level.READER: [sqlite_service.nobody()],
        Level.MEMBER: [sqlite_service.nobody(), sqlite_service.reader()],
        Level.ADMIN: [sqlite_service.nobody(), sqlite_service.reader(), sqlite_service.member()],
    }[level]
    before = sqlite_service.contents()
    for caller in callers:
        answer = caller(method, place(path), body_of(method, path, name, endpoint))
        assert (answer.status, answer.message) == (403, f"Policy doesn't allow {endpoint.policy} to be performed.")
        assert "forbidden" in answer.json
    assert sqlite_service.contents() == before


@by_name
def test_a_caller_with_the_role_gets_past_the_policy(
    sqlite_service: SharedService, method: str, path: str, name: str, endpoint: Endpoint
) -> None:
    level = RULES[endpoint.policy]
    caller = {
        Level.ANYONE: sqlite_service.nobody,
        Level.READER: sqlite_service.reader,
        Level.MEMBER: sqlite_service.member,
        Level.ADMIN: sqlite_service.admin,
    }[level]()
    own = place(path, target_project=caller.headers["X-Project-Id"])
    assert caller(method, own, body_of(method, path, name, endpoint)).status in (200, 202, 204, 400, 404, 501)


@by_name
def test_a_member_meets_nothing_of_another_project(
    sqlite_service: SharedService, method: str, path: str, name: str, endpoint: Endpoint
) -> None:
    """What is there for others and what is not there at all are answered alike, to the byte."""
    if not re.search(r"<(volume|snapshot|message|attachment|transfer)_id>", path):
        return
    owner, stranger = sqlite_service.member(), sqlite_service.member()
    volume = sqlite_service.volume(owner)
    message = {"event_id": "e", "action_id": "1", "detail_id": "1", "message_level": "ERROR", "user_message": "m"}
    there = {
        "volume_id": volume,
        "snapshot_id": sqlite_service.snapshot(owner, volume),
        "message_id": sqlite_service.add(Message, project_id=owner.headers["X-Project-Id"], **message),
        "attachment_id": sqlite_service.attachment(owner, volume),
        "transfer_id": sqlite_service.add(
            Transfer,
            volume_id=volume,
            project_id=owner.headers["X-Project-Id"],
            no_snapshots=False,
            salt="s",
            key_hash="h",
        ),
    }
    absent = dict.fromkeys(there, unknown_id())
    body = body_of(method, path, name, endpoint)
    before = sqlite_service.contents()
    seen = stranger(method, place(path, **there), body)
    unseen = stranger(method, place(path, **absent), body)
    assert sqlite_service.contents() == before
    if path.endswith("/accept"):
        return  # whoever has the key may; without it both are refused, in their own words
    assert seen.status == unseen.status
    if RULES[endpoint.policy] is not Level.ADMIN:
        assert seen.status == 404, seen.body
    for real, unreal in zip(there.values(), absent.values(), strict=True):
        seen.body = seen.body.replace(real.encode(), unreal.encode())
    assert seen.body == unseen.body


@pytest.mark.parametrize(
    "body",
    [
        lambda v, s: ("/volumes", {"volume": {"size": 1, "snapshot_id": s}}),
        lambda v, s: ("/volumes", {"volume": {"size": 1, "source_volid": v}}),
        lambda v, s: ("/snapshots", {"snapshot": {"volume_id": v}}),
        lambda v, s: ("/attachments", {"attachment": {"volume_uuid": v}}),
    ],
    ids=["from snapshot", "clone", "snapshot", "attachment"],
)
def test_a_body_cannot_name_what_belongs_to_another_project(sqlite_service: SharedService, body: Any) -> None:
    owner, stranger = sqlite_service.member(), sqlite_service.member()
    volume = sqlite_service.volume(owner)
    snapshot = sqlite_service.snapshot(owner, volume)
    seen = stranger("POST", *body(volume, snapshot))
    nothing = unknown_id()
    unseen = stranger("POST", *body(nothing, nothing))
    assert seen.status == unseen.status == 404
    assert seen.message.replace(volume, nothing).replace(snapshot, nothing) == unseen.message


def test_revert_cannot_name_a_snapshot_of_another_project(sqlite_service: SharedService) -> None:
    owner, stranger = sqlite_service.member(), sqlite_service.member()
    snapshot, mine = sqlite_service.snapshot(owner, sqlite_service.volume(owner)), sqlite_service.volume(stranger)
    answer = stranger("POST", f"/volumes/{mine}/action", {"revert": {"snapshot_id": snapshot}})
    assert (answer.status, answer.message) == (404, f"Snapshot {snapshot} could not be found.")


def test_lists_keep_to_the_project(shared_service: SharedService) -> None:
    owner, stranger = shared_service.member(), shared_service.member()
    volume = shared_service.volume(owner)
    shared_service.snapshot(owner, volume)
    shared_service.attachment(owner, volume)
    nouns = ("volumes", "snapshots", "attachments")
    for path in ("/messages", *(f"/{noun}{suffix}" for noun in nouns for suffix in ("", "/detail"))):
        (items,) = stranger.get(f"{path}?all_tenants=1").values()
        assert items == []
    assert stranger.get("/volumes/summary?all_tenants=1")["volume-summary"]["total_count"] == 0


def test_an_administrator_sees_all_on_request(shared_service: SharedService) -> None:
    shared_service.clear()
    owner, admin = shared_service.member(), shared_service.admin()
    volume = shared_service.volume(owner)
    snapshot = shared_service.snapshot(owner, volume)
    assert admin.get("/volumes")["volumes"] == []
    assert [v["id"] for v in admin.get("/volumes?all_tenants=1")["volumes"]] == [volume]
    assert [s["id"] for s in admin.get("/snapshots?all_tenants=true")["snapshots"]] == [snapshot]
    attachment = shared_service.attachment(owner, volume)
    for path in ("/attachments", "/attachments/detail"):
        assert admin.get(path)["attachments"] == []
        assert [a["id"] for a in admin.get(f"{path}?all_tenants=1")["attachments"]] == [attachment]
    assert admin.get(f"/attachments/{attachment}")["attachment"]["id"] == attachment
    assert admin.get("/volumes/summary?all_tenants=1")["volume-summary"]["total_count"] == 1
    assert admin.get(f"/volumes/{volume}")["volume"]["id"] == volume


def test_a_hidden_destination_of_a_migration_is_for_administrators(sqlite_service: SharedService) -> None:
    owner = sqlite_service.member()
    hidden = sqlite_service.volume(owner, migration_status=f"target:{unknown_id()}")
    assert owner.get("/volumes")["volumes"] == []
    admin = sqlite_service.admin(owner.headers["X-Project-Id"])
    assert [v["id"] for v in admin.get("/volumes")["volumes"]] == [hidden]


ADMIN_FIELDS = {
    "migration_status", "provider_id", "cluster_name", "os-vol-host-attr:host", "os-vol-mig-status-attr:migstat",
    "os-vol-mig-status-attr:name_id",
}  # fmt: skip


@pytest.mark.parametrize("path", ["/volumes/{}", "/volumes/detail"])
def test_a_member_sees_no_fields_of_administrators(sqlite_service: SharedService, path: str) -> None:
    member = sqlite_service.member()
    admin = sqlite_service.admin(member.headers["X-Project-Id"])
    volume = sqlite_service.volume(member, provider_id="secret", cluster_name="secret", migration_status="error")

    def fields(client: Client) -> set[str]:
        shown = client.get(path.format(volume))
        return set(shown.get("volume") or shown["volumes"][0])

    assert fields(admin) - fields(member) == ADMIN_FIELDS
    assert fields(member) == fields(sqlite_service.reader(member.headers["X-Project-Id"]))
    assert b"secret" not in member("GET", path.format(volume)).body
    assert sqlite_service.service.config.service.node.encode() not in member("GET", path.format(volume)).body


def test_a_member_sees_few_extra_specs(sqlite_service: SharedService) -> None:
    specs = {"multiattach": "<is> False", "volume_backend_name": "secret", "RESKEY:availability_zones": "nova"}
    admin, member = sqlite_service.admin(), sqlite_service.member()
    made = admin("POST", "/types", {"volume_type": {"name": unknown_id(), "extra_specs": specs}}).json["volume_type"]
    shown = {"multiattach": "<is> False", "RESKEY:availability_zones": "nova"}
    assert admin.get(f"/types/{made['id']}/extra_specs") == {"extra_specs": specs}
    assert member.get(f"/types/{made['id']}/extra_specs") == {"extra_specs": shown}
    assert member.get(f"/types/{made['id']}")["volume_type"]["extra_specs"] == shown
    assert member("GET", f"/types/{made['id']}/extra_specs/volume_backend_name").status == 404
    assert member("GET", "/types?extra_specs={'volume_backend_name':'secret'}").status == 400
    assert b"secret" not in member("GET", "/types").body
    assert "qos_specs_id" not in member.get(f"/types/{made['id']}")["volume_type"]
    assert "os-volume-type-access:is_public" not in sqlite_service.reader().get(f"/types/{made['id']}")["volume_type"]
    assert admin("DELETE", f"/types/{made['id']}").status == 202


def test_a_private_type_is_for_those_who_were_given_it(sqlite_service: SharedService) -> None:
    admin, friend, stranger = sqlite_service.admin(), sqlite_service.member(), sqlite_service.member()
    name = unknown_id()
    private = sqlite_service.add(VolumeType, name=name, is_public=False)
    with sqlite_service.db.write() as session:
        session.add(TypeAccess(volume_type_id=private, project_id=friend.headers["X-Project-Id"]))
    assert friend("GET", f"/types/{private}").status == 200
    assert name in [t["name"] for t in friend.get("/types?is_public=false")["volume_types"]]
    refused = stranger("GET", f"/types/{private}")
    assert (refused.status, refused.message) == (404, f"Volume type {private} could not be found.")
    assert name not in [t["name"] for t in stranger.get("/types?is_public=none")["volume_types"]]
    assert stranger("POST", "/volumes", {"volume": {"size": 1, "volume_type": name}}).status == 404
    assert name in [t["name"] for t in admin.get("/types?is_public=none")["volume_types"]]
    assert name not in [t["name"] for t in admin.get("/types")["volume_types"]]
    assert [t["name"] for t in admin.get("/types?is_public=false")["volume_types"]] == [name]
    for verb, status in (("add", 202), ("add", 409), ("remove", 202), ("remove", 404)):
        body = {f"{verb}ProjectAccess": {"project": "somebody"}}
        assert admin("POST", f"/types/{private}/action", body).status == status
    assert admin("DELETE", f"/types/{private}").status == 202


def test_limits_of_another_project_are_for_administrators(sqlite_service: SharedService) -> None:
    member = sqlite_service.member()
    answer = member("GET", "/limits?project_id=other")
    assert (answer.status, "forbidden" in answer.json) == (403, True)
    assert member("GET", "/limits?project_id=other", version="3.38").status == 200
    assert sqlite_service.admin()("GET", "/limits?tenant_id=other").status == 200
    assert "totalVolumesUsed" not in sqlite_service.nobody().get("/limits")["limits"]["absolute"]


def test_force_on_delete_is_for_administrators_and_new(sqlite_service: SharedService) -> None:
    member = sqlite_service.member()
    volume = sqlite_service.volume(member, status="extending", updated_at=now())
    answer = member("DELETE", f"/volumes/{volume}?force=true")
    assert (answer.status, answer.message) == (403, "Policy doesn't allow volume:force_delete to be performed.")
    assert sqlite_service.admin()("DELETE", f"/volumes/{volume}?force=true", version="3.22").status == 400


def test_every_rule_is_asked_for_somewhere() -> None:
    used = {endpoint.policy for *_, endpoint in ENDPOINTS} | VOLUME.rules() | SNAPSHOT.rules()
    source = "".join(path.read_text() for path in (Path(blockstore.__file__).parent / "api").rglob("*.py"))
    assert {rule for rule in set(RULES) - used if f'"{rule}"' not in source} == set()
    assert {endpoint.policy for *_, endpoint in ENDPOINTS} <= set(RULES)
