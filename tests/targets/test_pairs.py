"""Which backend may have which target: the configuration refuses a pair whose volumes could not be exported.

What the others must do is in each target's own ``test_*_conformance.py``, and for LVM in ``tests/lab``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from blockstore import config as configuration
from blockstore.app.wiring import load_backends, load_targets
from blockstore.backends.contract import Backend
from blockstore.cli import main
from blockstore.errors import ConfigError
from blockstore.keys.keyring import Keyring
from tests.conftest import need

FORMATS = ("raw", "qcow2")
REFUSED = {("qcow2", "local"), ("qcow2", "tgt"), ("qcow2", "lio")}
PAIRS = [(kind, target) for kind in FORMATS for target in ("local", "tgt", "lio", "nbd", "")]


def configured(place: Path, file_format: str, target: str) -> tuple[configuration.Config, dict[str, Backend]]:
    file = place / "blockstore.ini"
    named = f"target = {target}\n" if target else ""
    file.write_text(
        f"[service]\nstate_dir = {place}/s\n"
        f"[backend:d]\nplugin = directory\npath = {place}/v\nformat = {file_format}\n{named}"
    )
    config = configuration.load(file)
    return config, load_backends(config, place)


@pytest.mark.parametrize(("file_format", "target"), [pair for pair in PAIRS if pair not in REFUSED])
def test_the_configuration_takes_a_pair(file_format: str, target: str, tmp_path: Path) -> None:
    config, backends = configured(tmp_path, file_format, target)
    targets, serving = load_targets(config, backends, Path("/s"), Keyring(tmp_path / "key"))
    for pool, backend in backends.items():
        assert serving[pool] == (target or {"raw": "local", "qcow2": "nbd"}[file_format])
        assert backend.file_format in targets[serving[pool]].capabilities().formats


@pytest.mark.parametrize(("file_format", "target"), sorted(REFUSED))
def test_the_configuration_refuses_a_pair(file_format: str, target: str, tmp_path: Path) -> None:
    config, backends = configured(tmp_path, file_format, target)
    with pytest.raises(ConfigError, match=rf"\[backend:d\] target is {target}, which cannot export qcow2 files"):
        load_targets(config, backends, Path("/s"), Keyring(tmp_path / "key"))
    said = CliRunner().invoke(main, ["backend", "check", "d", "--config", str(tmp_path / "blockstore.ini")])
    assert said.exit_code == 1
    assert f"target is {target}, which cannot export qcow2 files" in said.output


@pytest.mark.slow
def test_backend_check_tries_the_backend_with_its_target(tmp_path: Path) -> None:
    need(shutil.which("qemu-io"), "apt-get install qemu-utils")
    configured(tmp_path, "raw", "local")
    said = CliRunner().invoke(main, ["backend", "check", "d", "--config", str(tmp_path / "blockstore.ini")])
    assert said.exit_code == 0, said.output
    alone, _, together = said.output.partition("The backend d with the target local:\n")
    assert alone.count("passed") > 40
    assert together.count("passed") > 20
    assert said.output.endswith("Every promise kept.\n")
    assert not list((tmp_path / "s").glob("check-*"))
    assert not list((tmp_path / "v").glob("*.raw"))
