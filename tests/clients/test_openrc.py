"""What ``blockstore openrc`` prints, before any client reads it."""

from __future__ import annotations

import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from blockstore.microversions import CLIENTS
from tests.clients.conftest import ANOTHER_CLOUD, BIN, openrc
from tests.conftest import Served
from tests.server.certificates import certificate


def without_identity(directory: Path) -> Path:
    path = directory / "none.ini"
    path.write_text("[service]\nauth = none\n")
    return path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "blockstore", "openrc", *arguments], capture_output=True, text=True, timeout=60
    )


def test_names_the_port_that_is_served_and_clears_another_cloud(serve: Callable[..., Served], tmp_path: Path) -> None:
    """The environment afterwards has our values and nothing that would send a client elsewhere."""
    served = serve()
    found = openrc(served.state_dir, tmp_path, served.state_dir / "config.ini")
    ours = {k: v for k, v in found.items() if k.startswith(("OS_", "CINDER"))}
    assert ours == {
        "OS_auth_type": "none",
        "OS_AUTH_SYSTEM": "noauth",
        "OS_ENDPOINT": served.url,
        "CINDER_ENDPOINT": served.url,
        "CINDER_PROJECT_ID": "admin",
        "OS_VOLUME_API_VERSION": str(CLIENTS),
        # these only choose among endpoints of a catalogue, and there is none
        "OS_REGION_NAME": ANOTHER_CLOUD["OS_REGION_NAME"],
        "OS_INTERFACE": ANOTHER_CLOUD["OS_INTERFACE"],
    }


def test_with_the_built_in_identity_it_is_what_every_client_reads(serve: Callable[..., Served], tmp_path: Path) -> None:
    """Nothing else than the usual settings, with the password that the first start made."""
    served = serve("[service]\nauth = builtin\n")
    found = openrc(served.state_dir, tmp_path)
    assert (served.state_dir / "admin-password").stat().st_mode & 0o777 == 0o600
    assert {k: v for k, v in found.items() if k.startswith(("OS_", "CINDER"))} == {
        "OS_AUTH_URL": served.url.removesuffix("/v3") + "/identity/v3",
        "OS_USERNAME": "admin",
        "OS_PASSWORD": (served.state_dir / "admin-password").read_text().strip(),
        "OS_PROJECT_NAME": "admin",
        "OS_USER_DOMAIN_ID": "default",
        "OS_PROJECT_DOMAIN_ID": "default",
        "OS_REGION_NAME": "RegionOne",
        "OS_IDENTITY_API_VERSION": "3",
        "OS_VOLUME_API_VERSION": str(CLIENTS),
        "OS_INTERFACE": ANOTHER_CLOUD["OS_INTERFACE"],
    }


def test_with_tls_on_all_addresses_clients_accept_the_certificate(serve: Callable[..., Served], tmp_path: Path) -> None:
    """The name is one that the certificate is for, and OS_CACERT is what it is checked by."""
    cert, key = certificate(tmp_path, "localhost")
    tls = f"tls_certificate = {cert}\ntls_key = {key}\ntls_ca = {cert}\n"
    served = serve(
        f"[service]\nauth = builtin\n{tls}", "--listen", "0.0.0.0:0", trusting=ssl.create_default_context(cafile=cert)
    )
    environment = openrc(served.state_dir, tmp_path, served.state_dir / "config.ini")
    assert environment["OS_AUTH_URL"].startswith("https://localhost:")
    argv = [str(BIN / "openstack"), "volume", "list", "-f", "json"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def test_works_without_quotes_too(tmp_path: Path) -> None:
    """``eval $(blockstore openrc)`` runs lines into one; a semicolon ends each."""
    text = run("--state-dir", str(tmp_path), "--config", str(without_identity(tmp_path))).stdout
    done = subprocess.run(
        ["/bin/sh", "-euc", f"eval {text!r}; echo $OS_ENDPOINT $OS_VOLUME_API_VERSION".replace("\\n", " ")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"http://127.0.0.1:8776/v3 {CLIENTS}\n"


def test_before_the_first_start_it_says_so(tmp_path: Path) -> None:
    """The configured address is printed, and on the error stream that nothing has served yet."""
    done = run("--state-dir", str(tmp_path / "none"), "--config", str(without_identity(tmp_path)))
    assert done.returncode == 0
    assert "export OS_ENDPOINT=http://127.0.0.1:8776/v3;" in done.stdout
    assert (
        done.stderr
        == f"blockstore: no service has used {tmp_path / 'none'} yet; this output works once it is started.\n"
    )


def test_a_state_directory_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    """No traceback."""
    (tmp_path / "file").touch()
    done = run("--state-dir", str(tmp_path / "file"), "--config", str(without_identity(tmp_path)))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"blockstore: The state directory {tmp_path}/file cannot be used: Not a directory.\n"


def test_a_port_that_is_picked_at_the_start_is_not_guessed(tmp_path: Path) -> None:
    """With port 0 only a start knows."""
    (tmp_path / "c.ini").write_text("[service]\nlisten = 127.0.0.1:0\n")
    done = run("--state-dir", str(tmp_path), "--config", str(tmp_path / "c.ini"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"blockstore: No service has used {tmp_path} yet, so the port is not known.\n"
