"""Attachments over HTTP: every precondition and every move of a status, who may, who is told what, and races."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from blockstore.app.service import Service
from blockstore.config import ServiceConfig
from blockstore.db.models import Attachment, Volume, new_id
from blockstore.errors import InUse, InvalidConnector, SessionAlive, Unreachable
from blockstore.operations.states import A
from tests.api.conftest import SharedService, at_once, unknown_id
from tests.api.test_preconditions import ALL, VOLUME_STATUSES
from tests.conftest import Answer, Client, make_config
from tests.scripted_target import SECRET_AS, ScriptedTarget, attaching_service, target_of

CONNECTOR = {"initiator": "iqn.2026-01.test:node1", "host": "node1", "ip": "192.0.2.1", "multipath": False}
OTHER = {**CONNECTOR, "initiator": "iqn.2026-01.test:node2", "host": "node2"}
FOLLOWS = frozenset(
    {
        "available", "reserved", "attaching", "in-use", "detaching", "error", "error_extending", "error_deleting",
        "error_restoring",
    }
)  # fmt: skip
"""Statuses of a volume that give way to what its attachments say; in the others something else goes on with it."""
WITH_ERROR = frozenset(str(status) for status in VOLUME_STATUSES if "error" in status)

Ask = Callable[[Client, str, str], Answer]
"""Asked with the volume's and an attachment's id."""


def reserve(client: Client, volume: str, **more: Any) -> Answer:
    return client("POST", "/attachments", {"attachment": {"volume_uuid": volume, **more}})


def connect(client: Client, attachment: str, connector: Any = CONNECTOR, **kw: Any) -> Answer:
    return client("PUT", f"/attachments/{attachment}", {"attachment": {"connector": connector}}, **kw)


def complete(client: Client, attachment: str, **kw: Any) -> Answer:
    return client("POST", f"/attachments/{attachment}/action", {"os-complete": {}}, **kw)


def remove(client: Client, attachment: str, **kw: Any) -> Answer:
    return client("DELETE", f"/attachments/{attachment}", **kw)


def shown(client: Client, attachment: str) -> dict[str, Any]:
    return dict(client.get(f"/attachments/{attachment}")["attachment"])


def attached(client: Client, shared_service: SharedService, **more: Any) -> tuple[str, str]:
    """Return a volume and its attachment, exported and completed as clients do it."""
    volume = shared_service.volume(client)
    made = reserve(client, volume, connector=CONNECTOR, **more)
    assert made.status == 200, made.body
    attachment = made.json["attachment"]["id"]
    assert complete(client, attachment).status == 204
    return volume, attachment


# --- which status allows what ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One call, and what the status of the volume must be for it."""

    ask: Ask
    allowed: frozenset[str]
    becomes: str
    """Where the volume goes from the statuses in ``gives_way``; from the others it does not move."""
    gives_way: frozenset[str] = ALL
    attach_status: str
    attachment: str | None
    present: str | None = None
    """Status of an attachment that is there before."""
    code: int = 400
    multiattach: bool = False
    instance: str | None = None


SERVER = "5" * 8 + "-5555-4555-8555-" + "5" * 12
STEPS: dict[str, Step] = {
    "POST": Step(
        ask=lambda client, volume, _: reserve(client, volume, instance_uuid=SERVER),
        allowed=frozenset({"available", "downloading"}),
        becomes="reserved",
        attach_status="detached",
        attachment="reserved",
    ),
    "POST with a connector": Step(
        ask=lambda client, volume, _: reserve(client, volume, connector=CONNECTOR),
        allowed=frozenset({"available", "downloading"}),
        becomes="attaching",
        attach_status="attaching",
        attachment="attaching",
    ),
    "POST, multiattach": Step(
        ask=lambda client, volume, _: reserve(client, volume, instance_uuid=SERVER),
        allowed=frozenset({"available", "downloading", "in-use"}),
        becomes="reserved",
        attach_status="detached",
        attachment="reserved",
        multiattach=True,
    ),
    "POST for the same server": Step(
        ask=lambda client, volume, _: reserve(client, volume, instance_uuid=SERVER),
        allowed=frozenset({"available", "downloading", "in-use", "reserved"}),
        becomes="reserved",
        gives_way=frozenset({"available", "downloading"}),
        attach_status="detached",
        attachment="reserved",
        present="reserved",
        instance=SERVER,
    ),
    "PUT": Step(
        ask=lambda client, _, attachment: connect(client, attachment),
        allowed=ALL - WITH_ERROR - {"deleting", "reverting", "awaiting-transfer"},
        becomes="attaching",
        gives_way=FOLLOWS,
        attach_status="attaching",
        attachment="attaching",
        present="reserved",
        code=409,
    ),
    "os-complete": Step(
        ask=lambda client, _, attachment: complete(client, attachment),
        allowed=ALL,
        becomes="in-use",
        gives_way=FOLLOWS,
        attach_status="attached",
        attachment="attached",
        present="reserved",
    ),
    "DELETE": Step(
        ask=lambda client, _, attachment: remove(client, attachment),
        allowed=ALL,
        becomes="available",
        gives_way=FOLLOWS,
        attach_status="detached",
        attachment=None,
        present="reserved",
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_statuses_of_the_volume(attach_service: SharedService, name: str) -> None:
    """What is refused names the status and changes nothing; what is allowed moves as the table says."""
    step, client = STEPS[name], attach_service.member()
    accepted = set()
    for status in map(str, VOLUME_STATUSES):
        volume = attach_service.volume(client, status=status, multiattach=step.multiattach)
        present = [step.present] if step.present else []
        attachment = (
            attach_service.attachment(client, volume, status=step.present, instance_uuid=step.instance)
            if present
            else ""
        )
        before = attach_service.facts(volume)
        answer = step.ask(client, volume, attachment)
        if answer.status in (200, 204):
            accepted.add(status)
            client.wait_idle()
            goes_to = step.becomes if status in step.gives_way else status
            kept = present if step.becomes == "reserved" else []
            made = [step.attachment] if step.attachment else []
            assert attach_service.statuses(volume) == (goes_to, step.attach_status, *kept, *made), status
            continue
        assert (answer.status, volume in answer.message, status in answer.message) == (step.code, True, True)
        assert attach_service.facts(volume) == before, status
    assert accepted == set(step.allowed)


ATTACHMENT_STEPS: dict[str, tuple[Ask, set[str], int]] = {
    "PUT": (STEPS["PUT"].ask, {"reserved", "attaching", "error_attaching"}, 409),
    "os-complete": (STEPS["os-complete"].ask, {"reserved", "attaching", "attached"}, 400),
    "DELETE": (STEPS["DELETE"].ask, {str(status) for status in A} - {"disconnecting"}, 409),
}


@pytest.mark.parametrize("name", ATTACHMENT_STEPS)
def test_statuses_of_the_attachment(attach_service: SharedService, name: str) -> None:
    ask, allowed, code = ATTACHMENT_STEPS[name]
    client = attach_service.member()
    accepted = set()
    for status in map(str, A):
        volume = attach_service.volume(client, status="reserved")
        attachment = attach_service.attachment(client, volume, status=status)
        before = attach_service.facts(volume)
        answer = ask(client, volume, attachment)
        if answer.status in (200, 204):
            accepted.add(status)
            client.wait_idle()
        else:
            assert (answer.status, attachment in answer.message) == (code, True), answer.body
            assert attach_service.facts(volume) == before
    assert accepted == allowed


def test_the_whole_way(attach_service: SharedService) -> None:
    """As Nova goes it: reserve, connect, complete, delete; with both statuses of the volume at each step."""
    client = attach_service.member()
    volume = attach_service.volume(client)
    made = reserve(client, volume, instance_uuid=SERVER).json["attachment"]
    assert made == {
        "id": made["id"],
        "status": "reserved",
        "instance": SERVER,
        "volume_id": volume,
        "attached_at": "",
        "detached_at": "",
        "attach_mode": "null",
        "connection_info": {},
    }
    assert attach_service.statuses(volume) == ("reserved", "detached", "reserved")
    put = connect(client, made["id"], {**CONNECTOR, "mountpoint": "/dev/vdb"})
    assert (put.status, put.json["attachment"]["status"]) == (200, "attaching")
    assert put.json["attachment"]["connection_info"] == {
        "driver_volume_type": "iscsi",
        "target_iqn": f"iqn.2026-01.test:{made['id']}",
        "target_lun": 1,
        "auth_username": "u",
        SECRET_AS: put.json["attachment"]["connection_info"][SECRET_AS],
        "attachment_id": made["id"],
        "volume_id": volume,
        "access_mode": "rw",
        "qos_specs": None,
        "encrypted": False,
        "cacheable": False,
        "enforce_multipath": False,
    }
    assert attach_service.statuses(volume) == ("attaching", "attaching", "attaching")
    assert client.get(f"/volumes/{volume}")["volume"]["attachments"] == []
    assert complete(client, made["id"]).body == b""
    assert attach_service.statuses(volume) == ("in-use", "attached", "attached")
    (seen,) = client.get(f"/volumes/{volume}")["volume"]["attachments"]
    assert seen == {
        "id": volume,
        "attachment_id": made["id"],
        "volume_id": volume,
        "server_id": SERVER,
        "host_name": None,
        "device": "/dev/vdb",
        "attached_at": seen["attached_at"],
    }
    when = shown(client, made["id"])["attached_at"]
    assert when
    assert seen["attached_at"] == when
    assert complete(client, made["id"]).status == 204
    assert shown(client, made["id"])["attached_at"] == when
    service = {"X-Service-Roles": "service"}
    assert remove(client, made["id"], **service).json == {"attachments": []}
    assert attach_service.statuses(volume) == ("available", "detached")
    assert client("GET", f"/attachments/{made['id']}").status == 404
    assert made["id"] not in attach_service.target.exports


# --- microversions -----------------------------------------------------------------------------------------


def test_mode_is_unknown_before_3_54(attach_service: SharedService) -> None:
    client = attach_service.member()
    volume = attach_service.volume(client)
    body = {"attachment": {"volume_uuid": volume, "mode": "ro"}}
    refused = client("POST", "/attachments", body, version="3.53")
    assert (refused.status, "mode" in refused.message) == (400, True)
    assert attach_service.statuses(volume) == ("available", "detached")
    assert client("POST", "/attachments", body, version="3.54").json["attachment"]["attach_mode"] == "ro"


def test_attachments_begin_with_3_27_and_their_completion_with_3_44(attach_service: SharedService) -> None:
    client = attach_service.member()
    volume = attach_service.volume(client)
    body = {"attachment": {"volume_uuid": volume}}
    assert client("POST", "/attachments", body, version="3.26").status == 404
    made = client("POST", "/attachments", body, version="3.27")
    assert made.status == 200
    attachment = made.json["attachment"]["id"]
    assert complete(client, attachment, version="3.43").status == 404
    assert complete(client, attachment, version="3.44").status == 204
    for method in ("GET", "DELETE"):
        assert client(method, f"/attachments/{attachment}", version="3.26").status == 404
    assert connect(client, attachment, version="3.26").status == 404
    assert client("GET", "/attachments", version="3.26").status == 404
    assert client("DELETE", f"/attachments/{attachment}", version="3.27").status == 200


# --- connectors and modes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("connector", "words"),
    [
        ({}, "0 keys; 1 to 100 are allowed"),
        (None, "connector"),
        ("iqn", "It must be an object."),
        ({"host": "node1"}, "The connector must have 'initiator'"),
        ({"initiator": ""}, "The connector must have 'initiator'"),
        ({"initiator": 7}, "The connector must have 'initiator'"),
        ({"initiator": ["iqn"]}, "The connector must have 'initiator'"),
        ({"initiator": "iqn", "mode": "wo"}, "It must be one of rw, ro."),
        ({"initiator": "x" * 4097}, "4097 characters"),
        ({"initiator": "a\0b"}, "the character NUL"),
        ({"initiator": "iqn", "wwpns": [{"a": 1}]}, "It must be a plain value or a list of plain values."),
        ({"initiator": "iqn", "a": {"b": 1}}, "It must be a plain value or a list of plain values."),
        ({**{f"k{n}": 1 for n in range(100)}, "initiator": "iqn"}, "101 keys; "),
        ({"initiator": "iqn", "attach_local": True}, "Only administrators may set attach_local"),
    ],
)
def test_a_connector_that_cannot_work_changes_nothing(
    attach_service: SharedService, connector: Any, words: str
) -> None:
    client = attach_service.member()
    volume = attach_service.volume(client, status="reserved")
    attachment = attach_service.attachment(client, volume)
    free = attach_service.volume(client)
    before = attach_service.facts(volume), attach_service.facts(free)
    answer = connect(client, attachment, connector)
    assert (answer.status, words in answer.message) == (400, True), answer.message
    if connector:  # without one, POST reserves
        answer = reserve(client, free, connector=connector)
        assert (answer.status, words in answer.message) == (400, True), answer.message
    assert (attach_service.facts(volume), attach_service.facts(free)) == before
    assert {export for _, export in attach_service.target.asked} <= {
        ""
    }  # the service itself looks at the target at times


@pytest.mark.parametrize("connector", [None, {}])
def test_without_a_connector_it_is_only_reserved(attach_service: SharedService, connector: Any) -> None:
    client = attach_service.member()
    volume = attach_service.volume(client)
    assert reserve(client, volume, connector=connector).json["attachment"]["status"] == "reserved"


def test_the_server_may_be_left_out_and_is_not_null(attach_service: SharedService) -> None:
    client = attach_service.member()
    volume = attach_service.volume(client)
    assert reserve(client, volume, instance_uuid=None).status == 400
    assert reserve(client, volume, instance_uuid="not-a-uuid").status == 400
    assert reserve(client, volume).json["attachment"]["instance"] is None


@pytest.mark.parametrize(
    ("readonly", "mode", "of_connector", "becomes"),
    [
        (None, None, None, "rw"),
        (None, None, "ro", "ro"),
        (None, "ro", None, "ro"),
        (None, "ro", "rw", "ro"),
        (None, "rw", "ro", "rw"),
        ("False", None, None, "rw"),
        ("True", None, None, "ro"),
        ("True", "ro", None, "ro"),
        ("True", None, "ro", "ro"),
        ("True", "rw", None, None),
        ("True", None, "rw", None),
    ],
)
def test_modes(
    attach_service: SharedService, readonly: str | None, mode: str | None, of_connector: str | None, becomes: str | None
) -> None:
    """None: refused, because the volume may only be read."""
    client = attach_service.member()
    volume = attach_service.volume(client, admin_metadata={"readonly": readonly} if readonly else {})
    before = attach_service.facts(volume)
    asked = {"mode": mode} if mode else {}
    connector = {**CONNECTOR, **({"mode": of_connector} if of_connector else {})}
    answer = reserve(client, volume, connector=connector, **asked)
    if becomes is None:
        assert (answer.status, "it is read-only" in answer.message) == (400, True)
        assert attach_service.facts(volume) == before
        return
    made = answer.json["attachment"]
    assert (made["attach_mode"], made["connection_info"]["access_mode"]) == (becomes, becomes)
    assert attach_service.target.exports[made["id"]].read_only == (becomes == "ro")


def test_a_volume_on_no_pool_is_not_connected(attach_service: SharedService) -> None:
    client = attach_service.member()
    volume = attach_service.volume(client, host=None)
    answer = reserve(client, volume, connector=CONNECTOR)
    assert (answer.status, "has not been placed on a pool" in answer.message) == (400, True)
    assert attach_service.statuses(volume) == ("available", "detached")


# --- several attachments -----------------------------------------------------------------------------------


def test_a_volume_that_is_connected_is_not_connected_again(attach_service: SharedService) -> None:
    client = attach_service.member()
    volume, _ = attached(client, attach_service)
    second = attach_service.attachment(client, volume)
    before = attach_service.facts(volume)
    answer = connect(client, second, OTHER)
    assert (answer.status, "is connected already. It is reserved or attached already." in answer.message) == (409, True)
    assert attach_service.facts(volume) == before


def test_two_attachments_of_a_multiattach_volume(attach_service: SharedService) -> None:
    """The volume goes by the alphabetically first of what its attachments say."""
    client = attach_service.member()
    volume = attach_service.volume(client, multiattach=True)
    first, second = (new_id() for _ in range(2))
    one = reserve(client, volume, instance_uuid=first, connector=CONNECTOR).json["attachment"]["id"]
    assert complete(client, one).status == 204
    other = reserve(client, volume, instance_uuid=second).json["attachment"]["id"]
    assert attach_service.statuses(volume) == ("reserved", "attached", "attached", "reserved")
    assert connect(client, other, OTHER).status == 200
    assert attach_service.statuses(volume) == ("in-use", "attached", "attached", "attaching")
    assert len(client.get(f"/volumes/{volume}")["volume"]["attachments"]) == 1
    assert complete(client, other).status == 204
    assert len(client.get(f"/volumes/{volume}")["volume"]["attachments"]) == 2
    admin = attach_service.admin()
    left = remove(admin, one)
    assert [item["id"] for item in left.json["attachments"]] == [other]
    assert attach_service.statuses(volume) == ("in-use", "attached", "attached")
    third = reserve(client, volume, instance_uuid=first).json["attachment"]["id"]
    assert remove(admin, other).status == 200
    assert attach_service.statuses(volume) == ("reserved", "reserved", "reserved")
    assert remove(client, third).json == {"attachments": []}
    assert attach_service.statuses(volume) == ("available", "detached")
    assert not attach_service.target.exports


def test_a_migrating_volume_does_not_become_available(attach_service: SharedService) -> None:
    client = attach_service.admin()
    for migration, after in (("migrating", "reserved"), ("starting", "reserved"), ("success", "available")):
        volume = attach_service.volume(client, status="reserved", migration_status=migration)
        attachment = attach_service.attachment(client, volume)
        assert remove(client, attachment).status == 200
        assert attach_service.statuses(volume) == (after, "detached")


def test_a_multiattach_volume_comes_from_a_multiattach_type_and_needs_the_policy(
    attach_service: SharedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blockstore.policy import rules

    name = unknown_id()
    kind = {"name": name, "extra_specs": {"multiattach": "<is> True"}}
    assert attach_service.admin()("POST", "/types", {"volume_type": kind}).status == 200
    member = attach_service.member()
    body = {"volume": {"size": 1, "volume_type": name}}
    made = member("POST", "/volumes", body)
    assert (made.status, made.json["volume"]["multiattach"]) == (202, True)
    assert member("POST", "/volumes", {"volume": {"size": 1}}).json["volume"]["multiattach"] is False
    monkeypatch.setattr(rules, "RULES", {**rules.RULES, "volume:multiattach": rules.Level.ADMIN})
    refused = member("POST", "/volumes", body)
    assert (refused.status, refused.message) == (403, "Policy doesn't allow volume:multiattach to be performed.")
    member.wait_idle()


def test_a_second_use_of_a_bootable_volume_needs_the_policy(
    attach_service: SharedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blockstore.policy import rules

    rule = "volume:multiattach_bootable_volume"
    monkeypatch.setattr(rules, "RULES", {**rules.RULES, rule: rules.Level.ADMIN})
    member = attach_service.member()
    admin = attach_service.admin(member.headers["X-Project-Id"])
    volume = attach_service.volume(member, multiattach=True, bootable=True)
    assert reserve(member, volume).status == 200
    used = attach_service.volume(member, multiattach=True, bootable=True, status="in-use", attach_status="attached")
    before = attach_service.facts(used)
    refused = reserve(member, used)
    assert (refused.status, refused.message) == (403, f"Policy doesn't allow {rule} to be performed.")
    assert attach_service.facts(used) == before
    assert reserve(admin, used).status == 200


def test_a_server_that_is_migrated_has_the_volume_twice(attach_service: SharedService) -> None:
    """The same server reserves again, connects from its other host, and gives the old attachment up."""
    client = attach_service.admin()
    volume, source = attached(client, attach_service, instance_uuid=SERVER)
    assert reserve(client, volume, instance_uuid=unknown_id()).status == 400
    assert reserve(client, volume).status == 400
    again = reserve(client, volume, instance_uuid=SERVER)
    assert again.status == 200
    destination = again.json["attachment"]["id"]
    assert attach_service.statuses(volume) == ("in-use", "attached", "attached", "reserved")
    same_host = connect(client, destination, CONNECTOR)
    assert (same_host.status, "is connected already" in same_host.message) == (409, True)
    assert connect(client, destination, OTHER).status == 200
    assert attach_service.statuses(volume) == ("in-use", "attached", "attached", "attaching")
    assert set(attach_service.target.exports) == {source, destination}
    assert complete(client, destination).status == 204
    assert remove(client, source).status == 200
    assert attach_service.statuses(volume) == ("in-use", "attached", "attached")
    assert set(attach_service.target.exports) == {destination}


# --- races -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_connector", [False, True])
@pytest.mark.parametrize("role", ["admin", "member"])
def test_of_twenty_that_want_one_volume_one_wins(
    attach_service: SharedService, role: str, with_connector: bool
) -> None:
    """To administrators it is said who holds it; to members that it is taken."""
    owner = attach_service.member()
    project = owner.headers["X-Project-Id"]
    volume = attach_service.volume(owner)
    clients = [getattr(attach_service, role)(project) for _ in range(20)]
    more = {"connector": CONNECTOR} if with_connector else {}
    servers = [new_id() for _ in clients]
    answers = at_once(20, lambda n: reserve(clients[n], volume, instance_uuid=servers[n], **more))
    won = [answer for answer in answers if answer.status == 200]
    lost = [answer for answer in answers if answer.status == 400]
    assert (len(won), len(lost)) == (1, 19), [answer.status for answer in answers]
    held = won[0].json["attachment"]
    for answer in lost:
        if role == "admin":
            assert f"It is held by attachment {held['id']} (server {held['instance']}, host " in answer.message
        else:
            assert answer.message.endswith("It is reserved or attached already.")
            assert held["id"] not in answer.message
            assert held["instance"] not in answer.message
    assert len(attach_service.statuses(volume)) == 3


def test_connecting_completing_and_deleting_at_once_is_never_a_500(attach_service: SharedService) -> None:
    """Every one of them is answered in the form of the API, and nothing is left over."""
    client = attach_service.admin()
    for _ in range(15):
        volume = attach_service.volume(client)
        attachment = reserve(client, volume).json["attachment"]["id"]
        asks: list[Callable[[], Answer]] = [
            lambda a=attachment: connect(attach_service.admin(), a),  # type: ignore[misc]
            lambda a=attachment: connect(attach_service.admin(), a, OTHER),  # type: ignore[misc]
            lambda a=attachment: complete(attach_service.admin(), a),  # type: ignore[misc]
            lambda a=attachment: remove(attach_service.admin(), a),  # type: ignore[misc]
            lambda a=attachment: remove(attach_service.admin(), a),  # type: ignore[misc]
            lambda a=attachment: attach_service.admin()("GET", f"/attachments/{a}"),  # type: ignore[misc]
            # type: ignore[misc]
            lambda a=attachment: attach_service.admin()("GET", "/attachments/detail?all_tenants=1"),
        ]
        answers = at_once(len(asks), lambda n, asks=asks: asks[n]())  # type: ignore[misc]
        assert {answer.status for answer in answers} <= {200, 204, 400, 404, 409}, [a.body for a in answers]
        client.wait_idle()
        if client("GET", f"/attachments/{attachment}").status == 200:
            assert remove(client, attachment).status == 200
        assert attach_service.statuses(volume) == ("available", "detached")
        assert attachment not in attach_service.target.exports


def test_of_many_deletes_one_wins(attach_service: SharedService) -> None:
    client = attach_service.admin()
    volume, attachment = attached(client, attach_service)
    statuses = sorted(answer.status for answer in at_once(8, lambda _: remove(attach_service.admin(), attachment)))
    assert statuses.count(200) == 1
    assert set(statuses) <= {200, 404, 409}
    assert attach_service.target.asked.count(("withdraw", attachment)) == 1
    assert attach_service.statuses(volume) == ("available", "detached")


# --- CVE-2023-2088 -----------------------------------------------------------------------------------------

HELD = ("attaching", "attached", "connecting", "error_detaching")


@pytest.mark.parametrize("status", HELD)
def test_a_member_cannot_take_a_disk_away_under_a_server(attach_service: SharedService, status: str) -> None:
    member = attach_service.member()
    volume = attach_service.volume(member, status="in-use", attach_status="attached")
    attachment = attach_service.attachment(member, volume, status=status, instance_uuid=SERVER)
    before = attach_service.facts(volume)
    for roles in ("member,reader", "member", "service,member"):  # a user who calls himself a service is none
        answer = remove(Client(attach_service.service, **{**member.headers, "X-Roles": roles}), attachment)
        assert (answer.status, SERVER in answer.message) == (409, True)
        assert "conflictingRequest" in answer.json
    for word in ("", "member", "servicex", "reader,admin"):
        assert remove(member, attachment, **{"X-Service-Roles": word}).status == 409
    assert attach_service.facts(volume) == before


@pytest.mark.parametrize("by", ["server", "service"])
@pytest.mark.parametrize("status", HELD)
def test_a_member_does_not_connect_what_a_server_is_connecting(
    attach_service: SharedService, status: str, by: str
) -> None:
    """The initiator of the server would lose its export to the member's."""
    member = attach_service.member()
    volume = attach_service.volume(member, status="attaching", attach_status="attaching")
    who = {"instance_uuid": SERVER} if by == "server" else {"by_service": True}
    attachment = attach_service.attachment(member, volume, status=status, connector=CONNECTOR, **who)
    before = attach_service.facts(volume)
    for connector in (CONNECTOR, OTHER):
        answer = connect(member, attachment, connector)
        assert (answer.status, "detach the volume through the server's own service" in answer.message) == (409, True)
        assert "conflictingRequest" in answer.json
    assert attach_service.facts(volume) == before
    assert not attach_service.target.asked


def test_a_server_s_own_service_connects_again(attach_service: SharedService) -> None:
    """And what it has connected is its own, also where it named no server; complete takes nothing away from it."""
    member = attach_service.member()
    service = {"X-Service-Roles": "service"}
    volume = attach_service.volume(member)
    attachment = reserve(member, volume).json["attachment"]["id"]
    assert connect(member, attachment).status == 200
    assert connect(member, attachment, OTHER, **service).status == 200
    assert connect(member, attachment).status == remove(member, attachment).status == 409
    assert next(iter(attach_service.target.exports.values())).connector == OTHER
    assert connect(member, attachment, CONNECTOR, **service).status == 200
    assert complete(member, attachment).status == complete(member, attachment, **service).status == 204
    assert remove(member, attachment).status == 409
    assert remove(member, attachment, **service).status == 200
    assert attach_service.statuses(volume) == ("available", "detached")


@pytest.mark.parametrize("who", ["service", "admin"])
def test_the_server_s_own_service_and_administrators_may(attach_service: SharedService, who: str) -> None:
    member = attach_service.member()
    volume, attachment = attached(member, attach_service, instance_uuid=SERVER)
    assert remove(member, attachment).status == 409
    answer = (
        remove(member, attachment, **{"X-Service-Roles": "reader,service"})
        if who == "service"
        else remove(attach_service.admin(), attachment)
    )
    assert (answer.status, answer.json) == (200, {"attachments": []})
    assert attach_service.statuses(volume) == ("available", "detached")
    assert not attach_service.target.exports


@pytest.mark.parametrize(
    ("status", "instance"),
    [("reserved", SERVER), ("error_attaching", SERVER), ("attached", None), ("attaching", None)],
)
def test_a_member_may_delete_what_no_server_uses(
    attach_service: SharedService, status: str, instance: str | None
) -> None:
    member = attach_service.member()
    volume = attach_service.volume(member, status="reserved")
    attachment = attach_service.attachment(member, volume, status=status, instance_uuid=instance)
    assert remove(member, attachment).status == 200
    assert attach_service.statuses(volume) == ("available", "detached")


# --- secrets -----------------------------------------------------------------------------------------------


def test_the_secret_is_told_to_those_who_may_connect_and_nowhere_else(
    attach_service: SharedService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    member = attach_service.member()
    project = member.headers["X-Project-Id"]
    reader, admin = attach_service.reader(project), attach_service.admin(project)
    secrets = {}
    for connector in (CONNECTOR, OTHER):
        made = reserve(member, attach_service.volume(member), connector=connector).json["attachment"]
        secrets[made["id"]] = made["connection_info"][SECRET_AS]
    first, second = secrets
    for secret in secrets.values():
        assert len(secret) == 16
        assert secret.isalnum()
    assert secrets[first] != secrets[second]
    assert attach_service.target.exports[first].secret == secrets[first]
    for client in (member, admin):
        assert shown(client, first)["connection_info"][SECRET_AS] == secrets[first]
    assert shown(reader, first)["connection_info"] == {}
    complete(member, first)
    replies = [
        *(
            client("GET", path).body
            for client in (member, reader, admin)
            for path in (
                "/attachments",
                "/attachments/detail",
                "/attachments/detail?all_tenants=1",
                "/volumes/detail",
                "/messages",
            )
        ),
        reader("GET", f"/attachments/{first}").body,
        remove(admin, second).body,
    ]
    assert all(first.encode() in reply for reply in replies[1:2])
    other = member("GET", f"/attachments/{first}").body
    attach_service.target.fail["withdraw"] = SessionAlive("The session of node1 is still there.")
    replies.append(remove(admin, first).body)
    places = {
        "replies": b"".join(replies),
        "another attachment's reply": other.replace(secrets[first].encode(), b""),
        "logs": caplog.text.encode() + "".join(str(r.__dict__) for r in caplog.records).encode(),
        "rows": repr(attach_service.contents()).encode(),
    }
    if attach_service.db.path is not None:
        for name in ("", "-wal"):
            places[f"database file{name}"] = Path(f"{attach_service.db.path}{name}").read_bytes()
    for place, content in places.items():
        assert content, place
        for secret in secrets.values():
            assert secret.encode() not in content, place


def test_a_target_without_a_secret_tells_none(attach_service: SharedService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach_service.target, "secret_as", "")
    member = attach_service.member()
    made = reserve(member, attach_service.volume(member), connector=CONNECTOR).json["attachment"]
    assert SECRET_AS not in made["connection_info"]
    assert (
        attach_service.target.exports[made["id"]].secret.encode()
        not in member("GET", f"/attachments/{made['id']}").body
    )


def test_the_host_of_a_server_is_for_administrators_and_services(attach_service: SharedService) -> None:
    member = attach_service.member()
    project = member.headers["X-Project-Id"]
    volume, _ = attached(member, attach_service, instance_uuid=SERVER)

    def host(client: Client, **headers: str) -> Any:
        (one,) = client.get(f"/volumes/{volume}", **headers)["volume"]["attachments"]
        (of_all,) = client.get("/volumes/detail", **headers)["volumes"][0]["attachments"]
        assert one == of_all
        return one["host_name"]

    assert host(member) is None
    assert host(attach_service.reader(project)) is None
    assert host(attach_service.admin(project)) == "node1"
    assert host(member, **{"X-Service-Roles": "service"}) == "node1"
    for client, path in ((member, "/attachments"), (attach_service.reader(project), "/attachments/detail")):
        assert b"node1" not in client("GET", path).body


# --- the walls between projects ----------------------------------------------------------------------------


def test_an_attachment_of_others_is_answered_as_one_that_is_not_there(attach_service: SharedService) -> None:
    owner, stranger = attach_service.member(), attach_service.member()
    volume, attachment = attached(owner, attach_service)
    hidden = attach_service.attachment(stranger, attach_service.volume(stranger), legacy=True, status="attaching")
    absent = unknown_id()
    before = attach_service.facts(volume)
    for ask in (
        lambda a: stranger("GET", f"/attachments/{a}"),
        lambda a: connect(stranger, a),
        lambda a: complete(stranger, a),
        lambda a: remove(stranger, a, **{"X-Service-Roles": "service"}),
    ):
        expected = ask(absent)
        assert expected.status == 404
        assert expected.message == f"Volume attachment could not be found with filter: attachment_id = {absent}."
        for there in (attachment, hidden):
            answer = ask(there)
            assert answer.status == 404
            assert answer.body.replace(there.encode(), absent.encode()) == expected.body
    assert attach_service.facts(volume) == before
    assert stranger("GET", "/attachments/x").status == 404


# --- targets that fail -------------------------------------------------------------------------------------


def test_an_export_that_fails_is_told_and_can_be_tried_again(attach_service: SharedService) -> None:
    member = attach_service.member()
    volume = attach_service.volume(member)
    attach_service.target.fail["export"] = Unreachable("The target's daemon does not answer.")
    answer = reserve(member, volume, instance_uuid=SERVER, connector=CONNECTOR)
    assert (answer.status, "serviceUnavailable" in answer.json) == (503, True)
    assert answer.message.endswith(f"is error_attaching: {Unreachable.public_text}")
    ((attachment,),) = [[item["id"] for item in member.get("/attachments")["attachments"]]]
    assert attach_service.statuses(volume) == ("reserved", "detached", "error_attaching")
    assert shown(member, attachment)["connection_info"] == {}
    (message,) = member.get("/messages")["messages"]
    assert message["user_message"].startswith(f"attach volume: {Unreachable.public_text} (request id req-")
    admin = attach_service.admin(member.headers["X-Project-Id"])
    (full,) = admin.get("/messages")["messages"]
    assert full["user_message"] == "attach volume: The target's daemon does not answer."
    assert (message["resource_type"], message["resource_uuid"]) == ("ATTACHMENT", attachment)
    again = connect(member, attachment)
    assert (again.status, attach_service.statuses(volume)) == (503, ("reserved", "detached", "error_attaching"))
    attach_service.target.fail.clear()
    again = connect(member, attachment)
    assert (again.status, again.json["attachment"]["status"]) == (200, "attaching")
    assert attach_service.statuses(volume) == ("attaching", "attaching", "attaching")


def test_a_withdrawal_that_fails_keeps_the_volume_in_use(attach_service: SharedService) -> None:
    """Somebody may still read and write, so nobody else may have it, until the comparison has ended the session."""
    member, admin = attach_service.member(), attach_service.admin()
    volume, attachment = attached(member, attach_service)
    attach_service.target.fail["withdraw"] = SessionAlive("The session of node1 does not end.")
    answer = remove(member, attachment)
    assert answer.status == 503
    assert answer.message.endswith(f"is error_detaching: {SessionAlive.public_text}")
    assert attach_service.statuses(volume) == ("in-use", "attached", "error_detaching")
    assert reserve(member, volume).status == 400
    assert member("DELETE", f"/volumes/{volume}").status == 400
    assert admin("DELETE", f"/volumes/{volume}?force=true").status == 400
    full = attach_service.admin(member.headers["X-Project-Id"]).get("/messages")["messages"][0]
    assert full["user_message"] == "detach volume: The session of node1 does not end."
    attach_service.service.exports.reconcile(attach_service.service.backends)
    assert attach_service.statuses(volume) == ("in-use", "attached", "error_detaching")
    attach_service.target.fail.clear()
    attach_service.service.exports.reconcile(attach_service.service.backends)
    member.wait_idle()
    assert attach_service.statuses(volume) == ("available", "detached")
    assert attachment not in attach_service.target.exports


def test_a_withdrawal_that_failed_can_be_asked_for_again(attach_service: SharedService) -> None:
    member = attach_service.member()
    volume, attachment = attached(member, attach_service)
    attach_service.target.fail["withdraw"] = SessionAlive("no")
    assert [remove(member, attachment).status for _ in range(2)] == [503, 503]
    attach_service.target.fail.clear()
    assert remove(member, attachment).status == 200
    assert attach_service.statuses(volume) == ("available", "detached")


@pytest.mark.parametrize("status", ["attaching", "attached"])
def test_what_is_held_on_this_node_stays_attached(attach_service: SharedService, status: str) -> None:
    member = attach_service.member()
    volume = attach_service.volume(member)
    attachment = reserve(member, volume, connector=CONNECTOR).json["attachment"]["id"]
    if status == "attached":
        complete(member, attachment)
    before = attach_service.statuses(volume)
    attach_service.target.fail["withdraw"] = InUse("/dev/x is still in use on this node, by qemu (7).")
    answer = remove(member, attachment)
    assert (answer.status, "conflictingRequest" in answer.json) == (409, True)
    assert answer.message.endswith(f"is {status}: {InUse.public_text}")
    full = attach_service.admin(member.headers["X-Project-Id"]).get("/messages")["messages"][0]
    assert full["user_message"].endswith("/dev/x is still in use on this node, by qemu (7).")
    assert attach_service.statuses(volume) == before
    assert attachment in attach_service.target.exports
    attach_service.target.fail.clear()
    assert remove(member, attachment).status == 200


def test_a_connector_that_the_target_refuses_late_is_told(attach_service: SharedService) -> None:
    member = attach_service.member()
    volume = attach_service.volume(member)
    attach_service.target.fail["export"] = InvalidConnector("The connector's 'initiator' is no name.")
    answer = reserve(member, volume, connector=CONNECTOR)
    assert (answer.status, str(InvalidConnector.public_text) in answer.message) in ((503, True), (400, True))
    assert attach_service.statuses(volume) == ("reserved", "detached", "error_attaching")


def test_a_bug_in_a_target_is_told_without_its_words(attach_service: SharedService) -> None:
    member = attach_service.member()
    attach_service.target.fail["export"] = RuntimeError("s3cret")
    answer = reserve(member, attach_service.volume(member), connector=CONNECTOR)
    assert (answer.status, b"s3cret" in answer.body) == (503, False)
    assert "An internal error stopped the operation. Ask your administrator." in answer.message
    full = attach_service.admin(member.headers["X-Project-Id"]).get("/messages")["messages"][0]
    assert "an internal error (RuntimeError) stopped the operation" in full["user_message"]


@pytest.fixture
def quick_to_give_up(tmp_path: Path, database_url: str) -> Iterator[Service]:
    """A service whose requests wait for a target for half a second only."""
    config = make_config(tmp_path / "state", database_url, service=ServiceConfig(attach_timeout_s=0.5))
    service = attaching_service(config, ScriptedTarget())
    service.start()
    yield service
    target_of(service).calm()
    service.stop()


def test_a_slow_target_is_waited_for_so_long_and_goes_on(quick_to_give_up: Service) -> None:
    api, target = Client(quick_to_give_up), target_of(quick_to_give_up)
    volume = api.volume()["id"]
    gate = target.gate("export")
    began = time.monotonic()
    answer = reserve(api, volume, connector=CONNECTOR)
    assert 0.4 < time.monotonic() - began < 60
    assert (
        answer.status,
        ("is still connecting, and the operation continues; check the status of the attachment") in answer.message,
    ) == (503, True)
    (row,) = api.get("/attachments")["attachments"]
    assert row["status"] == "attaching"
    assert connect(api, row["id"]).status == 409
    assert complete(api, row["id"]).status == 400
    gate.set()
    api.wait_idle()
    assert shown(api, row["id"])["connection_info"]["driver_volume_type"] == "iscsi"
    gate = target.gate("withdraw")
    answer = remove(api, row["id"])
    assert (answer.status, "is still disconnecting" in answer.message) == (503, True)
    assert shown(api, row["id"])["status"] == "detaching"
    assert remove(api, row["id"]).status == 409
    gate.set()
    api.wait_idle()
    assert api("GET", f"/attachments/{row['id']}").status == 404
    assert api.get(f"/volumes/{volume}")["volume"]["status"] == "available"


def test_what_is_deleted_while_it_is_connected_leaves_nothing(attach_service: SharedService) -> None:
    client = attach_service.admin()
    volume = attach_service.volume(client)
    gate = attach_service.target.gate("export")
    with ThreadPoolExecutor(2) as threads:
        connecting = threads.submit(reserve, attach_service.admin(), volume, connector=CONNECTOR)
        assert attach_service.target.begun["export"].wait(60)
        (row,) = client.get(f"/attachments?all_tenants=1&volume_id={volume}")["attachments"]
        deleting = threads.submit(remove, attach_service.admin(), row["id"])
        while attach_service.statuses(volume)[2:] == ("connecting",):
            time.sleep(0.01)
        gate.set()
        assert connecting.result(60).status in (200, 404, 409)
        assert deleting.result(60).status == 200
    client.wait_idle()
    assert attach_service.statuses(volume) == ("available", "detached")
    assert row["id"] not in attach_service.target.exports


# --- what an administrator does ----------------------------------------------------------------------------


def test_reset_to_detached_tears_everything_down(attach_service: SharedService) -> None:
    member, admin = attach_service.member(), attach_service.admin()
    volume = attach_service.volume(member, multiattach=True)
    for connector in (CONNECTOR, OTHER):
        made = reserve(member, volume, connector=connector, instance_uuid=new_id()).json["attachment"]
        assert complete(member, made["id"]).status == 204
    connection = admin.action(
        f"volumes/{volume}", "os-initialize_connection", {"connector": {**CONNECTOR, "initiator": "third"}}
    )
    assert connection.status == 200
    assert len(attach_service.target.exports) == 3
    body = {"status": "available", "attach_status": "detached"}
    assert admin.action(f"volumes/{volume}", "os-reset_status", body).status == 202
    assert attach_service.statuses(volume) == ("available", "detached")
    assert attach_service.facts(volume)[1] == []
    assert not attach_service.target.exports
    assert member("DELETE", f"/volumes/{volume}").status == 202


def test_reset_of_the_attach_status_alone_leaves_the_status(attach_service: SharedService) -> None:
    member, admin = attach_service.member(), attach_service.admin()
    volume, _ = attached(member, attach_service)
    assert admin.action(f"volumes/{volume}", "os-reset_status", {"attach_status": "detached"}).status == 202
    assert attach_service.statuses(volume) == ("in-use", "detached")
    assert not attach_service.target.exports


def test_reset_to_in_use_needs_attachments(attach_service: SharedService) -> None:
    member, admin = attach_service.member(), attach_service.admin()
    free = attach_service.volume(member, status="error")
    used, _ = attached(member, attach_service)
    for volume, status in ((free, 400), (used, 202)):
        assert admin.action(f"volumes/{volume}", "os-reset_status", {"status": "in-use"}).status == status


def test_no_delete_of_what_is_attached(attach_service: SharedService) -> None:
    member, admin = attach_service.member(), attach_service.admin()
    volume, attachment = attached(member, attach_service)
    before = attach_service.facts(volume)
    for answer in (
        member("DELETE", f"/volumes/{volume}"),
        member("DELETE", f"/volumes/{volume}?cascade=true"),
        admin("DELETE", f"/volumes/{volume}?force=true"),
        admin("POST", f"/volumes/{volume}/action", {"os-force_delete": {}}),
    ):
        assert (answer.status, "it is attached" in answer.message) == (400, True)
    assert attach_service.facts(volume) == before
    assert attachment in attach_service.target.exports


def test_a_forced_delete_ends_what_is_not_yet_attached(attach_service: SharedService) -> None:
    """Reserved, or exported and not completed: both go with the volume, and so does the export."""
    member, admin = attach_service.member(), attach_service.admin()
    for connector in (None, CONNECTOR):
        volume = attach_service.volume(member)
        made = reserve(member, volume, connector=connector).json["attachment"]["id"]
        assert member("DELETE", f"/volumes/{volume}").status == 400
        assert admin.action(f"volumes/{volume}", "os-force_delete").status == 202
        assert attach_service.facts(volume)[:2] == (None, [])
        assert member("GET", f"/attachments/{made}").status == 404
        assert not attach_service.target.exports


def test_a_forced_delete_whose_export_does_not_end_fails_with_the_reason(attach_service: SharedService) -> None:
    member, admin = attach_service.member(), attach_service.admin()
    volume = attach_service.volume(member)
    attachment = reserve(member, volume, connector=CONNECTOR).json["attachment"]["id"]
    attach_service.target.fail["withdraw"] = SessionAlive("The session of node1 does not end.")
    assert admin.action(f"volumes/{volume}", "os-force_delete").status == 202
    assert attach_service.statuses(volume)[0] == "error_deleting"
    full = attach_service.admin(member.headers["X-Project-Id"]).get("/messages")["messages"][0]
    assert "The session of node1 does not end." in full["user_message"]
    attach_service.target.fail.clear()
    assert admin.action(f"volumes/{volume}", "os-force_delete").status == 202
    assert attach_service.facts(volume)[:2] == (None, [])
    assert attachment not in attach_service.target.exports


# --- extending what is attached ----------------------------------------------------------------------------


def test_an_attached_volume_grows_and_is_in_use_again(attach_service: SharedService) -> None:
    member = attach_service.member()
    volume = member.volume()["id"]
    attachment = reserve(member, volume, connector=CONNECTOR).json["attachment"]["id"]
    assert complete(member, attachment).status == 204
    assert member.action(f"volumes/{volume}", "os-extend", {"new_size": 2}, version="3.41").status == 400
    assert member.action(f"volumes/{volume}", "os-extend", {"new_size": 2}, version="3.42").status == 202
    assert attach_service.statuses(volume) == ("in-use", "attached", "attached")
    assert member.get(f"/volumes/{volume}")["volume"]["size"] == 2
    assert ("resize", attachment) in attach_service.target.asked


def test_a_volume_that_loses_its_attachment_while_it_grows_is_available(attach_service: SharedService) -> None:
    client = attach_service.admin()
    volume = client.volume()["id"]
    attachment = reserve(client, volume, connector=CONNECTOR).json["attachment"]["id"]
    complete(client, attachment)
    gate = attach_service.target.gate("resize")
    assert client("POST", f"/volumes/{volume}/action", {"os-extend": {"new_size": 2}}).status == 202
    assert attach_service.target.begun["resize"].wait(60)
    with ThreadPoolExecutor(1) as threads:
        deleting = threads.submit(remove, attach_service.admin(), attachment)
        while attach_service.statuses(volume)[2:] == ("attached",):
            time.sleep(0.01)
        assert attach_service.statuses(volume) == ("extending", "attached", "disconnecting")
        gate.set()
        assert deleting.result(60).status == 200
    client.wait_idle()
    assert attach_service.statuses(volume) == ("available", "detached")
    assert client.get(f"/volumes/{volume}")["volume"]["size"] == 2


def test_a_target_that_cannot_show_a_new_size_refuses_before_anything_is_charged(
    tmp_path: Path, database_url: str
) -> None:
    target = ScriptedTarget()
    target.can = dataclasses.replace(target.can, online_extend=False)
    service = attaching_service(make_config(tmp_path / "state", database_url), target)
    service.start()
    try:
        api = Client(service)
        volume = api.volume()["id"]
        attachment = reserve(api, volume, connector=CONNECTOR).json["attachment"]["id"]
        assert complete(api, attachment).status == 204
        used = api.get("/limits")["limits"]["absolute"]["totalGigabytesUsed"]
        operations = service.bus.depth()
        answer = api("POST", f"/volumes/{volume}/action", {"os-extend": {"new_size": 2}})
        assert (answer.status, "cannot extend attached volumes; detach it first" in answer.message) == (400, True)
        assert service.bus.depth() == operations
        assert api.get(f"/volumes/{volume}")["volume"]["status"] == "in-use"
        assert api.get("/limits")["limits"]["absolute"]["totalGigabytesUsed"] == used
        assert remove(api, attachment).status == 200
        assert api.action(f"volumes/{volume}", "os-extend", {"new_size": 2}).status == 202
        assert api.get(f"/volumes/{volume}")["volume"]["size"] == 2
    finally:
        service.stop()


# --- looking -----------------------------------------------------------------------------------------------


def test_a_list_whose_volume_goes_meanwhile_is_answered(
    attach_service: SharedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows and their volumes are looked up one after the other."""
    from blockstore.api.http import listing

    client = attach_service.member()
    kept, gone = attach_service.volume(client), attach_service.volume(client)
    stays, goes = (attach_service.attachment(client, volume) for volume in (kept, gone))
    real = listing.page

    def page(*args: Any, **kw: Any) -> Any:
        found = real(*args, **kw)
        with attach_service.db.write() as session:
            session.execute(Attachment.__table__.delete().where(Attachment.id == goes))  # type: ignore[attr-defined]
            session.execute(Volume.__table__.delete().where(Volume.id == gone))  # type: ignore[attr-defined]
        return found

    monkeypatch.setattr(listing, "page", page)
    assert [item["id"] for item in client.get("/attachments/detail")["attachments"]] == [stays]


def test_a_status_of_the_service_s_own_is_shown_in_the_wire_s_words(attach_service: SharedService) -> None:
    client = attach_service.member()
    volume = attach_service.volume(client)
    for status, word in (("connecting", "attaching"), ("disconnecting", "detaching")):
        attachment = attach_service.attachment(client, volume, status=status)
        assert shown(client, attachment)["status"] == word
        with attach_service.db.write() as session:
            session.execute(update(Attachment).where(Attachment.id == attachment).values(volume_id=volume))


def test_threads_that_ask_for_many_volumes_at_once_all_get_theirs(attach_service: SharedService) -> None:
    client = attach_service.admin()
    volumes = [attach_service.volume(client) for _ in range(16)]
    answers = at_once(16, lambda n: reserve(attach_service.admin(), volumes[n], connector=CONNECTOR))
    made = [answer.json["attachment"]["id"] for answer in answers]
    assert set(made) <= set(attach_service.target.exports)
    removed = at_once(16, lambda n: remove(attach_service.admin(), made[n]))
    assert {answer.status for answer in removed} == {200}
    assert not set(made) & set(attach_service.target.exports)
    assert threading.active_count() < 200
