"""Configured backends are listed and checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockstore.backends.memory import MemoryBackend
from tests.cli.invoking import MEMORY, refused, run, said


def test_backend_list_says_which_are_down(tmp_path: Path) -> None:
    config = tmp_path / "blockstore.ini"
    config.write_text(f"{MEMORY}[backend:gone]\nplugin = directory\npath = {tmp_path}/not/mounted\n")
    lines = said("backend", "list", "--config", config, "--state-dir", tmp_path / "s").splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert rows["blockstore@m#m"][:2] == ["up", "1000.0"]
    assert "snapshots" in rows["blockstore@m#m"]
    assert rows["blockstore@gone#gone"][0] == "DOWN"
    assert f"{tmp_path}/not" in " ".join(rows["blockstore@gone#gone"])


def test_backend_check_runs_the_conformance_suite(tmp_path: Path) -> None:
    config = tmp_path / "blockstore.ini"
    config.write_text(MEMORY)
    output = said("backend", "check", "m", "--config", config, "--state-dir", tmp_path / "s")
    assert output.count("passed") > 20
    assert "failed" not in output


def test_backend_check_that_fails_has_exit_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryBackend, "extend_volume", lambda *_args: None)
    config = tmp_path / "blockstore.ini"
    config.write_text(MEMORY)
    result = run("backend", "check", "m", "--config", config, "--state-dir", tmp_path / "s")
    assert result.exit_code == 1
    assert "failed" in result.output


def test_backend_check_of_none_that_is_configured_is_one_sentence(tmp_path: Path) -> None:
    assert "There is no backend x. The configured backends are directory." in refused(
        "backend", "check", "x", "--state-dir", tmp_path
    )
