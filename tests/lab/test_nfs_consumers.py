"""Volumes of a share as disks, over HTTP: of hosts that mount it with os-brick, by their path here, and by NBD."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blockstore.app.service import Service
from blockstore.backends.contract import GIB
from blockstore.config import ServiceConfig
from tests.conftest import Client, backend_section, make_config, target_section
from tests.contents import read_file, write_file
from tests.crash.invariants import check

from .conftest import SERVED, run
from .initiator import NfsHost

pytestmark = [pytest.mark.lab, pytest.mark.slow]

PATTERN = b"written by the host".ljust(4096, b".") * 16
MIB = 2**20
PLACES = ("share", "qcow2", "paths", "disks")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One service for all, with shares that are mounted by consumers and shares that a target serves."""
    run("ip", "address", "add", f"{NfsHost.SERVER}/32", "dev", "lo")
    run("exportfs", "-o", "rw,no_root_squash,insecure,no_subtree_check,fsid=0", f"10.9.0.0/16:{SERVED}")
    SERVED.chmod(0o755)
    for place in PLACES:
        (SERVED / place).mkdir()
    sections = (
        backend_section("share", "nfs", exports=f"{NfsHost.SERVER}:/share"),
        backend_section("qcow2", "nfs", exports=f"{NfsHost.SERVER}:/qcow2", format="qcow2"),
        backend_section("paths", "nfs", {"target": "local"}, exports=f"{NfsHost.SERVER}:/paths"),
        backend_section("disks", "nfs", {"target": "nbd"}, exports=f"{NfsHost.SERVER}:/disks"),
    )
    nbd = target_section("nbd", socket_dir="/run/lab-nbd")
    Path("/run/lab-nbd").mkdir(0o700, exist_ok=True)
    # No look of its own meanwhile: it takes a pool down while a host of this machine has the share mounted otherwise.
    settings = ServiceConfig(report_interval_s=3600)
    service = Service(
        make_config(tmp_path_factory.mktemp("state"), service=settings, backends=sections, targets=(nbd,))
    )
    service.start()
    service.report()
    yield Client(service)
    service.stop()
    for backend in service.backends.values():
        run("umount", "-l", str(backend.path))  # type: ignore[attr-defined]
    for place in PLACES:
        run("rm", "-rf", str(SERVED / place))
    run("exportfs", "-u", f"10.9.0.0/16:{SERVED}")
    run("ip", "address", "delete", f"{NfsHost.SERVER}/32", "dev", "lo")


def volume(api: Client, place: str, *, shared: bool = False) -> str:
    """A volume on one of the shares."""
    kind = f"{place} shared" if shared else place
    specs = {"volume_backend_name": place} | ({"multiattach": "<is> True"} if shared else {})
    api("POST", "/types", {"volume_type": {"name": kind, "extra_specs": specs}})
    made = api.volume(volume_type=kind)
    assert made["status"] == "available", api("GET", "/messages").json
    return str(made["id"])


def attach(api: Client, volume_id: str, connector: Any, **fields: Any) -> tuple[str, dict[str, Any]]:
    """Reserve, connect and complete, as Nova does; return the attachment's id and its connection info."""
    reserved = api("POST", "/attachments", {"attachment": {"volume_uuid": volume_id, **fields}}).json["attachment"]
    answer = api("PUT", f"/attachments/{reserved['id']}", {"attachment": {"connector": dict(connector)}})
    assert answer.status == 200, answer.body
    assert api("POST", f"/attachments/{reserved['id']}/action", {"os-complete": {}}).status == 204
    return reserved["id"], answer.json["attachment"]["connection_info"]


def detach(api: Client, attachment_id: str) -> None:
    answer = api("DELETE", f"/attachments/{attachment_id}")
    assert answer.status == 200, answer.body
    api.wait_idle(600)


def held(api: Client, place: str, volume_id: str, at: int, length: int) -> bytes:
    """Return what blockstore reads of a volume."""
    (backend,) = (backend for pool, backend in api.service.backends.items() if f"@{place}#" in pool)
    with backend.open_volume(f"volume-{volume_id}", "rb") as file:
        file.seek(at)
        return file.read(length)


def size(path: Path) -> int:
    """Return a file's size as the server knows it: it is asked when a file is opened."""
    with path.open("rb") as file:
        return file.seek(0, os.SEEK_END)


def blocks(place: str, volume_id: str) -> int:
    """Return the bytes that a raw volume takes on the server."""
    return (SERVED / place / f"volume-{volume_id}.raw").stat().st_blocks * 512


def qemu_io(kind: str, image: str | Path, *commands: str) -> None:
    """Have QEMU carry out commands on an image; a pattern that is not read as it should be is an error."""
    said = run("qemu-io", "-d", "unmap", "-f", kind, *(word for line in commands for word in ("-c", line)), str(image))
    assert "failed" not in said, said


def extend(api: Client, volume_id: str, size: int) -> Any:
    api.action(f"volumes/{volume_id}", "os-extend", {"new_size": size})
    found = api.get(f"/volumes/{volume_id}")["volume"]
    return found["status"], found["size"]


def test_a_host_mounts_the_share_itself(api: Client, tmp_path: Path) -> None:
    made = volume(api, "share")
    with NfsHost(tmp_path / "a") as host, NfsHost(tmp_path / "b", 2) as other:
        attachment, connection = attach(api, made, host.connector)
        assert (connection["driver_volume_type"], connection["format"]) == ("nfs", "raw")
        path = host.connect(connection)
        assert not path.is_relative_to(connection["mount_point_base"])
        write_file(path, PATTERN, MIB)
        shot = api.snapshot(made)
        assert extend(api, made, 2) == ("in-use", 2)
        assert size(path) == 2 * GIB
        write_file(path, PATTERN, 2 * GIB - len(PATTERN))

        assert connection["discard"] is True
        write_file(path, b"x" * 8 * MIB, 16 * MIB)
        full = blocks("share", made)
        run("fallocate", "--punch-hole", "--offset", str(16 * MIB), "--length", str(8 * MIB), str(path))
        assert full - blocks("share", made) == 8 * MIB
        assert read_file(path, MIB, 16 * MIB) == bytes(MIB)
        write_file(path, PATTERN[::-1], MIB)
        host.disconnect(connection, path)
        detach(api, attachment)
        assert held(api, "share", made, MIB, len(PATTERN)) == PATTERN[::-1]
        assert held(api, "share", made, 2 * GIB - len(PATTERN), len(PATTERN)) == PATTERN

        copy = api.volume(snapshot_id=shot["id"])["id"]
        attachment, connection = attach(api, copy, other.connector)
        path = other.connect(connection)
        assert size(path) == GIB
        assert read_file(path, len(PATTERN), MIB) == PATTERN
        other.disconnect(connection, path)
        detach(api, attachment)
    check(api.service.db, api.service.backends)


def test_several_hosts_share_it(api: Client, tmp_path: Path) -> None:
    made = volume(api, "share", shared=True)
    with NfsHost(tmp_path / "a") as alice, NfsHost(tmp_path / "b", 2) as bob:
        disks = []
        for host in (alice, bob):
            attachment, connection = attach(api, made, host.connector, instance_uuid=str(uuid.uuid4()))
            disks.append((attachment, host.connect(connection)))
        write_file(disks[0][1], PATTERN)
        assert read_file(disks[1][1], len(PATTERN)) == PATTERN
        for attachment, _path in disks:
            detach(api, attachment)
    assert api.get(f"/volumes/{made}")["volume"]["status"] == "available"


def test_several_share_it_by_a_target(api: Client) -> None:
    for place in ("paths", "disks"):
        made = volume(api, place, shared=True)
        held_by = [attach(api, made, {"host": "lab"}, instance_uuid=str(uuid.uuid4())) for _ in range(2)]
        one, other = (connection.get("uri") or connection["device_path"] for _id, connection in held_by)
        qemu_io("raw", one, "write -P 7 1M 1M", "flush")
        qemu_io("raw", other, "read -P 7 1M 1M", "write -P 9 4M 1M", "flush")
        qemu_io("raw", one, "read -P 9 4M 1M")
        for attachment, _connection in held_by:
            detach(api, attachment)
        assert held(api, place, made, 4 * MIB, MIB) == b"\x09" * MIB


def test_a_qcow2_volume_is_an_image_to_the_host(api: Client, tmp_path: Path) -> None:
    made = volume(api, "qcow2")
    with NfsHost(tmp_path / "a") as host:
        attachment, connection = attach(api, made, host.connector)
        assert connection["format"] == "qcow2"
        path = host.connect(connection)
        told = json.loads(run("qemu-img", "info", "-f", "qcow2", "--output", "json", str(path)))
        assert told["virtual-size"] == GIB
        qemu_io("qcow2", path, f"write -P 7 {MIB} 1M", f"write -P 9 {GIB - MIB} 1M", f"discard {GIB - MIB} 1M")
        host.disconnect(connection, path)
        detach(api, attachment)
        assert held(api, "qcow2", made, MIB - 1, MIB + 2) == b"\0" + b"\7" * MIB + b"\0"
        assert held(api, "qcow2", made, GIB - MIB, MIB) == bytes(MIB)

        shot = api.snapshot(made)
        copy = api.volume(snapshot_id=shot["id"])["id"]
        assert extend(api, copy, 2) == ("available", 2)
        attachment, connection = attach(api, copy, host.connector)
        path = host.connect(connection)
        qemu_io("qcow2", path, f"read -P 7 {MIB} 1M", f"write -P 5 {2 * GIB - MIB} 1M", f"read -P 0 {GIB} 1M")
        host.disconnect(connection, path)
        detach(api, attachment)
    assert held(api, "qcow2", copy, 2 * GIB - MIB, MIB) == b"\5" * MIB
    check(api.service.db, api.service.backends)


def test_by_its_path_on_this_node(api: Client) -> None:
    made = volume(api, "paths")
    attachment, connection = attach(api, made, {"host": "lab"})
    path = Path(connection["device_path"])
    write_file(path, b"x" * 8 * MIB, MIB)
    full = blocks("paths", made)
    run("fallocate", "--punch-hole", "--offset", str(2 * MIB), "--length", str(4 * MIB), str(path))
    assert full - blocks("paths", made) == 4 * MIB
    assert extend(api, made, 2) == ("in-use", 2)
    write_file(path, PATTERN, 2 * GIB - len(PATTERN))
    with path.open("rb") as file, subprocess.Popen(["sleep", "60"], stdin=file) as user:
        answer = api("DELETE", f"/attachments/{attachment}")
        assert answer.status == 409, answer.body
        user.kill()
    detach(api, attachment)
    assert held(api, "paths", made, 2 * MIB - 1, 4 * MIB + 2) == b"x" + bytes(4 * MIB) + b"x"
    assert held(api, "paths", made, 2 * GIB - len(PATTERN), len(PATTERN)) == PATTERN
    check(api.service.db, api.service.backends, targets=api.service.exports.targets)


def test_by_nbd(api: Client) -> None:
    made = volume(api, "disks")
    attachment, connection = attach(api, made, {"host": "lab"})
    qemu_io("raw", connection["uri"], f"write -P 7 {MIB} 8M", "flush")
    full = blocks("disks", made)
    qemu_io("raw", connection["uri"], f"discard {2 * MIB} 4M", "flush")
    assert full - blocks("disks", made) == 4 * MIB
    qemu_io("raw", connection["uri"], f"read -P 7 {MIB} 1M", f"read -P 0 {2 * MIB} 4M", f"read -P 7 {6 * MIB} 3M")
    detach(api, attachment)
    assert held(api, "disks", made, MIB, 9 * MIB) == b"\7" * MIB + bytes(4 * MIB) + b"\7" * 3 * MIB + bytes(MIB)
    assert extend(api, made, 2) == ("available", 2)
    attachment, connection = attach(api, made, {"host": "lab"})
    qemu_io("raw", connection["uri"], f"write -P 5 {2 * GIB - MIB} 1M")
    assert extend(api, made, 3) == ("in-use", 2)  # NBD tells its client no new size
    detach(api, attachment)
    assert held(api, "disks", made, 2 * GIB - MIB, MIB) == b"\5" * MIB
    check(api.service.db, api.service.backends, targets=api.service.exports.targets)


@pytest.mark.parametrize("place", ["share", "qcow2"])
def test_a_revert_that_is_refused_changes_nothing(api: Client, place: str) -> None:
    made = volume(api, place)
    shot = api.snapshot(made)["id"]
    (backend,) = (backend for pool, backend in api.service.backends.items() if f"@{place}#" in pool)
    with backend.open_volume(f"volume-{made}", "rb"):
        assert api.action(f"volumes/{made}", "revert", {"snapshot_id": shot}).status == 202
        assert api.get(f"/volumes/{made}")["volume"]["status"] == "available"
    (message,) = api.get(f"/messages?resource_uuid={made}")["messages"]
    assert "is open" in message["user_message"]
    assert api.action(f"volumes/{made}", "revert", {"snapshot_id": shot}).status == 202
    assert api.get(f"/volumes/{made}")["volume"]["status"] == "available"
    assert api("DELETE", f"/volumes/{made}?cascade=true").status == 202
    api.wait_idle(600)
