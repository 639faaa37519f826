"""What targetcli saved is left without what is ours: the file, the command for a unit, and the units' order."""

from __future__ import annotations

import configparser
import json
from pathlib import Path
from typing import Any

import pytest
from blockstore_plugins.lio import LioOptions, LioTarget, saved
from click.testing import CliRunner

from blockstore.cli import main
from blockstore.keys.keyring import Keyring
from tests.conftest import ROOT

OWNER = "abcd0123"
UNITS = ROOT / "docs" / "systemd"


def entries(owner: str) -> dict[str, Any]:
    """Return a file as rtslib writes it, with one export of this owner beside what others have."""
    return {
        "fabric_modules": [],
        "storage_objects": [
            {"name": f"blockstore.{owner}.volume-1", "plugin": "block", "dev": "/dev/vg/volume-1"},
            {"name": "blockstore.ffffffff.volume-2", "plugin": "block", "dev": "/dev/vg/volume-2"},
            {"name": "disk", "plugin": "fileio", "dev": "/srv/disk"},
        ],
        "targets": [
            {
                "wwn": f"iqn.2010-10.org.openstack:blockstore.{owner}.id",
                "tpgs": [{"chap_password": "abcdefgh12345678"}],
            },
            {"wwn": "iqn.2003-01.org.example:theirs", "tpgs": []},
        ],
    }


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of targetcli."""
    monkeypatch.setattr(saved, "SAVED", tmp_path / "target" / "saveconfig.json")
    saved.SAVED.parent.mkdir()
    return saved.SAVED


@pytest.fixture
def lio() -> LioTarget:
    """A target, of which nothing but the file is needed."""
    return LioTarget("disks", LioOptions(), Path("/nonexistent"), OWNER)


def test_only_what_is_ours_is_taken_out(lio: LioTarget, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert lio.forget_saved() == 0  # there is no file
    file.write_text(json.dumps(entries(OWNER)))
    assert lio.forget_saved() == 2
    left = json.loads(file.read_text())
    assert [entry["name"] for entry in left["storage_objects"]] == ["blockstore.ffffffff.volume-2", "disk"]
    assert [entry["wwn"] for entry in left["targets"]] == ["iqn.2003-01.org.example:theirs"]
    assert left["fabric_modules"] == []
    assert file.stat().st_mode & 0o777 == 0o600
    assert "removed 2 saved entries of this service" in caplog.text
    assert "abcdefgh12345678" not in caplog.text
    before = file.stat()
    assert lio.forget_saved() == 0
    assert file.stat() == before  # not written for nothing
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"targets": [1]}', '{"targets": 7}', '{"storage_objects": [{}]}'])
def test_a_damaged_file_is_left_alone(lio: LioTarget, file: Path, text: str) -> None:
    file.write_text(text)
    assert lio.forget_saved() == 0
    assert file.read_text() == text


def test_what_is_saved_at_this_moment_is_not_lost(lio: LioTarget, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """targetcli replaces the file after we read it and before we write it."""
    file.write_text(json.dumps(entries(OWNER)))
    real = saved._take_out

    def meanwhile(*arguments: Any) -> int:
        monkeypatch.undo()
        monkeypatch.setattr(saved, "SAVED", file)
        newer = entries(OWNER)
        newer["targets"].append({"wwn": "iqn.2003-01.org.example:new", "tpgs": []})
        (file.parent / "new").write_text(json.dumps(newer))
        (file.parent / "new").replace(file)
        return real(*arguments)

    monkeypatch.setattr(saved, "_take_out", meanwhile)
    assert lio.forget_saved() == 2
    assert "iqn.2003-01.org.example:new" in file.read_text()
    assert OWNER not in file.read_text()


def test_the_command_needs_neither_service_nor_kernel(file: Path, tmp_path: Path) -> None:
    config = tmp_path / "blockstore.ini"
    config.write_text(
        f"[service]\nstate_dir = {tmp_path}/s\n[backend:d]\nplugin = directory\ntarget = iscsi\n"
        "[target:iscsi]\nplugin = lio\n[target:other]\nplugin = nbd\nlisten = 127.0.0.1\n"
    )
    (tmp_path / "s").mkdir(mode=0o700)
    owner = Keyring(tmp_path / "s/attachments.key").owner
    file.write_text(json.dumps(entries(owner)))
    argv = ["attachment", "forget-saved", "--config", str(config)]
    said = CliRunner().invoke(main, argv)
    assert (said.exit_code, said.output) == (0, "Removed 2 saved entries of the target iscsi.\n")
    assert owner not in file.read_text()
    assert CliRunner().invoke(main, argv).output == ""


def test_the_units_are_ordered_around_what_restores() -> None:
    """First the file is put right, then it is restored, then the service starts, and is not cleared by it any more."""
    units = {}
    for path in UNITS.glob("*.service"):
        units[path.name] = configparser.RawConfigParser(strict=False)
        units[path.name].read(path)
    first, service = units["blockstore-saved.service"], units["blockstore.service"]
    restoring = {"target.service", "rtslib-fb-targetctl.service"}
    assert restoring <= set(first["Unit"]["Before"].split())
    assert restoring <= set(first["Install"]["WantedBy"].split())
    assert restoring | {"blockstore-saved.service"} <= set(service["Unit"]["After"].split())
    assert "blockstore-saved.service" in service["Unit"]["Wants"].split()
    assert " attachment forget-saved " in first["Service"]["ExecStart"]
    assert service["Service"]["KillMode"] == "process"  # else a restart ends the servers of the target nbd
