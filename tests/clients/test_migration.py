"""Volumes that others made, and volumes that move: what an administrator types and scripts, on two backends.

Each command line starts a process and costs about a second, so each looks at much at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import Cloud

# What openstacksdk 4.22 says about itself, whatever one asks of it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Support for InfluxDB requires"),
    pytest.mark.filterwarnings("ignore:The 'service_type' parameter is unnecesary"),
    pytest.mark.filterwarnings("ignore:The _compute_attributes method is deprecated"),
]

FIRST, SECOND = "blockstore@disk", "blockstore@other"
GIB = 2**30


def place(cloud: Cloud, backend: str = "disk") -> Path:
    """Where a backend keeps its volumes."""
    return cloud.served.state_dir / backend / "volumes"


def foreign(cloud: Cloud, name: str, text: bytes = b"theirs") -> str:
    """Put a volume there that blockstore knows nothing of; return its reference."""
    path = place(cloud) / f"{name}.raw"
    with path.open("wb") as file:
        file.write(text)
        file.truncate(GIB)
    path.chmod(0o600)
    return path.name


def begins(cloud: Cloud, volume: dict[str, Any]) -> bytes:
    """Return the first bytes of a volume, where its row says that it is."""
    host, name_id = volume["os-vol-host-attr:host"], volume["os-vol-mig-status-attr:name_id"]
    backend = host.partition("@")[2].partition("#")[0]
    with (place(cloud, backend) / f"volume-{name_id or volume['id']}.raw").open("rb") as file:
        return file.read(6)


class TestTwoBackends:
    """Two of the plugin directory."""

    backend = "plugin = directory\n[backend:other]\nplugin = directory\nmax_over_subscription_ratio = 1000\n"

    @pytest.fixture
    def storage(self, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        """openstack.connect().block_storage where the openrc was evaluated."""
        import openstack

        for variable in [v for v in os.environ if v.startswith(("OS_", "CINDER"))]:
            monkeypatch.delenv(variable)
        for variable, value in cloud.environment.items():
            monkeypatch.setenv(variable, value)
        with openstack.connect() as connection:
            yield connection.block_storage
            connection.session.session.close()

    @staticmethod
    def shown(cloud: Cloud, volume_id: str) -> dict[str, Any]:
        found: dict[str, Any] = cloud.get(f"/volumes/{volume_id}")["volume"]
        return found

    @staticmethod
    def blockstore(cloud: Cloud, *arguments: str, status: int = 0) -> str:
        """Run our own command."""
        state = ("--state-dir", str(cloud.served.state_dir), "--config", str(cloud.served.state_dir / "config.ini"))
        said = cloud.run("blockstore", *arguments, *state)
        assert (said[0], said[2]) == (status, ""), said
        return said[1]

    def test_cinder_lists_takes_over_and_lets_go(self, cloud: Cloud, name: str) -> None:
        """manageable-list, manage, snapshot-manage, snapshot-manageable-list, snapshot-unmanage, unmanage."""
        references = [foreign(cloud, f"{name}-{number}") for number in range(3)]
        rows = cloud.cinder("manageable-list", f"{FIRST}#disk", "--sort", "reference:asc")
        assert [json.loads(row["reference"].replace("'", '"'))["source-name"] for row in rows] == references
        assert {row["safe_to_manage"] for row in rows} == {"True"}
        marker = json.dumps({"source-name": references[0]})
        page = cloud.cinder(
            "manageable-list",
            FIRST,
            "--detailed",
            "True",
            "--limit",
            "1",
            "--sort",
            "reference:asc",
            "--marker",
            marker,
        )
        assert [row["reference"] for row in page] == [f"{{'source-name': '{references[1]}'}}"]
        assert (page[0]["reason_not_safe"], page[0]["cinder_id"]) == ("-", "-")

        made = cloud.cinder_shown(
            "manage", FIRST, references[0], "--name", name, "--description", "found", "--bootable",
            "--metadata", "color=red",
        )  # fmt: skip
        assert (made["status"], made["size"]) == ("creating", "0")
        cloud.settle()
        volume = self.shown(cloud, made["id"])
        assert (volume["status"], volume["size"], volume["bootable"]) == ("available", 1, "true")
        assert begins(cloud, volume) == b"theirs"
        assert "is already managed" in cloud.cinder_fails("manage", FIRST, f"volume-{made['id']}.raw")

        shot = cloud.cinder_shown("snapshot-create", made["id"], "--name", name)["id"]
        cloud.settle()
        assert "unmanage or delete them first" in cloud.cinder_fails("unmanage", name)
        cloud.cinder("snapshot-unmanage", shot)
        (row,) = cloud.cinder("snapshot-manageable-list", FIRST, "--detailed", "True")
        assert row["safe_to_manage"] == "True"
        reference = row["reference"].split("'")[3]
        again = cloud.cinder_shown("snapshot-manage", made["id"], reference, "--name", f"{name}-s")
        cloud.settle()
        (row,) = cloud.cinder("snapshot-manageable-list", FIRST, "--detailed", "True")
        assert (row["reason_not_safe"], row["cinder_id"]) == ("already managed", again["id"])
        cloud.cinder("snapshot-delete", again["id"])
        cloud.settle()
        cloud.cinder("unmanage", name)
        assert cloud.get("/volumes")["volumes"] == []
        assert (place(cloud) / f"volume-{made['id']}.raw").read_bytes()[:6] == b"theirs"
        assert "has several pools" not in cloud.cinder_fails("manageable-list", "nowhere")
        for path in place(cloud).glob("*.raw"):
            path.unlink()

    def test_openstack_takes_over_moves_and_retypes(self, cloud: Cloud, name: str) -> None:
        """volume create --remote-source, snapshot create --remote-source, migrate, set --type, delete --remote."""
        reference = foreign(cloud, name)
        made = cloud.openstack_json("volume create --host", FIRST, "--remote-source", f"source-name={reference}", name)
        cloud.settle()
        assert self.shown(cloud, made["id"])["status"] == "available"
        cloud.openstack("volume migrate --host", f"{SECOND}#other", name)
        cloud.settle()
        moved = self.shown(cloud, made["id"])
        assert (moved["os-vol-host-attr:host"], moved["migration_status"]) == (f"{SECOND}#other", "success")
        assert begins(cloud, moved) == b"theirs"
        assert list(place(cloud).glob("*.raw")) == []
        assert "is on blockstore@other#other already" in cloud.openstack_fails("volume migrate --host", SECOND, name)

        cloud.openstack("volume type create --property volume_backend_name=disk", name)
        cloud.openstack("volume set --type", name, "--migration-policy", "never", name)
        cloud.settle()
        kept = self.shown(cloud, made["id"])
        assert (kept["status"], kept["os-vol-host-attr:host"]) == ("available", f"{SECOND}#other")
        cloud.openstack("volume set --type", name, "--migration-policy", "on-demand", name)
        cloud.settle()
        volume = self.shown(cloud, made["id"])
        assert (volume["volume_type"], volume["os-vol-host-attr:host"]) == (name, f"{FIRST}#disk")
        assert begins(cloud, volume) == b"theirs"

        cloud.openstack("volume snapshot create --volume", name, name)
        cloud.settle()
        shot = cloud.openstack_json("volume snapshot list --volume", name)[0]["ID"]
        cloud.openstack("volume snapshot delete --remote", shot)
        stem = f"volume-{volume['os-vol-mig-status-attr:name_id']}"
        assert (place(cloud) / "snapshots" / stem / f"snap-{shot}.raw").exists()
        cloud.openstack(
            "volume snapshot create --volume", name, "--remote-source", f"source-name=snap-{shot}.raw", f"{name}-s"
        )
        cloud.settle()
        (back,) = cloud.openstack_json("volume snapshot list --volume", name)
        assert (back["Name"], back["Status"]) == (f"{name}-s", "available")
        cloud.openstack("volume snapshot delete", f"{name}-s")
        cloud.settle()
        cloud.openstack("volume delete --remote", name)
        assert cloud.get("/volumes")["volumes"] == []
        (place(cloud) / f"{stem}.raw").unlink()
        cloud.openstack("volume type delete", name)

    def test_the_sdk_takes_over_moves_and_retypes(self, cloud: Cloud, storage: Any, name: str) -> None:
        """manage_volume, manage_snapshot, migrate_volume, retype_volume, unmanage_snapshot, unmanage_volume."""
        from openstack import exceptions

        reference = foreign(cloud, name)
        made = storage.manage_volume(host=FIRST, ref={"source-name": reference}, name=name)
        cloud.settle()
        storage.migrate_volume(made.id, host=SECOND)
        cloud.settle()
        volume = storage.get_volume(made.id)
        assert (volume.status, volume.migration_status, volume.host) == ("available", "success", f"{SECOND}#other")
        with pytest.raises(exceptions.BadRequestException, match="cannot be completed by a request"):
            storage.complete_volume_migration(made.id, made.id)
        kind = storage.create_type(name=name, extra_specs={"volume_backend_name": "disk"})
        storage.retype_volume(made.id, kind.id, "on-demand")
        cloud.settle()
        shown = self.shown(cloud, made.id)
        assert (shown["volume_type"], shown["os-vol-host-attr:host"]) == (name, f"{FIRST}#disk")
        assert begins(cloud, shown) == b"theirs"
        shot = storage.create_snapshot(volume_id=made.id)
        cloud.settle()
        storage.unmanage_snapshot(shot.id)
        back = storage.manage_snapshot(volume_id=made.id, ref={"source-name": f"snap-{shot.id}.raw"})
        cloud.settle()
        assert storage.get_snapshot(back.id).status == "available"
        storage.delete_snapshot(back.id)
        cloud.settle()
        storage.unmanage_volume(made.id)
        assert list(storage.volumes()) == []
        (path,) = place(cloud).glob("*.raw")
        path.unlink()
        storage.delete_type(kind)

    def test_our_own_command_explains_and_drains(self, cloud: Cloud, name: str) -> None:
        """schedule explain, backend drain --dry-run, backend drain, operation list."""
        ids = [cloud.openstack_json("volume create --size 1", f"{name}-{number}")["id"] for number in range(2)]
        cloud.settle()
        hosts = {one: self.shown(cloud, one)["os-vol-host-attr:host"] for one in ids}
        crowded = hosts[ids[0]].partition("@")[2].partition("#")[0]
        there = {one for one in ids if hosts[one] == hosts[ids[0]]}

        told = self.blockstore(cloud, "schedule", "explain", "--size", "10", "--type", "__DEFAULT__")
        assert [line.split()[1] for line in told.splitlines()[1:3]] != []
        assert "CapacityWeigher" in told
        assert "The volume would be placed on blockstore@" in told
        refused = self.blockstore(cloud, "schedule", "explain", "--size", "100000000", status=1)
        assert "CapacityFilter: " in refused
        assert "No pool can take the volume." in refused

        plan = self.blockstore(cloud, "backend", "drain", crowded, "--dry-run")
        assert all(one in plan for one in there)
        assert f"{len(there)} of {len(there)} volumes would be migrated." in plan
        assert self.shown(cloud, ids[0])["os-vol-host-attr:host"] == hosts[ids[0]]
        assert f"{len(there)} of {len(there)} volumes are being migrated." in self.blockstore(
            cloud, "backend", "drain", crowded
        )
        cloud.settle()
        left = {self.shown(cloud, one)["os-vol-host-attr:host"] for one in ids}
        assert left == {f"{host}#{host.partition('@')[2]}" for host in (FIRST, SECOND)} - {hosts[ids[0]]}
        operations = self.blockstore(cloud, "operation", "list", "--resource", ids[0])
        assert "MigrateVolume" in operations
        assert "100 %" not in operations.splitlines()[0]
        cloud.openstack("volume service set --enable", f"blockstore@{crowded}", "cinder-volume")
        assert "No volumes are on" in self.blockstore(cloud, "backend", "drain", crowded, "--dry-run")
        cloud.remove(*ids)
