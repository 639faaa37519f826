"""What goes with volume types: QoS specs, encryption, default types, and giving a volume another type."""

from __future__ import annotations

from typing import Any

import pytest

from blockstore.app.service import Service
from blockstore.db.models import new_id
from tests.api.conftest import SharedService, unknown_id
from tests.conftest import Client


def make_type(client: Client, **specs: str) -> str:
    body = {"volume_type": {"name": f"t-{new_id()[:8]}", "extra_specs": specs}}
    answer = client("POST", "/types", body)
    assert answer.status == 200, answer.body
    return str(answer.json["volume_type"]["id"])


def make_qos(client: Client, **more: Any) -> str:
    answer = client("POST", "/qos-specs", {"qos_specs": {"name": f"q-{new_id()[:8]}", **more}})
    assert answer.status == 200, answer.body
    return str(answer.json["qos_specs"]["id"])


# --- QoS specs ---------------------------------------------------------------------------------------------


def test_qos_specs_from_create_to_delete(shared_service: SharedService) -> None:
    admin = shared_service.admin()
    qos = make_qos(admin, consumer="both", read_iops_sec="2000", total=5)
    shown = admin.get(f"/qos-specs/{qos}")
    assert shown["qos_specs"]["consumer"] == "both"
    assert shown["qos_specs"]["specs"] == {"read_iops_sec": "2000", "total": "5"}
    assert shown["links"][0]["rel"] == "self"
    changes = {"qos_specs": {"total": "6", "burst": "9", "consumer": "front-end"}}
    assert admin("PUT", f"/qos-specs/{qos}", changes).json == changes
    assert admin("PUT", f"/qos-specs/{qos}/delete_keys", {"keys": ["burst"]}).status == 202
    assert admin("PUT", f"/qos-specs/{qos}/delete_keys", {"keys": ["burst"]}).status == 404
    found = admin.get("/qos-specs?consumer=front-end")["qos_specs"]
    assert [one["specs"] for one in found if one["id"] == qos] == [{"read_iops_sec": "2000", "total": "6"}]
    assert admin("DELETE", f"/qos-specs/{qos}").status == 202
    assert admin("GET", f"/qos-specs/{qos}").status == 404


def test_qos_specs_and_types(shared_service: SharedService) -> None:
    admin = shared_service.admin()
    qos, other, kind = make_qos(admin), make_qos(admin), make_type(admin)
    assert admin("GET", f"/qos-specs/{qos}/associate").status == 400
    assert admin("GET", f"/qos-specs/{qos}/associate?vol_type_id={unknown_id()}").status == 404
    assert admin("GET", f"/qos-specs/{qos}/associate?vol_type_id={kind}").status == 202
    assert admin.get(f"/types/{kind}")["volume_type"]["qos_specs_id"] == qos
    assert [one["id"] for one in admin.get(f"/qos-specs/{qos}/associations")["qos_associations"]] == [kind]
    assert admin("GET", f"/qos-specs/{other}/associate?vol_type_id={kind}").status == 400
    assert admin("DELETE", f"/qos-specs/{qos}").status == 400
    assert admin("GET", f"/qos-specs/{qos}/disassociate?vol_type_id={kind}").status == 202
    assert admin("GET", f"/qos-specs/{qos}/associate?vol_type_id={kind}").status == 202
    assert admin("GET", f"/qos-specs/{qos}/disassociate_all").status == 202
    assert admin("GET", f"/qos-specs/{qos}/associate?vol_type_id={kind}").status == 202
    assert admin("DELETE", f"/qos-specs/{qos}?force=true").status == 202
    assert admin.get(f"/types/{kind}")["volume_type"]["qos_specs_id"] is None


@pytest.mark.parametrize(
    "specs", [{}, {"name": ""}, {"name": "x", "consumer": "nobody"}, {"name": "x", "k": []}, {"name": "x", "k\n": "v"}]
)
def test_qos_specs_that_may_not_be(sqlite_service: SharedService, specs: Any) -> None:
    assert sqlite_service.admin()("POST", "/qos-specs", {"qos_specs": specs}).status == 400


def test_a_name_of_qos_specs_is_there_once(sqlite_service: SharedService) -> None:
    make_qos(sqlite_service.admin(), name="once")
    assert sqlite_service.admin()("POST", "/qos-specs", {"qos_specs": {"name": "once"}}).status == 409


# --- encryption --------------------------------------------------------------------------------------------


def test_encryption_of_a_type(shared_service: SharedService) -> None:
    admin = shared_service.admin()
    kind = make_type(admin)
    place = f"/types/{kind}/encryption"
    assert admin.get(place) == {}
    asked = {"provider": "luks", "control_location": "front-end", "cipher": "aes-xts-plain64", "key_size": 256}
    made = admin("POST", place, {"encryption": asked})
    assert made.status == 200
    encryption = made.json["encryption"]
    assert {**asked, "volume_type_id": kind} == {k: v for k, v in encryption.items() if k != "encryption_id"}
    assert admin("POST", place, {"encryption": asked}).status == 400
    assert admin.get(f"{place}/cipher") == {"cipher": "aes-xts-plain64"}
    assert admin("GET", f"{place}/nothing").status == 404
    changed = admin("PUT", f"{place}/{encryption['encryption_id']}", {"encryption": {"key_size": 512}})
    assert (changed.status, admin.get(place)["key_size"]) == (200, 512)
    # nothing here holds keys: a volume in clear would be a broken promise
    refused = shared_service.member()("POST", "/volumes", {"volume": {"size": 1, "volume_type": kind}})
    assert refused.status == 400
    assert "encrypted" in refused.message
    assert admin("DELETE", f"{place}/{encryption['encryption_id']}").status == 202
    assert admin.get(place) == {}


def test_a_type_with_volumes_keeps_its_encryption(shared_service: SharedService) -> None:
    admin = shared_service.admin()
    kind = make_type(admin)
    shared_service.volume(admin, volume_type_id=kind)
    asked = {"encryption": {"provider": "luks", "control_location": "front-end"}}
    assert admin("POST", f"/types/{kind}/encryption", asked).status == 400


def test_no_volume_is_encrypted(sqlite_service: SharedService) -> None:
    member = sqlite_service.member()
    volume = sqlite_service.volume(member)
    assert member.get(f"/volumes/{volume}/encryption") == {"encryption_key_id": None}
    assert member.get(f"/volumes/{volume}/encryption/encryption_key_id") == {"encryption_key_id": None}
    assert member("GET", f"/volumes/{volume}/encryption/other").status == 404


# --- default types -----------------------------------------------------------------------------------------


def test_a_project_has_a_default_type_of_its_own(shared_service: SharedService) -> None:
    admin, member = shared_service.admin(), shared_service.member()
    project, kind = member.headers["X-Project-Id"], make_type(admin)
    place = f"/default-types/{project}"
    assert admin("GET", place).status == 404
    body = {"default_type": {"volume_type": kind}}
    assert admin("PUT", place, body).json == {"default_type": {"project_id": project, "volume_type_id": kind}}
    made = member("POST", "/volumes", {"volume": {"size": 1}}).json["volume"]
    assert made["volume_type_id"] == kind
    assert {"project_id": project, "volume_type_id": kind} in admin.get("/default-types")["default_types"]
    member.wait_idle()
    member("DELETE", f"/volumes/{made['id']}")
    member.wait_idle()
    refused = admin("DELETE", f"/types/{kind}")
    assert refused.status == 400
    assert project in refused.message
    assert admin("DELETE", place).status == 204
    assert admin("DELETE", place).status == 204
    assert member("POST", "/volumes", {"volume": {"size": 1}}).json["volume"]["volume_type"] == "__DEFAULT__"
    assert admin("DELETE", f"/types/{kind}").status == 202


def test_an_unknown_type_is_no_default(sqlite_service: SharedService) -> None:
    answer = sqlite_service.admin()("PUT", "/default-types/p", {"default_type": {"volume_type": "nothing"}})
    assert answer.status == 400
    assert "nothing" in answer.message


# --- retype ------------------------------------------------------------------------------------------------


def usage(client: Client) -> dict[str, int]:
    entries = client.get(f"/os-quota-sets/{client.headers['X-Project-Id']}?usage=true")["quota_set"]
    return {name: entry["in_use"] for name, entry in entries.items() if isinstance(entry, dict) and entry["in_use"]}


def test_a_volume_gets_another_type_where_it_is(service: Service) -> None:
    admin = Client(service, **{"X-Project-Id": "p"})
    kind = make_type(admin)
    name = admin.get(f"/types/{kind}")["volume_type"]["name"]
    volume = admin.volume(size=3)["id"]
    admin.snapshot(volume)
    assert usage(admin) == {
        "volumes": 1, "gigabytes": 6, "snapshots": 1,
        "volumes___DEFAULT__": 1, "gigabytes___DEFAULT__": 6, "snapshots___DEFAULT__": 1,
    }  # fmt: skip
    assert admin.action(f"volumes/{volume}", "os-retype", {"new_type": name}).status == 202
    shown = admin.get(f"/volumes/{volume}")["volume"]
    assert (shown["status"], shown["volume_type_id"]) == ("available", kind)
    assert usage(admin) == {
        "volumes": 1, "gigabytes": 6, "snapshots": 1,
        f"volumes_{name}": 1, f"gigabytes_{name}": 6, f"snapshots_{name}": 1,
    }  # fmt: skip


def test_a_type_that_the_pool_does_not_serve_changes_nothing(service: Service) -> None:
    admin = Client(service, **{"X-Project-Id": "p"})
    kind = make_type(admin, volume_backend_name="elsewhere")
    volume = admin.volume(size=3)["id"]
    before = usage(admin)
    assert admin.action(f"volumes/{volume}", "os-retype", {"new_type": kind}).status == 202
    shown = admin.get(f"/volumes/{volume}")["volume"]
    assert (shown["status"], shown["volume_type"]) == ("available", "__DEFAULT__")
    (message,) = admin.get("/messages")["messages"]
    assert "retype volume: No pool can take the volume" in message["user_message"]
    assert usage(admin) == before


def test_the_quota_of_the_new_type_is_asked(service: Service) -> None:
    admin = Client(service, **{"X-Project-Id": "p"})
    kind = make_type(admin)
    name = admin.get(f"/types/{kind}")["volume_type"]["name"]
    assert admin("PUT", "/os-quota-sets/p", {"quota_set": {f"gigabytes_{name}": 2}}).status == 200
    volume = admin.volume(size=3)["id"]
    assert admin.action(f"volumes/{volume}", "os-retype", {"new_type": kind}).status == 413
    assert admin.get(f"/volumes/{volume}")["volume"]["status"] == "available"


def test_what_cannot_be_retyped(sqlite_service: SharedService) -> None:
    admin = sqlite_service.admin()
    kind, qos = make_type(admin), make_qos(admin, consumer="front-end", iops="1")
    admin("GET", f"/qos-specs/{qos}/associate?vol_type_id={kind}")
    used = sqlite_service.volume(admin, status="in-use", attach_status="attached")
    for volume, new_type, status in (
        (sqlite_service.volume(admin), unknown_id(), 404),
        (sqlite_service.volume(admin), sqlite_service.type_id, 400),
        (sqlite_service.volume(admin, status="error"), kind, 400),
        (used, kind, 400),
        (used, make_type(admin, multiattach="<is> True"), 400),
        (sqlite_service.volume(admin, size=9), make_type(admin, **{"provisioning:max_vol_size": "5"}), 400),
    ):
        answer = admin("POST", f"/volumes/{volume}/action", {"os-retype": {"new_type": new_type}})
        assert answer.status == status, answer.body


# --- image metadata ----------------------------------------------------------------------------------------


def test_image_metadata(service: Service) -> None:
    member = Client(service, **{"X-Roles": "member,reader", "X-Project-Id": "p"})
    volume = member.volume()["id"]
    assert "volume_image_metadata" not in member.get(f"/volumes/{volume}")["volume"]
    given = {"os-set_image_metadata": {"metadata": {"image_id": "i", "long": "x" * 60_000}}}
    assert member("POST", f"/volumes/{volume}/action", given).json["metadata"]["image_id"] == "i"
    unset = {"os-unset_image_metadata": {"key": "long"}}
    assert member("POST", f"/volumes/{volume}/action", unset).status == 200
    assert member("POST", f"/volumes/{volume}/action", unset).status == 404
    shown = member("POST", f"/volumes/{volume}/action", {"os-show_image_metadata": None}).json
    assert shown == {"metadata": {"image_id": "i"}}
    copy = member.volume(source_volid=volume)
    assert copy["volume_image_metadata"] == {"image_id": "i"}
    snapshot = member.snapshot(volume)["id"]
    assert member.volume(snapshot_id=snapshot)["volume_image_metadata"] == {"image_id": "i"}
    found = member.get("/volumes/detail?glance_metadata={'image_id':'i'}")["volumes"]
    assert {one["id"] for one in found} >= {volume, copy["id"]}
    assert all(one["volume_image_metadata"] for one in found)


def test_an_administrator_s_list_holds_the_private_types_of_its_project(sqlite_service: SharedService) -> None:
    """As Ansible looks for a type that it has made; else its second run makes it again, and fails."""
    admin, other = sqlite_service.admin(), sqlite_service.admin()
    body = {"volume_type": {"name": unknown_id(), "os-volume-type-access:is_public": False}}
    private = admin("POST", "/types", body).json["volume_type"]["id"]

    def listed(client: Client, query: str = "") -> bool:
        return private in {row["id"] for row in client.get(f"/types{query}")["volume_types"]}

    assert not listed(admin)
    grant = {"project": admin.headers["X-Project-Id"]}
    assert admin("POST", f"/types/{private}/action", {"addProjectAccess": grant}).status == 202
    assert [listed(admin), listed(admin, "?is_public=true"), listed(other)] == [True, True, False]
    assert [listed(admin, "?is_public=false"), listed(other, "?is_public=none")] == [True, True]
    member = sqlite_service.member(project=grant["project"])
    assert listed(member)
    assert admin("POST", f"/types/{private}/action", {"removeProjectAccess": grant}).status == 202
    assert not listed(admin)
    assert admin("DELETE", f"/types/{private}").status == 202
