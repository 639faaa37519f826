"""python-cinderclient against a served process: the library, and the command line ``cinder``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from tests.clients.conftest import MAX_LIMIT, POOL, SERVICE, Cloud

NOBODY = "00000000-0000-0000-0000-000000000000"


class Library:
    """What a script does; a subclass names the backend."""

    backend: ClassVar[str]

    @pytest.fixture
    def cinder(self, cloud: Cloud) -> Iterator[Any]:
        """The library's client, logged in by password; the catalogue puts the project in the path."""
        from cinderclient import client

        connection = cloud.session()
        yield client.Client(cloud.environment["OS_VOLUME_API_VERSION"], session=connection)
        connection.session.close()

    def test_a_volume_from_create_to_delete(self, cloud: Cloud, cinder: Any, name: str) -> None:
        """Create, show, update, flags, metadata, extend, state, list, delete."""
        volume = cinder.volumes.create(1, name=name, metadata={"color": "red"})
        cloud.settle()
        cinder.volumes.update(volume, name=f"{name}-new", description="warm")
        cinder.volumes.set_bootable(volume, True)
        cinder.volumes.update_readonly_flag(volume, True)
        cinder.volumes.set_metadata(volume, {"shape": "round", "color": "blue"})
        cinder.volumes.delete_metadata(volume, ["color"])
        cinder.volumes.extend(volume, 2)
        cloud.settle()
        volume.get()
        assert (volume.name, volume.description, volume.size) == (f"{name}-new", "warm", 2)
        assert (volume.status, volume.bootable, volume.volume_type) == ("available", "true", "__DEFAULT__")
        assert volume.metadata == {"shape": "round", "readonly": "True"}
        assert getattr(volume, "os-vol-host-attr:host").startswith(POOL)
        assert volume.volume_type_id  # a field of 3.63: the microversion of openrc is in use
        assert [v.id for v in cinder.volumes.list(search_opts={"name": f"{name}-new"})] == [volume.id]
        cinder.volumes.reset_state(volume, "error")
        assert cloud.status(volume.id) == "error"
        cinder.volumes.force_delete(volume)
        cloud.settle()
        assert cinder.volumes.list(search_opts={"name": f"{name}-new"}) == []

    def test_snapshots_copies_and_revert(self, cloud: Cloud, cinder: Any, name: str) -> None:
        """Snapshot create, update, metadata, list; a volume from it, a clone, revert, cascade."""
        volume = cinder.volumes.create(1, name=name)
        cloud.settle()
        snapshot = cinder.volume_snapshots.create(volume.id, name=name, metadata={"a": "b"})
        cloud.settle()
        snapshot.update(name=f"{name}-s", description="early")
        snapshot.set_metadata({"c": "d"})
        snapshot.delete_metadata(["a"])
        (shown,) = cinder.volume_snapshots.list(search_opts={"volume_id": volume.id})
        assert (shown.id, shown.name, shown.description) == (snapshot.id, f"{name}-s", "early")
        assert (shown.size, shown.status, shown.metadata) == (1, "available", {"c": "d"})

        copy = cinder.volumes.create(2, snapshot_id=snapshot.id)
        clone = cinder.volumes.create(None, source_volid=volume.id)
        cloud.settle()
        assert [cinder.volumes.get(v.id).status for v in (copy, clone)] == ["available", "available"]
        cinder.volumes.revert_to_snapshot(volume, snapshot)
        cloud.settle()
        snapshot.reset_state("error")
        assert cinder.volume_snapshots.get(snapshot.id).status == "error"
        cinder.volumes.delete(volume, cascade=True)
        cinder.volumes.delete(copy)
        cinder.volumes.delete(clone)
        cloud.settle()
        assert cinder.volumes.list() == []
        assert cinder.volume_snapshots.list() == []

    def test_types(self, cinder: Any, name: str) -> None:
        """Create, extra specs, list, access of a private one, delete; the default one."""
        kind = cinder.volume_types.create(name, description="hello", is_public=False)
        kind.set_keys({"volume_backend_name": "disk", "tier": "gold"})
        kind.unset_keys(["tier"])
        assert kind.get_keys() == {"volume_backend_name": "disk"}
        assert [t.name for t in cinder.volume_types.list(is_public=False)] == [name]
        cinder.volume_type_access.add_project_access(kind, "demo")
        assert [a.project_id for a in cinder.volume_type_access.list(kind)] == ["demo"]
        cinder.volume_type_access.remove_project_access(kind, "demo")
        assert cinder.volume_type_access.list(kind) == []
        cinder.volume_types.update(kind, name=f"{name}-new")
        assert cinder.volume_types.get(kind).name == f"{name}-new"
        cinder.volume_types.delete(kind)
        assert cinder.volume_types.default().name == "__DEFAULT__"

    def test_what_an_operator_sees(self, cloud: Cloud, cinder: Any, name: str) -> None:
        """Pools, services and their switch, zones, totals, limits, and the message of a create that failed."""
        (pool,) = cinder.pools.list(detailed=True)
        assert pool.name.startswith(POOL)
        assert pool.volume_backend_name == "disk"
        assert [(z.zoneName, z.zoneState) for z in cinder.availability_zones.list()] == [("nova", {"available": True})]
        assert {limit.name: limit.value for limit in cinder.limits.get().absolute}["maxTotalVolumes"] == 40
        cinder.services.disable_log_reason(SERVICE, "cinder-volume", "moving house")
        try:
            (service,) = cinder.services.list(binary="cinder-volume")
            assert (service.host, service.status, service.disabled_reason) == (SERVICE, "disabled", "moving house")
            volume = cinder.volumes.create(1, name=name, metadata={"m": name})
            cloud.settle()
        finally:
            cinder.services.enable(SERVICE, "cinder-volume")
        assert cinder.volumes.get(volume.id).status == "error"
        totals = cinder.volumes.summary(all_tenants=True)["volume-summary"]
        assert totals["total_count"] >= 1
        assert name in totals["metadata"]["m"]
        (message,) = cinder.messages.list(search_opts={"resource_uuid": volume.id})
        assert "moving house" in cinder.messages.get(message.id).user_message
        cinder.messages.delete(message)
        cinder.volumes.delete(volume)
        cloud.settle()

    def test_mistakes_are_said_plainly(self, cinder: Any) -> None:
        """Not found and over quota are exceptions of their own, with our sentence."""
        from cinderclient import exceptions

        with pytest.raises(exceptions.NotFound, match=f"Volume {NOBODY} could not be found"):
            cinder.volumes.delete(NOBODY)
        with pytest.raises(exceptions.OverLimit, match="Requested 5000G, quota is 1000G"):
            cinder.volumes.create(5000)
        with pytest.raises(exceptions.BadRequest, match="It must be from 1 to"):
            cinder.volumes.create(0)

    def test_lists_longer_than_a_page(self, cloud: Cloud, cinder: Any) -> None:
        """The client follows the links and returns all, or as many as were asked for."""
        number = 2 * MAX_LIMIT + 1
        prefix = cloud.make_volumes(number)
        volumes = cinder.volumes.list(sort="name:asc")
        assert [v.name for v in volumes] == [f"{prefix}{i}" for i in range(number)]
        assert len(cinder.volumes.list(limit=MAX_LIMIT + 2)) == MAX_LIMIT + 2
        cloud.remove(*(v.id for v in volumes))


class TestLibraryDirectory(Library):
    """On the directory backend."""

    backend = "plugin = directory\n"


class TestLibraryMemory(Library):
    """On the memory backend."""

    backend = "plugin = memory\n"


class CommandLine:
    """What a user of the older command line does; a subclass names the backend."""

    backend: ClassVar[str]

    def test_volumes(self, cloud: Cloud, name: str) -> None:
        """Create and wait, rename, metadata, flags, extend, snapshot, revert, copy, cascade."""
        made = cloud.cinder_shown("create", "--name", name, "--metadata", "a=b", "--poll", "1")
        assert made["status"] == "available"
        cloud.cinder("rename", name, f"{name}-new")
        cloud.cinder("metadata", made["id"], "set", "c=d")
        cloud.cinder("extend", made["id"], "2")
        cloud.settle()
        shown = cloud.cinder_shown("show", f"{name}-new")
        assert (shown["id"], shown["size"], shown["status"]) == (made["id"], "2", "available")
        assert "volume_type_id" in shown  # a field of 3.63: the microversion of openrc is in use
        snapshot = cloud.cinder_shown("snapshot-create", "--name", name, made["id"])
        cloud.settle()
        (row,) = cloud.cinder("snapshot-list", "--volume-id", made["id"])
        assert (row["ID"], row["Status"], row["Size"]) == (snapshot["id"], "available", "2")
        cloud.cinder("revert-to-snapshot", name)
        copy = cloud.cinder_shown("create", "--snapshot-id", snapshot["id"], "--poll", "--name", f"{name}-copy")
        assert (copy["size"], copy["status"]) == ("2", "available")
        cloud.cinder("reset-state", "--state", "error", copy["id"])
        cloud.cinder("force-delete", copy["id"])
        cloud.cinder("delete", "--cascade", made["id"])
        cloud.settle()
        assert cloud.cinder("list") == []

    def test_what_an_operator_sees(self, cloud: Cloud, name: str) -> None:
        """Limits, services, pools; a private type and who may use it."""
        limits = {row["Name"]: row["Value"] for row in cloud.cinder("absolute-limits")}
        assert (limits["maxTotalVolumes"], limits["totalVolumesUsed"]) == ("40", "0")
        rows = {row["Binary"]: row for row in cloud.cinder("service-list")}
        assert rows["cinder-volume"]["Host"] == SERVICE
        assert rows["cinder-volume"]["Backend State"] == "up"
        assert [row["Value"][: len(POOL)] for row in cloud.cinder("get-pools") if row["Property"] == "name"] == [POOL]
        (kind,) = cloud.cinder("type-create", "--is-public", "false", name)
        cloud.cinder("type-access-add", "--volume-type", name, "--project-id", "demo")
        assert cloud.cinder("type-access-list", "--volume-type", name) == [
            {"Volume_type_ID": kind["ID"], "Project_ID": "demo"}
        ]
        cloud.cinder("type-delete", name)

    def test_mistakes_are_said_plainly(self, cloud: Cloud, name: str) -> None:
        """Not found is the client's own sentence; over quota is ours."""
        said = cloud.cinder_fails("delete", name)
        assert said.splitlines() == [
            f"Delete for volume {name} failed: No volume with a name or ID of '{name}' exists.",
            "ERROR: Unable to delete any of the specified volumes.",
        ]
        said = cloud.cinder_fails("create", "5000")
        assert said.startswith("ERROR: VolumeSizeExceedsAvailableQuota: ")
        assert "Requested 5000G, quota is 1000G" in said

    def test_lists_longer_than_a_page(self, cloud: Cloud) -> None:
        """The command shows all."""
        number = 2 * MAX_LIMIT + 1
        prefix = cloud.make_volumes(number)
        rows = cloud.cinder("list", "--sort", "name:asc")
        assert [row["Name"] for row in rows] == [f"{prefix}{i}" for i in range(number)]
        cloud.remove(*(row["ID"] for row in rows))


class TestCommandLineDirectory(CommandLine):
    """On the directory backend."""

    backend = "plugin = directory\n"
