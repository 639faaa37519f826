"""The key ring: one key file that is its owner's alone, secrets that come back, and nothing that tells of the key."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from blockstore.app.service import Service
from blockstore.errors import ConfigError
from blockstore.keys.keyring import KEY_BYTES, SECRET_LENGTH, Keyring
from tests.conftest import Served, make_config


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the key file will be."""
    return tmp_path / "attachments.key"


def test_the_key_is_made_when_it_is_first_needed_for_its_owner_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        keyring = Keyring(path)
        assert not path.exists()
        keyring.secret("a")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(bytes.fromhex(path.read_text())) == KEY_BYTES
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_nlink == 1


def test_secrets_are_letters_and_digits_one_for_each_attachment_and_come_back(path: Path) -> None:
    ids = [str(uuid.uuid4()) for _ in range(2000)]
    keyring = Keyring(path)
    secrets = [keyring.secret(i) for i in ids]
    assert all(len(s) == SECRET_LENGTH and s.isalnum() and s.isascii() for s in secrets)
    assert len(set(secrets)) == len(ids)
    assert len({character for secret in secrets for character in secret}) == 62
    assert [Keyring(path).secret(i) for i in ids] == secrets
    key = path.read_text().strip()
    assert not any(secret.lower() in key.lower() for secret in secrets)


def test_two_installations_have_different_owners_and_secrets(tmp_path: Path) -> None:
    one, other = Keyring(tmp_path / "one"), Keyring(tmp_path / "other")
    assert one.owner != other.owner
    assert one.secret("a") != other.secret("a")
    assert one.owner == Keyring(tmp_path / "one").owner
    assert len(one.owner) == 8
    assert one.owner not in (tmp_path / "one").read_text()


def test_two_services_have_different_owners(tmp_path: Path, start_service: Callable[..., Service]) -> None:
    services = [start_service(make_config(tmp_path / name)) for name in ("one", "other")]
    assert len({service.exports.targets["local"].owner for service in services}) == 2


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620, 0o601])
def test_a_key_that_others_may_read_is_refused(path: Path, mode: int) -> None:
    Keyring(path).secret("a")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=r"can be read by others: change its mode to 600\.$"):
        Keyring(path).secret("a")
    path.chmod(0o400)
    Keyring(path).secret("a")


@pytest.mark.parametrize("content", ["", "00" * 31, "00" * 33, "zz" * 32, "\u00e9", "00" * 4096])
def test_a_damaged_key_is_refused_and_not_replaced(path: Path, content: str) -> None:
    path.touch(0o600)
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"is not a key of 32 bytes in hexadecimal; restore a copy of it\.$"):
        Keyring(path).secret("a")
    assert path.read_text() == content


def _to_elsewhere(path: Path) -> None:
    elsewhere = path.parent / "elsewhere"
    Keyring(elsewhere).secret("a")
    path.symlink_to(elsewhere)


def _to_nowhere(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize("plant", [_to_elsewhere, _to_nowhere, Path.mkdir])
def test_a_link_or_a_directory_in_its_place_is_one_sentence(path: Path, plant: Callable[[Path], None]) -> None:
    plant(path)
    with pytest.raises(ConfigError, match="the key of all secrets"):
        Keyring(path).secret("a")
    assert not (path.parent / "nowhere").exists()


def test_processes_that_make_it_at_once_have_one_key(path: Path) -> None:
    """As ``serve`` and ``attachment list`` may."""
    code = "import sys, pathlib, blockstore.keys.keyring as k; print(k.Keyring(pathlib.Path(sys.argv[1])).secret('a'))"
    argv = [sys.executable, "-c", code, str(path)]
    started = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    assert {process.communicate(timeout=60)[0] for process in started} == {f"{Keyring(path).secret('a')}\n"}
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_nlink == 1


def test_a_service_with_an_open_key_does_not_start_and_says_why(serve: Callable[..., Served], tmp_path: Path) -> None:
    state = tmp_path / "served"
    served = serve(state_dir=state)
    key = state / "attachments.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert served.stop() == 0
    key.chmod(0o640)
    with pytest.raises(
        AssertionError, match=r"holds the key of all secrets and can be read by others: change its mode to 600"
    ):
        serve(state_dir=state)
    assert "Traceback" not in (state / "log").read_text()
