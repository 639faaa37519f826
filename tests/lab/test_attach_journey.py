"""Volumes of real LVM as disks of hosts, over HTTP, through the whole service, LIO or tgtd, and os-brick."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blockstore.app.service import Service
from blockstore.backends.contract import GIB
from tests import sampling
from tests.conftest import Client, backend_section, make_config, target_section
from tests.contents import write_file
from tests.crash.invariants import check
from tests.tgtd import Tgtd

from .conftest import Disk
from .initiator import Initiator, read_disk, traces, udev
from .libiscsi import Refused, Session

pytestmark = [pytest.mark.lab, pytest.mark.slow]

POOL = "blockstore@disks#disks"
PATTERN = b"written through the disk".ljust(4096, b".") * 4
BOB = "iqn.1993-08.org.debian:01:bob"
CYCLES = sampling.effort(40, 100)


@pytest.fixture(params=["lio", "tgt"])
def target(request: pytest.FixtureRequest) -> str:
    """Return each iSCSI target in turn."""
    return str(request.param)


@pytest.fixture
def start(
    start_service: Callable[..., Service], disk: Disk, target: str, tmp_path: Path
) -> Iterator[Callable[[], Client]]:
    """Start the service, or start it again, on one volume group and one target; nothing is left on the host."""
    with udev(), Tgtd() as tgtd:
        options = {"portals": tgtd.portal, "control_socket": str(tgtd.socket)} if target == "tgt" else {}
        config = make_config(
            tmp_path / "state",
            backends=(backend_section("disks", "lvm", {"target": "iscsi"}, volume_group=disk.vg, lvm_type="thin"),),
            targets=(target_section("iscsi", target, **options),),
        )

        def started() -> Client:
            service = start_service(config)
            service.report()  # the lab may take longer than a start waits
            return Client(service)

        yield started
        assert traces() == []


@pytest.fixture
def api(start: Callable[[], Client]) -> Client:
    """The service."""
    return start()


def attach(api: Client, volume_id: str, host: Initiator, **fields: Any) -> tuple[str, dict[str, Any]]:
    """Reserve, connect and complete, as Nova does; return the attachment's id and its connection info."""
    reserved = api("POST", "/attachments", {"attachment": {"volume_uuid": volume_id, **fields}}).json["attachment"]
    asked = {"attachment": {"connector": host.connector}}
    answer = api("PUT", f"/attachments/{reserved['id']}", asked)
    assert answer.status == 200, answer.body
    return reserved["id"], answer.json["attachment"]["connection_info"]


def complete(api: Client, attachment_id: str) -> None:
    assert api("POST", f"/attachments/{attachment_id}/action", {"os-complete": {}}).status == 204


def detach(api: Client, attachment_id: str) -> None:
    answer = api("DELETE", f"/attachments/{attachment_id}")
    assert answer.status == 200, answer.body


def held(api: Client) -> set[str]:
    """Return what the target exports."""
    return set(api.service.exports.targets["iscsi"].list_exports())


def test_a_volume_is_a_disk_of_one_host_and_then_of_another(api: Client, start: Callable[[], Client]) -> None:
    volume = api.volume()
    where = f"/volumes/{volume['id']}"
    with Initiator() as host:
        attachment, connection = attach(api, volume["id"], host)
        assert (connection["auth_method"], len(connection["auth_password"])) == ("CHAP", 16)
        path = host.connect(connection)
        complete(api, attachment)
        assert api.get(where)["volume"]["status"] == "in-use"
        write_file(path, PATTERN)

        snapshot = api.snapshot(volume["id"])  # while it is attached
        assert snapshot["status"] == "available"
        write_file(path, PATTERN[::-1])

        assert api.action(where.strip("/"), "os-extend", {"new_size": 2}).status == 202
        assert (api.get(where)["volume"]["status"], api.get(where)["volume"]["size"]) == ("in-use", 2)
        assert host.extend(path) == 2 * GIB
        write_file(path, PATTERN, 2 * GIB - len(PATTERN))

        host.disconnect(path)
        detach(api, attachment)
    assert (api.get(where)["volume"]["status"], held(api)) == ("available", set())
    check(api.service.db, api.service.backends)

    api.service.stop()
    api = start()
    with Initiator(BOB) as other:
        attachment, connection = attach(api, volume["id"], other)
        path = other.connect(connection)
        complete(api, attachment)
        assert read_disk(path, len(PATTERN)) == PATTERN[::-1]
        assert read_disk(path, len(PATTERN), 2 * GIB - len(PATTERN)) == PATTERN
        other.disconnect(path)
        detach(api, attachment)

        copy = api.volume(snapshot_id=snapshot["id"])
        attachment, connection = attach(api, copy["id"], other)
        path = other.connect(connection)
        assert read_disk(path, len(PATTERN)) == PATTERN  # what it was when the snapshot was taken
        other.disconnect(path)
        detach(api, attachment)
    check(api.service.db, api.service.backends)


def test_two_hosts_share_a_multiattach_volume(api: Client) -> None:
    kind = {"name": "shared", "extra_specs": {"multiattach": "<is> True"}}
    assert api("POST", "/types", {"volume_type": kind}).status == 200
    volume = api.volume(volume_type="shared")
    with Initiator() as alice, Initiator(BOB) as bob:
        disks = []
        for host in (alice, bob):
            attachment, connection = attach(api, volume["id"], host, instance_uuid=str(uuid.uuid4()))
            disks.append((host, attachment, host.connect(connection)))
            complete(api, attachment)
        write_file(disks[0][2], PATTERN)
        assert read_disk(disks[1][2], len(PATTERN)) == PATTERN
        for host, attachment, path in disks:
            host.disconnect(path)
            detach(api, attachment)
    assert (api.get(f"/volumes/{volume['id']}")["volume"]["status"], held(api)) == ("available", set())


def test_a_stolen_session_never_reads_the_next_tenants_volume(api: Client) -> None:
    """CVE-2023-2088: the host never let go of A; B's volume then comes to the same host."""
    ours, theirs = api.as_("alice"), api.as_("bob")
    a, b = ours.volume(), theirs.volume()
    with Initiator() as host:
        attachment, connection = attach(ours, a["id"], host)
        stolen = Session(connection, host.name, connection["auth_password"])  # never connects again by itself
        stolen.write(0, b"A" * 4096)
        detach(ours, attachment)
        other, connection = attach(theirs, b["id"], host)
        path = host.connect(connection)
        write_file(path, b"B" * 4096)
        with pytest.raises(Refused):
            stolen.read(0, 4096)
        with pytest.raises(Refused):
            Session({**connection, "auth_username": "A"}, host.name, "A" * 16)
        host.disconnect(path)
        detach(theirs, other)
        stolen.close()


@pytest.mark.parametrize("target", ["lio"], indirect=True)  # tgtd has as many in tests/clients, without the lab
def test_nothing_is_left_after_many_attachments(api: Client, disk: Disk) -> None:
    volume = api.volume()
    with Initiator() as host:
        for cycle in range(CYCLES):
            attachment, connection = attach(api, volume["id"], host)
            if cycle % 20 == 0:  # os-brick takes the lab seconds
                path = host.connect(connection)
                write_file(path, PATTERN)
                host.disconnect(path)
            complete(api, attachment)
            detach(api, attachment)
    assert held(api) == set()
    assert traces() == []
    assert api.get("/attachments")["attachments"] == []
    assert [name for name in disk.names() if "volume-" in name] == [f"volume-{volume['id']}"]
    check(api.service.db, api.service.backends)
    assert api("DELETE", f"/volumes/{volume['id']}").status == 202
    api.wait_idle(600)
    assert [name for name in disk.names() if "volume-" in name] == []
