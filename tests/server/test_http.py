"""HTTPS by the service itself: real certificates, a real client, a clean stop."""

from __future__ import annotations

import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.server.certificates import certificate

pytestmark = pytest.mark.slow


def config_of(directory: Path, cert: Path, key: Path) -> Path:
    path = directory / "config.ini"
    path.write_text(
        f"[service]\ntls_certificate = {cert}\ntls_key = {key}\ntls_ca = {cert}\n[backend:m]\nplugin = memory\n"
    )
    return path


def blockstore(*words: object) -> list[str]:
    return [sys.executable, "-m", "blockstore", *map(str, words)]


def test_https_from_start_to_stop(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    where = ("--config", config_of(tmp_path, cert, key), "--state-dir", tmp_path / "s")
    argv = blockstore("serve", "--listen", "127.0.0.1:0", *where)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        well = (tmp_path / "s" / "endpoint").read_text().strip().removesuffix("/v3") + "/healthcheck"
        trusting, old = (ssl.create_default_context(cafile=cert) for _ in range(2))
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        said = []
        for context in (trusting, old):
            with urllib.request.urlopen(well, context=context, timeout=60) as answer:
                said.append(answer.read())
        with pytest.raises(OSError, match="certificate"):
            urllib.request.urlopen(well, timeout=60)
        openrc = subprocess.run(blockstore("openrc", *where), capture_output=True, text=True)
        process.terminate()
        status = process.wait(60)
    assert "serves https://127.0.0.1:" in first
    assert (said, status) == ([b"OK", b"OK"], 0)
    assert f"export OS_CACERT={cert};" in openrc.stdout
    assert "export OS_AUTH_URL=https://127.0.0.1:" in openrc.stdout


def test_a_key_that_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    cert, _ = certificate(tmp_path)
    _, other = certificate(tmp_path / "a")
    where = ("--config", config_of(tmp_path, cert, other), "--state-dir", tmp_path / "s")
    done = subprocess.run(blockstore("serve", "--listen", "127.0.0.1:0", *where), capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"blockstore: tls_certificate {cert} and tls_key {other} cannot be used: ")
