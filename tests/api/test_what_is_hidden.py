"""What lists, filters, markers and details tell a member or a reader of what only administrators may see."""

from __future__ import annotations

import json
from typing import Any

import pytest

from blockstore.accounting.quotas import charge
from blockstore.api import attachments, snapshots
from blockstore.api.admin import messages
from blockstore.api.http.listing import Listing
from blockstore.api.types import qos_specs, types
from blockstore.api.volumes import transfers, volumes
from blockstore.config import QuotaConfig
from blockstore.db.models import Message, QosSpecs, VolumeType, new_id
from blockstore.errors import OverQuota
from tests.api.conftest import SharedService, unknown_id

CANARY = "canary-9e1d"
LISTINGS: dict[str, Listing] = {
    "/volumes": volumes.LISTING,
    "/volumes/detail": volumes.LISTING,
    "/snapshots": snapshots.LISTING,
    "/attachments": attachments.LISTING,
    "/messages": messages.LISTING,
    "/types": types.LISTING,
    "/volume-transfers": transfers.LISTING,
}
HIDDEN = {"host", "service_uuid", "provider_id", "migration_status", "name_id", "cluster_name", "previous_status"}


@pytest.mark.parametrize("path", LISTINGS)
def test_who_may_sort_by_what(sqlite_service: SharedService, path: str) -> None:
    found, admin, member = LISTINGS[path], sqlite_service.admin(), sqlite_service.member()
    assert found.sortable <= found.columns.keys()
    for key in sorted(found.columns):
        assert admin("GET", f"{path}?sort={key}").status == 200, key
        for query in (f"sort={key}", f"sort_key={key}", f"sort=id,{key}:asc"):
            answer = member("GET", f"{path}?{query}")
            if key in found.sortable:
                assert answer.status == 200, key
            else:
                assert (answer.status, answer.message) == (400, "Invalid input received: Invalid sort key"), key


def test_no_hidden_column_is_sortable() -> None:
    for found in LISTINGS.values():
        assert not found.sortable & {*HIDDEN, "attached_host", "operator_message", "user_message", "qos_specs_id"}
        assert not found.public & (HIDDEN - {"migration_status"})  # compat: Cinder's list of filters has it
    assert not {"salt", "key_hash"} & transfers.LISTING.columns.keys()
    assert qos_specs.LISTING.sortable == {"id", "created_at"}


@pytest.mark.parametrize("path", [path for path in LISTINGS if path != "/types"])
def test_a_marker_of_another_project_is_like_none(sqlite_service: SharedService, path: str) -> None:
    owner, stranger = sqlite_service.member(), sqlite_service.member()
    volume = sqlite_service.volume(owner)
    message = {"event_id": "e", "action_id": "1", "detail_id": "1", "message_level": "ERROR", "user_message": "m"}
    there = {
        "volumes": volume,
        "snapshots": sqlite_service.snapshot(owner, volume),
        "attachments": sqlite_service.attachment(owner, volume),
        "messages": sqlite_service.add(Message, project_id=owner.headers["X-Project-Id"], **message),
        "volume-transfers": volume,
    }[path.split("/")[1]]
    absent = unknown_id()
    for query in ("", "&sort=id:asc", "&all_tenants=1"):
        seen, unseen = (stranger("GET", f"{path}?marker={one}{query}") for one in (there, absent))
        assert (seen.status, seen.message.replace(there, absent)) == (404, unseen.message)


def test_who_is_told_the_operators_message(sqlite_service: SharedService) -> None:
    member = sqlite_service.member()
    project = member.headers["X-Project-Id"]
    message = {"event_id": "e", "action_id": "1", "detail_id": "1", "message_level": "ERROR"}
    found = sqlite_service.add(Message, project_id=project, user_message="for all", operator_message=CANARY, **message)
    for who in (member, sqlite_service.reader(project)):
        assert who.get(f"/messages/{found}")["message"]["user_message"] == "for all"
        assert [m["user_message"] for m in who.get("/messages")["messages"]] == ["for all"]
        for query in (f"operator_message={CANARY}", f"user_message~={CANARY[:4]}", f"operator_message~={CANARY[:4]}"):
            assert who("GET", f"/messages?{query}").status == 400
    admin = sqlite_service.admin(project)
    assert admin.get(f"/messages/{found}")["message"]["user_message"] == CANARY
    assert [m["user_message"] for m in admin.get("/messages")["messages"]] == [CANARY]


def test_how_a_volume_is_reached_is_for_those_who_may_connect_it(sqlite_service: SharedService) -> None:
    member = sqlite_service.member()
    project = member.headers["X-Project-Id"]
    volume = sqlite_service.volume(
        member, status="in-use", attach_status="attached", provider_id=CANARY, name_id=new_id()
    )
    connection = {
        "driver_volume_type": "local", "data": {"device_path": f"/{CANARY}"}, "secret_as": None, "beside": {},
    }  # fmt: skip
    attachment = sqlite_service.attachment(
        member, volume, status="attached", host_name=CANARY, connection=connection,
        connector={"host": CANARY, "attach_local": True}, mountpoint="/dev/vdb",
    )  # fmt: skip
    reader = sqlite_service.reader(project)
    paths = (
        "/volumes/detail",
        f"/volumes/{volume}",
        "/attachments",
        "/attachments/detail",
        f"/attachments/{attachment}",
    )
    for path in paths:
        assert CANARY not in reader("GET", path).body.decode(), path
    for path in paths[:3]:
        assert CANARY not in member("GET", path).body.decode(), path
    (shown,) = reader.get(f"/volumes/{volume}")["volume"]["attachments"]
    assert (shown["host_name"], shown["device"]) == (None, "/dev/vdb")
    assert reader.get(f"/attachments/{attachment}")["attachment"]["connection_info"] == {}
    info = member.get(f"/attachments/{attachment}")["attachment"]["connection_info"]
    assert (info["device_path"], "attached_here" in info) == (f"/{CANARY}", False)
    info = sqlite_service.admin().get(f"/attachments/{attachment}")["attachment"]["connection_info"]
    assert info["attached_here"] == CANARY


# --- refusals that were not as Cinder's -------------------------------------------------------------------------


def test_an_empty_quota_set_is_refused(sqlite_service: SharedService) -> None:
    answer = sqlite_service.admin()("PUT", "/os-quota-sets/somebody", {"quota_set": {}})
    assert (answer.status, answer.message) == (
        400,
        "Invalid input for field/attribute quota_set. Value: an object. It is empty; name at least one limit.",
    )


@pytest.mark.parametrize("name", ["imageRef", "image_id"])
def test_images_are_not_offered_yet(sqlite_service: SharedService, name: str) -> None:
    answer = sqlite_service.member()("POST", "/volumes", {"volume": {"size": 1, name: unknown_id()}})
    assert answer.status == 501
    assert json.loads(answer.body)["notImplemented"]["message"].startswith("This service does not offer images yet")


def test_image_metadata_of_a_volume_that_is_being_uploaded_stays(sqlite_service: SharedService) -> None:
    member = sqlite_service.member()
    volume = sqlite_service.volume(member, status="uploading")
    bodies: tuple[Any, ...] = (
        {"os-set_image_metadata": {"metadata": {"k": "v"}}},
        {"os-unset_image_metadata": {"key": "k"}},
    )
    for body in bodies:
        answer = member("POST", f"/volumes/{volume}/action", body)
        assert answer.status == 400 or "unset" in str(body), answer.body
    assert member("POST", f"/volumes/{volume}/action", {"os-show_image_metadata": {}}).json == {"metadata": {}}


def test_a_quota_of_a_type_is_called_by_the_types_name(sqlite_service: SharedService) -> None:
    admin = sqlite_service.admin()
    project, name = admin.headers["X-Project-Id"], f"type-{unknown_id()[:8]}"
    type_id = sqlite_service.add(VolumeType, name=name, is_public=True)
    limits = {f"volumes_{name}": 0, f"gigabytes_{name}": 5, f"snapshots_{name}": 0}
    assert admin("PUT", f"/os-quota-sets/{project}", {"quota_set": limits}).status == 200
    wanted: tuple[tuple[dict[str, int], str], ...] = (
        (
            {"volumes": 1},
            f"VolumeLimitExceeded: Maximum number of volumes allowed (0) exceeded for quota 'volumes_{name}'.",
        ),
        (
            {"gigabytes": 9},
            f"VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed gigabytes_{name} quota."
            " Requested 9G, quota is 5G and 0G has been consumed.",
        ),
        (
            {"snapshots": 1},
            f"SnapshotLimitExceeded: Maximum number of snapshots allowed (0) exceeded for quota 'snapshots_{name}'",
        ),
    )
    for amounts, sentence in wanted:
        with pytest.raises(OverQuota) as refused, sqlite_service.db.write() as session:
            charge(session, QuotaConfig(), project, type_id, **amounts)
        assert refused.value.message == sentence


def test_the_specs_are_still_there_for_administrators(sqlite_service: SharedService) -> None:
    sqlite_service.add(QosSpecs, name=f"q-{unknown_id()}", consumer="back-end")
    assert sqlite_service.admin()("GET", "/qos-specs?sort=name").status == 200
    assert sqlite_service.member()("GET", "/qos-specs").status == 403
