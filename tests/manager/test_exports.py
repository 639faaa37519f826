"""Exports and attachments are compared: what is missing comes back, what is too much goes, what is foreign stays."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from blockstore.app.service import Service
from blockstore.db.models import Attachment, new_id
from blockstore.errors import InUse, SessionAlive, Unreachable
from blockstore.targets.contract import Export
from tests.api.test_attachments import CONNECTOR, complete, connect, remove, reserve
from tests.conftest import Client, backend_section, make_config
from tests.crash.invariants import check
from tests.scripted_target import SECRET_AS, ScriptedTarget, attaching_service


class Lives:
    """A service and its next lives, whose target, like a kernel's or a daemon's, lives on."""

    def __init__(self, state_dir: Path, database_url: str) -> None:
        self.config = make_config(state_dir, database_url)
        self.target = ScriptedTarget()
        self.service: Service | None = None

    def begin(self) -> Client:
        """Begin the next life."""
        self.end()
        self.service = attaching_service(self.config, self.target)
        self.service.start()
        return Client(self.service)

    def end(self) -> None:
        """End this life."""
        if self.service is not None:
            self.service.stop()
            self.service = None


@pytest.fixture
def lives(tmp_path: Path, database_url: str) -> Iterator[Lives]:
    """Lives on each database."""
    lives = Lives(tmp_path / "state", database_url)
    yield lives
    lives.target.calm()
    lives.end()


def attached(api: Client, **more: Any) -> dict[str, Any]:
    """Return an attachment, as it is shown, of a volume that is exported and in use."""
    made = reserve(api, api.volume()["id"], connector=CONNECTOR, **more)
    assert made.status == 200, made.body
    assert complete(api, made.json["attachment"]["id"]).status == 204
    return dict(api.get(f"/attachments/{made.json['attachment']['id']}")["attachment"])


def compare(api: Client) -> None:
    api.service.exports.reconcile(api.service.backends)
    api.wait_idle()


def status_of(api: Client, attachment: str) -> str | None:
    with api.service.db.read() as session:
        return session.execute(select(Attachment.status).where(Attachment.id == attachment)).scalar()


def stray(target: ScriptedTarget) -> str:
    """Export something that no attachment stands for; return its id."""
    export = Export(id=new_id(), volume="volume-x", path=Path("/dev/null"), connector=CONNECTOR)
    target.exports[export.id] = export
    return export.id


# --- at start ----------------------------------------------------------------------------------------------


def test_a_start_restores_what_a_reboot_took_with_the_same_secret(lives: Lives) -> None:
    api = lives.begin()
    used = attached(api, mode="ro")
    exported = reserve(api, api.volume()["id"], connector=CONNECTOR).json["attachment"]["id"]
    connection = api.volume()["id"]
    told = api.action(f"volumes/{connection}", "os-initialize_connection", {"connector": CONNECTOR}).json
    reserved = reserve(api, api.volume()["id"]).json["attachment"]["id"]
    before = dict(lives.target.exports)
    assert (len(before), used["id"] in before, exported in before, reserved in before) == (3, True, True, False)
    lives.end()
    lives.target.exports.clear()
    api = lives.begin()
    assert lives.target.exports == before
    assert lives.target.exports[used["id"]].read_only
    assert api.get(f"/attachments/{used['id']}")["attachment"] == used
    assert lives.target.exports[used["id"]].secret == used["connection_info"][SECRET_AS]
    assert api.action(f"volumes/{connection}", "os-initialize_connection", {"connector": CONNECTOR}).json == told
    check(api.service.db, api.service.backends, targets=api.service.exports.targets)


def test_a_start_asks_once_for_what_is_there_and_a_later_look_does_not(lives: Lives) -> None:
    """What is listed may be half of what a kill left."""
    used = attached(lives.begin())
    lives.end()
    lives.target.asked.clear()
    api = lives.begin()
    assert lives.target.asked.count(("export", used["id"])) == 1
    compare(api)
    assert lives.target.asked.count(("export", used["id"])) == 1


def test_a_start_ends_what_has_no_attachment(lives: Lives, caplog: pytest.LogCaptureFixture) -> None:
    used = attached(lives.begin())
    lives.end()
    without = stray(lives.target)
    lives.begin()
    assert set(lives.target.exports) == {used["id"]}
    assert f"export {without} has no attachment; ending it" in caplog.text
    assert ("withdraw", used["id"]) not in lives.target.asked


def test_a_connection_that_has_moved_is_written_down(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reboot the target may listen elsewhere."""
    used = attached(lives.begin())
    lives.end()
    real = lives.target.export

    def export(export: Export) -> Any:
        import dataclasses

        made = real(export)
        return dataclasses.replace(made, data={**made.data, "target_portal": "192.0.2.9:3260"})

    monkeypatch.setattr(lives.target, "export", export)
    api = lives.begin()
    shown = api.get(f"/attachments/{used['id']}")["attachment"]["connection_info"]
    assert shown == {**used["connection_info"], "target_portal": "192.0.2.9:3260"}


def test_a_target_that_is_down_at_start_is_told_once_and_restored_when_it_is_up(
    lives: Lives, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    used = attached(lives.begin())
    lives.end()
    lives.target.exports.clear()
    lives.target.fail["check"] = Unreachable("The daemon does not run.")
    api = lives.begin()
    compare(api)
    assert caplog.text.count("target local is down: The daemon does not run.") == 1
    assert not lives.target.exports
    assert status_of(api, used["id"]) == "attached"
    lives.target.fail.clear()
    compare(api)
    assert set(lives.target.exports) == {used["id"]}
    assert "target local is up again" in caplog.text


# --- at every look -----------------------------------------------------------------------------------------


def test_one_that_does_not_serve_is_made_again_with_its_secret_and_logged_once(
    lives: Lives, caplog: pytest.LogCaptureFixture
) -> None:
    api = lives.begin()
    used, other = attached(api), attached(api)
    before = dict(lives.target.exports)
    lives.target.broken[used["id"]] = "its server has ended"
    lives.target.asked.clear()
    compare(api)
    assert [call for call in lives.target.asked if call[0] == "export"] == [("export", used["id"])]
    assert lives.target.exports == before
    assert lives.target.exports[used["id"]].secret == used["connection_info"][SECRET_AS]
    assert f"export {used['id']} is broken: its server has ended; creating it again" in caplog.text
    assert other["id"] not in caplog.text
    compare(api)
    assert caplog.text.count("is broken:") == 1
    # One question of each kind to the target, however many exports there are.
    assert all(lives.target.asked.count((kind, "")) == 2 for kind in ("check", "list_exports", "faults"))


def test_one_that_cannot_be_made_again_is_left_to_the_next_look(lives: Lives) -> None:
    api = lives.begin()
    used = attached(api)
    lives.target.broken[used["id"]] = "its LUN was removed"
    lives.target.fail["export"] = Unreachable("no")
    compare(api)
    assert status_of(api, used["id"]) == "attached"
    # Even when it looks whole by then: what a failure left may be half.
    lives.target.broken.clear()
    lives.target.fail.clear()
    lives.target.asked.clear()
    compare(api)
    assert ("export", used["id"]) in lives.target.asked


def test_one_that_a_request_works_on_while_the_target_is_asked_is_left_alone(
    lives: Lives, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was off for a moment to be resized when the target was asked, and is not any more."""
    api = lives.begin()
    used = attached(api)

    def faults() -> dict[str, str]:
        api.service.exports.resize(used["volume_id"])
        return {used["id"]: "the target is offline"}

    monkeypatch.setattr(lives.target, "faults", faults)
    lives.target.asked.clear()
    compare(api)
    assert ("resize", used["id"]) in lives.target.asked
    assert ("export", used["id"]) not in lives.target.asked
    assert "is broken:" not in caplog.text


def test_what_has_no_attachment_is_ended_before_anything_is_made(lives: Lives) -> None:
    """What another tool restored may lead to what is another's by now."""
    used = attached(lives.begin())
    lives.end()
    lives.target.exports.clear()
    without = stray(lives.target)
    lives.target.asked.clear()
    lives.begin()
    calls = [call for call in lives.target.asked if call[0] in ("withdraw", "export")]
    assert calls == [("withdraw", without), ("export", used["id"])]


def test_one_that_cannot_be_restored_holds_up_no_other(
    lives: Lives, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    api = lives.begin()
    first, second = attached(api), attached(api)
    lives.target.exports.clear()
    real = lives.target.export

    def export(export: Export) -> Any:
        if export.id == first["id"]:
            raise Unreachable("Not this one.")
        return real(export)

    monkeypatch.setattr(lives.target, "export", export)
    without = stray(lives.target)
    compare(api)
    assert set(lives.target.exports) == {second["id"]}
    assert without not in lives.target.exports
    assert f"export {first['id']}: Not this one." in caplog.text
    assert first["connection_info"][SECRET_AS] not in caplog.text


@pytest.mark.parametrize("failure", [InUse("qemu (7) holds it."), SessionAlive("It does not end.")])
def test_what_has_no_attachment_and_does_not_end_is_tried_again(
    lives: Lives, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    api = lives.begin()
    without = stray(lives.target)
    lives.target.fail["withdraw"] = failure
    compare(api)
    assert without in lives.target.exports
    assert f"export {without}: {failure}" in caplog.text
    lives.target.fail.clear()
    compare(api)
    assert without not in lives.target.exports


def test_what_did_not_end_is_ended_and_frees_the_volume(lives: Lives) -> None:
    api = lives.begin()
    used = attached(api)
    lives.target.fail["withdraw"] = SessionAlive("It does not end.")
    assert remove(api, used["id"]).status == 503
    compare(api)
    assert status_of(api, used["id"]) == "error_detaching"
    api = lives.begin()  # not even a restart forgets it
    assert (status_of(api, used["id"]), set(lives.target.exports)) == ("error_detaching", {used["id"]})
    lives.target.fail.clear()
    compare(api)
    assert status_of(api, used["id"]) is None
    assert api.get(f"/volumes/{used['volume_id']}")["volume"]["status"] == "available"
    assert not lives.target.exports


def test_what_did_not_end_is_not_exported_again(lives: Lives) -> None:
    """New sessions stay refused until the old one is proved to be gone."""
    api = lives.begin()
    used = attached(api)
    lives.target.fail["withdraw"] = SessionAlive("It does not end.")
    assert remove(api, used["id"]).status == 503
    del lives.target.exports[used["id"]]
    compare(api)
    api = lives.begin()
    assert used["id"] not in lives.target.exports


def test_what_another_target_exported_is_left_to_it(lives: Lives) -> None:
    """A row names its target; only that one is asked to restore it."""
    api = lives.begin()
    used = attached(api)
    with api.service.db.write() as session:
        session.get_one(Attachment, used["id"]).target = "former"
    lives.target.exports.clear()
    compare(api)
    assert not lives.target.exports


# --- beside requests ---------------------------------------------------------------------------------------


def test_one_that_is_connected_again_while_it_is_compared_is_not_ended(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was half made and in error when the rows were read, and whole when its turn came."""
    api = lives.begin()
    lives.target.fail["export"] = Unreachable("no")
    assert reserve(api, api.volume()["id"], connector=CONNECTOR).status == 503
    lives.target.fail.clear()
    (attachment,) = (a["id"] for a in api.get("/attachments")["attachments"])
    lives.target.exports[attachment] = Export(id=attachment, volume="half", path=Path("/dev/null"))
    exports: Any = api.service.exports
    real, done = exports._rows, []

    def rows(target: str, statuses: Any) -> Any:
        found = real(target, statuses)
        if "connecting" in statuses and not done:
            done.append(1)
            assert connect(api, attachment).status == 200
        return found

    monkeypatch.setattr(exports, "_rows", rows)
    compare(api)
    assert done
    assert attachment in lives.target.exports
    assert ("withdraw", attachment) not in lives.target.asked


def test_one_that_is_detached_while_it_is_ended_again_is_ended_once(
    lives: Lives, caplog: pytest.LogCaptureFixture
) -> None:
    api = lives.begin()
    used = attached(api)
    lives.target.fail["withdraw"] = SessionAlive("It does not end.")
    assert remove(api, used["id"]).status == 503
    lives.target.fail.clear()
    gate = lives.target.gate("withdraw")
    with ThreadPoolExecutor(2) as threads:
        comparing = threads.submit(api.service.exports.reconcile, api.service.backends)
        assert lives.target.begun["withdraw"].wait(60)
        deleting = threads.submit(remove, Client(api.service), used["id"])
        while status_of(api, used["id"]) != "disconnecting":
            time.sleep(0.01)
        gate.set()
        comparing.result(60)
        assert deleting.result(60).status == 200
    api.wait_idle()
    assert status_of(api, used["id"]) is None
    assert api.get(f"/volumes/{used['volume_id']}")["volume"]["status"] == "available"
    check(api.service.db, api.service.backends, targets=api.service.exports.targets)


@pytest.mark.parametrize("how", ["detach", "force delete"])
def test_what_is_being_ended_is_not_restored(lives: Lives, how: str) -> None:
    """The look sees a row whose export is gone already, and waits until the row has gone too."""
    api = lives.begin()
    volume = api.volume()["id"]
    attachment = reserve(api, volume, connector=CONNECTOR).json["attachment"]["id"]
    gate = lives.target.gate("withdraw")
    with ThreadPoolExecutor(2) as threads:
        path = f"/attachments/{attachment}" if how == "detach" else f"/volumes/{volume}?force=true"
        ending = threads.submit(Client(api.service), "DELETE", path)
        assert lives.target.begun["withdraw"].wait(60)
        lives.target.exports.pop(attachment)
        comparing = threads.submit(api.service.exports.reconcile, api.service.backends)
        time.sleep(0.2)
        gate.set()
        assert ending.result(60).status in (200, 202)
        comparing.result(60)
    api.wait_idle()
    compare(api)
    assert attachment not in lives.target.exports
    assert status_of(api, attachment) is None


def test_looks_beside_many_attachments_that_come_and_go_disturb_none(lives: Lives) -> None:
    api = lives.begin()
    volumes = [api.volume()["id"] for _ in range(4)]
    stop = threading.Event()

    def look() -> int:
        count = 0
        while not stop.is_set():
            api.service.exports.reconcile(api.service.backends)
            count += 1
            time.sleep(0.005)
        return count

    def come_and_go(volume: str) -> None:
        client = Client(api.service)
        for _ in range(8):
            made = reserve(client, volume, connector=CONNECTOR)
            assert made.status == 200, made.body
            attachment = made.json["attachment"]["id"]
            assert attachment in lives.target.exports
            assert complete(client, attachment).status == 204
            assert attachment in lives.target.exports
            gone = remove(client, attachment)
            assert gone.status == 200, gone.body
            assert attachment not in lives.target.exports

    with ThreadPoolExecutor(5) as threads:
        looking = threads.submit(look)
        try:
            list(threads.map(come_and_go, volumes))
        finally:
            stop.set()
        assert looking.result(60) > 3
    compare(api)
    assert not lives.target.exports
    check(api.service.db, api.service.backends, targets=api.service.exports.targets)


# --- resizing ----------------------------------------------------------------------------------------------


def test_a_target_that_cannot_be_told_of_a_new_size_does_not_fail_the_extension(
    lives: Lives, caplog: pytest.LogCaptureFixture
) -> None:
    api = lives.begin()
    used = attached(api)
    lives.target.fail["resize"] = Unreachable("The daemon does not answer.")
    assert api.action(f"volumes/{used['volume_id']}", "os-extend", {"new_size": 2}).status == 202
    shown = api.get(f"/volumes/{used['volume_id']}")["volume"]
    assert (shown["status"], shown["size"]) == ("in-use", 2)
    assert "is not seen yet: The daemon does not answer." in caplog.text


# --- with files and the real target ------------------------------------------------------------------------


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Have another process hold a file open: the service's own files are no use of a volume."""
    argv = [sys.executable, "-c", "import sys; file = open(sys.argv[1], 'rb'); print(flush=True); input()", str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "\n"
        yield
        holder.communicate("\n")


def test_a_restart_with_the_target_local_never_touches_what_is_foreign(
    tmp_path: Path, start_service: Callable[..., Service]
) -> None:
    """Its exports are files in the state directory: missing, too many, another installation's."""
    config = make_config(
        tmp_path / "state", backends=(backend_section("disk", "directory", path=str(tmp_path / "volumes")),)
    )
    service = start_service(config)
    api = Client(service)
    volume = api.volume()["id"]
    made = reserve(api, volume, connector={"ip": "192.0.2.1"}).json["attachment"]
    path = Path(made["connection_info"]["device_path"])
    assert path.stat().st_size == 1 << 30
    assert complete(api, made["id"]).status == 204
    service.stop()
    folder = tmp_path / "state" / "targets" / "local"
    record = json.loads((folder / made["id"]).read_text())
    (folder / made["id"]).unlink()
    ours, foreign = (str(new_id()) for _ in range(2))
    (folder / ours).write_text(json.dumps(record))
    (folder / foreign).write_text(json.dumps({**record, "owner": "somebody"}))
    api = Client(start_service(config))
    assert {file.name for file in folder.iterdir()} == {made["id"], foreign}
    assert json.loads((folder / made["id"]).read_text()) == record
    with held(path):
        answer = remove(api, made["id"])
        assert (answer.status, "is still in use on this node, by " in answer.message) == (409, True)
        assert api.get(f"/volumes/{volume}")["volume"]["status"] == "in-use"
    assert remove(api, made["id"]).status == 200
    assert {file.name for file in folder.iterdir()} == {foreign}
    assert api.get(f"/volumes/{volume}")["volume"]["status"] == "available"
