"""The command line ``openstack``, of python-openstackclient, against a served process.

Each call starts a process and costs about a second, so each looks at much at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from tests.clients.conftest import MAX_LIMIT, POOL, SERVICE, Cloud


class Journeys:
    """What a user does; a subclass names the backend."""

    backend: ClassVar[str]

    @pytest.fixture
    def disabled(self, cloud: Cloud) -> Iterator[None]:
        """With its only backend out of service."""
        cloud.openstack("volume service set --disable --disable-reason", "moving house", SERVICE, "cinder-volume")
        yield
        cloud.openstack("volume service set --enable", SERVICE, "cinder-volume")

    def test_a_volume_from_create_to_delete(self, cloud: Cloud, name: str) -> None:
        """Create, show, set, unset, extend, list, delete."""
        made = cloud.openstack_json("volume create --size 1 --property color=red --description warm", name)
        assert made["size"] == 1
        assert made["properties"] == {"color": "red"}
        assert made["type"] == "__DEFAULT__"
        cloud.settle()

        cloud.openstack("volume set --size 2", name)
        cloud.settle()  # the client asks for one change after the other, and most want the volume available
        cloud.openstack(
            "volume set --bootable --read-only --property color=blue --property shape=round",
            "--name", f"{name}-new", "--description", "cold", name,
        )  # fmt: skip
        cloud.openstack("volume unset --property color", f"{name}-new")
        cloud.settle()
        shown = cloud.openstack_json("volume show", f"{name}-new")
        assert shown["id"] == made["id"]
        assert (shown["status"], shown["size"], shown["bootable"]) == ("available", 2, True)
        assert shown["description"] == "cold"
        assert shown["properties"] == {"shape": "round", "readonly": "True"}
        assert shown["os-vol-host-attr:host"].startswith(POOL)
        assert shown["os-vol-tenant-attr:tenant_id"] == "admin"
        assert "volume_type_id" in shown  # a field of 3.63: the microversion of openrc is in use

        cloud.openstack("volume set --read-write --non-bootable", made["id"])
        cloud.openstack("volume set --state error", made["id"])
        (row,) = cloud.openstack_json("volume list --long --status error --name", f"{name}-new")
        assert row == {
            "ID": made["id"], "Name": f"{name}-new", "Status": "error", "Size": 2, "Type": "__DEFAULT__",
            "Bootable": False, "Attached to": [], "Properties": {"shape": "round", "readonly": "False"},
        }  # fmt: skip
        cloud.openstack("volume delete --force", made["id"])
        cloud.settle()
        assert cloud.get("/volumes")["volumes"] == []

    def test_snapshots_copies_and_revert(self, cloud: Cloud, name: str) -> None:
        """Snapshot create, set, show, list; a volume from it, a clone, revert, cascade."""
        volume = cloud.openstack_json("volume create --size 1", name)["id"]
        cloud.settle()
        made = cloud.openstack_json("volume snapshot create --property a=b --volume", name, f"{name}-s")
        assert (made["volume_id"], made["size"], made["properties"]) == (volume, 1, {"a": "b"})
        cloud.settle()
        cloud.openstack("volume snapshot set --property c=d --description early --name", f"{name}-t", f"{name}-s")
        (row,) = cloud.openstack_json("volume snapshot list --long --volume", name)
        del row["Created At"]
        assert row == {
            "ID": made["id"], "Name": f"{name}-t", "Description": "early", "Status": "available", "Size": 1,
            "Volume": volume, "Properties": {"a": "b", "c": "d"},
        }  # fmt: skip

        copy = cloud.openstack_json("volume create --size 2 --snapshot", f"{name}-t", f"{name}-copy")
        assert (copy["snapshot_id"], copy["size"]) == (made["id"], 2)
        clone = cloud.openstack_json("volume create --source", name, f"{name}-clone")
        assert (clone["source_volid"], clone["size"]) == (volume, 1)
        cloud.settle()
        assert {cloud.status(copy["id"]), cloud.status(clone["id"])} == {"available"}

        cloud.openstack("volume revert", f"{name}-t")
        cloud.settle()
        assert cloud.get(f"/snapshots/{made['id']}")["snapshot"]["status"] == "available"

        said = cloud.openstack_fails("volume delete", name)
        assert f"volume {volume} cannot be deleted: it has 1 snapshot; delete them first, or with cascade." in said
        assert "1 of 1 volumes failed to delete." in said
        cloud.openstack("volume delete --cascade", name, copy["id"], clone["id"])
        cloud.settle()
        assert cloud.get("/snapshots")["snapshots"] == []

    def test_types(self, cloud: Cloud, name: str) -> None:
        """Create with extra specs, set, unset, show, list, use, delete; private ones are shown as such."""
        made = cloud.openstack_json("volume type create --private --property volume_backend_name=disk", name)
        assert (made["is_public"], made["properties"]) == (False, {"volume_backend_name": "disk"})
        cloud.openstack("volume type set --description hello --property tier=gold", name)
        shown = cloud.openstack_json("volume type show", name)
        assert (shown["description"], shown["access_project_ids"]) == ("hello", [])
        assert shown["properties"] == {"volume_backend_name": "disk", "tier": "gold"}
        cloud.openstack("volume type unset --property tier", name)
        assert cloud.openstack_json("volume type list --long --private") == [
            {"ID": made["id"], "Name": name, "Is Public": False, "Description": "hello",
             "Properties": {"volume_backend_name": "disk"}}
        ]  # fmt: skip
        volume = cloud.openstack_json("volume create --size 1 --type", name, name)
        assert volume["type"] == name
        cloud.settle()
        cloud.remove(volume["id"])
        cloud.openstack("volume type delete", name)

    def test_what_an_operator_sees(self, cloud: Cloud) -> None:
        """Pools, zones, totals, limits."""
        (pool,) = cloud.openstack_json("volume backend pool list --long")
        assert pool["Name"].startswith(POOL)
        assert pool["Capabilities"]["volume_backend_name"] == "disk"
        assert cloud.openstack_json("availability zone list --volume") == [
            {"Zone Name": "nova", "Zone Status": "available"}
        ]
        totals = cloud.get("/volumes/summary?all_tenants=1")["volume-summary"]
        summary = cloud.openstack_json("volume summary --all-projects")
        assert (summary["Total Count"], summary["Total Size"]) == (totals["total_count"], totals["total_size"])
        limits = {row["Name"]: row["Value"] for row in cloud.openstack_json("limits show --absolute")}
        assert (limits["max_total_volumes"], limits["max_total_volume_gigabytes"]) == (40, 1000)

    @pytest.mark.usefixtures("disabled")
    def test_why_a_volume_failed(self, cloud: Cloud, name: str) -> None:
        """A create that no pool takes, its service being switched off, ends in error, and the reason is a message."""
        services = {row["Binary"]: row for row in cloud.openstack_json("volume service list --long")}
        assert set(services) == {"cinder-scheduler", "cinder-volume"}
        service = services["cinder-volume"]
        # compat: of a disabled service Cinder does not know the backend's state.
        assert (service["Host"], service["State"], service["Backend State"]) == (SERVICE, "up", None)
        assert (service["Status"], service["Disabled Reason"]) == ("disabled", "moving house")
        volume = cloud.openstack_json("volume create --size 1", name)["id"]
        cloud.settle()
        assert cloud.status(volume) == "error"
        (row,) = [r for r in cloud.openstack_json("volume message list") if r["Resource UUID"] == volume]
        assert row["Message Level"] == "ERROR"
        assert "moving house" in row["User Message"]
        # openstacksdk 4.22 looks for the key messages in the reply, as no service sends it, and so shows only the id.
        assert cloud.openstack_json("volume message show", row["ID"])["ID"] == row["ID"]
        cloud.openstack("volume message delete", row["ID"])
        assert row["ID"] not in [m["id"] for m in cloud.get("/messages")["messages"]]
        cloud.remove(volume)

    def test_mistakes_are_said_plainly(self, cloud: Cloud, name: str) -> None:
        """Not found is the client's own sentence; over quota is ours."""
        said = cloud.openstack_fails("volume delete", name)
        assert said.splitlines() == [
            f"Failed to delete volume with name or ID '{name}': No Volume found for {name}",
            "1 of 1 volumes failed to delete.",
        ]
        assert cloud.openstack_fails("volume snapshot show", name).strip() == f"No Snapshot found for {name}"
        said = cloud.openstack_fails("volume create --size 5000", name)
        assert "exceeds allowed gigabytes quota. Requested 5000G, quota is 1000G" in said

    def test_lists_longer_than_a_page(self, cloud: Cloud) -> None:
        """The client follows the links and shows all."""
        prefix = cloud.make_volumes(2 * MAX_LIMIT + 1)
        rows: list[dict[str, Any]] = cloud.openstack_json("volume list --sort-column Name")
        ours = [row for row in rows if row["Name"].startswith(prefix)]
        assert [row["Name"] for row in ours] == [f"{prefix}{i}" for i in range(2 * MAX_LIMIT + 1)]
        cloud.remove(*(row["ID"] for row in ours))


class TestDirectory(Journeys):
    """On the directory backend."""

    backend = "plugin = directory\n"
