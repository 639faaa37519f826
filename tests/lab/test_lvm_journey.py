"""The life of volumes on real LVM, over HTTP, through the whole service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockstore.app.service import Service
from blockstore.backends.contract import GIB
from blockstore.config import BackendSection
from tests.conftest import Client, backend_section, make_config
from tests.crash.invariants import check

from .conftest import Disk, run, second_disk

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

    with api.service.backends[POOL].open_volume(f"volume-{volume['id']}", "rb"):
        assert api.action(f"volumes/{volume['id']}", "revert", {"snapshot_id": snapshot["id"]}).status == 202
        assert status(api, volume["id"]) == "available"  # nothing was touched
    (message,) = api.get(f"/messages?resource_uuid={volume['id']}")["messages"]
    assert "is open" in message["user_message"]
    assert reads(api, volume["id"], b"tuesday" * 500)
    assert api.action(f"volumes/{volume['id']}", "revert", {"snapshot_id": snapshot["id"]}).status == 202
    assert status(api, volume["id"]) == "available"
    assert reads(api, volume["id"], PATTERN)
    assert api.action(f"volumes/{copy['id']}", "os-extend", {"new_size": 3}).status == 202
    assert api.get(f"/volumes/{copy['id']}")["volume"]["size"] == 3
    check(api.service.db, {POOL: api.service.backends[POOL]})

    assert api("DELETE", f"/volumes/{volume['id']}?cascade=true").status == 202
    api.wait_idle(600)
    assert reads(api, copy["id"], PATTERN)  # what was made from the snapshot lives on
    for left in (copy, clone):
        assert api("DELETE", f"/volumes/{left['id']}").status == 202
    api.wait_idle(600)
    assert dict(api.service.backends[POOL].list_volumes()) == {}
    assert api.get("/limits")["limits"]["absolute"]["totalGigabytesUsed"] == 0


def test_one_backend_that_is_down_says_why_and_the_others_serve(api: Client) -> None:
    (pool,) = [p for p in api.get("/scheduler-stats/get_pools?detail=true")["pools"] if "@gone#" in p["name"]]
    assert pool["capabilities"]["backend_state"] == "down"
    assert "no-such-group" in (api.service.pool_reports.reports()[pool["name"]].reason or "")
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
    again.wait_idle(600)
    assert [status(again, volume_id) for volume_id in wanted] == ["available", "available"]
    assert reads(again, wanted[1], PATTERN)
    check(again.service.db, {POOL: again.service.backends[POOL]})


@pytest.mark.parametrize("lvm_type", ["thin"], indirect=True)
def test_a_tenant_names_a_group_as_ours_and_a_disk_goes_away(api: Client, disk: Disk) -> None:
    def look() -> dict[str, Any]:
        api.service.reporter.check_all(wait_s=60)
        pools = api.get("/scheduler-stats/get_pools?detail=true")["pools"]
        return next(dict(pool["capabilities"]) for pool in pools if pool["name"] == POOL)

    first, second = api.volume(volume_type="disks"), api.volume(volume_type="disks")
    ours = run("vgs", "--noheadings", "-o", "vg_uuid", disk.vg).strip()
    with second_disk(4) as guest:
        run("vgchange", "-an", disk.vg)
        run("vgcreate", "--devices", guest, disk.vg, guest)
        assert look()["backend_state"] == "up"
        third = api.volume(volume_type="disks")
        assert third["status"] == "available"
        assert api("DELETE", f"/volumes/{third['id']}").status == 202
        api.wait_idle(600)
        # Our disk goes, and theirs is all that is left of the name: nothing is deleted by that.
        run("vgchange", "--devices", disk.device, "-an", disk.vg)
        run("losetup", "-d", disk.device)
        assert look()["backend_state"] == "down"
        reason = api.service.pool_reports.reports()[POOL].reason or ""
        assert ours in reason
        assert guest in reason
        assert api("DELETE", f"/volumes/{first['id']}").status == 202
        api.wait_idle(600)
        assert status(api, first["id"]) == "available"
        assert api.get("/limits")["limits"]["absolute"]["totalGigabytesUsed"] == 2
        run("losetup", disk.device, str(disk.image))
        assert look()["backend_state"] == "up"
        assert run("lvs", "--devices", guest, "--noheadings", disk.vg) == ""
        run("vgremove", "--devices", guest, "-f", disk.vg)
    with second_disk(4) as lost:
        run("vgextend", disk.vg, lost)
        missing = run("pvs", "--noheadings", "-o", "pv_uuid", lost).strip()
        assert look()["closed_because"] is None
        run("losetup", "-d", lost)
        pool = look()
        assert pool["backend_state"] == "up"
        assert f"{missing} (last on {lost})" in pool["closed_because"]
        assert api.volume(volume_type="disks")["status"] == "error"
        assert reads(api, second["id"], bytes(4096))
        for volume in (first, second):
            assert api.action(f"volumes/{volume['id']}", "os-force_delete", {}).status == 202
        api.wait_idle(600)
        assert dict(api.service.backends[POOL].list_volumes()) == {}


def test_a_volume_is_not_moved_to_other_sectors(
    make_disk: Callable[..., Disk], disk: Disk, start_service: Callable[..., Service]
) -> None:
    """Of disks with sectors of 4,096 bytes, a partition table written on 512 would not be found."""
    large = make_disk(sector=4096)
    sections = [backend_section(name, "lvm", volume_group=it.vg) for name, it in (("small", disk), ("large", large))]
    api = Client(start_service(backends=(*sections, backend_section("files", "directory"))))
    api.service.report()  # the lab may take longer than a start waits
    sizes = {
        name.partition("@")[2]: report.capabilities.block_size
        for name, report in api.service.pool_reports.reports().items()
    }
    assert sizes == {"small#small": 512, "large#large": 4096, "files#files": 512}
    body = {"volume_type": {"name": "small", "extra_specs": {"volume_backend_name": "small"}}}
    assert api("POST", "/types", body).status == 200
    made = api.volume(volume_type="small")["id"]
    for backend in api.service.backends.values():
        backend.create_volume("v", 1)
        located = backend.locate("v")
        assert located is not None
        if located.path.is_block_device():
            assert run("blockdev", "--getss", str(located.path)).strip() == str(sizes[f"{backend.name}#{backend.name}"])
        backend.delete_volume("v")
    refused = api("POST", f"/volumes/{made}/action", {"os-migrate_volume": {"host": "blockstore@large"}})
    assert refused.status == 400
    assert "its block size is 4096 bytes and the volume's is 512" in refused.message
    assert api("PUT", "/volumes/" + made, {"volume": {"name": "still here"}}).status == 200


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
    reason = api.service.pool_reports.reports()[POOL].reason or ""
    assert f"{recorded} is recorded, and {found} was found" in reason, reason
    assert api("DELETE", f"/volumes/{volume}").status == 202
    api.wait_idle(600)
    assert status(api, volume) == "available"
    assert api.volume(volume_type="disks")["status"] == "error"
    assert run("lvs", "--noheadings", "-o", "lv_name", disk.vg) == ""
    assert "blockstore" not in run("vgs", "--noheadings", "-o", "vg_tags", disk.vg)
    run("vgremove", "-f", disk.vg)
    run("losetup", "-d", other)
    run("losetup", disk.device, str(disk.image))
    run("vgchange", "-ay", disk.vg)
    api.service.report()
    assert api.service.pool_reports.reports()[POOL].up
    assert reads(api, volume, PATTERN)
