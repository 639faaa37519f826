"""Secrets that every user of the machine can read are warned about; no warning tells one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from blockstore.backends import loader
from blockstore.backends.contract import BackendOptions, option
from blockstore.config import load
from blockstore.keys import exposed_secrets
from tests.conftest import Served


@dataclass(frozen=True, kw_only=True)
class Secretive(BackendOptions):
    """Options of a plugin."""

    password: str = option("Its password.", "", secret=True)
    server: str = option("Its URL.", "")


def warned(tmp_path: Path, text: str, mode: int = 0o644) -> list[str]:
    file = tmp_path / "blockstore.ini"
    file.write_text(text)
    file.chmod(mode)
    said = exposed_secrets.warnings(load(file))
    assert "hunter2" not in "".join(said)
    return said


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("[keystone]\npassword = hunter2\n", "[keystone] password"),
        ("[database]\nurl = postgresql+psycopg://me:hunter2@db/x\n", "[database] url"),
        ("[database]\nurl = postgresql+psycopg://me@/x?host=db&password=hunter2\n", "[database] url"),
        ("[keystone]\nauth_url = https://me:hunter2@keystone/v3\n", "[keystone] auth_url"),
    ],
)
def test_secret_in_a_file_that_everybody_can_read(tmp_path: Path, text: str, option: str) -> None:
    (said,) = warned(tmp_path, text)
    assert said == (
        f"{tmp_path}/blockstore.ini holds secrets ({option}), and every user of this machine can read it;"
        f" run: chmod 600 {tmp_path}/blockstore.ini"
    )
    assert warned(tmp_path, text, 0o640) == []


@pytest.mark.parametrize(
    "text", ["", "[keystone]\nusername = me\n", "[database]\nurl = postgresql+psycopg://me@db/x\n"]
)
def test_file_without_secrets_may_be_read(tmp_path: Path, text: str) -> None:
    assert warned(tmp_path, text) == []


@pytest.mark.parametrize("line", ["password = hunter2", "server = https://me:hunter2@storage"])
def test_secrets_of_a_plugin_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    class Plugin:
        Options = Secretive

    monkeypatch.setattr(loader, "plugin", lambda _name, _where: Plugin)
    (said,) = warned(tmp_path, f"[backend:x]\nplugin = secretive\n{line}\n")
    assert f"([backend:x] {line.partition(' ')[0]})" in said


def test_key_that_an_option_names(tmp_path: Path) -> None:
    for name in ("key", "ring"):
        (tmp_path / name).write_text("hunter2")
        (tmp_path / name).chmod(0o644)
    text = (
        f"[service]\ntls_certificate = {tmp_path}/cert\ntls_key = {tmp_path}/key\n"
        f"[backend:c]\nplugin = rbd\nkeyring = {tmp_path}/ring\n"
    )
    assert [said.partition(" holds")[0] for said in warned(tmp_path, text)] == [f"{tmp_path}/key", f"{tmp_path}/ring"]
    (tmp_path / "key").chmod(0o640)
    (tmp_path / "ring").chmod(0o600)
    assert warned(tmp_path, text) == []


def test_the_start_warns(serve: Callable[..., Served]) -> None:
    served = serve("[keystone]\npassword = hunter2\n")
    (line,) = [line for line in served.log.read_text().splitlines() if "holds secrets" in line]
    assert " WARNING " in line
    assert f"chmod 600 {served.state_dir}/config.ini" in line
    assert "hunter2" not in served.log.read_text()
