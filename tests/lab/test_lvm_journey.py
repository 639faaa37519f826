"""The life of volumes on real LVM, over HTTP, through the whole service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from blockstore.backends.contract import GIB
from blockstore.config import BackendSection
from blockstore.service import Service
from tests.conftest import Client, backend_section, make_config
from tests.kill.invariants import check

from .conftest import Disk, run

pytestmark = pytest.mark.lab

POOL = "blockstore@disks#disks"
PATTERN = b"monday's bytes " * 273
OFFSETS = (0, GIB // 2, GIB - 4096)


@pytest.fixture
def backends(disk: Disk, lvm_type: str) -> tuple[BackendSection, ...]:
    """A volume group, one that is not there, and a directory."""
    return (
        backend_section("disks", "lvm", volume_group=disk.vg, lvm_type=lvm_type),
        backend_section("gone", "lvm", volume_group="no-such-group"),
        backend_section("files", "directory"),
    )


@pytest.fixture
def api(start_service: Callable[..., Service], backends: tuple[BackendSection, ...]) -> Client:
    """A service on them, and a type for each."""
    api = Client(start_service(backends=backends))
    for name in ("disks", "gone"):
        body = {"volume_type": {"name": name, "extra_specs": {"volume_backend_name": name}}}
        assert api("POST", "/types", body).status == 200
    return api


def write(api: Client, volume_id: str, data: bytes) -> None:
    with api.service.backends[POOL].open_volume(f"volume-{volume_id}", "r+b") as file:
        for offset in OFFSETS:
            file.seek(offset)
            file.write(data)


def reads(api: Client, volume_id: str, data: bytes) -> bool:
    with api.service.backends[POOL].open_volume(f"volume-{volume_id}", "rb") as file:
        for offset in OFFSETS:
            file.seek(offset)
            if file.read(len(data)) != data:
                return False
        return True


def status(api: Client, volume_id: str) -> str:
    return str(api.get(f"/volumes/{volume_id}")["volume"]["status"])


def test_volumes_live_and_die_on_lvm(api: Client) -> None:
    volume = api.volume(volume_type="disks", name="first")
    assert (volume["status"], volume["os-vol-host-attr:host"]) == ("available", POOL)
    assert reads(api, volume["id"], bytes(4096))
    write(api, volume["id"], PATTERN)
    snapshot = api.snapshot(volume["id"])
    assert snapshot["status"] == "available"
    write(api, volume["id"], b"tuesday" * 500)

    copy = api.volume(snapshot_id=snapshot["id"], size=2)
    clone = api.volume(source_volid=volume["id"])
    assert (copy["status"], clone["status"]) == ("available", "available")
    assert reads(api, copy["id"], PATTERN)
    assert reads(api, clone["id"], b"tuesday" * 500)

    assert api.action(f"volumes/{volume['id']}", "revert", {"snapshot_id": snapshot["id"]}).status == 202
    assert status(api, volume["id"]) == "available"
    assert reads(api, volume["id"], PATTERN)
    assert api.action(f"volumes/{copy['id']}", "os-extend", {"new_size": 3}).status == 202
    assert api.get(f"/volumes/{copy['id']}")["volume"]["size"] == 3
    check(api.service.db, {POOL: api.service.backends[POOL]})

    assert api("DELETE", f"/volumes/{volume['id']}?cascade=true").status == 202
    api.wait_idle()
    assert reads(api, copy["id"], PATTERN)  # what was made from the snapshot lives on
    for left in (copy, clone):
        assert api("DELETE", f"/volumes/{left['id']}").status == 202
    api.wait_idle()
    assert dict(api.service.backends[POOL].list_volumes()) == {}
    assert api.get("/limits")["limits"]["absolute"]["totalGigabytesUsed"] == 0


def test_one_backend_that_is_down_says_why_and_the_others_serve(api: Client) -> None:
    (pool,) = [p for p in api.get("/scheduler-stats/get_pools?detail=true")["pools"] if "@gone#" in p["name"]]
    assert pool["capabilities"]["backend_state"] == "down"
    assert "no-such-group" in (api.service.board.reports()[pool["name"]].reason or "")
    refused = api.volume(volume_type="gone")
    assert refused["status"] == "error"
    (message,) = api.get(f"/messages?resource_uuid={refused['id']}")["messages"]
    assert "no-such-group" in message["user_message"]
    assert api.volume(volume_type="disks")["status"] == "available"


def test_what_was_accepted_before_a_stop_is_done_after_it(
    api: Client, start_service: Callable[..., Service], backends: tuple[BackendSection, ...], tmp_path: Path
) -> None:
    volume = api.volume(volume_type="disks")
    write(api, volume["id"], PATTERN)
    wanted = [
        api.volume(settle=False, volume_type="disks")["id"],
        api.volume(settle=False, source_volid=volume["id"])["id"],
    ]
    api.service.stop()
    again = Client(start_service(make_config(tmp_path / "state", backends=backends)))
    again.wait_idle(120)
    assert [status(again, volume_id) for volume_id in wanted] == ["available", "available"]
    assert reads(again, wanted[1], PATTERN)
    check(again.service.db, {POOL: again.service.backends[POOL]})


@pytest.mark.parametrize("lvm_type", ["thin"])
def test_group_of_the_same_name_on_another_disk_is_not_ours(api: Client, disk: Disk) -> None:
    volume = api.volume(volume_type="disks")["id"]
    write(api, volume, PATTERN)
    (recorded,) = run("vgs", "--noheadings", "-o", "vg_uuid", disk.vg).split()
    run("vgchange", "-an", disk.vg)
    run("losetup", "-d", disk.device)
    image = disk.image.with_suffix(".other")
    with image.open("wb") as file:
        file.truncate(4 * GIB)
    other = run("losetup", "-f", "--show", str(image)).strip()
    run("vgcreate", disk.vg, other)
    (found,) = run("vgs", "--noheadings", "-o", "vg_uuid", disk.vg).split()
    api.service.report()
    reason = api.service.board.reports()[POOL].reason or ""
    assert f"{recorded} is recorded, and {found} is there" in reason, reason
    assert api("DELETE", f"/volumes/{volume}").status == 202
    api.wait_idle(120)
    assert status(api, volume) == "error_deleting"
    assert api.volume(volume_type="disks")["status"] == "error"
    assert run("lvs", "--noheadings", "-o", "lv_name", disk.vg) == ""
    assert "blockstore" not in run("vgs", "--noheadings", "-o", "vg_tags", disk.vg)
    run("vgremove", "-f", disk.vg)
    run("losetup", "-d", other)
    run("losetup", disk.device, str(disk.image))
    run("vgchange", "-ay", disk.vg)
    api.service.report()
    assert api.service.board.reports()[POOL].up
    assert reads(api, volume, PATTERN)
