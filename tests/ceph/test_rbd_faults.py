"""A cluster that is stuck, through the whole service: requests settle, others are served, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from blockstore.app.service import Service
from blockstore.db.models import OperationRow
from blockstore.errors import NoSpace
from tests.api.volumes.test_migration import bound, fill, holds, idle, move, shown, whole
from tests.ceph.conftest import Ceph, down, looked_at
from tests.conftest import Client, backend_section
from tests.held_calls import holding

pytestmark = [pytest.mark.ceph, pytest.mark.slow]

RBD, DISK = "blockstore@ceph", "blockstore@disk"
TIMEOUT_S = 6
SETTLES_S = 600
CONNECTOR = {"host": "elsewhere", "ip": "192.0.2.1"}


@pytest.fixture
def hurt(new_ceph: Callable[..., Ceph]) -> Iterator[Ceph]:
    cluster = new_ceph("--size", "2G")
    cluster.run("ceph", "tell", "osd.0", "config", "set", "osd_client_watch_timeout", "10")  # of clients that are dead
    yield cluster
    down(cluster)


@pytest.fixture
def api(hurt: Ceph, way: str, start_service: Callable[..., Service]) -> Iterator[Client]:
    options = {"ceph_conf": str(hurt.conf), "user": "cinder", "keyring": str(hurt.keyring), "bindings": way}
    sections = (
        backend_section("ceph", "rbd", timeout_s=str(TIMEOUT_S), **options),
        backend_section("disk", "directory"),
    )
    client = Client(looked_at(start_service(backends=sections)))
    for backend in ("ceph", "disk"):
        bound(client, backend)
    yield client
    os.kill(hurt.pid("osd"), signal.SIGCONT)  # a test that failed may have left it stopped


@contextmanager
def stuck(ceph: Ceph) -> Iterator[None]:
    """Stop the OSD for a time: no call that touches data is answered, and none refused."""
    os.kill(ceph.pid("osd"), signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(ceph.pid("osd"), signal.SIGCONT)


def on(api: Client, host: str, **fields: Any) -> str:
    """File a volume that can be on one backend only; return its id."""
    other = {"binary": "cinder-volume", "host": DISK if host == RBD else RBD}
    api("PUT", "/os-services/disable", other)
    made = api("POST", "/volumes", {"volume": {"size": 1, **fields}})
    assert made.status == 202, made.body
    until(lambda: shown(api, made.json["volume"]["id"])["os-vol-host-attr:host"])
    api("PUT", "/os-services/enable", other)
    return str(made.json["volume"]["id"])


def until(true: Callable[[], Any], within_s: float = SETTLES_S) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def settled(api: Client, volume_id: str, status: str) -> None:
    until(lambda: shown(api, volume_id)["status"] == status)


def story(api: Client, one_id: str) -> str:
    """Why what was asked of a volume or snapshot failed."""
    with api.service.db.read() as session:
        found = session.scalars(select(OperationRow.reason).where(OperationRow.resource_id == one_id))
        return " ".join(reason for reason in found if reason)


def works(api: Client, host: str) -> None:
    """A volume is made and removed on a backend, and waits for no timeout: what did would at no time be quick."""
    deadline, took = time.monotonic() + SETTLES_S, float(TIMEOUT_S)
    while took >= TIMEOUT_S:  # the machine may be busy
        assert time.monotonic() < deadline
        began = time.monotonic()
        body = {"size": 1, "volume_type": f"only {host.partition('@')[2]}"}
        made = api("POST", "/volumes", {"volume": body}).json["volume"]["id"]
        settled(api, made, "available")
        api("DELETE", f"/volumes/{made}")
        until(lambda made=made: api("GET", f"/volumes/{made}").status == 404)  # type: ignore[misc]
        took = time.monotonic() - began


def pool(api: Client) -> Any:
    """What the scheduler's pools say of Ceph, by a look of now."""
    api.service.report()
    found = api.get("/scheduler-stats/get_pools?detail=true")["pools"]
    return next(one["capabilities"] for one in found if one["name"].startswith(RBD))


def comes_back(api: Client, hurt: Ceph) -> None:
    until(lambda: pool(api)["backend_state"] == "up")
    # The watcher of a connection that was given up lives on for a while, and removing is tried ever more rarely.
    until(lambda: api.service.bus.wait_idle(1), within_s=SETTLES_S)
    whole(api)
    works(api, RBD)


def trash(ceph: Ceph) -> str:
    return ceph.run("rbd", "trash", "ls", "volumes")


@pytest.mark.parametrize("source", [DISK, RBD], ids=["to it", "from it"])
def test_stuck_in_the_middle_of_a_move(api: Client, hurt: Ceph, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The move is given up and the volume is what it was; the copy that was begun goes when the cluster lets it."""
    made = on(api, source)
    settled(api, made, "available")
    fill(api, made)
    backend = next(one for host, one in api.service.backends.items() if host.startswith(RBD))
    opened = backend.open_volume

    @contextmanager
    def stop_when_open(name: str, mode: Any) -> Iterator[Any]:
        with opened(name, mode) as file:
            os.kill(hurt.pid("osd"), signal.SIGSTOP)
            yield file

    monkeypatch.setattr(backend, "open_volume", stop_when_open)
    with stuck(hurt):  # for its end; it goes on until the volume is open
        os.kill(hurt.pid("osd"), signal.SIGCONT)
        destination = RBD if source == DISK else DISK
        assert move(api, made, destination).status == 202
        settled(api, made, "available")
        found = shown(api, made)
        assert (found["migration_status"], found["os-vol-host-attr:host"].partition("#")[0]) == ("error", source)
        assert "does not answer" in story(api, made)
        monkeypatch.undo()
        works(api, DISK)
        said = pool(api)
        assert said["backend_state"] == "down"
    comes_back(api, hurt)
    assert holds(api, made)
    assert move(api, made, destination).status == 202
    idle(api)
    assert shown(api, made)["migration_status"] == "success"
    assert holds(api, made)
    whole(api)
    api("DELETE", f"/volumes/{made}")
    idle(api)
    whole(api)
    assert trash(hurt) == ""


def test_stuck_while_volumes_are_made_and_deleted(api: Client, hurt: Ceph, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked settles with its reason; what failed can be deleted, and all works without a restart."""
    kept, gone = on(api, RBD), on(api, RBD)
    for one in (kept, gone):
        settled(api, one, "available")
    fill(api, kept)
    backend = next(one for host, one in api.service.backends.items() if host.startswith(RBD))
    with stuck(hurt):
        with holding(monkeypatch, backend, "create_volume", "delete_volume", "create_snapshot"):
            made = on(api, RBD)
            assert api("DELETE", f"/volumes/{gone}").status == 202
            shot = api("POST", "/snapshots", {"snapshot": {"volume_id": kept}}).json["snapshot"]["id"]
            works(api, DISK)
            assert [shown(api, one)["status"] for one in (made, gone)] == ["creating", "deleting"]
        assert pool(api)["backend_state"] == "down"
        settled(api, gone, "error_deleting")
        until(lambda: api("GET", f"/snapshots/{shot}").json["snapshot"]["status"] == "error")
        settled(api, made, "error")
        assert all("does not answer" in story(api, one) for one in (made, shot))
        assert "does not answer" in story(api, gone)
    comes_back(api, hurt)
    assert holds(api, kept)
    for one in (made, gone):
        assert api("POST", f"/volumes/{one}/action", {"os-force_delete": {}}).status == 202
    assert api("DELETE", f"/snapshots/{shot}").status == 202
    idle(api)
    whole(api)
    assert holds(api, kept)
    assert api("DELETE", f"/volumes/{kept}").status == 202
    idle(api)
    whole(api)
    assert hurt.run("rbd", "ls", "volumes") + trash(hurt) == ""


def test_attaching_to_a_stuck_cluster(api: Client, hurt: Ceph) -> None:
    """The caller is told why, in time, and nobody else waits; afterwards the same volume can be attached."""
    made = on(api, RBD)
    settled(api, made, "available")
    body = {"os-initialize_connection": {"connector": CONNECTOR}}
    with stuck(hurt):
        began = time.monotonic()
        refused = api("POST", "/attachments", {"attachment": {"volume_uuid": made, "connector": CONNECTOR}})
        assert refused.status >= 400
        assert "does not answer" in refused.message
        assert time.monotonic() - began < SETTLES_S
        works(api, DISK)
    comes_back(api, hurt)
    for one in api.get("/attachments")["attachments"]:
        assert api("DELETE", f"/attachments/{one['id']}").status == 200
    settled(api, made, "available")
    answer = api("POST", f"/volumes/{made}/action", body)
    assert answer.status == 200, answer.body
    assert api("POST", f"/volumes/{made}/action", {"os-terminate_connection": {"connector": CONNECTOR}}).status == 202
    api("DELETE", f"/volumes/{made}")
    idle(api)
    whole(api)


def test_the_key_is_told_to_nobody(api: Client, hurt: Ceph, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a reply, nor the log, nor a file of the state holds it, also where things go wrong."""
    key = (hurt.folder / "cinder.secret").read_text().strip()
    assert key in hurt.keyring.read_text()
    replies = []

    def ask(method: str, path: str, body: Any = None) -> Any:
        replies.append(api(method, path, body))
        return replies[-1]

    with caplog.at_level("DEBUG"):
        made = on(api, RBD)
        settled(api, made, "available")
        ask("POST", f"/volumes/{made}/action", {"os-initialize_connection": {"connector": CONNECTOR}})
        attachment = ask("POST", "/attachments", {"attachment": {"volume_uuid": made, "connector": CONNECTOR}}).json
        ask("GET", f"/attachments/{attachment['attachment']['id']}")
        with stuck(hurt):
            ask("POST", "/snapshots", {"snapshot": {"volume_id": made}})
            until(lambda: api.service.bus.wait_idle(1))
            pool(api)
        for path in ("/messages", "/scheduler-stats/get_pools?detail=true", f"/volumes/{made}", "/os-services"):
            ask("GET", path)
    assert replies[0].status == 200
    assert all(key.encode() not in reply.body for reply in replies)
    assert "does not answer" in caplog.text
    assert key not in caplog.text
    files = [path for path in Path(api.service.config.service.state_dir).rglob("*") if path.is_file()]
    assert any(path.suffix == ".sqlite" or "db" in path.name for path in files), files
    assert not [path for path in files if path.stat().st_size < 2**24 and key.encode() in path.read_bytes()]


def is_full(ceph: Ceph) -> bool:
    pools = json.loads(ceph.run("ceph", "osd", "dump", "--format", "json"))["pools"]
    return any("full" in str(one["flags_names"]).split(",") for one in pools)


def test_a_full_cluster_is_emptied_by_its_users(api: Client, hurt: Ceph) -> None:
    """Snapshots and volumes can be deleted, and at once; new ones are refused until there is space again."""
    kept, gone = on(api, RBD), on(api, RBD)
    for one in (kept, gone):
        settled(api, one, "available")
    shot = api("POST", "/snapshots", {"snapshot": {"volume_id": gone}}).json["snapshot"]["id"]
    until(lambda: api("GET", f"/snapshots/{shot}").json["snapshot"]["status"] == "available")
    for image in hurt.run("rbd", "ls", "volumes").split():
        hurt.run("rbd", "bench", "--io-type", "write", "--io-total", "4M", "--io-size", "1M", f"volumes/{image}")
    for ratio, value in (("nearfull", "0.00002"), ("backfillfull", "0.00003"), ("full", "0.0001")):
        hurt.run("ceph", "osd", f"set-{ratio}-ratio", value)
    until(lambda: is_full(hurt))
    began = time.monotonic()
    assert api("DELETE", f"/snapshots/{shot}").status == 202
    until(lambda: api("GET", f"/snapshots/{shot}").status == 404)
    assert api("DELETE", f"/volumes/{gone}").status == 202
    until(lambda: api("GET", f"/volumes/{gone}").status == 404)
    assert time.monotonic() - began < 60
    assert len(hurt.run("rbd", "ls", "volumes").split()) == 1
    backend = next(one for host, one in api.service.backends.items() if host.startswith(RBD))
    with pytest.raises(NoSpace, match="The pool volumes is full"):
        backend.create_volume("volume-of-the-test", 1)
    for ratio, value in (("full", "0.99"), ("backfillfull", "0.98"), ("nearfull", "0.97")):
        hurt.run("ceph", "osd", f"set-{ratio}-ratio", value)
    until(lambda: not is_full(hurt) and pool(api)["free_capacity_gb"] > 0)
    api("DELETE", f"/volumes/{kept}")
    idle(api)
    whole(api)
    comes_back(api, hurt)
