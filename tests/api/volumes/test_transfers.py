"""Volume transfers: offered, taken by whoever has the key, once. A25 of the attacks."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select

from blockstore.app.service import Service
from blockstore.db.models import Transfer
from blockstore.identity import throttle
from tests.api.conftest import at_once, unknown_id
from tests.conftest import Client

NEW, OLD = "/volume-transfers", "/os-volume-transfer"


@pytest.fixture
def donor(service: Service) -> Client:
    return Client(service, **{"X-Roles": "member,reader", "X-Project-Id": "donor", "X-User-Id": "d"})


@pytest.fixture
def receiver(service: Service) -> Client:
    return Client(service, **{"X-Roles": "member,reader", "X-Project-Id": "receiver", "X-User-Id": "r"})


@pytest.fixture
def standing_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has to wait waits for ever, however slow the machine is."""
    now = time.monotonic()
    monkeypatch.setattr(throttle, "time", SimpleNamespace(monotonic=lambda: now))


def offer(client: Client, volume: str, where: str = NEW, **more: Any) -> dict[str, Any]:
    answer = client("POST", where, {"transfer": {"volume_id": volume, "name": "gift", **more}})
    assert answer.status == 202, answer.body
    return dict(answer.json["transfer"])


def accept(client: Client, transfer: str, key: str, where: str = NEW) -> Any:
    return client("POST", f"{where}/{transfer}/accept", {"accept": {"auth_key": key}})


def usage(client: Client) -> dict[str, int]:
    entries = client.get(f"/os-quota-sets/{client.headers['X-Project-Id']}?usage=true")["quota_set"]
    return {name: entry["in_use"] for name, entry in entries.items() if isinstance(entry, dict) and entry["in_use"]}


@pytest.mark.parametrize("where", [NEW, OLD])
def test_a_volume_goes_to_another_project(donor: Client, receiver: Client, where: str) -> None:
    volume = donor.volume(size=2)["id"]
    snapshot = donor.snapshot(volume)["id"]
    before = usage(donor)
    transfer = offer(donor, volume, where)
    assert donor.get(f"/volumes/{volume}")["volume"]["status"] == "awaiting-transfer"
    assert donor.get(f"{where}/{transfer['id']}")["transfer"].get("auth_key") is None
    assert receiver("GET", f"{where}/{transfer['id']}").status == 404
    taken = accept(receiver, transfer["id"], transfer["auth_key"], where)
    assert taken.status == 202
    assert set(taken.json["transfer"]) == {"id", "name", "volume_id", "links"}
    assert donor("GET", f"/volumes/{volume}").status == donor("GET", f"/snapshots/{snapshot}").status == 404
    shown = receiver.get(f"/volumes/{volume}")["volume"]
    assert (shown["status"], shown["user_id"]) == ("available", "r")
    assert receiver.get(f"/snapshots/{snapshot}")["snapshot"]["status"] == "available"
    assert (usage(donor), usage(receiver)) == ({}, before)
    assert accept(receiver, transfer["id"], transfer["auth_key"], where).status == 404
    assert donor("GET", f"{where}/{transfer['id']}").status == 404


def test_a_snapshot_that_stays_behind_keeps_what_its_volume_was(donor: Client, receiver: Client) -> None:
    """What the new project writes into its volume is never told to the former one."""
    admin = Client(donor.service, **{"X-Project-Id": "admin"})
    first = admin("POST", "/types", {"volume_type": {"name": "first"}}).json["volume_type"]["id"]
    volume = donor.volume(size=1, volume_type="first")["id"]
    action = f"/volumes/{volume}/action"
    donor("POST", action, {"os-set_image_metadata": {"metadata": {"os_distro": "debian"}}})
    donor("POST", action, {"os-set_bootable": {"bootable": True}})
    snapshot = donor.snapshot(volume)["id"]
    transfer = offer(donor, volume, no_snapshots=True)
    assert accept(receiver, transfer["id"], transfer["auth_key"]).status == 202
    private = {"name": "theirs", "os-volume-type-access:is_public": False}
    theirs = admin("POST", "/types", {"volume_type": private}).json["volume_type"]["id"]
    admin("POST", f"/types/{theirs}/action", {"addProjectAccess": {"project": "receiver"}})
    receiver("POST", action, {"os-set_image_metadata": {"metadata": {"os_admin_password": "canary"}}})
    receiver("POST", action, {"os-set_bootable": {"bootable": False}})
    assert receiver("POST", action, {"os-retype": {"new_type": "theirs", "migration_policy": "never"}}).status == 202
    receiver.wait_idle()
    made = donor.volume(snapshot_id=snapshot)
    shown = donor.get(f"/volumes/{made['id']}")["volume"]
    assert (shown["volume_type"], shown["bootable"]) == ("first", "true")
    assert shown["volume_image_metadata"] == {"os_distro": "debian"}
    assert admin("DELETE", f"/volumes/{made['id']}").status == 202
    admin.wait_idle()
    assert admin("DELETE", f"/types/{first}").status == 202
    made = donor.volume(snapshot_id=snapshot)
    assert donor.get(f"/volumes/{made['id']}")["volume"]["volume_type"] == "__DEFAULT__"


def test_snapshots_can_stay_behind(donor: Client, receiver: Client) -> None:
    volume = donor.volume(size=2)["id"]
    snapshot = donor.snapshot(volume)["id"]
    transfer = offer(donor, volume, no_snapshots=True)
    assert transfer["no_snapshots"] is True
    assert accept(receiver, transfer["id"], transfer["auth_key"]).status == 202
    assert donor.get(f"/snapshots/{snapshot}")["snapshot"]["id"] == snapshot
    assert usage(donor)["snapshots"] == 1
    assert usage(receiver)["gigabytes"] == 2


def test_fields_by_version(donor: Client) -> None:
    transfer = offer(donor, donor.volume()["id"])["id"]

    def fields(version: str, where: str = NEW) -> set[str]:
        return set(donor("GET", f"{where}/{transfer}", version=version).json["transfer"])

    for where in (NEW, OLD):
        assert fields("3.0", where) == fields("3.54", where) == {"id", "created_at", "name", "volume_id", "links"}
        assert fields("3.55", where) - fields("3.54", where) == {"no_snapshots"}
        history = {"source_project_id", "destination_project_id", "accepted"}
        assert fields("3.57", where) - fields("3.56", where) == history
    listed = donor.get(f"{NEW}?limit=1")
    assert [one["id"] for one in listed["transfers"]] == [transfer]
    assert "/os-volume-transfer?" in listed["transfers_links"][0]["href"]
    assert [one["id"] for one in donor("GET", f"{OLD}/detail").json["transfers"]] == [transfer]


def test_an_offer_is_taken_back(donor: Client) -> None:
    volume = donor.volume()["id"]
    transfer = offer(donor, volume)["id"]
    assert donor("DELETE", f"/volumes/{volume}").status == 400
    assert donor("DELETE", f"{NEW}/{transfer}").status == 202
    assert donor.get(f"/volumes/{volume}")["volume"]["status"] == "available"
    assert donor("DELETE", f"{NEW}/{transfer}").status == 404


def test_only_what_is_available_is_offered(donor: Client, receiver: Client) -> None:
    volume = donor.volume()["id"]
    offer(donor, volume)
    assert donor("POST", NEW, {"transfer": {"volume_id": volume}}).status == 400
    assert donor("POST", NEW, {"transfer": {"volume_id": unknown_id()}}).status == 404
    assert receiver("POST", NEW, {"transfer": {"volume_id": volume}}).status == 404


@pytest.mark.usefixtures("standing_clock")
def test_a_wrong_key_changes_nothing_and_guessing_ends(service: Service, donor: Client, receiver: Client) -> None:
    volume = donor.volume()["id"]
    transfer = offer(donor, volume)
    with service.db.read() as session:
        row = session.scalars(select(Transfer)).one()
    assert transfer["auth_key"] not in (row.salt, row.key_hash)
    limit = service.config.identity.login_failures
    assert [accept(receiver, transfer["id"], f"guess {n}").status for n in range(limit)] == [400] * limit
    assert accept(receiver, transfer["id"], transfer["auth_key"]).status == 429
    assert donor.get(f"/volumes/{volume}")["volume"]["status"] == "awaiting-transfer"
    assert usage(receiver) == {}


@pytest.mark.usefixtures("standing_clock")
@pytest.mark.parametrize("where", [NEW, OLD])
def test_a_stranger_s_guesses_slow_down_the_stranger_only(
    service: Service, donor: Client, receiver: Client, where: str
) -> None:
    volume, other = donor.volume()["id"], donor.volume()["id"]
    transfer, another = offer(donor, volume, where), offer(donor, other, where)
    stranger = donor.as_("stranger", user="s")
    limit = service.config.identity.login_failures
    guesses = [accept(stranger, transfer["id"], f"guess {n}", where).status for n in range(limit + 3)]
    assert guesses == [400] * limit + [429] * 3
    colleague = donor.as_("stranger", user="another")
    refused = accept(colleague, transfer["id"], transfer["auth_key"], where)
    assert (refused.status, "Try again in" in refused.message) == (429, True)
    assert accept(stranger, another["id"], another["auth_key"], where).status == 202
    assert accept(receiver, transfer["id"], transfer["auth_key"], where).status == 202


def test_of_two_who_accept_one_gets_it(service: Service, donor: Client) -> None:
    for _ in range(20):
        volume = donor.volume()["id"]
        transfer = offer(donor, volume)
        takers = [
            Client(service, **{"X-Roles": "member,reader", "X-Project-Id": f"taker{n}", "X-User-Id": "t"})
            for n in range(4)
        ]
        answers = at_once(4, lambda n: accept(takers[n], transfer["id"], transfer["auth_key"]))  # noqa: B023
        assert sorted(answer.status for answer in answers) == [202, 404, 404, 404]
        winner = takers[next(n for n, answer in enumerate(answers) if answer.status == 202)]
        assert winner.get(f"/volumes/{volume}")["volume"]["status"] == "available"
        winner("DELETE", f"/volumes/{volume}")
        winner.wait_idle()
    assert usage(donor) == {}


def test_of_taking_back_and_accepting_one_happens(donor: Client, receiver: Client) -> None:
    """Neither waits for the other for ever, and the loser is told that there is no such offer."""
    for _ in range(20):
        volume = donor.volume()["id"]
        transfer = offer(donor, volume)
        taken_back, accepted = at_once(
            2,
            lambda n: (
                accept(receiver, transfer["id"], transfer["auth_key"])  # noqa: B023
                if n
                else donor("DELETE", f"{NEW}/{transfer['id']}")  # noqa: B023
            ),
        )
        assert sorted([taken_back.status, accepted.status]) == [202, 404]
        owner = receiver if accepted.status == 202 else donor
        assert owner.get(f"/volumes/{volume}")["volume"]["status"] == "available"
        owner("DELETE", f"/volumes/{volume}")
        owner.wait_idle()
    assert usage(donor) == usage(receiver) == {}


def test_volumes_that_go_opposite_ways_do_not_wait_for_each_other(donor: Client, receiver: Client) -> None:
    sides = (donor, receiver)
    volumes = [client.volume()["id"] for client in sides]
    before = usage(donor)
    for _ in range(10):
        transfers = [offer(client, volume) for client, volume in zip(sides, volumes, strict=True)]
        answers = at_once(
            2,
            lambda n: accept(sides[1 - n], transfers[n]["id"], transfers[n]["auth_key"]),  # noqa: B023
        )
        assert [answer.status for answer in answers] == [202, 202]
        volumes.reverse()
        assert usage(donor) == usage(receiver) == before


def test_a_volume_that_is_gone_takes_its_offer_along(service: Service, donor: Client, receiver: Client) -> None:
    transfer = offer(donor, donor.volume()["id"])
    assert Client(service).action(f"volumes/{transfer['volume_id']}", "os-force_delete", {}).status == 202
    assert accept(receiver, transfer["id"], transfer["auth_key"]).status == 404


def test_the_receiver_s_quota_is_asked(service: Service, donor: Client, receiver: Client) -> None:
    admin = Client(service)
    volume = donor.volume(size=5)["id"]
    for limits in ({"volumes": 0}, {"gigabytes": 4}, {"per_volume_gigabytes": 4}):
        admin("PUT", "/os-quota-sets/receiver", {"quota_set": limits})
        transfer = offer(donor, volume)
        before = usage(donor)
        assert accept(receiver, transfer["id"], transfer["auth_key"]).status == 413
        assert donor.get(f"/volumes/{volume}")["volume"]["status"] == "awaiting-transfer"
        assert (usage(donor), usage(receiver)) == (before, {})
        admin("DELETE", "/os-quota-sets/receiver")
        donor("DELETE", f"{NEW}/{transfer['id']}")


def test_a_private_type_does_not_come_along(service: Service, donor: Client, receiver: Client) -> None:
    admin = Client(service)
    kind = admin("POST", "/types", {"volume_type": {"name": "own", "os-volume-type-access:is_public": False}})
    place = f"/types/{kind.json['volume_type']['id']}/action"
    admin("POST", place, {"addProjectAccess": {"project": "donor"}})
    transfer = offer(donor, donor.volume(volume_type="own")["id"])
    assert accept(receiver, transfer["id"], transfer["auth_key"]).status == 400
    admin("POST", place, {"addProjectAccess": {"project": "receiver"}})
    assert accept(receiver, transfer["id"], transfer["auth_key"]).status == 202


def test_a_private_type_does_not_come_along_with_a_snapshot(service: Service, donor: Client, receiver: Client) -> None:
    """A snapshot keeps the type that its volume had, and volumes are made of it."""
    admin = Client(service)
    kind = admin("POST", "/types", {"volume_type": {"name": "own", "os-volume-type-access:is_public": False}})
    place = f"/types/{kind.json['volume_type']['id']}/action"
    admin("POST", place, {"addProjectAccess": {"project": "donor"}})
    volume = donor.volume(volume_type="own")["id"]
    snapshot = donor.snapshot(volume)["id"]
    retyped = donor.action(f"volumes/{volume}", "os-retype", {"new_type": "__DEFAULT__", "migration_policy": "never"})
    assert retyped.status == 202
    donor.wait_idle()
    transfer = offer(donor, volume)
    refused = accept(receiver, transfer["id"], transfer["auth_key"])
    assert refused.status == 400
    assert snapshot in refused.body.decode()
    assert "own " not in refused.body.decode()
    donor("DELETE", f"{NEW}/{transfer['id']}")
    alone = offer(donor, volume, no_snapshots=True)
    assert accept(receiver, alone["id"], alone["auth_key"]).status == 202
