"""Two installations on one storage notice each other before one touches the other's volumes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from blockstore_plugins.directory import DirectoryBackend, DirectoryOptions
from blockstore_plugins.directory.files import Folder
from blockstore_plugins.lvm import LvmBackend, LvmOptions

from blockstore.accounting.pool_reports import PoolReports
from blockstore.app.service import Service
from blockstore.backends.memory import MemoryBackend
from blockstore.errors import BackendError, Unreachable
from blockstore.keys.keyring import Keyring
from blockstore.manager.installations import claim
from tests.app.test_process import ask, blockstore, wait_for
from tests.conftest import Client, Served, backend_section, make_config
from tests.plugins.fake_lvm import FakeLvm

Serve = Callable[..., Served]
Start = Callable[..., Service]


def on(path: Path, *, names: tuple[str, ...] = ("files",)) -> str:
    """Return the configuration of a service on a directory of volumes."""
    sections = "".join(
        f"[backend:{name}]\nplugin = directory\npath = {path}\nmax_over_subscription_ratio = 1000\n" for name in names
    )
    return f"[service]\nreport_interval_s = 1\n{sections}"


def status(served: Served, volume_id: str) -> str:
    return str(ask(served, "GET", f"/volumes/{volume_id}")["volume"]["status"])


def create(served: Served) -> str:
    """Create a volume; return its id when its operation has ended."""
    volume_id = str(ask(served, "POST", "/volumes", {"volume": {"size": 1}})["volume"]["id"])
    wait_for(lambda: status(served, volume_id) != "creating")
    return volume_id


def pool_is_up(served: Served) -> bool:
    (pool,) = ask(served, "GET", "/scheduler-stats/get_pools?detail=True")["pools"]
    return bool(pool["capabilities"]["backend_state"] == "up")


def test_second_service_on_a_directory_keeps_off_until_it_takes_over(serve: Serve, tmp_path: Path) -> None:
    volumes = tmp_path / "volumes"
    first = serve(on(volumes), state_dir=tmp_path / "first")
    kept = create(first)
    assert status(first, kept) == "available"
    owner = Keyring(first.state_dir / "attachments.key").owner
    before = {path.name: path.stat().st_mtime_ns for path in volumes.iterdir()}
    assert (volumes / ".blockstore-owner").read_text().split()[0] == owner

    second = serve(on(volumes), state_dir=tmp_path / "second")
    mine = Keyring(second.state_dir / "attachments.key").owner
    sentence = (
        f"The storage of files is used by another installation of blockstore, {owner}; this one is {mine}. Two"
        " installations would delete each other's volumes. If the other one no longer exists, take its storage over:"
        f" blockstore backend takeover files --from {owner}"
    )
    assert f"backend files: DOWN: {sentence}" in second.log.read_text()
    listed = blockstore("backend", "list", "--config", second.state_dir / "config.ini", "--state-dir", second.state_dir)
    assert sentence in listed.stdout
    refused = ask_status(second, "/manageable_volumes?host=blockstore@files")
    assert refused == (400, sentence)
    assert status(second, create(second)) == "error"
    assert {path.name: path.stat().st_mtime_ns for path in volumes.iterdir()} == before
    assert status(first, create(first)) == "available"

    def take_over(former: str) -> tuple[int, str]:
        words = ("backend", "takeover", "files", "--from", former)
        done = blockstore(*words, "--config", second.state_dir / "config.ini", "--state-dir", second.state_dir)
        return done.returncode, done.stderr

    assert take_over("0" * 8) == (
        1, f"blockstore: No pool of files is used by installation {'0' * 8}; nothing was changed.\n"
    )  # fmt: skip
    assert take_over(owner) == (0, "")
    wait_for(lambda: pool_is_up(second))
    wait_for(lambda: not pool_is_up(first))
    assert f"is used by another installation of blockstore, {mine}; this one is {owner}" in first.log.read_text()
    assert status(second, create(second)) == "available"
    assert (volumes / f"volume-{kept}.raw").exists()


def ask_status(served: Served, path: str) -> tuple[int, str]:
    """Return the status of a refusal, and the reason at its end."""
    import json
    import urllib.error

    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(served, "GET", path)
    message = json.loads(refused.value.read())["badRequest"]["message"]
    refused.value.close()
    return refused.value.code, message.partition("is down: ")[2]


def test_storage_of_a_version_without_marks_is_adopted(start_service: Start, tmp_path: Path) -> None:
    section = backend_section("files", "directory", path=str(tmp_path / "volumes"))
    config = make_config(tmp_path / "state", backends=(section,))
    service = start_service(config)
    volume = Client(service).volume()
    service.stop()
    mark = tmp_path / "volumes" / ".blockstore-owner"
    mark.unlink()
    again = start_service(config)
    assert mark.read_text().split()[0] == Keyring(tmp_path / "state" / "attachments.key").owner
    assert mark.stat().st_mode & 0o777 == 0o600
    assert Client(again).get(f"/volumes/{volume['id']}")["volume"]["status"] == "available"
    assert [report.up for report in again.pool_reports.reports().values()] == [True]


def test_two_sections_of_one_installation_share_storage(start_service: Start, tmp_path: Path) -> None:
    sections = tuple(backend_section(name, "directory", path=str(tmp_path / "volumes")) for name in ("a", "b"))
    service = start_service(make_config(tmp_path / "state", backends=sections))
    assert [report.up for report in service.pool_reports.reports().values()] == [True, True]


def memory(tmp_path: Path) -> MemoryBackend:
    from blockstore.backends.memory import MemoryOptions

    return MemoryBackend("m", MemoryOptions(), tmp_path)


def test_pool_is_asked_before_its_first_action(start_service: Start) -> None:
    """One that did not answer the first look in time is not believed to be ours."""
    service = start_service()
    context = replace(service.context, pool_reports=PoolReports())
    ((pool, backend),) = service.backends.items()
    backend.change_owner(context.installation, "other")
    with pytest.raises(Unreachable, match="used by another installation of blockstore, other"):
        context.backend(pool)
    backend.change_owner("other", None)
    assert context.backend(pool) is backend
    assert backend.owner() == context.installation


def test_mark_that_cannot_be_written_does_not_stop_the_pool(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As with an /etc/sudoers of the version before, which does not allow vgchange."""
    backend = memory(tmp_path)
    backend.fail["change_owner"] = BackendError("sudo says no")
    claim(backend, "ours")
    assert "could not be marked" in caplog.text
    assert backend.owner() is None
    claim(backend, "ours")
    assert backend.owner() == "ours"


def test_mark_written_by_another_at_the_same_moment_is_seen(tmp_path: Path) -> None:
    class Raced(MemoryBackend):
        def change_owner(self, former: str | None, owner: str | None) -> None:
            super().change_owner(None, "other")
            super().change_owner(former, owner)

    backend = Raced("m", memory(tmp_path).settings, tmp_path)
    with pytest.raises(Unreachable, match="another installation of blockstore, other; this one is ours"):
        claim(backend, "ours")


@pytest.mark.parametrize("after", ["building", "link"])
@pytest.mark.parametrize("mark", [".blockstore-identity", ".blockstore-owner"])
def test_kill_while_a_directory_is_marked_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str, after: str
) -> None:
    backend = DirectoryBackend("d", DirectoryOptions(), tmp_path / "state")
    backend.check()
    with monkeypatch.context() as patch:
        original = Folder.link

        def killed(folder: Folder, name: str, also: str) -> None:
            if also != mark or after == "link":
                original(folder, name, also)
            if also == mark:
                raise KeyboardInterrupt

        patch.setattr(Folder, "link", killed)
        with pytest.raises(KeyboardInterrupt):
            backend.change_owner(None, "first")
    assert backend.owner() == ("first" if (mark, after) == (".blockstore-owner", "link") else None)
    identity = backend.identity()
    assert bool(identity) == (mark == ".blockstore-owner" or after == "link")
    claim(backend, "first")
    backend.change_owner("first", "second")
    assert backend.owner() == "second"
    backend.change_owner("second", "third")
    assert backend.owner() == "third"
    assert backend.identity() == (identity or backend.identity())
    assert {path.name for path in backend.path.iterdir()} == {".blockstore-owner", ".blockstore-identity"}


def test_volume_group_carries_a_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeLvm(monkeypatch)
    fake.tags = {"of-the-site"}

    def vg() -> LvmBackend:
        return LvmBackend("b", LvmOptions(volume_group="vg"), Path("/nonexistent"))

    vg().change_owner("somebody", "2222")
    assert fake.tags == {"of-the-site"}
    vg().change_owner(None, "2222")
    assert vg().owner() == "2222"
    vg().change_owner(None, "1111")
    assert fake.tags == {"of-the-site", "blockstore.owner=2222"}
    fake.tags.add("blockstore.owner=1111")  # by one that looked before the first had written
    assert vg().owner() == "1111"
    with pytest.raises(Unreachable, match=re.escape("1111; this one is 2222")):
        claim(vg(), "2222")
    vg().change_owner("1111", "3333")
    assert fake.tags == {"of-the-site", "blockstore.owner=3333"}
    vg().change_owner("3333", None)
    assert fake.tags == {"of-the-site"}
