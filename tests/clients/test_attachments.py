"""Attachments by the clients of others, against a served process: openstacksdk, cinderclient, and the command lines.

cinderclient is driven as Nova's ``nova/volume/cinder.py`` drives it. The target is ``local``, so the connectors need
nothing of the kernel; os-brick is in ``test_os_brick.py``.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.clients.conftest import Cloud

HERE = socket.gethostname()
INITIATOR = "iqn.1993-08.org.debian:01:clients"
CONNECTOR = {
    "platform": "x86_64",
    "os_type": "linux",
    "ip": "127.0.0.1",
    "host": HERE,
    "initiator": INITIATOR,
    "multipath": False,
    "do_local_attach": False,
    "nvme_native_multipath": False,
}
"""What os-brick says on a host without peculiarities."""


class Volumes:
    """A class of tests with a volume that is gone, with all that was attached, at the end."""

    backend = "plugin = directory\n"

    @pytest.fixture
    def volume(self, cloud: Cloud) -> Iterator[str]:
        """The id of a volume."""
        prefix = cloud.make_volumes(1)
        (made,) = cloud.get(f"/volumes?name={prefix}0")["volumes"]
        yield made["id"]
        left, status = cloud.get("/attachments")["attachments"], cloud.status(made["id"])
        for one in left:
            cloud.delete(f"/attachments/{one['id']}")
        cloud.remove(made["id"])
        assert (left, status) == ([], "available")

    @staticmethod
    def file_of(cloud: Cloud, volume: str) -> str:
        """Where a volume's bytes are."""
        return str(cloud.served.state_dir / "disk/volumes" / f"volume-{volume}.raw")


# What openstacksdk 4.22 says about itself, whatever one asks of it.
@pytest.mark.filterwarnings("ignore:Support for InfluxDB requires")
@pytest.mark.filterwarnings("ignore:The 'service_type' parameter is unnecesary")
@pytest.mark.filterwarnings("ignore:The _compute_attributes method is deprecated")
class TestSdk(Volumes):
    """openstacksdk, as Ironic and its like use it."""

    @pytest.fixture
    def storage(self, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        """The block storage of openstack.connect()."""
        import openstack

        for variable in [v for v in os.environ if v.startswith(("OS_", "CINDER"))]:
            monkeypatch.delenv(variable)
        for variable, value in cloud.environment.items():
            monkeypatch.setenv(variable, value)
        with openstack.connect() as connection:
            yield connection.block_storage
            connection.session.session.close()

    def test_an_attachment_from_reserve_to_delete(self, cloud: Cloud, storage: Any, volume: str) -> None:
        """create_attachment, update, get, complete, delete; the volume says each step."""
        server = str(uuid.uuid4())
        made = storage.create_attachment(volume, connector={}, instance=server, mode="ro")
        assert (made.status, made.volume_id, made.instance, made.attach_mode) == ("reserved", volume, server, "ro")
        assert made.connection_info == {}
        assert storage.get_volume(volume).status == "reserved"
        made = storage.update_attachment(made, connector=CONNECTOR)
        assert made.status == "attaching"
        assert made.connection_info["driver_volume_type"] == "local"
        assert made.connection_info["device_path"] == self.file_of(cloud, volume)
        assert (made.connection_info["access_mode"], made.connection_info["attachment_id"]) == ("ro", made.id)
        storage.complete_attachment(made)
        assert storage.get_attachment(made.id).status == "attached"
        shown = storage.get_volume(volume)
        (view,) = shown.attachments
        assert (shown.status, view["attachment_id"], view["server_id"], view["host_name"]) == (
            "in-use", made.id, server, HERE,
        )  # fmt: skip
        storage.delete_attachment(made, ignore_missing=False)
        assert storage.get_volume(volume).attachments == []
        storage.delete_attachment(made.id)  # gone is as good as deleted

    def test_attachments_are_listed_and_filtered(self, cloud: Cloud, storage: Any, volume: str) -> None:
        """By volume, server, status and project; longer than a page."""
        more = cloud.make_volumes(4)
        others = [v["id"] for v in cloud.get("/volumes?limit=3")["volumes"] if v["name"].startswith(more)]
        server = str(uuid.uuid4())
        first = storage.create_attachment(volume, instance=server)
        rest = [storage.create_attachment(other) for other in others]
        storage.update_attachment(first, connector=CONNECTOR)

        def listed(**query: Any) -> list[str]:
            return sorted(one.id for one in storage.attachments(**query))

        everything = sorted(one.id for one in (first, *rest))
        assert listed() == listed(details=False) == listed(limit=1) == listed(all_projects=True) == everything
        assert listed(volume_id=volume) == listed(instance_id=server) == listed(status="attaching") == [first.id]
        assert listed(volume_id=volume, status="reserved") == []
        for one in (first, *rest):
            storage.delete_attachment(one, ignore_missing=False)
        cloud.remove(*(v["id"] for v in storage.volumes() if v.name.startswith(more)))

    def test_the_older_actions(self, cloud: Cloud, storage: Any, volume: str) -> None:
        """reserve, unreserve, init, attach, begin, abort, terminate, detach; then the force."""
        from openstack import exceptions

        def status() -> str:
            return str(storage.get_volume(volume).status)

        storage.reserve_volume(volume)
        assert status() == "attaching"
        storage.unreserve_volume(volume)
        assert status() == "available"
        storage.reserve_volume(volume)
        info = storage.init_volume_attachment(volume, CONNECTOR)
        assert (info["driver_volume_type"], info["data"]["device_path"]) == ("local", self.file_of(cloud, volume))
        storage.attach_volume(volume, "/dev/vdb", host_name=HERE)
        (view,) = storage.get_volume(volume).attachments
        assert (view["device"], view["host_name"]) == ("/dev/vdb", HERE)
        storage.begin_volume_detaching(volume)
        assert status() == "detaching"
        storage.abort_volume_detaching(volume)
        assert status() == "in-use"
        storage.begin_volume_detaching(volume)
        storage.terminate_volume_attachment(volume, CONNECTOR)
        storage.detach_volume(volume, view["attachment_id"])
        assert status() == "available"

        storage.attach_volume(volume, "/dev/vdb", instance=str(uuid.uuid4()))
        (view,) = storage.get_volume(volume).attachments
        storage.detach_volume(volume, view["attachment_id"], force=True, connector=CONNECTOR)
        with pytest.raises(exceptions.BadRequestException, match="it has no extension to complete"):
            storage.complete_volume_extend(volume)

    def test_who_comes_second_is_told_who_holds_it(self, storage: Any, volume: str) -> None:
        """A volume that is taken, and a connector of another node."""
        from openstack import exceptions

        first = storage.create_attachment(volume)
        with pytest.raises(exceptions.BadRequestException, match=f"is reserved; .* held by attachment {first.id}"):
            storage.create_attachment(volume)
        with pytest.raises(exceptions.BadRequestException, match=r"'host' is elsewhere\.example"):
            storage.update_attachment(first, connector={**CONNECTOR, "host": "elsewhere.example"})
        assert storage.get_attachment(first).status == "reserved"
        storage.delete_attachment(first, ignore_missing=False)


class TestAsNova(Volumes):
    """python-cinderclient, with the arguments and the order of Nova's."""

    @pytest.fixture
    def cinder(self, cloud: Cloud) -> Iterator[Any]:
        """A client of the microversion that Nova asks for."""
        from cinderclient import client

        connection = cloud.session()
        yield client.Client("3.44", session=connection)
        connection.session.close()

    def test_reserve_connect_complete_and_detach(self, cloud: Cloud, cinder: Any, volume: str) -> None:
        """What nova-compute does with a volume of a server."""
        server = str(uuid.uuid4())
        reserved = cinder.attachments.create(volume, None, server)
        assert (reserved["status"], reserved["connection_info"]) == ("reserved", {})
        # Nova adds the mountpoint, and reads connection_info of the reply.
        updated = cinder.attachments.update(reserved["id"], {**CONNECTOR, "mountpoint": "/dev/vdb"}).to_dict()
        assert updated["connection_info"]["device_path"] == self.file_of(cloud, volume)
        assert updated["attach_mode"] == "rw"
        assert cinder.attachments.complete(reserved["id"]).status_code == 204
        assert cinder.volumes.get(volume).attachments == [
            {
                "id": volume, "attachment_id": reserved["id"], "volume_id": volume, "server_id": server,
                "host_name": HERE, "device": "/dev/vdb",
                "attached_at": cinder.attachments.show(reserved["id"]).attached_at,
            }
        ]  # fmt: skip
        cinder.volumes.begin_detaching(volume)
        cinder.volumes.roll_detaching(volume)
        cinder.volumes.begin_detaching(volume)
        cinder.attachments.delete(reserved["id"])
        assert cinder.attachments.list(search_opts={"volume_id": volume}) == []

    def test_a_server_moves_to_another_host(self, cinder: Any, volume: str) -> None:
        """Live migration: the same server has a second attachment, connected before the first one is ended."""
        server = str(uuid.uuid4())
        source = cinder.attachments.create(volume, {**CONNECTOR, "mountpoint": "/dev/vdb"}, server)
        cinder.attachments.complete(source["id"])
        goal = cinder.attachments.create(volume, None, server)
        # The target local knows one host only; so the second one is refused as the same place, and ended again.
        with pytest.raises(Exception, match="is connected already"):
            cinder.attachments.update(goal["id"], CONNECTOR)
        cinder.attachments.delete(goal["id"])
        assert cinder.volumes.get(volume).status == "in-use"
        cinder.attachments.delete(source["id"])

    def test_the_older_flow(self, cloud: Cloud, cinder: Any, volume: str) -> None:
        """reserve, initialize_connection, attach; begin_detaching, terminate_connection, detach."""
        server = str(uuid.uuid4())
        cinder.volumes.reserve(volume)
        connection = cinder.volumes.initialize_connection(volume, CONNECTOR)
        assert connection["driver_volume_type"] == "local"
        assert connection["data"]["device_path"] == self.file_of(cloud, volume)
        cinder.volumes.attach(volume, server, "/dev/vdb", mode="rw")
        (view,) = cinder.volumes.get(volume).attachments
        cinder.volumes.begin_detaching(volume)
        cinder.volumes.terminate_connection(volume, CONNECTOR)
        cinder.volumes.detach(volume, view["attachment_id"])
        assert cinder.volumes.get(volume).status == "available"

    def test_an_attach_that_fails_is_taken_back(self, cinder: Any, volume: str) -> None:
        """Nova's clean-up: terminate_connection and unreserve, where nothing was attached."""
        cinder.volumes.reserve(volume)
        cinder.volumes.initialize_connection(volume, CONNECTOR)
        cinder.volumes.terminate_connection(volume, CONNECTOR)
        cinder.volumes.unreserve(volume)
        assert cinder.volumes.get(volume).status == "available"

    def test_a_host_that_died_is_forced_off(self, cinder: Any, volume: str) -> None:
        """os-force_detach, as cinderclient sends it."""
        cinder.volumes.initialize_connection(volume, CONNECTOR)
        cinder.volumes.attach(volume, str(uuid.uuid4()), "/dev/vdb")
        cinder.volumes._action("os-force_detach", volume, {"connector": CONNECTOR})
        assert cinder.volumes.get(volume).status == "available"


class TestCinder(Volumes):
    """The command line ``cinder``."""

    def test_an_attachment_from_create_to_delete(self, cloud: Cloud, volume: str) -> None:
        """attachment-create, -update, -complete, -show, -list, -delete."""
        server = str(uuid.uuid4())
        made = cloud.cinder_shown("attachment-create", volume, server)
        assert (made["status"], made["instance"], made["attach_mode"]) == ("reserved", server, "null")
        cloud.cinder("attachment-update", made["id"], "--host", HERE, "--initiator", INITIATOR, "--ip", "127.0.0.1")
        cloud.cinder("attachment-complete", made["id"])
        shown = cloud.cinder_shown("attachment-show", made["id"])
        assert (shown["status"], shown["attach_mode"]) == ("attached", "rw")
        assert shown["device_path"] == self.file_of(cloud, volume)
        row = {"ID": made["id"], "Volume ID": volume, "Status": "attached", "Server ID": server}
        assert cloud.cinder("attachment-list") == [row]
        assert cloud.cinder("attachment-list", "--volume-id", volume, "--status", "attached") == [row]
        assert cloud.cinder("attachment-list", "--status", "reserved") == []
        (listed,) = cloud.cinder("list")
        assert (listed["Status"], listed["Attached to"]) == ("in-use", server)
        cloud.cinder("attachment-delete", made["id"])

    def test_connected_at_once_and_read_only(self, cloud: Cloud, volume: str) -> None:
        """attachment-create --connect, with and without the mode that 3.54 brought."""
        made = cloud.cinder_shown("attachment-create", "--connect", "True", "--host", HERE, "--mode", "ro", volume)
        assert (made["status"], made["attach_mode"], made["access_mode"]) == ("attaching", "ro", "ro")
        said = cloud.cinder_fails("attachment-create", volume)
        assert f"It is held by attachment {made['id']}" in said
        cloud.cinder("attachment-delete", made["id"])
        old = ("--os-volume-api-version", "3.27")
        made = cloud.cinder_shown(*old, "attachment-create", "--connect", "True", "--host", HERE, volume)
        assert (made["status"], made["attach_mode"]) == ("attaching", "rw")
        cloud.cinder(*old, "attachment-delete", made["id"])


class Nova(BaseHTTPRequestHandler):
    """As much of a compute service as ``openstack volume attachment create`` asks for: every server is there."""

    def do_GET(self) -> None:
        """Answer with the version, or with a server of any id."""
        kind, server = self.path.partition("?")[0].strip("/").partition("/")[2].partition("/")[::2]
        here = f"http://{self.headers['Host']}/v2.1/"
        version = {"id": "v2.1", "status": "CURRENT", "version": "2.96", "min_version": "2.1",
                   "links": [{"rel": "self", "href": here}]}  # fmt: skip
        answer: dict[str, Any] = {"server": {"id": server, "name": "web"}} if server else {"version": version}
        if kind == "servers" and server == "detail":
            answer = {"servers": []}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_said: object) -> None:
        """Say nothing."""


class TestOpenstack(Volumes):
    """The command line ``openstack``."""

    @pytest.fixture
    def nova(self, cloud: Cloud) -> Iterator[None]:
        """With a compute service beside us, which ``volume attachment create`` cannot do without."""
        with ThreadingHTTPServer(("127.0.0.1", 0), Nova) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            cloud.environment["OS_COMPUTE_ENDPOINT_OVERRIDE"] = f"http://127.0.0.1:{server.server_port}/v2.1"
            yield
            del cloud.environment["OS_COMPUTE_ENDPOINT_OVERRIDE"]
            server.shutdown()
            thread.join()

    @pytest.mark.usefixtures("nova")
    def test_an_attachment_from_create_to_delete(self, cloud: Cloud, volume: str) -> None:
        """volume attachment create, set, complete, list, show, delete; what volume list and show say of it."""
        server = str(uuid.uuid4())
        made = cloud.openstack_json("volume attachment create --server", server, volume)
        assert (made["Status"], made["Volume ID"], made["Instance ID"]) == ("reserved", volume, server)
        aid = made["ID"]
        ours = ("--host", HERE, "--initiator", INITIATOR, "--ip", "127.0.0.1", "--mountpoint", "/dev/vdb")
        set_ = cloud.openstack_json("volume attachment set", aid, *ours)
        assert (set_["Status"], set_["Attach Mode"]) == ("attaching", "rw")
        assert set_["Properties"]["device_path"] == self.file_of(cloud, volume)
        cloud.openstack("volume attachment complete", aid)
        row = {"ID": aid, "Volume ID": volume, "Server ID": server, "Status": "attached"}
        assert cloud.openstack_json("volume attachment list --all-projects --status attached") == [row]
        shown = cloud.openstack_json("volume attachment show", aid)
        assert (shown["Status"], shown["Properties"]["attachment_id"]) == ("attached", aid)
        assert shown["Attached At"] != ""
        volume_shown = cloud.openstack_json("volume show", volume)
        assert volume_shown["status"] == "in-use"
        assert [(a["server_id"], a["device"]) for a in volume_shown["attachments"]] == [(server, "/dev/vdb")]
        (listed,) = cloud.openstack_json("volume list")
        assert [(a["server_id"], a["device"]) for a in listed["Attached to"]] == [(server, "/dev/vdb")]
        said = cloud.openstack_fails("volume delete", volume)
        assert f"volume {volume} cannot be deleted: it is attached." in said
        cloud.openstack("volume attachment delete", aid)
        assert cloud.openstack_json("volume attachment list") == []

    @pytest.mark.usefixtures("nova")
    def test_connected_at_once_with_its_mode(self, cloud: Cloud, volume: str) -> None:
        """create --connect --mode; an older microversion has neither mode nor complete."""
        server = str(uuid.uuid4())
        arguments = ("--connect", "--host", HERE, "--server", server, volume)
        made = cloud.openstack_json("volume attachment create --mode ro", *arguments)
        assert (made["Status"], made["Attach Mode"]) == ("attaching", "ro")
        assert made["Properties"]["access_mode"] == "ro"
        cloud.openstack("volume attachment delete", made["ID"])
        said = cloud.openstack_fails("--os-volume-api-version 3.53 volume attachment create --mode ro", *arguments)
        assert "3.54 or greater is required" in said
        # Below 3.54 openstacksdk 4.22 sends a mode of null all the same, which no service of those versions takes.
        said = cloud.openstack_fails("--os-volume-api-version 3.53 volume attachment create", *arguments)
        assert "attachment.mode" in said
        made = cloud.cinder_shown("attachment-create", volume, server)
        old = "--os-volume-api-version 3.27 volume attachment"
        assert cloud.openstack_json(f"{old} set", made["id"], "--host", HERE)["Attach Mode"] == "rw"
        assert "3.44 or greater is required" in cloud.openstack_fails(f"{old} complete", made["id"])
        cloud.openstack(f"{old} delete", made["id"])
