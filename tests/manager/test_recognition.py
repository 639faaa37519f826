"""Storage is known by what it is: another one in its place takes the pool down, and nothing on it is touched."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
from blockstore_plugins.directory import DirectoryBackend, DirectoryOptions
from blockstore_plugins.directory.files import Folder
from sqlalchemy import delete, select

from blockstore.app.service import Service
from blockstore.backends.memory import MemoryBackend
from blockstore.db.models import PoolIdentity
from blockstore.errors import BackendError, Unreachable
from blockstore.manager import new_storage, recognition
from tests.app.test_process import ask, blockstore, wait_for
from tests.conftest import Client, Served, backend_section, make_config
from tests.plugins.mounts import need, need_root

Serve = Callable[..., Served]
Start = Callable[..., Service]

BYTES = b"what the tenant wrote"


# --- a mount point without its disk ------------------------------------------------------------------------


@contextmanager
def disk(folder: Path) -> Iterator[Callable[[bool], Path]]:
    """Give a function that mounts a disk or unmounts it, and returns the mount point."""
    need_root()
    need("mount")
    image, point = folder / "disk.img", folder / "disk"
    point.mkdir(mode=0o755)
    with image.open("wb") as file:
        file.truncate(64 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)

    def mount(wanted: bool) -> Path:
        if wanted:
            subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True)
            point.chmod(0o700)
            (point / "lost+found").exists() and (point / "lost+found").rmdir()
        else:
            subprocess.run(["umount", str(point)], check=True)
        return point

    try:
        yield mount
    finally:
        subprocess.run(["umount", "-q", str(point)], check=False)


def make(served: Served) -> str:
    volume_id = str(ask(served, "POST", "/volumes", {"volume": {"size": 1}})["volume"]["id"])
    wait_for(lambda: status(served, volume_id) != "creating")
    return volume_id


def status(served: Served, volume_id: str) -> str:
    return {v["id"]: str(v["status"]) for v in ask(served, "GET", "/volumes/detail")["volumes"]}.get(volume_id, "gone")


def remove(served: Served, volume_id: str, *, force: bool = False) -> str:
    """Delete a volume; return its status when the operation has ended."""
    if force:
        ask(served, "POST", f"/volumes/{volume_id}/action", {"os-force_delete": {}})
    else:
        ask(served, "DELETE", f"/volumes/{volume_id}")
    wait_for(lambda: status(served, volume_id) != "deleting")
    return status(served, volume_id)


def used(served: Served) -> int:
    return int(ask(served, "GET", "/limits")["limits"]["absolute"]["totalVolumesUsed"])


def test_unmounted_mount_point_is_not_taken_for_the_disk(serve: Serve, tmp_path: Path) -> None:
    with disk(tmp_path) as mount:
        point = mount(True)
        config = (
            f"[service]\nreport_interval_s = 3600\n[backend:files]\nplugin = directory\npath = {point}\n"
            "max_over_subscription_ratio = 1000\nfill_limit_percentage = 100\nreserved_percentage = 0\n"
        )
        served = serve(config)
        kept, first, second = make(served), make(served), make(served)
        with (point / f"volume-{kept}.raw").open("r+b") as file:
            file.write(BYTES)
        identity = (point / ".blockstore-identity").read_text().split()[0]

        mount(False)  # while it runs, and before it looks again
        assert remove(served, first) == "available", served.log.read_text()[-3000:]
        assert list(point.iterdir()) == []
        assert served.stop() == 0

        served = serve(config)
        sentence = (
            f"The storage of files is not the recorded one: {identity} is recorded, and none was found. Bring the"
            " recorded storage back: is it mounted, and is the place right? Nothing is created or deleted meanwhile."
            " To use the new storage for good: blockstore backend accept files --found none"
        )
        assert f"backend files: DOWN: {sentence}" in served.log.read_text()
        where = ("--config", served.state_dir / "config.ini", "--state-dir", served.state_dir)
        assert sentence in blockstore("backend", "list", *where).stdout
        assert remove(served, second) == "available"
        refused = make(served)
        assert status(served, refused) == "error"
        assert used(served) == 4
        assert list(point.iterdir()) == []
        assert served.stop() == 0

        mount(True)
        served = serve(config)
        assert "backend files: up" in served.log.read_text().rpartition("serves http")[2]
        assert status(served, kept) == "available"
        assert (point / f"volume-{kept}.raw").read_bytes()[: len(BYTES)] == BYTES
        assert [remove(served, volume, force=True) for volume in (first, second, refused)] == ["gone"] * 3
        assert used(served) == 1
        assert served.stop() == 0  # before the disk is unmounted


# --- an administrator's word -------------------------------------------------------------------------------


def test_storage_that_is_new_is_accepted_and_users_are_told(start_service: Start, tmp_path: Path) -> None:
    path, former = tmp_path / "volumes", tmp_path / "former"
    state = tmp_path / "state"
    config = make_config(state, backends=(backend_section("files", "directory", path=str(path)),))
    service = start_service(config)
    client = Client(service)
    lost, copied = client.volume(), client.volume()
    snapshot = client.snapshot(lost["id"])
    identity = (path / ".blockstore-identity").read_text().split()[0]
    path.rename(former)
    path.mkdir(mode=0o700)
    (path / f"volume-{copied['id']}.raw").write_bytes((former / f"volume-{copied['id']}.raw").read_bytes())
    (path / f"volume-{copied['id']}.raw").chmod(0o600)
    service.report()
    assert client("POST", "/volumes", {"volume": {"size": 1}}).status == 202
    client.wait_idle()
    assert sorted(entry.name for entry in path.iterdir()) == [f"volume-{copied['id']}.raw"]

    file = tmp_path / "config.ini"
    file.write_text(f"[backend:files]\nplugin = directory\npath = {path}\n")

    def accept(found: str) -> subprocess.CompletedProcess[str]:
        return blockstore("backend", "accept", "files", "--found", found, "--config", file, "--state-dir", state)

    assert (
        accept(identity).stderr
        == f"blockstore: No storage of files has the identity {identity}; nothing was changed.\n"
    )
    assert not (path / ".blockstore-identity").exists()
    done = accept("none")
    assert done.returncode == 0, done.stderr
    fresh = (path / ".blockstore-identity").read_text().split()[0]
    assert fresh != identity
    assert f"now has the storage {fresh}; before, it was {identity}." in done.stdout
    assert [line.strip() for line in done.stdout.splitlines()[-2:]] == [lost["id"], snapshot["id"]]
    assert "1 volumes and snapshots of the service are on it." in done.stdout

    service.report()
    assert [report.up for report in service.pool_reports.reports().values()] == [True]
    assert client.get(f"/volumes/{copied['id']}")["volume"]["status"] == "available"
    assert client.get(f"/volumes/{lost['id']}")["volume"]["status"] == "error"
    assert client.get(f"/snapshots/{snapshot['id']}")["snapshot"]["status"] == "error"
    messages = client.get(f"/messages?resource_uuid={lost['id']}")["messages"]
    assert "Its data is not on the new storage" in messages[0]["user_message"]
    assert client("DELETE", f"/snapshots/{snapshot['id']}").status == 202
    client.wait_idle()
    assert client("DELETE", f"/volumes/{lost['id']}").status == 202
    client.wait_idle()
    assert client("GET", f"/volumes/{lost['id']}").status == 404

    path.rename(tmp_path / "fresh")  # it was not lost after all
    former.rename(path)
    service.report()
    (report,) = service.pool_reports.reports().values()
    assert report.reason is not None
    assert f"{fresh} is recorded, and {identity} was found" in report.reason
    assert accept(identity).returncode == 0
    service.report()
    assert [report.up for report in service.pool_reports.reports().values()] == [True]


# --- what is compared, and when ----------------------------------------------------------------------------


def only(service: Service) -> MemoryBackend:
    (backend,) = service.backends.values()
    return cast(MemoryBackend, backend)


def test_storage_that_changed_takes_the_pool_down_until_it_is_back(start_service: Start) -> None:
    service = start_service()
    api, backend = Client(service), only(service)
    volume = api.volume()
    backend._pool.identity = "another"
    backend.calls.clear()
    backend.fail["check"] = BackendError("It would make what a pool needs.")
    service.report()
    assert backend.fail.pop("check", None)
    (report,) = service.pool_reports.reports().values()
    assert report.reason is not None
    assert "memory is recorded, and another was found" in report.reason
    assert "blockstore backend accept memory --found another" in report.reason
    for request in (
        ("DELETE", f"/volumes/{volume['id']}", None),
        ("POST", "/snapshots", {"snapshot": {"volume_id": volume["id"]}}),
        ("POST", f"/volumes/{volume['id']}/action", {"os-extend": {"new_size": 2}}),
    ):
        api(*request)
        api.wait_idle()
    assert backend.calls == []
    assert list(backend._pool.volumes) == [f"volume-{volume['id']}"]
    assert api.get("/limits")["limits"]["absolute"]["totalVolumesUsed"] == 1
    backend._pool.identity = "memory"
    service.report()
    assert [report.up for report in service.pool_reports.reports().values()] == [True]
    (snapshot,) = api.get("/snapshots")["snapshots"]
    assert (api.get(f"/volumes/{volume['id']}")["volume"]["status"], snapshot["status"]) == ("available", "error")
    for path in (f"/snapshots/{snapshot['id']}", f"/volumes/{volume['id']}"):
        assert api("DELETE", path).status == 202
        api.wait_idle()
    assert backend._pool.volumes == {}


def test_identity_is_asked_once_a_look_and_never_by_a_request(start_service: Start) -> None:
    service = start_service()
    api, backend, asked = Client(service), only(service), []
    identity = backend.identity
    backend.identity = lambda: asked.append(1) or identity()  # type: ignore[method-assign,func-returns-value]
    service.report()
    assert len(asked) == 1
    volume = api.volume()
    api("DELETE", f"/volumes/{volume['id']}")
    api.wait_idle()
    assert len(asked) == 1


def forget(service: Service, directory: Path, *marks: str) -> None:
    """Let the record, and marks, be those of a version before."""
    with service.db.write() as session:
        session.execute(delete(PoolIdentity))
    for mark in marks:
        (directory / mark).unlink()


@pytest.mark.parametrize(
    ("killed", "marks"),
    [
        ("mark", (".blockstore-identity", ".blockstore-owner")),
        ("marked", (".blockstore-identity", ".blockstore-owner")),
        ("marked", (".blockstore-identity",)),
        ("record", (".blockstore-identity",)),
    ],
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
def test_storage_of_a_version_before_is_known_by_its_mark_or_its_volumes(
    start_service: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str, marks: tuple[str, ...]
) -> None:
    """A kill at any step of the first look costs nothing: the next look completes it."""
    path = tmp_path / "volumes"
    config = make_config(tmp_path / "state", backends=(backend_section("files", "directory", path=str(path)),))
    service = start_service(config)
    volume = Client(service).volume()
    forget(service, path, *marks)
    ((pool, backend),) = service.backends.items()
    with monkeypatch.context() as patch:
        link = Folder.link

        def kill(folder: Folder, name: str, also: str) -> None:
            if killed == "marked":
                link(folder, name, also)
            raise KeyboardInterrupt

        if killed == "record":
            patch.setattr(recognition, "record_identity", kill)
        else:
            patch.setattr(Folder, "link", kill)
        with pytest.raises(KeyboardInterrupt):
            recognition.prove(service.db, pool, backend, service.context.installation)
    service.stop()
    again = start_service(config)
    assert [report.reason for report in again.pool_reports.reports().values()] == [None]
    client = Client(again)
    with again.db.read() as session:
        (identity,) = session.scalars(select(PoolIdentity.identity))
    assert identity == (path / ".blockstore-identity").read_text().split()[0]
    client("DELETE", f"/volumes/{volume['id']}")
    client.wait_idle()
    assert list(path.glob("*.raw")) == []


def test_directory_without_mark_and_volumes_is_not_taken_for_that_of_a_version_before(
    start_service: Start, tmp_path: Path
) -> None:
    path = tmp_path / "volumes"
    config = make_config(tmp_path / "state", backends=(backend_section("files", "directory", path=str(path)),))
    service = start_service(config)
    volume = Client(service).volume()
    service.stop()
    forget(service, path)
    path.rename(tmp_path / "disk")
    path.mkdir(mode=0o700)
    again = start_service(config)
    (report,) = again.pool_reports.reports().values()
    assert report.reason is not None
    assert "none is recorded, and none was found" in report.reason
    client = Client(again)
    client("DELETE", f"/volumes/{volume['id']}")
    client.wait_idle()
    assert client.get(f"/volumes/{volume['id']}")["volume"]["status"] == "available"
    assert list(path.iterdir()) == []
    path.rmdir()
    (tmp_path / "disk").rename(path)
    again.report()
    assert [report.up for report in again.pool_reports.reports().values()] == [True]


def test_kill_before_new_storage_is_recorded_leaves_both_ways_open(
    start_service: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, former = tmp_path / "volumes", tmp_path / "former"
    config = make_config(tmp_path / "state", backends=(backend_section("files", "directory", path=str(path)),))
    service = start_service(config)
    volume = Client(service).volume()
    path.rename(former)
    path.mkdir(mode=0o700)
    ((pool, backend),) = service.backends.items()

    def killed(*_words: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(new_storage, "record_identity", killed)
        with pytest.raises(KeyboardInterrupt):
            new_storage.accept(service.db, pool, backend, service.context.installation, 30)
    service.report()
    (report,) = service.pool_reports.reports().values()
    fresh = backend.identity()
    assert report.reason is not None
    assert f"--found {fresh}" in report.reason
    path.rename(tmp_path / "fresh")
    former.rename(path)
    service.report()
    assert Client(service).get(f"/volumes/{volume['id']}")["volume"]["status"] == "available"
    assert [report.up for report in service.pool_reports.reports().values()] == [True]
    path.rename(former)
    (tmp_path / "fresh").rename(path)
    done = new_storage.accept(service.db, pool, backend, service.context.installation, 30)
    assert done.identity == fresh
    assert list(done.lost) == [volume["id"]]


def test_directory_in_the_place_of_the_recorded_one_is_noticed_by_each_action(tmp_path: Path) -> None:
    backend = DirectoryBackend("d", DirectoryOptions(path=tmp_path / "d"), tmp_path)
    backend.check()
    backend.change_owner(None, "ours")
    identity = backend.identity()
    backend.recognise(identity)
    backend.create_volume("one", 1)
    (tmp_path / "d").rename(tmp_path / "disk")
    for missing in (False, True):
        if missing:
            (tmp_path / "d").mkdir(mode=0o700)
        for action in (
            lambda: backend.delete_volume("one"),
            lambda: backend.delete_snapshot("one", "snap"),
            lambda: backend.create_volume("two", 1),
            lambda: backend.change_owner(None, "ours"),
            backend.check,
        ):
            with pytest.raises(Unreachable):
                action()
    assert list((tmp_path / "d").iterdir()) == []
    (tmp_path / "d").rmdir()
    (tmp_path / "disk").rename(tmp_path / "d")
    assert list(backend.list_volumes()) == ["one"]
    os.utime(tmp_path / "d" / ".blockstore-identity")  # a file that changed is read again
    backend.delete_volume("one")
    assert backend.list_volumes() == {}
