"""The older actions that attach and detach: which status allows which, what they leave, and races."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from blockstore.db.models import Attachment, new_id
from blockstore.errors import BackendError, InUse, SessionAlive, Unreachable
from blockstore.operations import states
from tests.api.conftest import SharedService, at_once, unknown_id
from tests.api.test_attachments import CONNECTOR, FOLLOWS, OTHER, SERVER, complete, connect, reserve
from tests.api.test_preconditions import ALL, MIGRATING, NOT_MIGRATING, VOLUME_STATUSES
from tests.conftest import Answer, Client
from tests.scripted_target import SECRET_AS

SERVICE = {"X-Service-Roles": "service"}


def ask(client: Client, volume: str, name: str, arguments: Any = None, **kw: Any) -> Answer:
    return client("POST", f"/volumes/{volume}/action", {name: {} if arguments is None else arguments}, **kw)


def initialize(client: Client, volume: str, connector: Any = CONNECTOR) -> Answer:
    return ask(client, volume, "os-initialize_connection", {"connector": connector})


def terminate(client: Client, volume: str, connector: Any = CONNECTOR, **kw: Any) -> Answer:
    return ask(client, volume, "os-terminate_connection", {"connector": connector}, **kw)


def attach(client: Client, volume: str, **more: Any) -> Answer:
    who = {} if "host_name" in more else {"instance_uuid": SERVER}
    return ask(client, volume, "os-attach", {"mountpoint": "/dev/vdb", **who, **more})


def connections(shared_service: SharedService, volume: str) -> list[str]:
    """Return the statuses of what os-initialize_connection made."""
    with shared_service.db.read() as session:
        return list(session.scalars(select(Attachment.status).where(Attachment.volume_id == volume, Attachment.legacy)))


# --- which status allows what ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One action, the statuses of the volume that allow it, and where it goes from those that give way."""

    name: str
    arguments: Any = dataclasses.field(default_factory=dict)
    allowed: frozenset[str]
    moves: Callable[[str], str] = lambda status: status
    attached: bool = False
    """Whether there is an attachment before, by no server."""
    leaves: tuple[str, ...] | None = None
    """Statuses of the attachments afterwards; None: as before."""
    multiattach: bool = False


def from_one(status: str, to: str) -> Callable[[str], str]:
    return lambda present: to if present == status else present


def from_those_that_follow(to: str) -> Callable[[str], str]:
    return lambda present: to if present in FOLLOWS else present


STEPS = {
    "os-reserve": Step(name="os-reserve", allowed=frozenset({"available"}), moves=lambda _: "attaching"),
    "os-reserve, multiattach": Step(
        name="os-reserve",
        allowed=frozenset({"available", "in-use"}),
        moves=lambda _: "attaching",
        multiattach=True,
    ),
    "os-unreserve": Step(name="os-unreserve", allowed=ALL, moves=from_one("attaching", "available")),
    "os-unreserve, attached": Step(
        name="os-unreserve", allowed=ALL, moves=from_one("attaching", "in-use"), attached=True
    ),
    "os-begin_detaching": Step(
        name="os-begin_detaching", allowed=frozenset({"in-use"}), moves=lambda _: "detaching", attached=True
    ),
    "os-begin_detaching, not attached": Step(name="os-begin_detaching", allowed=frozenset()),
    "os-roll_detaching": Step(
        name="os-roll_detaching", allowed=ALL, moves=from_one("detaching", "in-use"), attached=True
    ),
    "os-attach": Step(
        name="os-attach",
        arguments={"mountpoint": "/dev/vdb", "instance_uuid": SERVER},
        allowed=FOLLOWS - {"in-use"},
        moves=lambda _: "in-use",
        leaves=("attached",),
    ),
    "os-attach, multiattach": Step(
        name="os-attach",
        arguments={"mountpoint": "/dev/vdb", "instance_uuid": SERVER},
        allowed=FOLLOWS,
        moves=lambda _: "in-use",
        leaves=("attached",),
        multiattach=True,
    ),
    "os-detach": Step(
        name="os-detach",
        allowed=ALL - {"maintenance"},
        moves=from_those_that_follow("available"),
        attached=True,
        leaves=(),
    ),
    "os-detach, not attached": Step(
        name="os-detach", allowed=ALL - {"maintenance"}, moves=from_those_that_follow("available")
    ),
    "os-initialize_connection": Step(
        name="os-initialize_connection",
        arguments={"connector": CONNECTOR},
        allowed=ALL - states.VOLUME.failure.keys() - {"maintenance", "awaiting-transfer"},
    ),
    "os-terminate_connection": Step(
        name="os-terminate_connection",
        arguments={"connector": CONNECTOR},
        allowed=ALL,
        moves=from_one("attaching", "available"),
    ),
    "os-terminate_connection, of all": Step(
        name="os-terminate_connection",
        arguments={"connector": None},
        allowed=ALL,
        moves=from_one("attaching", "available"),
    ),
    "os-force_detach": Step(
        name="os-force_detach",
        allowed=ALL - {"maintenance"},
        moves=from_those_that_follow("available"),
        attached=True,
        leaves=(),
    ),
    "os-extend_volume_completion": Step(
        name="os-extend_volume_completion", arguments={"error": False}, allowed=frozenset()
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_statuses_of_the_volume(attach_service: SharedService, name: str) -> None:
    """What is refused names the status and changes nothing; what is allowed moves as the table says."""
    step, client = STEPS[name], attach_service.admin()
    accepted = set()
    for status in map(str, VOLUME_STATUSES):
        shown = "attached" if step.attached else "detached"
        volume = attach_service.volume(client, status=status, attach_status=shown, multiattach=step.multiattach)
        if step.attached:
            attach_service.attachment(client, volume, status="attached")
        before = attach_service.facts(volume)
        answer = ask(client, volume, step.name, step.arguments)
        if answer.status in (200, 202):
            accepted.add(status)
            client.wait_idle()
            present = ("attached",) if step.attached else ()
            left = present if step.leaves is None else step.leaves
            says = "attached" if left else "detached"
            assert attach_service.statuses(volume) == (step.moves(status), says, *left), status
            continue
        assert (answer.status, volume in answer.message, status in answer.message) == (400, True, True), answer.body
        assert attach_service.facts(volume) == before, status
    assert accepted == set(step.allowed)


@pytest.mark.parametrize("migration", [*MIGRATING, *NOT_MIGRATING])
def test_what_is_migrated_passes_silently_when_it_begins_to_detach(
    attach_service: SharedService, migration: str | None
) -> None:
    client = attach_service.admin()
    volume = attach_service.volume(client, status="in-use", attach_status="attached", migration_status=migration)
    assert ask(client, volume, "os-begin_detaching").status == 202
    assert attach_service.statuses(volume)[0] == ("in-use" if migration in MIGRATING else "detaching")


def test_no_extension_waits_to_be_completed(attach_service: SharedService) -> None:
    admin = attach_service.admin()
    for status in ("extending", "in-use"):
        for arguments in ({}, {"error": True}, {"error": False}, {"error": None}):
            volume = attach_service.volume(admin, status=status)
            answer = ask(admin, volume, "os-extend_volume_completion", arguments)
            assert (answer.status, answer.message) == (
                400,
                f"Invalid volume: volume {volume} is {status}; it has no extension to complete. This service extends"
                " volumes in use by itself.",
            )
    # Introduced as 3.71, and not gated in Cinder's code.
    assert ask(admin, volume, "os-extend_volume_completion", {}, version="3.0").status == 400
    assert ask(attach_service.member(), volume, "os-extend_volume_completion", {}).status == 403


# --- the whole way -----------------------------------------------------------------------------------------


def test_the_whole_way(attach_service: SharedService) -> None:
    """As Nova went it before there were attachments; no list shows the connection."""
    client = attach_service.member()
    volume = attach_service.volume(client)
    assert ask(client, volume, "os-reserve").status == 202
    assert attach_service.statuses(volume) == ("attaching", "detached")
    told = initialize(client, volume, {**CONNECTOR, "enforce_multipath": True})
    assert told.status == 200
    info = told.json["connection_info"]
    assert (info["driver_volume_type"], info["enforce_multipath"]) == ("iscsi", True)
    assert len(info["data"][SECRET_AS]) == 16
    assert info["data"]["access_mode"] == "rw"
    assert set(info) == {"driver_volume_type", "data", "enforce_multipath"}
    assert attach_service.statuses(volume) == ("attaching", "detached")
    assert attach(client, volume).status == 202
    assert attach_service.statuses(volume) == ("in-use", "attached", "attached")
    (one,) = client.get("/attachments/detail")["attachments"]
    assert (one["instance"], one["attach_mode"], one["connection_info"]) == (SERVER, "rw", {})
    assert client.get(f"/volumes/{volume}")["volume"]["attachments"][0]["device"] == "/dev/vdb"
    assert ask(client, volume, "os-begin_detaching").status == 202
    assert attach_service.statuses(volume) == ("detaching", "attached", "attached")
    assert terminate(client, volume).status == 409
    assert terminate(client, volume, **SERVICE).status == 202
    assert attach_service.statuses(volume) == ("detaching", "attached", "attached")
    assert not attach_service.target.exports
    assert ask(client, volume, "os-detach").status == 409
    assert ask(client, volume, "os-detach", {"attachment_id": one["id"]}, **SERVICE).status == 202
    assert attach_service.statuses(volume) == ("available", "detached")
    assert attach_service.facts(volume)[1] == []


def test_a_failed_attach_is_taken_back(attach_service: SharedService) -> None:
    client = attach_service.member()
    volume = attach_service.volume(client)
    ask(client, volume, "os-reserve")
    initialize(client, volume)
    assert terminate(client, volume).status == 202
    assert attach_service.statuses(volume) == ("available", "detached")
    assert not attach_service.target.exports


def test_a_detach_that_was_begun_is_taken_back(attach_service: SharedService) -> None:
    client = attach_service.member()
    volume = attach_service.volume(client, status="in-use", attach_status="attached")
    attach_service.attachment(client, volume, status="attached", instance_uuid=SERVER)
    for name, status in (("os-begin_detaching", "detaching"), ("os-roll_detaching", "in-use")):
        assert ask(client, volume, name).status == 202
        assert attach_service.statuses(volume) == (status, "attached", "attached")


# --- os-attach ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("readonly", "mode", "becomes"),
    [
        (None, None, "rw"),
        (None, "ro", "ro"),
        ("False", None, "rw"),
        ("True", "ro", "ro"),
        ("True", "rw", None),
        ("True", None, None),
    ],
)
def test_modes_of_os_attach(
    attach_service: SharedService, readonly: str | None, mode: str | None, becomes: str | None
) -> None:
    """A volume that may only be read needs to be attached so, in so many words."""
    client = attach_service.member()
    volume = attach_service.volume(client, admin_metadata={"readonly": readonly} if readonly else {})
    before = attach_service.facts(volume)
    answer = attach(client, volume, **({"mode": mode} if mode else {}))
    if becomes is None:
        assert (answer.status, "it is read-only" in answer.message) == (400, True)
        assert attach_service.facts(volume) == before
    else:
        assert answer.status == 202
        assert client.get("/attachments/detail")["attachments"][0]["attach_mode"] == becomes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"instance_uuid": SERVER}, "mountpoint"),
        ({"mountpoint": "/dev/vdb"}, "At least one of instance_uuid and host_name is needed."),
        ({"mountpoint": "", "instance_uuid": SERVER}, "mountpoint"),
        ({"mountpoint": "x" * 256, "instance_uuid": SERVER}, "mountpoint"),
        ({"mountpoint": "/dev/vdb", "instance_uuid": "x"}, "instance_uuid"),
        ({"mountpoint": "/dev/vdb", "instance_uuid": SERVER, "mode": "wo"}, "mode"),
        ({"mountpoint": "/dev/vdb", "instance_uuid": SERVER, "more": 1}, "more"),
        (None, "os-attach"),
    ],
)
def test_what_os_attach_must_be_told(attach_service: SharedService, arguments: Any, words: str) -> None:
    client = attach_service.member()
    volume = attach_service.volume(client)
    answer = client("POST", f"/volumes/{volume}/action", {"os-attach": arguments})
    assert (answer.status, words in answer.message) == (400, True), answer.message
    assert attach_service.statuses(volume) == ("available", "detached")


def test_told_twice_it_is_one_attachment(attach_service: SharedService) -> None:
    client = attach_service.member()
    of_server, of_host = attach_service.volume(client), attach_service.volume(client)
    for _ in range(2):
        assert attach(client, of_server).status == 202
        assert attach(client, of_host, host_name="node1").status == 202
    assert attach_service.statuses(of_server) == ("in-use", "attached", "attached")
    assert attach_service.statuses(of_host) == ("in-use", "attached", "attached")
    refused = attach(client, of_server, instance_uuid=new_id())
    assert (refused.status, "can be attached only once. It is reserved or attached already." in refused.message) == (
        400,
        True,
    )


# --- what a server's service is at work with ---------------------------------------------------------------


@pytest.mark.parametrize("status", ["connecting", "attaching", "attached", "error_detaching"])
def test_a_member_does_not_attach_what_a_server_is_connecting(attach_service: SharedService, status: str) -> None:
    member = attach_service.member()
    volume = attach_service.volume(member, status="attaching", attach_status="attaching")
    attach_service.attachment(member, volume, status=status, instance_uuid=SERVER)
    before = attach_service.facts(volume)
    for answer in (initialize(member, volume), attach(member, volume, instance_uuid=new_id())):
        assert (answer.status, SERVER in answer.message) == (409, True)
    assert attach_service.facts(volume) == before
    shared = attach_service.volume(member, status="in-use", attach_status="attached", multiattach=True)
    attach_service.attachment(member, shared, status=status, instance_uuid=SERVER)
    assert attach(member, shared, instance_uuid=new_id()).status == 202
    assert initialize(member, shared).status == 200


def test_what_a_service_connected_is_the_service_s_to_end(attach_service: SharedService) -> None:
    """Between its os-initialize_connection and its os-attach nothing names a server yet."""
    member = attach_service.member()
    volume = attach_service.volume(member)
    body = {"connector": CONNECTOR}
    assert ask(member, volume, "os-reserve").status == 202
    assert ask(member, volume, "os-initialize_connection", body, **SERVICE).status == 200
    before = attach_service.facts(volume)
    for connector in (CONNECTOR, None):
        assert terminate(member, volume, connector).status == 409
    assert initialize(member, volume).status == initialize(member, volume, OTHER).status == 409
    assert attach_service.facts(volume) == before
    assert len(attach_service.target.exports) == 1
    assert ask(member, volume, "os-initialize_connection", body, **SERVICE).status == 200
    assert terminate(member, volume, **SERVICE).status == 202
    assert not attach_service.target.exports


# --- os-detach ---------------------------------------------------------------------------------------------


def test_of_several_attachments_one_must_be_named(attach_service: SharedService) -> None:
    client = attach_service.member()
    volume = attach_service.volume(client, multiattach=True)
    for host in ("node1", "node2"):
        assert attach(client, volume, host_name=host).status == 202
    first, second = (item["id"] for item in client.get("/attachments?sort=created_at:asc")["attachments"])
    before = attach_service.facts(volume)
    for arguments in ({}, {"attachment_id": None}):
        answer = ask(client, volume, "os-detach", arguments)
        assert (answer.status, "has 2 attachments; name the attachment_id" in answer.message) == (400, True)
    elsewhere = attach_service.attachment(client, attach_service.volume(client))
    for attachment in (unknown_id(), elsewhere):
        assert ask(client, volume, "os-detach", {"attachment_id": attachment}).status == 404
    assert attach_service.facts(volume) == before
    assert ask(client, volume, "os-detach", {"attachment_id": first}).status == 202
    assert attach_service.statuses(volume) == ("in-use", "attached", "attached")
    assert ask(client, volume, "os-detach", {"attachment_id": second}).status == 202
    assert attach_service.statuses(volume) == ("available", "detached")


def test_os_detach_ends_what_the_newer_calls_made(attach_service: SharedService) -> None:
    client = attach_service.member()
    volume = attach_service.volume(client)
    attachment = reserve(client, volume, connector=CONNECTOR).json["attachment"]["id"]
    complete(client, attachment)
    assert client("POST", f"/volumes/{volume}/action", {"os-detach": None}).status == 202
    assert attach_service.statuses(volume) == ("available", "detached")
    assert not attach_service.target.exports


def test_the_last_detach_ends_what_os_initialize_connection_left(attach_service: SharedService) -> None:
    """A client that forgets to terminate leaves no way to the volume."""
    client = attach_service.member()
    volume = attach_service.volume(client, multiattach=True)
    for number, connector in enumerate((CONNECTOR, OTHER)):
        assert initialize(client, volume, connector).status == 200
        assert attach(client, volume, host_name=f"node{number + 1}").status == 202
    first, second = (item["id"] for item in client.get("/attachments?sort=created_at:asc")["attachments"])
    assert ask(client, volume, "os-detach", {"attachment_id": first}).status == 202
    assert connections(attach_service, volume) == ["attaching", "attaching"]
    assert ask(client, volume, "os-detach", {"attachment_id": second}).status == 202
    assert attach_service.facts(volume)[1] == []
    assert not attach_service.target.exports
    assert attach_service.statuses(volume) == ("available", "detached")


# --- connections -------------------------------------------------------------------------------------------


def test_a_connection_asked_for_twice_is_one(attach_service: SharedService) -> None:
    client = attach_service.member()
    volume = attach_service.volume(client)
    first, again, other = (initialize(client, volume, connector) for connector in (CONNECTOR, CONNECTOR, OTHER))
    assert first.json == again.json != other.json
    assert connections(attach_service, volume) == ["attaching", "attaching"]
    assert client.get("/attachments") == {"attachments": []}
    assert terminate(client, volume, OTHER).status == 202
    assert len(attach_service.target.exports) == 1
    assert terminate(client, volume, None).status == 202
    assert connections(attach_service, volume) == []
    assert not attach_service.target.exports
    assert terminate(client, volume).status == 202


@pytest.mark.parametrize(
    "connector", [{}, {"host": "x"}, "text", None, {"initiator": {"a": 1}}, {"attach_local": True}]
)
def test_a_connector_that_cannot_work_makes_no_connection(attach_service: SharedService, connector: Any) -> None:
    client = attach_service.member()
    volume = attach_service.volume(client)
    before = attach_service.facts(volume)
    assert initialize(client, volume, connector).status == 400
    assert attach_service.facts(volume) == before
    assert {export for _, export in attach_service.target.asked} <= {
        ""
    }  # the service itself looks at the target at times


def test_a_connection_that_fails_leaves_nothing(attach_service: SharedService) -> None:
    client = attach_service.member()
    volume = attach_service.volume(client)
    ask(client, volume, "os-reserve")
    attach_service.target.fail["export"] = Unreachable("The target's daemon does not answer.")
    answer = initialize(client, volume)
    assert (answer.status, str(Unreachable.public_text) in answer.message) == (503, True)
    assert attach_service.statuses(volume) == ("attaching", "detached")
    assert connections(attach_service, volume) == []
    assert str(Unreachable.public_text) in client.get("/messages")["messages"][0]["user_message"]
    full = attach_service.admin(client.headers["X-Project-Id"]).get("/messages")["messages"][0]
    assert "The target's daemon" in full["user_message"]
    attach_service.target.fail.clear()
    assert initialize(client, volume).status == 200


@pytest.mark.parametrize(
    ("failure", "status", "left"),
    [(InUse("qemu (7) holds it."), 409, "attaching"), (SessionAlive("It does not end."), 503, "error_detaching")],
)
@pytest.mark.parametrize("by", ["member", "admin"])
def test_a_connection_that_does_not_end_is_told_and_ended_later(
    attach_service: SharedService, by: str, failure: BackendError, status: int, left: str
) -> None:
    client = getattr(attach_service, by)()
    volume = attach_service.volume(client, status="in-use", attach_status="attached")
    attach_service.attachment(client, volume, status="attached")
    assert initialize(client, volume).status == 200
    attach_service.target.fail["withdraw"] = failure
    answer = terminate(client, volume)
    told = {text for text in failure.reason if text in answer.message}
    assert (answer.status, told) == (status, {failure.message if by == "admin" else failure.public})
    assert connections(attach_service, volume) == [left]
    assert attach_service.statuses(volume) == ("in-use", "attached", "attached")
    attach_service.target.fail.clear()
    if left == "error_detaching":
        attach_service.service.exports.reconcile(attach_service.service.backends)
        client.wait_idle()
    else:
        assert terminate(client, volume).status == 202
    assert connections(attach_service, volume) == []
    assert not [export for export in attach_service.target.exports.values() if export.volume == f"volume-{volume}"]
    assert attach_service.statuses(volume) == ("in-use", "attached", "attached")


def test_a_connection_has_a_secret_of_its_own_that_nothing_else_tells(
    attach_service: SharedService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = attach_service.member()
    volume = attach_service.volume(client)
    secret = initialize(client, volume).json["connection_info"]["data"][SECRET_AS]
    other = initialize(client, volume, OTHER).json["connection_info"]["data"][SECRET_AS]
    assert secret != other
    for path in ("/attachments/detail", "/volumes/detail", f"/volumes/{volume}", "/messages"):
        assert secret.encode() not in client("GET", path).body
    assert secret not in repr(attach_service.contents())
    assert secret not in caplog.text


# --- os-force_detach ---------------------------------------------------------------------------------------


def test_force_detach_tears_down_attachment_and_connections(attach_service: SharedService) -> None:
    member, admin = attach_service.member(), attach_service.admin()
    volume = attach_service.volume(member)
    assert initialize(member, volume).status == 200
    attachment = reserve(member, volume, instance_uuid=SERVER).json["attachment"]["id"]
    assert connect(member, attachment).status == 200
    complete(member, attachment)
    assert len(attach_service.target.exports) == 2
    assert ask(member, volume, "os-force_detach", {"attachment_id": attachment}).status == 403
    body = {"attachment_id": attachment, "connector": CONNECTOR}
    assert ask(admin, volume, "os-force_detach", body).status == 202
    assert attach_service.statuses(volume) == ("available", "detached")
    assert attach_service.facts(volume)[1] == []
    assert not attach_service.target.exports


@pytest.mark.parametrize("status", ["attaching", "detaching", "reserved", "in-use", "error"])
def test_force_detach_of_what_has_connections_only_frees_the_volume(attach_service: SharedService, status: str) -> None:
    admin = attach_service.admin()
    volume = attach_service.volume(admin, status=status, attach_status="attached")
    assert initialize(admin, volume).status == 200
    assert ask(admin, volume, "os-force_detach").status == 202
    assert attach_service.statuses(volume) == ("available", "detached")
    assert not attach_service.target.exports


def test_force_detach_of_one_of_two(attach_service: SharedService) -> None:
    admin = attach_service.admin()
    volume = attach_service.volume(admin, multiattach=True)
    for host in ("node1", "node2"):
        attach(admin, volume, host_name=host)
    first, second = (item["id"] for item in admin.get("/attachments?sort=created_at:asc")["attachments"])
    assert ask(admin, volume, "os-force_detach").status == 400
    assert ask(admin, volume, "os-force_detach", {"attachment_id": unknown_id()}).status == 404
    assert ask(admin, volume, "os-force_detach", {"attachment_id": first}).status == 202
    assert [item["id"] for item in admin.get("/attachments")["attachments"]] == [second]
    assert attach_service.statuses(volume) == ("in-use", "attached", "attached")


# --- CVE-2023-2088 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("os-detach", {}),
        ("os-detach", {"attachment_id": ...}),
        ("os-terminate_connection", {"connector": CONNECTOR}),
        ("os-terminate_connection", {"connector": None}),
    ],
)
def test_a_member_cannot_take_a_disk_away_under_a_server(
    attach_service: SharedService, name: str, arguments: Any
) -> None:
    member = attach_service.member()
    for headers, done in (({}, False), (SERVICE, True), ({"X-Roles": "admin"}, True)):
        volume = attach_service.volume(member)
        initialize(member, volume)
        attach(member, volume)
        (attachment,) = (a["id"] for a in member.get(f"/attachments?volume_id={volume}")["attachments"])
        given = {key: attachment if value is ... else value for key, value in arguments.items()}
        before = attach_service.facts(volume)
        exports = len(attach_service.target.exports)
        answer = Client(attach_service.service, **{**member.headers, **headers})(
            "POST", f"/volumes/{volume}/action", {name: given}
        )
        if done:
            assert answer.status == 202
            assert len(attach_service.target.exports) == exports - 1
        else:
            assert (answer.status, SERVER in answer.message) == (409, True)
            assert "conflictingRequest" in answer.json
            assert attach_service.facts(volume) == before
            assert len(attach_service.target.exports) == exports


# --- races -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["admin", "member"])
def test_of_twenty_that_reserve_one_volume_one_wins(attach_service: SharedService, role: str) -> None:
    project = attach_service.member().headers["X-Project-Id"]
    volume = attach_service.volume(attach_service.member(project))
    clients = [getattr(attach_service, role)(project) for _ in range(20)]
    answers = at_once(20, lambda n: ask(clients[n], volume, "os-reserve"))
    assert sorted(answer.status for answer in answers) == [202, *[400] * 19]
    for answer in answers:
        if answer.status == 400:
            # What holds it is no attachment yet, so that there is nobody to name.
            assert (
                f"volume {volume} is attaching; to be reserved it must be available. It is reserved or attached"
                " already." in answer.message
            )
    assert attach_service.statuses(volume) == ("attaching", "detached")


@pytest.mark.parametrize("role", ["admin", "member"])
def test_who_reserves_what_an_attachment_holds_is_told_so(attach_service: SharedService, role: str) -> None:
    member = attach_service.member()
    volume = attach_service.volume(member)
    attachment = reserve(member, volume, instance_uuid=SERVER, connector=CONNECTOR).json["attachment"]["id"]
    answer = ask(getattr(attach_service, role)(member.headers["X-Project-Id"]), volume, "os-reserve")
    assert answer.status == 400
    if role == "admin":
        assert answer.message.endswith(f"It is held by attachment {attachment} (server {SERVER}, host node1).")
    else:
        assert answer.message.endswith("It is reserved or attached already.")
        assert attachment not in answer.message
        assert "node1" not in answer.message


def test_of_os_reserve_and_a_new_attachment_one_wins(attach_service: SharedService) -> None:
    client = attach_service.member()
    project = client.headers["X-Project-Id"]
    for _ in range(10):
        volume = attach_service.volume(client)
        both: list[Callable[[], Answer]] = [
            lambda v=volume: ask(attach_service.member(project), v, "os-reserve"),  # type: ignore[misc]
            lambda v=volume: reserve(attach_service.member(project), v),  # type: ignore[misc]
        ]
        statuses = [answer.status for answer in at_once(2, lambda n, both=both: both[n]())]  # type: ignore[misc]
        assert sorted(statuses) in ([200, 400], [202, 400])


def test_of_twenty_that_attach_one_volume_one_wins(attach_service: SharedService) -> None:
    client = attach_service.member()
    volume = attach_service.volume(client)
    project = client.headers["X-Project-Id"]
    answers = at_once(20, lambda _: attach(attach_service.member(project), volume, instance_uuid=new_id()))
    assert sorted(answer.status for answer in answers) == [202, *[400] * 19]
    assert attach_service.statuses(volume) == ("in-use", "attached", "attached")


def test_ending_connection_and_attachment_at_once_is_never_a_500(attach_service: SharedService) -> None:
    """The last detach ends the connection too; whose operation comes second finds nothing to do,
    and says so or nothing.
    """
    admin = attach_service.admin()
    for _ in range(15):
        volume = attach_service.volume(admin)
        initialize(admin, volume)
        attach(admin, volume)
        asks: list[Callable[[], Answer]] = [
            lambda v=volume: ask(attach_service.admin(), v, "os-detach"),  # type: ignore[misc]
            lambda v=volume: terminate(attach_service.admin(), v),  # type: ignore[misc]
            lambda v=volume: ask(attach_service.admin(), v, "os-force_detach"),  # type: ignore[misc]
            # type: ignore[misc]
            lambda v=volume: ask(attach_service.admin(), v, "os-reset_status", {"attach_status": "detached"}),
            lambda v=volume: ask(attach_service.admin(), v, "os-roll_detaching"),  # type: ignore[misc]
        ]
        answers = at_once(len(asks), lambda n, asks=asks: asks[n]())  # type: ignore[misc]
        assert {answer.status for answer in answers} <= {202, 409}, [answer.body for answer in answers]
        admin.wait_idle()
        assert attach_service.facts(volume)[1] == []
        assert not attach_service.target.exports


# --- walls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({step.name for step in STEPS.values()} - {"os-extend_volume_completion"}))
def test_a_volume_of_others_is_answered_as_one_that_is_not_there(attach_service: SharedService, name: str) -> None:
    owner, stranger = attach_service.member(), attach_service.member()
    volume, absent = attach_service.volume(owner), unknown_id()
    arguments = next(step.arguments for step in STEPS.values() if step.name == name)
    before = attach_service.facts(volume)
    seen, unseen = (ask(stranger, v, name, arguments, **SERVICE) for v in (volume, absent))
    assert seen.status == unseen.status == (403 if name == "os-force_detach" else 404)
    assert seen.body.replace(volume.encode(), absent.encode()) == unseen.body
    assert attach_service.facts(volume) == before
