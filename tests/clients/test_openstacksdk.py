"""openstacksdk, connected from the environment alone, against a served process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from tests.clients.conftest import MAX_LIMIT, POOL, SERVICE, Cloud

# What openstacksdk 4.22 says about itself, whatever one asks of it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Support for InfluxDB requires"),
    pytest.mark.filterwarnings("ignore:The 'service_type' parameter is unnecesary"),
    pytest.mark.filterwarnings("ignore:The ignore_missing parameter of all find_"),
    pytest.mark.filterwarnings("ignore:The _compute_attributes method is deprecated"),
]

NOBODY = "00000000-0000-0000-0000-000000000000"


class Journeys:
    """What a script does; a subclass names the backend."""

    backend: ClassVar[str]

    @pytest.fixture
    def connection(self, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        """openstack.connect() where the openrc was evaluated."""
        import openstack

        for variable in [v for v in os.environ if v.startswith(("OS_", "CINDER"))]:
            monkeypatch.delenv(variable)
        for variable, value in cloud.environment.items():
            monkeypatch.setenv(variable, value)
        with openstack.connect() as connection:
            yield connection
            connection.session.session.close()

    @pytest.fixture
    def storage(self, connection: Any) -> Any:
        """The connection's block storage."""
        return connection.block_storage

    @staticmethod
    def ready(storage: Any, resource: Any) -> Any:
        """Wait as scripts do."""
        # The resource may have been available when it was last looked at; the SDK believes that.
        return storage.wait_for_status(resource.fetch(storage), "available", ["error"], interval=0.02, wait=30)

    @staticmethod
    def gone(storage: Any, *resources: Any) -> None:
        """Wait for the end, as scripts do."""
        for resource in resources:
            storage.wait_for_delete(resource, interval=0.02, wait=30)

    def test_a_volume_from_create_to_delete(self, storage: Any, name: str) -> None:
        """Create, show, update, flags, metadata, extend, state, list, delete."""
        volume = self.ready(storage, storage.create_volume(name=name, size=1, metadata={"color": "red"}))
        assert storage.default_microversion == "3.64"
        storage.update_volume(volume, name=f"{name}-new", description="warm")
        storage.set_volume_bootable_status(volume, True)
        storage.set_volume_readonly(volume, True)
        storage.set_volume_metadata(volume, shape="round", color="blue")
        storage.delete_volume_metadata(volume, ["color"])
        assert storage.fetch_volume_metadata(volume).metadata == {"shape": "round"}
        storage.extend_volume(volume, 2)
        volume = self.ready(storage, volume)
        assert (volume.name, volume.description, volume.size) == (f"{name}-new", "warm", 2)
        assert (volume.is_bootable, volume.volume_type, volume.is_encrypted) == (True, "__DEFAULT__", False)
        assert volume.metadata == {"shape": "round", "readonly": "True"}
        assert volume.host.startswith(POOL)
        assert volume.project_id == "admin"
        assert storage.find_volume(f"{name}-new").id == volume.id
        assert [v.id for v in storage.volumes(details=False, name=f"{name}-new")] == [volume.id]
        storage.reset_volume_status(volume, "error", "detached", "none")
        assert storage.get_volume(volume).status == "error"
        storage.delete_volume(volume, ignore_missing=False, force=True)
        self.gone(storage, volume)
        assert storage.find_volume(volume.id) is None

    def test_snapshots_copies_and_revert(self, storage: Any, name: str) -> None:
        """Snapshot create, update, metadata, list; a volume from it, a clone, revert, cascade."""
        volume = self.ready(storage, storage.create_volume(name=name, size=1))
        snapshot = self.ready(storage, storage.create_snapshot(volume_id=volume.id, name=name, metadata={"a": "b"}))
        storage.update_snapshot(snapshot, name=f"{name}-s", description="early")
        storage.set_snapshot_metadata(snapshot, c="d")
        storage.delete_snapshot_metadata(storage.get_snapshot(snapshot), ["a"])
        (shown,) = storage.snapshots(volume_id=volume.id)
        assert (shown.id, shown.name, shown.description) == (snapshot.id, f"{name}-s", "early")
        assert (shown.size, shown.status, shown.metadata) == (1, "available", {"c": "d"})

        copy = self.ready(storage, storage.create_volume(name=name, size=2, snapshot_id=snapshot.id))
        clone = self.ready(storage, storage.create_volume(name=name, size=1, source_volume_id=volume.id))
        assert (copy.snapshot_id, copy.size, clone.source_volume_id) == (snapshot.id, 2, volume.id)
        storage.revert_volume_to_snapshot(volume, snapshot)
        self.ready(storage, volume)
        storage.reset_snapshot_status(snapshot, "error")
        assert storage.get_snapshot(snapshot).status == "error"
        storage.reset_snapshot_status(snapshot, "available")

        second = self.ready(storage, storage.create_snapshot(volume_id=volume.id, name=f"{name}-2"))
        storage.delete_snapshot(second, ignore_missing=False)
        self.gone(storage, second)
        storage.delete_volume(volume, ignore_missing=False, cascade=True)
        storage.delete_volume(copy)
        storage.delete_volume(clone)
        self.gone(storage, volume, copy, clone, snapshot)

    def test_types(self, storage: Any, name: str) -> None:
        """Create with extra specs, update, list, access of a private one, delete."""
        kind = storage.create_type(name=name, is_public=False, extra_specs={"volume_backend_name": "disk"})
        storage.update_type(kind, description="hello")
        storage.update_type_extra_specs(kind, tier="gold")
        shown = storage.find_type(name)
        assert (shown.id, shown.is_public, shown.description) == (kind.id, False, "hello")
        assert shown.extra_specs == {"volume_backend_name": "disk", "tier": "gold"}
        storage.delete_type_extra_specs(kind, ["tier"])
        assert [t.name for t in storage.types(is_public=False)] == [name]
        assert [t.name for t in storage.types()] == ["__DEFAULT__"]
        storage.add_type_access(kind, "demo")
        assert storage.get_type_access(kind) == [{"volume_type_id": kind.id, "project_id": "demo"}]
        storage.remove_type_access(kind, "demo")
        assert storage.get_type_access(kind) == []
        volume = self.ready(storage, storage.create_volume(size=1, volume_type=name))
        storage.delete_volume(volume)
        self.gone(storage, volume)
        storage.delete_type(kind, ignore_missing=False)
        assert storage.find_type(name) is None

    def test_what_an_operator_sees(self, storage: Any, name: str) -> None:
        """Pools, services and their switch, zones, totals, limits, and the message of a create that failed."""
        (pool,) = storage.backend_pools()
        assert pool.name.startswith(POOL)
        assert pool.capabilities["volume_backend_name"] == "disk"
        assert [z.name for z in storage.availability_zones()] == ["nova"]
        assert storage.get_limits().absolute.max_total_volumes == 40
        (service,) = storage.services(binary="cinder-volume")
        assert (service.host, service.status, service.backend_state) == (SERVICE, "enabled", "up")
        storage.disable_service(service, reason="moving house")
        try:
            assert storage.find_service("cinder-volume").disabled_reason == "moving house"
            volume = storage.create_volume(name=name, size=1, metadata={"m": name})
            storage.wait_for_status(volume, "error", [], interval=0.02, wait=30)
        finally:
            storage.enable_service(service)
        totals = storage.summary(all_projects=True)
        assert totals.total_count >= 1
        assert name in totals.metadata["m"]
        (message,) = [m for m in storage.messages() if m.resource_uuid == volume.id]
        assert "moving house" in message.user_message
        storage.delete_message(message, ignore_missing=False)
        storage.delete_volume(volume)
        self.gone(storage, volume)

    def test_mistakes_are_said_plainly(self, storage: Any) -> None:
        """Not found and over quota are exceptions of their own, with our sentence."""
        from openstack import exceptions

        with pytest.raises(exceptions.NotFoundException, match=f"Volume {NOBODY} could not be found"):
            storage.delete_volume(NOBODY, ignore_missing=False)
        with pytest.raises(exceptions.NotFoundException, match=f"Volume {NOBODY} could not be found"):
            storage.get_volume(NOBODY)
        storage.delete_volume(NOBODY)
        with pytest.raises(exceptions.HttpException, match="Requested 5000G, quota is 1000G") as caught:
            storage.create_volume(size=5000)
        assert caught.value.status_code == 413
        with pytest.raises(exceptions.BadRequestException, match="It must be from 1 to"):
            storage.create_volume(size=0)

    def test_lists_longer_than_a_page(self, cloud: Cloud, storage: Any) -> None:
        """The client follows the links and yields all; a limit is the size of a page."""
        number = 2 * MAX_LIMIT + 1
        prefix = cloud.make_volumes(number)
        volumes = [v for v in storage.volumes() if v.name.startswith(prefix)]
        assert sorted(v.name for v in volumes) == [f"{prefix}{i}" for i in range(number)]
        assert len([v for v in storage.volumes(limit=2) if v.name.startswith(prefix)]) == number
        snapshots = [storage.create_snapshot(volume_id=v.id, name=v.name) for v in volumes]
        for snapshot in snapshots:
            self.ready(storage, snapshot)
        assert {s.id for s in snapshots} <= {s.id for s in storage.snapshots()}
        for volume in volumes:
            storage.delete_volume(volume, cascade=True)
        self.gone(storage, *volumes)


class TestDirectory(Journeys):
    """On the directory backend."""

    backend = "plugin = directory\n"

    def test_the_layer_above_waits_by_itself(self, connection: Any, name: str) -> None:
        """The calls of the connection itself, by name; once is enough, for it looks every two seconds."""
        volume = connection.create_volume(1, name=name, wait=True, timeout=60)
        assert connection.get_volume(name).status == "available"
        assert volume.id in [v.id for v in connection.list_volumes()]
        assert connection.delete_volume(name, wait=True, timeout=60) is True
        assert connection.get_volume(name) is None


class TestMemory(Journeys):
    """On the memory backend."""

    backend = "plugin = memory\n"
