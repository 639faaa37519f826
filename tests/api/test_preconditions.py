"""Which status allows which operation: every status of every operation, with rows put there directly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from blockstore.db.models import OperationRow, Snapshot, Volume
from blockstore.operations.states import S, V
from tests.api.conftest import SharedService, unknown_id
from tests.conftest import Answer, Client

OTHERS = ("error_managing_deleting", "error_unmanaging")
"""Statuses of later parts of the API, which rows may hold."""
VOLUME_STATUSES = (*V, *OTHERS)
MIGRATING = ("starting", "migrating", "completing", f"target:{unknown_id()}")
NOT_MIGRATING = (None, "deleting", "error", "success")

Ask = Callable[[Client, SharedService, str], Answer]


def action(name: str, arguments: Any, version: str = "3.71") -> Ask:
    return lambda client, _shared_service, volume: client(
        "POST", f"/volumes/{volume}/action", {name: arguments}, version=version
    )


def take_snapshot(version: str, **more: Any) -> Ask:
    return lambda client, _shared_service, volume: client(
        "POST", "/snapshots", {"snapshot": {"volume_id": volume, **more}}, version=version
    )


def revert(client: Client, shared_service: SharedService, volume: str) -> Answer:
    snapshot = shared_service.snapshot(client, volume)
    return client("POST", f"/volumes/{volume}/action", {"revert": {"snapshot_id": snapshot}})


def change(method: str, path: str, body: Any = None) -> Ask:
    return lambda client, _shared_service, volume: client(method, f"/volumes/{volume}{path}", body)


def with_pair(ask: Ask) -> Ask:
    def asked(client: Client, shared_service: SharedService, volume: str) -> Answer:
        from blockstore.db.models import VolumeMetadata

        with shared_service.db.write() as session:
            session.add(VolumeMetadata(volume_id=volume, key="k", value="v"))
        return ask(client, shared_service, volume)

    return asked


ALL = frozenset(VOLUME_STATUSES)
DELETABLE = frozenset({"available", "error", "error_restoring", "error_extending", "error_managing"})
RESETTABLE = ALL - {"deleting", "reverting", "unmanaging", "error_unmanaging", "error_managing_deleting"}

OPERATIONS: dict[str, tuple[Ask, frozenset[str], int]] = {
    # how to ask, statuses that allow it, the code of the refusal
    "clone": (
        lambda client, _shared_service, volume: client("POST", "/volumes", {"volume": {"source_volid": volume}}),
        frozenset({"available", "in-use"}),
        400,
    ),
    "update": (change("PUT", "", {"volume": {"name": "n"}}), ALL - {"maintenance"}, 400),
    "set metadata": (change("PUT", "/metadata", {"metadata": {}}), ALL - {"maintenance", "uploading"}, 400),
    "add metadata": (change("POST", "/metadata", {"metadata": {}}), ALL - {"maintenance", "uploading"}, 400),
    "set a pair": (change("PUT", "/metadata/k", {"meta": {"k": "w"}}), ALL - {"maintenance", "uploading"}, 400),
    "delete a pair": (with_pair(change("DELETE", "/metadata/k")), ALL - {"maintenance", "uploading"}, 400),
    "delete": (change("DELETE", ""), DELETABLE, 400),
    "delete cascade": (change("DELETE", "?cascade=true"), DELETABLE, 400),
    "delete force": (change("DELETE", "?force=true"), ALL, 400),
    "os-force_delete": (action("os-force_delete", {}), ALL, 400),
    "os-extend before 3.42": (action("os-extend", {"new_size": 2}, "3.41"), frozenset({"available"}), 400),
    "os-extend": (action("os-extend", {"new_size": 2}), frozenset({"available", "in-use"}), 400),
    "os-set_bootable": (action("os-set_bootable", {"bootable": True}), ALL - {"maintenance"}, 400),
    "os-update_readonly_flag": (
        action("os-update_readonly_flag", {"readonly": True}),
        frozenset({"available"}),
        400,
    ),
    "revert": (revert, frozenset({"available"}), 409),
    "snapshot before 3.66": (take_snapshot("3.65"), frozenset({"available"}), 400),
    "snapshot with force before 3.66": (take_snapshot("3.65", force=True), frozenset({"available", "in-use"}), 400),
    "snapshot": (take_snapshot("3.66"), frozenset({"available", "in-use"}), 400),
    "snapshot with force": (take_snapshot("3.66", force=True), frozenset({"available", "in-use"}), 400),
    "os-reset_status": (action("os-reset_status", {"status": "error"}), ALL, 400),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_statuses_of_a_volume(shared_service: SharedService, name: str) -> None:
    ask, allowed, code = OPERATIONS[name]
    client, outcome = shared_service.admin(), {}
    for status in VOLUME_STATUSES:
        volume = shared_service.volume(client, status=status)
        answer = ask(client, shared_service, volume)
        outcome[str(status)] = answer.status in (200, 202)
        if answer.status not in (200, 202):
            assert answer.status == code, (status, answer.body)
            assert volume in answer.message
            assert f"{status}" in answer.message
            assert status_of(shared_service, Volume, volume) == status
    client.wait_idle()
    assert {status for status, accepted in outcome.items() if accepted} == set(map(str, allowed))


def status_of(shared_service: SharedService, model: Any, row_id: str) -> str:
    with shared_service.db.read() as session:
        return str(session.execute(select(model.status).where(model.id == row_id)).scalar_one())


@pytest.mark.parametrize("name", ["delete", "delete force", "os-force_delete", "os-extend", "revert", "snapshot"])
def test_a_migration_shuts_the_door(shared_service: SharedService, name: str) -> None:
    ask, _, code = OPERATIONS[name]
    client = shared_service.admin()
    for migration in MIGRATING:
        answer = ask(client, shared_service, shared_service.volume(client, migration_status=migration))
        assert answer.status == code, (migration, answer.body)
    for migration in NOT_MIGRATING:
        answer = ask(client, shared_service, shared_service.volume(client, migration_status=migration))
        assert answer.status == 202, (migration, answer.body)
    client.wait_idle()


@pytest.mark.parametrize("name", ["delete", "delete cascade", "delete force", "os-force_delete"])
@pytest.mark.parametrize(
    ("values", "words"),
    [({"attach_status": "attached"}, "it is attached"), ({"group_id": unknown_id()}, "it belongs to group")],
    ids=["attached", "grouped"],
)
def test_no_delete_of_what_is_attached_or_grouped(
    shared_service: SharedService, name: str, values: Any, words: str
) -> None:
    client = shared_service.admin()
    answer = OPERATIONS[name][0](client, shared_service, shared_service.volume(client, **values))
    assert (answer.status, words in answer.message) == (400, True), answer.message


@pytest.mark.parametrize("name", ["delete", "delete force", "os-force_delete"])
def test_no_delete_of_what_has_snapshots(shared_service: SharedService, name: str) -> None:
    client = shared_service.admin()
    volume = shared_service.volume(client)
    shared_service.snapshot(client, volume)
    answer = OPERATIONS[name][0](client, shared_service, volume)
    assert (answer.status, "it has 1 snapshot; delete" in answer.message) == (400, True), answer.message


def test_what_was_never_placed_is_deleted_in_any_status(shared_service: SharedService) -> None:
    client = shared_service.member()
    for status in VOLUME_STATUSES:
        volume = shared_service.volume(client, status=status, host=None)
        expected = 400 if status == "deleting" else 202
        assert client("DELETE", f"/volumes/{volume}").status == expected, status
        client.wait_idle()
        assert client("GET", f"/volumes/{volume}").status == (200 if status == "deleting" else 404)


def test_cascade_by_the_status_of_a_snapshot(shared_service: SharedService) -> None:
    client = shared_service.admin()
    for force, allowed in (("", {"available", "error", "deleting"}), ("&force=true", {str(s) for s in S})):
        accepted = set()
        for status in S:
            volume = shared_service.volume(client)
            snapshot = shared_service.snapshot(client, volume, status=status)
            answer = client("DELETE", f"/volumes/{volume}?cascade=true{force}")
            if answer.status == 202:
                accepted.add(str(status))
                continue
            assert answer.status == 400
            assert snapshot in answer.message
            assert status_of(shared_service, Volume, volume) == "available"
            assert status_of(shared_service, Snapshot, snapshot) == status
        client.wait_idle()
        assert accepted == allowed


def test_cascade_spares_a_volume_whose_snapshot_is_in_a_group(shared_service: SharedService) -> None:
    client = shared_service.admin()
    volume = shared_service.volume(client)
    shared_service.snapshot(client, volume)
    shared_service.snapshot(client, volume, group_snapshot_id=unknown_id())
    before = shared_service.contents()
    for query in ("cascade=true", "cascade=true&force=true"):
        answer = client("DELETE", f"/volumes/{volume}?{query}")
        assert (answer.status, "group snapshot" in answer.message) == (400, True)
    assert shared_service.contents() == before


def test_cascade_of_a_member_spares_snapshots_of_others(shared_service: SharedService) -> None:
    client, other = shared_service.member(), shared_service.member()
    volume = shared_service.volume(client)
    shared_service.snapshot(other, volume)
    before = shared_service.contents()
    assert client("DELETE", f"/volumes/{volume}?cascade=true").status == 400
    assert shared_service.contents() == before


# --- snapshots -----------------------------------------------------------------------------------------------


def snapshot_action(name: str, arguments: Any) -> Ask:
    return lambda client, _shared_service, snapshot: client("POST", f"/snapshots/{snapshot}/action", {name: arguments})


SNAPSHOT_OPERATIONS: dict[str, tuple[Ask, set[str]]] = {
    "create volume": (
        lambda client, _shared_service, snapshot: client("POST", "/volumes", {"volume": {"snapshot_id": snapshot}}),
        {"available"},
    ),
    "delete": (
        lambda client, _shared_service, snapshot: client("DELETE", f"/snapshots/{snapshot}"),
        {"available", "error"},
    ),
    "os-force_delete": (snapshot_action("os-force_delete", {}), {str(s) for s in S}),
    "update": (
        lambda client, _shared_service, snapshot: client("PUT", f"/snapshots/{snapshot}", {"snapshot": {"name": "n"}}),
        {str(s) for s in S},
    ),
    "metadata": (
        lambda client, _shared_service, snapshot: client("PUT", f"/snapshots/{snapshot}/metadata", {"metadata": {}}),
        {str(s) for s in S},
    ),
    "os-reset_status": (snapshot_action("os-reset_status", {"status": "error"}), {str(s) for s in S}),
}


@pytest.mark.parametrize("name", SNAPSHOT_OPERATIONS)
def test_statuses_of_a_snapshot(shared_service: SharedService, name: str) -> None:
    ask, allowed = SNAPSHOT_OPERATIONS[name]
    client, accepted = shared_service.admin(), set()
    volume = shared_service.volume(client)
    for status in S:
        snapshot = shared_service.snapshot(client, volume, status=status)
        answer = ask(client, shared_service, snapshot)
        if answer.status in (200, 202):
            accepted.add(str(status))
        else:
            assert answer.status == 400, answer.body
            assert f"snapshot {snapshot} is {status}" in answer.message
            assert status_of(shared_service, Snapshot, snapshot) == status
    client.wait_idle()
    assert accepted == allowed


def test_what_a_hypervisor_may_report(shared_service: SharedService) -> None:
    client = shared_service.member()
    volume = shared_service.volume(client)
    allowed = {("creating", to) for to in ("creating", "available", "error")}
    allowed |= {("deleting", to) for to in ("deleting", "error_deleting")}
    accepted = set()
    for status in S:
        for to in S:
            snapshot = shared_service.snapshot(client, volume, status=status)
            body = {"os-update_snapshot_status": {"status": to, "progress": "7%"}}
            answer = client("POST", f"/snapshots/{snapshot}/action", body)
            assert answer.status in (202, 400)
            if answer.status == 202:
                accepted.add((str(status), str(to)))
                shown = client.get(f"/snapshots/{snapshot}")["snapshot"]
                assert (shown["status"], shown["os-extended-snapshot-attributes:progress"]) == (to, "7%")
            else:
                assert status_of(shared_service, Snapshot, snapshot) == status
    assert accepted == allowed


@pytest.mark.parametrize("ask", [SNAPSHOT_OPERATIONS["delete"][0], SNAPSHOT_OPERATIONS["os-force_delete"][0]])
def test_no_delete_of_a_snapshot_in_a_group(shared_service: SharedService, ask: Ask) -> None:
    client = shared_service.admin()
    snapshot = shared_service.snapshot(client, shared_service.volume(client), group_snapshot_id=unknown_id())
    answer = ask(client, shared_service, snapshot)
    assert (answer.status, "belongs to a group snapshot" in answer.message) == (400, True)


def test_revert_by_the_status_of_the_snapshot(shared_service: SharedService) -> None:
    client = shared_service.admin()
    for status in S:
        volume = shared_service.volume(client)
        snapshot = shared_service.snapshot(client, volume, status=status)
        answer = action("revert", {"snapshot_id": snapshot})(client, shared_service, volume)
        assert answer.status == (202 if status == "available" else 409), (status, answer.body)
        if status != "available":
            assert (status_of(shared_service, Volume, volume), status_of(shared_service, Snapshot, snapshot)) == (
                "available",
                status,
            )
    client.wait_idle()


def test_revert_needs_the_newest_snapshot_and_its_size(shared_service: SharedService) -> None:
    client = shared_service.admin()
    volume = shared_service.volume(client)
    older = shared_service.snapshot(client, volume)
    newer = shared_service.snapshot(client, volume)
    foreign = shared_service.snapshot(client, shared_service.volume(client))
    grown = shared_service.volume(client, size=2)
    for of, snapshot, words in (
        (volume, older, "is not the newest snapshot"),
        (volume, foreign, "is not the newest snapshot"),
        (
            grown,
            shared_service.snapshot(client, grown),
            ("a volume that was extended after its snapshot cannot be reverted"),
        ),
    ):
        answer = action("revert", {"snapshot_id": snapshot})(client, shared_service, of)
        assert (answer.status, words in answer.message) == (400, True), answer.message
    for snapshot in (unknown_id(), "x", "", None):
        assert action("revert", {"snapshot_id": snapshot})(client, shared_service, volume).status == 404
    assert action("revert", {"snapshot_id": newer})(client, shared_service, volume).status == 202
    client.wait_idle()


# --- the rest of the table -----------------------------------------------------------------------------------


def test_force_false_is_refused_since_it_means_nothing(sqlite_service: SharedService) -> None:
    client = sqlite_service.member()
    volume = sqlite_service.volume(client)
    answer = take_snapshot("3.66", force=False)(client, sqlite_service, volume)
    assert (answer.status, "snapshot.force" in answer.message) == (400, True)
    assert take_snapshot("3.65", force=False)(client, sqlite_service, volume).status == 202
    client.wait_idle()


def test_no_snapshot_of_what_is_on_no_backend(sqlite_service: SharedService) -> None:
    client = sqlite_service.member()
    answer = take_snapshot("3.71")(client, sqlite_service, sqlite_service.volume(client, host=None))
    assert (answer.status, "on no backend" in answer.message) == (400, True)


@pytest.mark.parametrize("status", sorted(RESETTABLE - {"in-use"}))
def test_reset_to_each_status(sqlite_service: SharedService, status: str) -> None:
    client = sqlite_service.admin()
    volume = sqlite_service.volume(client)
    assert action("os-reset_status", {"status": status.upper()})(client, sqlite_service, volume).status == 202
    assert status_of(sqlite_service, Volume, volume) == status


def test_reset_to_in_use_needs_an_attachment(sqlite_service: SharedService) -> None:
    client = sqlite_service.admin()
    volume = sqlite_service.volume(client, attach_status="attached")
    assert action("os-reset_status", {"status": "in-use"})(client, sqlite_service, volume).status == 202


@pytest.mark.parametrize("status", list(S))
def test_reset_a_snapshot_to_each_status(sqlite_service: SharedService, status: str) -> None:
    client = sqlite_service.admin()
    snapshot = sqlite_service.snapshot(client, sqlite_service.volume(client))
    assert snapshot_action("os-reset_status", {"status": status})(client, sqlite_service, snapshot).status == 202
    assert status_of(sqlite_service, Snapshot, snapshot) == status


def test_reset_of_the_other_statuses(sqlite_service: SharedService) -> None:
    client = sqlite_service.admin()
    volume = sqlite_service.volume(client, migration_status="migrating", attach_status="attached")
    body = {"migration_status": "none", "attach_status": "DETACHED"}
    assert action("os-reset_status", body)(client, sqlite_service, volume).status == 202
    with sqlite_service.db.read() as session:
        row = session.get_one(Volume, volume)
        assert (row.status, row.migration_status, row.attach_status) == ("available", None, "detached")


def test_sizes_and_zones_of_copies(sqlite_service: SharedService) -> None:
    client = sqlite_service.member()
    volume = sqlite_service.volume(client, size=3)
    snapshot = sqlite_service.snapshot(client, volume, volume_size=2)
    for source, words in (
        ({"source_volid": volume, "size": 2}, "must not be less than the source's size, 3 GiB"),
        ({"snapshot_id": snapshot, "size": 1}, "must not be less than the source's size, 2 GiB"),
        ({"snapshot_id": snapshot, "source_volid": volume}, "Only one source"),
        ({"size": 1, "availability_zone": "mars"}, "Availability zone 'mars' is invalid. Name one of nova."),
    ):
        answer = client("POST", "/volumes", {"volume": source})
        assert (answer.status, words in answer.message) == (400, True), answer.message
    for source in (
        {"source_volid": unknown_id()},
        {"snapshot_id": unknown_id()},
        {"backup_id": unknown_id(), "size": 1},
    ):
        assert client("POST", "/volumes", {"volume": source}).status == 404
    assert client("POST", "/volumes", {"volume": {"source_volid": volume}}).json["volume"]["size"] == 3
    assert client("POST", "/volumes", {"volume": {"snapshot_id": snapshot}}).json["volume"]["size"] == 2
    client.wait_idle()


def test_types_that_are_used_or_the_default_stay(sqlite_service: SharedService) -> None:
    client = sqlite_service.admin()
    made = client("POST", "/types", {"volume_type": {"name": unknown_id(), "extra_specs": {"a": "b"}}})
    type_id = made.json["volume_type"]["id"]
    name = {"volume_type": {"name": made.json["volume_type"]["name"]}}
    assert client("POST", "/types", name).status == 409
    volume = sqlite_service.volume(client, volume_type_id=type_id)
    encryption = {"encryption": {"provider": "luks", "control_location": "front-end"}}
    for method, path, body, sentence in (
        ("DELETE", "", None, "Target volume type is still in use."),
        ("POST", "/extra_specs", {"extra_specs": {"c": "d"}}, "Volume Type is currently in use."),
        ("PUT", "/extra_specs/a", {"a": "c"}, "Volume Type is currently in use."),
        ("DELETE", "/extra_specs/a", None, "Volume Type is currently in use."),
        ("POST", "/encryption", encryption, "Cannot create encryption specs. Volume type in use."),
        ("PUT", "/encryption/provider", encryption, "Cannot update encryption specs. Volume type in use."),
        ("DELETE", "/encryption/provider", None, "Cannot delete encryption specs. Volume type in use."),
    ):
        answer = client(method, f"/types/{type_id}{path}", body)
        assert (answer.status, answer.message.startswith(sentence)) == (400, True), answer.message
    assert client("DELETE", f"/volumes/{volume}").status == 202
    client.wait_idle()
    both = {"extra_specs": {"multiattach": "<is> True", "cacheable": "<is> True"}}
    assert client("POST", f"/types/{type_id}/extra_specs", both).status == 400
    assert client("DELETE", f"/types/{type_id}/extra_specs/a").status == 202
    assert client("DELETE", f"/types/{type_id}/extra_specs/a").status == 404
    assert client("DELETE", f"/types/{type_id}").status == 202
    answer = client("DELETE", f"/types/{sqlite_service.type_id}")
    assert (answer.status, "is the default type" in answer.message) == (400, True)


def test_limits_of_size_in_a_type(sqlite_service: SharedService) -> None:
    client = sqlite_service.admin()
    specs = {"provisioning:min_vol_size": "2", "provisioning:max_vol_size": "3"}
    made = client("POST", "/types", {"volume_type": {"name": unknown_id(), "extra_specs": specs}}).json["volume_type"]
    for size, status in ((1, 400), (2, 202), (3, 202), (4, 400)):
        answer = client("POST", "/volumes", {"volume": {"size": size, "volume_type": made["id"]}})
        assert answer.status == status, answer.body
    client.wait_idle()
    volume = answer and client.get("/volumes/detail?sort=size")["volumes"][0]["id"]
    answer = client("POST", f"/volumes/{volume}/action", {"os-extend": {"new_size": 4}})
    assert (answer.status, "at most 3 GiB" in answer.message) == (400, True)


def test_every_open_operation_has_ended(shared_service: SharedService) -> None:
    """After all of the above: nothing was left behind."""
    assert shared_service.service.bus.wait_idle(60)
    with shared_service.db.read() as session:
        assert session.scalars(select(OperationRow.id).where(OperationRow.state == "open")).all() == []
