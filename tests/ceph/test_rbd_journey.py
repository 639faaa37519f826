"""A volume's life on Ceph over HTTP, its bytes read by qemu; and moves to and from other backends."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import select

from blockstore.app.service import Service
from blockstore.cli import main
from blockstore.db.models import OperationRow
from blockstore.manager import new_storage
from blockstore.manager.context import volume_name
from tests.api.volumes.test_migration import fill, holds, idle, move, row, shown, whole
from tests.ceph.conftest import Ceph, down, looked_at
from tests.conftest import Client, backend_section

pytestmark = pytest.mark.ceph

RBD, DISK = "blockstore@ceph", "blockstore@disk"


@pytest.fixture
def api(ceph: Ceph, way: str, start_service: Callable[..., Service]) -> Client:
    options = {"ceph_conf": str(ceph.conf), "user": "cinder", "keyring": str(ceph.keyring), "bindings": way}
    ceph.run("rbd", "pool", "init", "fast")
    sections = (backend_section("ceph", "rbd", pools="fast", **options), backend_section("disk", "directory"))
    return Client(looked_at(start_service(backends=sections)))


def volume(api: Client, **fields: Any) -> str:
    """A volume on Ceph."""
    other = {"binary": "cinder-volume", "host": DISK}
    api("PUT", "/os-services/disable", other)
    made = api("POST", "/volumes", {"volume": {"size": 1, **fields}}).json["volume"]["id"]
    idle(api)
    api("PUT", "/os-services/enable", other)
    assert shown(api, made)["status"] == "available", api("GET", "/messages").json
    return str(made)


def read_by_qemu(ceph: Ceph, told: Any, tmp_path: Path) -> bytes:
    """The first bytes of a volume, by what its consumer is told of it."""
    assert told["driver_volume_type"] == "rbd"
    data = told["data"]
    url = f"rbd:{data['name']}:id={data['auth_username']}:keyring={ceph.keyring}:mon_host="
    url += "\\;".join(f"{host}\\:{port}" for host, port in zip(data["hosts"], data["ports"], strict=True))
    out = tmp_path / "read"
    argv = ["qemu-img", "dd", "-f", "raw", "-O", "raw", "bs=512", "count=1", f"if={url}", f"of={out}"]
    subprocess.run(argv, check=True, timeout=600)
    return out.read_bytes()


def test_a_life_on_ceph(api: Client, ceph: Ceph, tmp_path: Path) -> None:
    made = volume(api)
    fill(api, made)
    connector = {"host": "elsewhere", "ip": "192.0.2.1"}
    body = {"os-initialize_connection": {"connector": connector}}
    answer = api("POST", f"/volumes/{made}/action", body)
    assert answer.status == 200, answer.body
    told = answer.json["connection_info"]
    assert told["data"]["volume_id"] == made
    assert read_by_qemu(ceph, told, tmp_path).startswith(b"start")
    key = (ceph.folder / "cinder.secret").read_text().strip()
    assert key.encode() not in answer.body
    assert api("POST", f"/volumes/{made}/action", {"os-terminate_connection": {"connector": connector}}).status == 202
    shot = api("POST", "/snapshots", {"snapshot": {"volume_id": made}}).json["snapshot"]["id"]
    idle(api)
    backend = api.service.backends[str(row(api, made).host)]
    with backend.open_volume(f"volume-{made}", "rb"):
        assert api("POST", f"/volumes/{made}/action", {"revert": {"snapshot_id": shot}}).status == 202
        idle(api)
        assert shown(api, made)["status"] == "available"  # nothing was touched
    (message,) = api("GET", f"/messages?resource_uuid={made}").json["messages"]
    assert "is open in this process" in message["user_message"]
    clone = volume(api, snapshot_id=shot, size=2)
    copy = volume(api, source_volid=made)
    assert holds(api, copy)
    assert api("POST", f"/volumes/{made}/action", {"os-extend": {"new_size": 3}}).status == 202
    idle(api)
    whole(api)
    assert api("DELETE", f"/volumes/{made}?cascade=true").status == 202
    idle(api)
    whole(api)
    assert row(api, clone).size == 2
    for one in (clone, copy):
        assert api("DELETE", f"/volumes/{one}").status == 202
    idle(api)
    whole(api)


def test_attachments_on_ceph(api: Client) -> None:
    made = volume(api)
    connector = {"host": "elsewhere", "ip": "192.0.2.1"}
    answer = api("POST", "/attachments", {"attachment": {"volume_uuid": made, "connector": connector}})
    assert answer.status == 200, answer.body
    attachment = answer.json["attachment"]
    assert attachment["connection_info"]["driver_volume_type"] == "rbd"
    assert api("POST", f"/attachments/{attachment['id']}/action", {"os-complete": {}}).status == 204
    assert shown(api, made)["status"] == "in-use"
    here = {"host": socket.gethostname(), "attach_local": True}
    refused = api("POST", "/attachments", {"attachment": {"volume_uuid": volume(api), "connector": here}})
    assert "no file or device on this node" in refused.message
    assert api("DELETE", f"/attachments/{attachment['id']}").status == 200
    assert shown(api, made)["status"] == "available"
    for one in api("GET", "/volumes").json["volumes"]:
        api("POST", f"/volumes/{one['id']}/action", {"os-force_delete": {}})
    idle(api)
    whole(api)


def test_limits_of_the_type_reach_the_image(api: Client, ceph: Ceph) -> None:
    specs = {
        "qos_specs": {"name": "slow", "consumer": "back-end", "total_iops_sec": "100", "read_iops_sec_per_gb": "5"}
    }
    qos = api("POST", "/qos-specs", specs).json["qos_specs"]["id"]
    kind = api("POST", "/types", {"volume_type": {"name": "slow"}}).json["volume_type"]["id"]
    api("GET", f"/qos-specs/{qos}/associate?vol_type_id={kind}")
    made = volume(api, volume_type="slow", size=2)
    kept = ceph.run("rbd", "config", "image", "ls", f"fast/{volume_name(row(api, made))}")
    limits = {
        line.split()[0]: line.split()[1] for line in kept.splitlines() if line.endswith("image") or "image " in line
    }
    assert limits["rbd_qos_iops_limit"] == "100"
    assert limits["rbd_qos_read_iops_limit"] == "10"
    api("DELETE", f"/volumes/{made}")
    idle(api)


def test_from_disk_to_ceph_and_back(api: Client) -> None:
    made = volume(api)
    fill(api, made)
    for host in (DISK, RBD, DISK):
        assert move(api, made, host).status == 202
        idle(api)
        found = shown(api, made)
        assert (found["migration_status"], found["os-vol-host-attr:host"].partition("#")[0]) == ("success", host)
        assert holds(api, made)
        whole(api)
    api("DELETE", f"/volumes/{made}")
    idle(api)
    whole(api)


def test_from_one_cluster_to_another_and_back(
    ceph: Ceph, way: str, new_ceph: Callable[..., Ceph], start_service: Callable[..., Service]
) -> None:
    """Two clusters are two backends: each has its own connection, and a volume moves with its bytes."""
    second = new_ceph("--size", "2G")
    clusters = {"ceph": ceph, "second": second}
    sections = [
        backend_section(
            name,
            "rbd",
            pools="fast",
            ceph_conf=str(cluster.conf),
            user="cinder",
            keyring=str(cluster.keyring),
            bindings=way,
        )
        for name, cluster in clusters.items()
    ]
    api = Client(looked_at(start_service(backends=tuple(sections))))
    made = api.volume()["id"]
    fill(api, made)
    seen = {}
    for _ in range(2):
        here = shown(api, made)["os-vol-host-attr:host"].partition("#")[0].partition("@")[2]
        there = next(name for name in clusters if name != here)
        assert move(api, made, f"blockstore@{there}").status == 202
        idle(api)
        found = shown(api, made)
        assert found["migration_status"] == "success", api("GET", "/messages").json
        assert found["os-vol-host-attr:host"].startswith(f"blockstore@{there}#")
        assert holds(api, made)
        whole(api)
        image = volume_name(row(api, made))
        assert image in clusters[there].run("rbd", "ls", "fast")
        assert image not in clusters[here].run("rbd", "ls", "fast")
        connector = {"host": "elsewhere", "ip": "192.0.2.1"}
        answer = api("POST", "/attachments", {"attachment": {"volume_uuid": made, "connector": connector}})
        told = answer.json["attachment"]["connection_info"]
        assert told["secret_uuid"] == clusters[there].run("ceph", "fsid").strip()
        seen[there] = told["ports"]
        assert api("DELETE", f"/attachments/{answer.json['attachment']['id']}").status == 200
    assert seen["ceph"] != seen["second"]
    api("DELETE", f"/volumes/{made}")
    idle(api)
    whole(api)
    down(second)


def reason(api: Client, one_id: str) -> str:
    """Why what was asked of a resource failed last."""
    with api.service.db.read() as session:
        found = session.scalars(select(OperationRow.reason).where(OperationRow.resource_id == one_id))
        return " ".join(reason for reason in found if reason)


def test_what_cinder_made_is_taken_over_and_deleted(api: Client, ceph: Ceph) -> None:
    """Cinder protects its snapshots. One that a clone of the old format needs says so; the others go."""
    old = f"volume-{uuid.uuid4()}"
    ceph.run("rbd", "create", "--size", "1G", f"fast/{old}")
    ceph.run("rbd", "snap", "create", "--no-progress", f"fast/{old}@snapshot-1")
    ceph.run("rbd", "snap", "protect", f"fast/{old}@snapshot-1")
    ceph.run("rbd", "clone", "--rbd-default-clone-format", "1", f"fast/{old}@snapshot-1", f"volumes/{old}.clone")
    body = {"host": f"{RBD}#ceph", "ref": {"source-name": old}}
    made = api("POST", "/manageable_volumes", {"volume": body}).json["volume"]["id"]
    idle(api)
    ref = {"volume_id": made, "ref": {"source-name": "snapshot-1"}}
    shot = api("POST", "/manageable_snapshots", {"snapshot": ref}).json["snapshot"]["id"]
    idle(api)
    assert api("DELETE", f"/snapshots/{shot}").status == 202
    idle(api)
    assert (f"clones of the old format: volumes/{old}.clone. Delete each clone, or make it independent") in reason(
        api, shot
    )
    ceph.run("rbd", "flatten", "--no-progress", f"volumes/{old}.clone")
    assert api("DELETE", f"/snapshots/{shot}").status == 202
    idle(api)
    assert api("GET", f"/snapshots/{shot}").status == 404
    assert api("DELETE", f"/volumes/{made}").status == 202
    idle(api)
    ceph.run("rbd", "rm", "--no-progress", f"volumes/{old}.clone")
    whole(api)


def test_backend_check_tells_the_caps_that_are_missing(ceph: Ceph, tmp_path: Path) -> None:
    keyring, config = tmp_path / "weak.keyring", tmp_path / "blockstore.ini"
    caps = ("mon", "allow r", "osd", "allow rwx pool=fast")
    ceph.run("ceph", "auth", "get-or-create", "client.weak", *caps, "-o", str(keyring))
    config.write_text(
        f"[service]\nstate_dir = {tmp_path / 'state'}\n[backend:ceph]\nplugin = rbd\npools = fast\nuser = weak\n"
        f"ceph_conf = {ceph.conf}\nkeyring = {keyring}\n"
    )
    done = CliRunner().invoke(main, ["backend", "check", "ceph", "--config", str(config)])
    assert done.exit_code != 0
    assert "ceph auth caps client.weak mon 'profile rbd'" in (done.output or str(done.exception))
    assert (keyring.read_text().partition("key = ")[2].strip() or "-") not in done.output


def test_pool_made_anew_is_not_taken_for_the_one_that_held_the_volumes(
    ceph: Ceph, way: str, start_service: Callable[..., Service], tmp_path: Path
) -> None:
    def pool(*, remove: bool = False) -> str:
        if remove:
            ceph.run("ceph", "osd", "pool", "rm", "anew", "anew", "--yes-i-really-really-mean-it")
        ceph.run("ceph", "osd", "pool", "create", "anew", "1", "1")
        ceph.run("rbd", "pool", "init", "anew")
        pools = json.loads(ceph.run("ceph", "osd", "dump", "--format", "json"))
        number = next(one["pool"] for one in pools["pools"] if one["pool_name"] == "anew")
        deadline = time.monotonic() + 300
        while ("anew", number) not in counted():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return f"{pools['fsid']}:{number}"

    def counted() -> list[tuple[str, int]]:
        """Return name and number of the pools whose space the cluster knows: of a new one, after some seconds."""
        return [(one["name"], one["id"]) for one in json.loads(ceph.run("ceph", "df", "--format", "json"))["pools"]]

    recorded, keyring = pool(), str(tmp_path / "keyring")
    caps = ("mon", "profile rbd", "mgr", "profile rbd", "osd", "profile rbd pool=anew")
    ceph.run("ceph", "auth", "get-or-create", "client.anew", *caps, "-o", keyring)
    options = {"ceph_conf": str(ceph.conf), "user": "anew", "keyring": keyring, "bindings": way}
    service = looked_at(start_service(backends=(backend_section("ceph", "rbd", pools="anew", **options),)))
    api = Client(service)
    volume, snapshotted = api.volume()["id"], api.volume()["id"]
    snapshot = api.snapshot(snapshotted)["id"]
    found = pool(remove=True)
    assert found != recorded
    for path in (f"/snapshots/{snapshot}", f"/volumes/{volume}"):  # before anybody has looked
        assert api("DELETE", path).status == 202
        api.wait_idle()
        assert next(iter(api.get(path).values()))["status"] == "available"
    service.report()
    (report,) = service.pool_reports.reports().values()
    assert report.reason is not None
    assert f"{recorded} is recorded, and {found} was found" in report.reason
    api.volume()
    assert ceph.run("rbd", "ls", "anew") == ""
    assert api.get("/limits")["limits"]["absolute"]["totalVolumesUsed"] == 3
    ((name, backend),) = service.backends.items()
    done = new_storage.accept(service.db, name, backend, service.context.installation, 30)
    assert {volume, snapshotted, snapshot} == set(done.lost)
    service.report()
    (report,) = service.pool_reports.reports().values()
    assert report.up, report.reason
    assert api.action(f"volumes/{volume}", "os-force_delete", {}).status == 202
    left = api("GET", f"/volumes/{volume}")
    assert left.status == 404, (left.body, reason(api, volume), api.get("/messages"))
    assert api.volume()["status"] == "available"
    ceph.run("ceph", "osd", "pool", "rm", "anew", "anew", "--yes-i-really-really-mean-it")
