"""A database of the version before, whose orders are open: they become operations, and are carried out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect, text

from blockstore.db import migrations
from blockstore.db.session import Database
from tests.conftest import Client, Service, backend_section, make_config
from tests.crash.invariants import check
from tests.db.test_migrations import run_revisions

BEFORE = "0010"
AT = {"at": "2026-01-01 00:00:00"}
A, B = "blockstore@a#a", "blockstore@b#b"
TYPE = "11111111-1111-4111-8111-111111111111"
NEW, MOVED, RETYPED, GONE, LEFT, COPY, OTHER = (f"{n}0000000-0000-4000-8000-000000000000" for n in range(1, 8))

VOLUMES = (
    # id, status, the status before, migration, pool
    (NEW, "creating", None, None, None),
    (MOVED, "maintenance", "available", "migrating", A),
    (RETYPED, "retyping", "available", "migrating", A),
    (GONE, "deleting", "available", None, A),
    (LEFT, "available", None, "success", A),
)
ORDERS = (
    ("PlaceVolume", NEW, {"volume_id": NEW}),
    ("MoveVolume", MOVED, {"volume_id": MOVED, "destination": B, "name_id": COPY, "volume_gib": 1}),
    (
        "MoveToType",
        RETYPED,
        {
            "volume_id": RETYPED,
            "destination": B,
            "name_id": OTHER,
            "volume_gib": 1,
            "type_id": TYPE,
            "counted": 1,
            "size_gib": 1,
        },
    ),
    ("DeleteVolume", GONE, {"volume_id": GONE, "pool": A}),
    ("RemoveCopy", LEFT, {"volume_id": LEFT, "pool": B, "name": "volume-left", "size_gib": 1}),
)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database; empty for the one in the state directory."""
    return "" if request.param == "sqlite" else request.getfixturevalue("postgres").new_database()


def fill(db: Database) -> None:
    """Write the rows of the version before, by SQL: its models are no more."""
    with db.engine.begin() as connection:

        def add(table: str, **values: Any) -> None:
            columns = ", ".join(values)
            marks = ", ".join(f":{name}" for name in values)
            connection.execute(text(f"INSERT INTO {table} ({columns}) VALUES ({marks})"), values)

        for type_id, name in ((TYPE, "gold"), ("t", "plain")):
            add("volume_types", id=type_id, name=name, is_public=True, created_at=AT["at"])
        for volume, status, before, migration, pool in VOLUMES:
            add(
                "volumes",
                id=volume,
                project_id="admin",
                size=1,
                status=status,
                previous_status=before,
                migration_status=migration,
                host=pool,
                attach_status="detached",
                volume_type_id="t",
                bootable=False,
                multiattach=False,
                admin_metadata="{}",
                consumes_quota=True,
                has_image_metadata=False,
                created_at=AT["at"],
            )
        for number, (kind, volume, body) in enumerate(ORDERS, 1):
            add(
                "orders",
                id=f"{number:016x}-00000000",
                kind=kind,
                body=json.dumps(body),
                resource_type="volume",
                resource_id=volume,
                project_id="admin",
                request_id=f"req-{number}",
                state="open",
                attempt=1,
                cancel_asked=False,
                created_at=AT["at"],
            )
        closed = {"id": "0" * 16 + "-00000000", "kind": "MoveVolume", "body": "{}", "state": "done"}
        add(
            "orders",
            **closed,
            resource_type="volume",
            resource_id=LEFT,
            project_id="admin",
            request_id="req-0",
            attempt=1,
            cancel_asked=False,
            created_at=AT["at"],
            finished_at=AT["at"],
        )
        for pool, volumes in ((A, 4), (B, 3)):  # on B: two copies that are made, and one that is to go
            add("pool_usages", pool=pool, volumes=volumes, volume_gib=volumes, snapshot_gib=0)
        usage = {"volumes": 5, "gigabytes": 5, "volumes_t": 5, "gigabytes_t": 5}
        for resource, used in {**usage, f"volumes_{TYPE}": 1, f"gigabytes_{TYPE}": 1}.items():
            add("quota_usages", project_id="admin", resource=resource, in_use=used)


@pytest.fixture
def service(url: str, tmp_path: Path) -> Iterator[Service]:
    """A service that has not started yet, over a database of the version before and the storage of its volumes."""
    state = tmp_path / "state"
    sections = (backend_section("a", "directory"), backend_section("b", "directory"))
    made = Service(make_config(state, url, backends=sections))
    run_revisions(made.db, BEFORE)
    fill(made.db)
    assert migrations.current(made.db) == BEFORE
    for name in "ab":
        (state / name / "volumes").mkdir(mode=0o700, parents=True)
    for volume, _status, _before, _migration, pool in VOLUMES:
        if pool is not None:
            made.backends[pool].create_volume(f"volume-{volume}", 1)
            with made.backends[pool].open_volume(f"volume-{volume}", "r+b") as file:
                file.write(volume.encode())
    made.backends[B].create_volume("volume-left", 1)
    yield made
    made.stop()


def test_open_orders_of_the_version_before_are_carried_out(service: Service) -> None:
    service.start()
    api = Client(service)
    api.wait_idle()
    check(service.db, service.backends, explained=False)
    shown = {one["id"]: one for one in api.get("/volumes/detail")["volumes"]}
    assert {volume: one["status"] for volume, one in shown.items()} == dict.fromkeys(
        (NEW, MOVED, RETYPED, LEFT), "available"
    )
    for volume in (MOVED, RETYPED):
        assert shown[volume]["os-vol-host-attr:host"] == B
        assert shown[volume]["migration_status"] == "success"
    assert shown[RETYPED]["volume_type"] == "gold"
    for name, volume in ((COPY, MOVED), (OTHER, RETYPED)):
        with service.backends[B].open_volume(f"volume-{name}", "rb") as file:
            assert file.read(len(volume)) == volume.encode()
    assert {one.name for one in service.backends[B].list_manageable()} >= {f"volume-{COPY}", f"volume-{OTHER}"}
    assert "volume-left" not in {one.name for one in service.backends[B].list_manageable()}


def test_the_table_and_the_kinds_have_the_new_names(url: str, tmp_path: Path) -> None:
    db = Database(url or f"sqlite:///{tmp_path}/old.db")
    try:
        run_revisions(db, BEFORE)
        fill(db)
        migrations.upgrade(db)
        assert not inspect(db.engine).has_table("orders")
        with db.engine.connect() as connection:
            kinds = {(kind, state) for kind, state in connection.execute(text("SELECT kind, state FROM operations"))}
    finally:
        db.dispose()
    opened = {"PlaceVolume", "MigrateVolume", "MigrateToType", "DeleteVolume", "RemoveCopy"}
    assert kinds == {(kind, "open") for kind in opened} | {("MigrateVolume", "done")}
