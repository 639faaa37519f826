"""A server that dies, fills up or turns read-only in the middle of the work: bounded, told, and nothing is lost."""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from blockstore.app.service import Service
from blockstore.manager import copying
from blockstore.manager.context import volume_name
from tests.api.volumes.test_migration import move, row, shown, whole
from tests.conftest import Client, backend_section
from tests.held_calls import held, holding

from .conftest import SERVED, run

pytestmark = [pytest.mark.lab, pytest.mark.slow]

MIB = 2**20
BYTES = os.urandom(48 * MIB)
SPACE_MIB = 160
TIMEOUT_S = 8
SOON_S = 5.0
"""Less than a call to the dead server takes: its client gives up after three quarters of ``TIMEOUT_S``."""
ENDS_S = 600.0
"""When a test gives up what must happen: a busy machine may need long for it."""
SMALL = SERVED / "small"
NAS, DISK, OTHER = "blockstore@nas#nas", "blockstore@disk#disk", "blockstore@other#other"


def export(mode: str) -> None:
    run("exportfs", "-o", f"{mode},no_root_squash,insecure,no_subtree_check,fsid=7", f"127.0.0.1:{SMALL}")


def stop_server() -> None:
    run("rpc.nfsd", "0")


def start_server() -> None:
    run("rpc.nfsd", "-N", "3", "-V", "4", "-U", "2")  # as the lab starts it
    with suppress(OSError):
        Path("/proc/fs/nfsd/v4_end_grace").write_text("Y")


def fill_up() -> None:
    with (SMALL / "fill").open("wb") as file, suppress(OSError):
        for at in itertools.count():
            os.posix_fallocate(file.fileno(), at * MIB, MIB)


def turn_read_only() -> None:
    export("ro")


TOLD: dict[Callable[[], None], str] = {
    stop_server: "The NFS server of 127.0.0.1:/small does not answer correctly: .*Check the server",
    fill_up: "did not fit.* GiB free|No space left.* GiB free",
    turn_read_only: "127.0.0.1:/small is read-only. Export it read-write on its server",
}
"""What people are told."""


def mend() -> None:
    """Take every fault away."""
    (SMALL / "fill").unlink(missing_ok=True)
    export("rw")
    if Path("/proc/fs/nfsd/threads").read_text().strip() == "0":
        start_server()


@pytest.fixture
def api(start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr("blockstore.operations.bus.RETRY_DELAYS_S", (0.5, 1.0))
    SERVED.chmod(0o755)
    SMALL.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={SPACE_MIB}m,mode=755", "small", str(SMALL))
    export("rw")
    sections = (
        backend_section("nas", "nfs", exports="127.0.0.1:/small", timeout_s=str(TIMEOUT_S)),
        backend_section("disk", "directory"),
        backend_section("other", "directory"),
    )
    service = start_service(backends=sections)
    service.report()
    api = Client(service)
    for name in ("nas", "other"):
        body = {"volume_type": {"name": name, "extra_specs": {"volume_backend_name": name}}}
        assert api("POST", "/types", body).status == 200
    yield api
    mend()
    service.stop()
    run("umount", "-f", "-l", str(service.backends[NAS].path))  # type: ignore[attr-defined]
    run("exportfs", "-u", f"127.0.0.1:{SMALL}")
    run("umount", "-l", str(SMALL))
    SMALL.rmdir()


def volume(api: Client, place: str) -> str:
    """A volume with bytes."""
    hosts = [f"blockstore@{name}" for name in ("nas", "disk", "other") if name != place]
    for host in hosts:
        api("PUT", "/os-services/disable", {"binary": "cinder-volume", "host": host})
    made = api.volume()
    for host in hosts:
        api("PUT", "/os-services/enable", {"binary": "cinder-volume", "host": host})
    assert made["status"] == "available", api("GET", "/messages").json
    found = row(api, made["id"])
    with api.service.backends[str(found.host)].open_volume(volume_name(found), "r+b") as file:
        for at in range(0, len(BYTES), MIB):
            file.write(BYTES[at : at + MIB])
    return str(made["id"])


def holds(api: Client, volume_id: str) -> bool:
    found = row(api, volume_id)
    with api.service.backends[str(found.host)].open_volume(volume_name(found), "rb") as file:
        return b"".join(file.read(MIB) for _ in range(0, len(BYTES), MIB)) == BYTES


def said(api: Client, volume_id: str) -> str:
    """Return the newest message about a volume."""
    (text, *_) = (m["user_message"] for m in api.get("/messages")["messages"] if m["resource_uuid"] == volume_id)
    return str(text)


def ended(api: Client, volume_id: str) -> None:
    """Wait until nothing goes on with a volume."""
    deadline = time.monotonic() + ENDS_S
    while shown(api, volume_id)["status"] in ("maintenance", "creating", "downloading", "deleting"):
        assert time.monotonic() < deadline, api.service.bus.running()
        time.sleep(0.05)


def others_go_on(api: Client) -> None:
    """Whoever has nothing to do with the share does not wait for it: who did would at no time be quick."""
    deadline, took = time.monotonic() + ENDS_S, SOON_S
    while took >= SOON_S:  # the machine may be busy
        assert time.monotonic() < deadline
        began = time.monotonic()
        made = api("POST", "/volumes", {"volume": {"size": 1, "volume_type": "other"}}).json["volume"]["id"]
        ended(api, made)
        assert shown(api, made)["status"] == "available"
        api.get("/volumes/detail")
        took = time.monotonic() - began


def is_down(api: Client) -> str:
    """Look at the pools; return why the share is down, as it is shown to people."""
    api.service.report()
    (pool,) = (p for p in api.get("/scheduler-stats/explain?size=1")["explanation"]["pools"] if p["name"] == NAS)
    (service,) = (s for s in api.get("/os-services")["services"] if s["host"] == "blockstore@nas")
    assert service["backend_state"] == "down"
    return str(pool["reason"])


def is_up_again(api: Client) -> None:
    """Wait until the pool is up, everything left over is gone, and a volume can be made and removed there."""
    deadline = time.monotonic() + ENDS_S
    while True:
        api.service.report()
        report = api.service.pool_reports.get(NAS)
        if report is not None and report.up:
            break
        assert time.monotonic() < deadline, report
        time.sleep(0.2)
    api.wait_idle(ENDS_S)
    whole(api)
    made = api.volume(volume_type="nas")
    assert made["status"] == "available"
    api("DELETE", f"/volumes/{made['id']}")
    api.wait_idle(ENDS_S)
    whole(api)


@contextmanager
def in_the_middle(monkeypatch: pytest.MonkeyPatch, method: str, fault: Callable[[], None]) -> Iterator[threading.Event]:
    """Let a fault happen when a third of a copy is done, and the copy end after the block; give what tells of it."""
    count, real = itertools.count(1), getattr(copying._Side, method)
    struck, over = threading.Event(), threading.Event()

    def with_fault(side: Any, *arguments: Any) -> Any:
        if next(count) == 5:
            fault()
            struck.set()
        return (held(real, over) if struck.is_set() else real)(side, *arguments)

    monkeypatch.setattr(copying._Side, method, with_fault)
    try:
        yield struck
    finally:
        over.set()


def test_server_whose_disk_is_not_mounted(api: Client) -> None:
    """The export leads to the directory below, under the same name and file system id."""
    kept, deleted = volume(api, "nas"), volume(api, "nas")
    aside = SERVED / "aside"
    aside.mkdir()
    run("mount", "--bind", str(SMALL), str(aside))
    run("exportfs", "-u", f"127.0.0.1:{SMALL}")
    run("umount", "-l", str(SMALL))
    export("rw")
    run("exportfs", "-f")
    try:
        api("DELETE", f"/volumes/{deleted}")  # before anybody has looked
        api.wait_idle(ENDS_S)
        assert (aside / f"volume-{deleted}.raw").exists()
        assert shown(api, deleted)["status"] == "error_deleting"
        backend = api.service.backends[NAS]
        deadline = time.monotonic() + 2 * ENDS_S
        while f"{backend.recognised} is recorded, and none was found" not in (why := is_down(api)):
            assert time.monotonic() < deadline, why  # to unmount what was there may take the lab more than one look
        assert api.volume(volume_type="nas")["status"] == "error"
        assert list(SMALL.iterdir()) == []
    finally:
        run("exportfs", "-u", f"127.0.0.1:{SMALL}")
        run("mount", "--bind", str(aside), str(SMALL))
        export("rw")
        run("exportfs", "-f")
        run("umount", "-l", str(aside))
        aside.rmdir()
    is_up_again(api)
    assert holds(api, kept)
    assert api.action(f"volumes/{deleted}", "os-force_delete", {}).status == 202
    assert api("GET", f"/volumes/{deleted}").status == 404


@pytest.mark.parametrize("fault", [stop_server, fill_up, turn_read_only])
def test_a_move_to_the_share(api: Client, monkeypatch: pytest.MonkeyPatch, fault: Callable[[], None]) -> None:
    made = volume(api, "disk")
    with in_the_middle(monkeypatch, "write", fault) as struck:
        assert move(api, made, "blockstore@nas").status == 202
        assert struck.wait(ENDS_S)
        others_go_on(api)
        assert shown(api, made)["status"] == "maintenance"
    ended(api, made)
    found = shown(api, made)
    assert (found["status"], found["migration_status"]) == ("available", "error")
    assert found["os-vol-host-attr:host"] == DISK
    assert re.search(TOLD[fault], said(api, made))
    assert holds(api, made)
    if fault is not fill_up:
        assert re.search(TOLD[fault], is_down(api))
        others_go_on(api)
    mend()
    is_up_again(api)
    monkeypatch.undo()
    assert move(api, made, "blockstore@nas").status == 202
    api.wait_idle(ENDS_S)
    assert shown(api, made)["os-vol-host-attr:host"] == NAS
    assert holds(api, made)


@pytest.mark.parametrize("fault", [stop_server, turn_read_only])
def test_a_move_from_the_share(api: Client, monkeypatch: pytest.MonkeyPatch, fault: Callable[[], None]) -> None:
    made = volume(api, "nas")
    Path("/proc/sys/vm/drop_caches").write_text("3")  # what was just written would be read from memory
    with in_the_middle(monkeypatch, "read", fault) as struck:
        assert move(api, made, "blockstore@disk").status == 202
        assert struck.wait(ENDS_S)
        others_go_on(api)
        assert shown(api, made)["status"] == "maintenance"
    ended(api, made)
    found = shown(api, made)
    assert found["status"] == "available"
    if fault is stop_server:
        assert (found["migration_status"], found["os-vol-host-attr:host"]) == ("error", NAS)
        assert re.search("on nas cannot be read: .*Check that storage", said(api, made))
    else:
        assert (found["migration_status"], found["os-vol-host-attr:host"]) == ("success", DISK)
    assert re.search(TOLD[fault], is_down(api))
    others_go_on(api)
    mend()
    is_up_again(api)
    assert holds(api, made)


def test_work_begun_while_the_server_is_dead(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    made = volume(api, "nas")
    stop_server()
    with holding(monkeypatch, api.service.backends[NAS], "create_volume", "clone_volume", "create_snapshot"):
        asked = {"create": {"size": 1, "volume_type": "nas"}, "clone": {"size": 1, "source_volid": made}}
        begun = {what: api("POST", "/volumes", {"volume": body}).json["volume"]["id"] for what, body in asked.items()}
        shot = api("POST", "/snapshots", {"snapshot": {"volume_id": made}}).json["snapshot"]["id"]
        others_go_on(api)
        assert {shown(api, volume_id)["status"] for volume_id in begun.values()} == {"creating"}
    for what, volume_id in begun.items():
        ended(api, volume_id)
        assert shown(api, volume_id)["status"] == "error", what
        assert re.search(TOLD[stop_server], said(api, volume_id))
    api.wait_idle(ENDS_S)
    assert api.get(f"/snapshots/{shot}")["snapshot"]["status"] == "error"
    assert re.search(TOLD[stop_server], said(api, shot))
    assert re.search(TOLD[stop_server], is_down(api))
    mend()
    is_up_again(api)
    for volume_id in begun.values():
        assert api("DELETE", f"/volumes/{volume_id}").status == 202
        api.wait_idle(ENDS_S)
    assert api("DELETE", f"/snapshots/{shot}").status == 202
    api.wait_idle(ENDS_S)
    left = {one["id"] for one in api.get("/volumes")["volumes"]}
    assert made in left
    assert not left & set(begun.values())
    whole(api)
    assert holds(api, made)
