"""What is stored of an operation stays readable, and the helpers that make one fill in its ids."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from blockstore import manager, scheduler
from blockstore.operations import catalogue
from blockstore.operations.catalogue import (
    KINDS,
    CreateSnapshot,
    DeleteSnapshot,
    MigrateVolume,
    Operation,
    RemoveCopy,
    from_stored,
    new_operation_id,
)

STORED: dict[str, dict[str, Any]] = {
    "PlaceVolume": {
        "volume_id": "v",
        "snapshot_id": "s",
        "source_volume_id": "w",
        "hints": {"same_host": ["u"]},
        "tried": ["n@a#a"],
        "failure": "full",
    },
    "PlaceSnapshot": {"snapshot_id": "s", "volume_id": "v", "reference": "old"},
    "PlaceExtension": {"volume_id": "v", "new_size_gib": 3, "growth_gib": 2},
    "RetypeVolume": {"volume_id": "v", "type_id": "t", "counted": 1, "size_gib": 1, "may_move": True},
    "PlaceMigration": {"volume_id": "v", "destination": "n@c#q"},
    "PlaceManaged": {"volume_id": "v", "pool": "n@b#p", "reference": "old"},
    "CreateVolume": {
        "volume_id": "v",
        "snapshot_id": "s",
        "source_volume_id": "w",
        "hints": {"same_host": ["u"]},
        "tried": ["n@a#a"],
        "pool": "n@b#p",
    },
    "ManageVolume": {"volume_id": "v", "pool": "n@b#p", "reference": "old"},
    "DeleteVolume": {"volume_id": "v", "pool": "n@b#p"},
    "ExtendVolume": {"volume_id": "v", "new_size_gib": 3, "growth_gib": 2, "pool": "n@b#p"},
    "RevertVolume": {"volume_id": "v", "snapshot_id": "s"},
    "CreateSnapshot": {"snapshot_id": "s", "volume_id": "v", "reference": "old"},
    "DeleteSnapshot": {"snapshot_id": "s", "volume_id": "v", "came_from": "available"},
    "MigrateVolume": {"volume_id": "v", "destination": "n@c#q", "name_id": "i", "volume_gib": 1},
    "MigrateToType": {
        "volume_id": "v",
        "destination": "n@c#q",
        "name_id": "i",
        "volume_gib": 1,
        "type_id": "t",
        "counted": 1,
        "size_gib": 1,
    },
    "ChangeType": {"volume_id": "v", "type_id": "t", "counted": 1, "size_gib": 1},
    "RemoveCopy": {"volume_id": "v", "pool": "n@b#p", "name": "volume-i", "size_gib": 1},
    "ConnectAttachment": {"attachment_id": "a", "volume_id": "v"},
    "DisconnectAttachment": {"attachment_id": "a", "volume_id": "v", "came_from": "available", "follow": False},
}
"""Bodies as databases have them. A field that is renamed here needs a migration, one that is new a default."""


def test_the_table_has_every_kind() -> None:
    assert set(STORED) == set(KINDS)


@pytest.mark.parametrize("kind", STORED)
def test_what_is_stored_is_read_and_written_again(kind: str) -> None:
    operation = from_stored(kind, "o", "r", "p", STORED[kind], attempt=2)
    assert (operation.kind, operation.operation_id, operation.request_id, operation.project_id, operation.attempt) == (
        kind,
        "o",
        "r",
        "p",
        2,
    )
    body = operation.body()
    assert {name: list(value) if isinstance(value, tuple) else value for name, value in body.items()} == STORED[kind]


def test_a_new_operation_is_of_its_row() -> None:
    row = SimpleNamespace(id="s", project_id="p")
    operation = DeleteSnapshot.of(row, "r", volume_id="v")
    assert (operation.request_id, operation.project_id, operation.snapshot_id, operation.volume_id) == (
        "r",
        "p",
        "s",
        "v",
    )
    assert operation.operation_id < DeleteSnapshot.of(row, "r", volume_id="v").operation_id


def test_an_operation_that_goes_on_is_of_the_same_chain_and_row() -> None:
    before = from_stored("PlaceSnapshot", "o", "r", "p", STORED["PlaceSnapshot"], attempt=3)
    following = before.then(CreateSnapshot, volume_id="v")
    assert following == CreateSnapshot(
        operation_id="o.01", request_id="r", project_id="p", snapshot_id="s", volume_id="v", attempt=1
    )
    assert following.chain == before.chain


def test_an_operation_beside_another_is_of_a_chain_of_its_own() -> None:
    move = from_stored("MigrateVolume", "o", "r", "p", STORED["MigrateVolume"])
    assert isinstance(move, MigrateVolume)
    other = move.beside(RemoveCopy, pool="n@b#p", name="volume-i", size_gib=1)
    assert (other.request_id, other.project_id, other.volume_id) == ("r", "p", "v")
    assert other.chain != move.chain


def test_a_class_inherits_what_its_keywords_do_not_say() -> None:
    facts = {
        kind.__name__: (kind.component, kind.resource_type, kind.status, kind.cancellable) for kind in KINDS.values()
    }
    assert facts["MigrateVolume"] == ("migration", "volume", "maintenance", True)
    assert facts["MigrateToType"] == ("migration", "volume", "retyping", True)
    assert facts["DeleteSnapshot"] == ("manager", "snapshot", "deleting", False)


def test_a_class_without_a_room_is_no_kind() -> None:
    assert all(kind.__name__ not in KINDS for kind in Operation.__subclasses__())


def test_every_operation_has_exactly_one_handler() -> None:
    handlers = [*scheduler.HANDLERS, *manager.HANDLERS, *manager.MIGRATION_HANDLERS]
    assert sorted(kind.__name__ for kind in handlers) == sorted(KINDS)
    for name, component in (("scheduler", scheduler), ("manager", manager)):
        assert {kind.component for kind in component.HANDLERS} == {name}


def test_operation_ids_sort_by_the_order_of_making_though_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also behind those of a former life, when the clock was ahead."""
    first = new_operation_id()
    monkeypatch.setattr(catalogue.time, "time_ns", lambda: 1)
    second = new_operation_id()
    former = f"{int(second[:16], 16) + 10**6:016x}-00000000.01"
    catalogue.make_ids_after(former)
    assert first < second < former < new_operation_id() < new_operation_id()


def test_operation_ids_sort_by_the_time_of_making() -> None:
    ids = [new_operation_id() for _ in range(5000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 5000
