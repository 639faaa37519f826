"""A real Keystone, with a project, people, and this service's own user in it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Answer, need

VENV = ROOT / ".keystone"
REQUIREMENTS = Path(__file__).parent / "requirements.txt"
CONFIG = """\
[database]
connection = sqlite:///{place}/keystone.db
[token]
provider = fernet
[fernet_tokens]
key_repository = {place}/fernet
[fernet_receipts]
key_repository = {place}/fernet
[credential]
key_repository = {place}/credential
[cache]
enabled = false
[identity]
password_hash_rounds = 4
"""
# It reads the command line of whoever imports it.
SERVE = """\
import sys
sys.argv = ["keystone"]
from keystone.wsgi.api import application
from waitress import serve
serve(application, listen="{listen}", threads=4)
"""
PASSWORD = "test-password"


def install() -> None:
    """Make .keystone, when it is not there or the requirements have changed."""
    stamp = VENV / ".installed"
    if stamp.exists() and stamp.read_text() == REQUIREMENTS.read_text():
        return
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    pip = [VENV / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS]
    done = subprocess.run(pip, capture_output=True, text=True)
    need(done.returncode == 0, f"pip install -r {REQUIREMENTS}: {done.stderr[-500:]}")
    stamp.write_text(REQUIREMENTS.read_text())


def ask(url: str, method: str = "GET", body: Any = None, token: str | None = None, **headers: str) -> Answer:
    """Ask anything over HTTP."""
    said = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if token is not None:
        said["X-Auth-Token"] = token
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, method=method, data=data, headers=said)
    try:
        with urllib.request.urlopen(request, timeout=60) as got:
            return Answer(got.status, dict(got.headers), got.read())
    except urllib.error.HTTPError as exc:
        with exc:
            return Answer(exc.code, dict(exc.headers), exc.read())


@dataclasses.dataclass
class Keystone:
    """A running one."""

    url: str
    pid: int
    ids: dict[str, str] = dataclasses.field(default_factory=dict)

    def token(self, user: str, project: str) -> str:
        """Log in."""
        domain = {"id": "default"}
        proof = {"user": {"name": user, "domain": domain, "password": PASSWORD}}
        scope = {"project": {"name": project, "domain": domain}}
        auth = {"identity": {"methods": ["password"], "password": proof}, "scope": scope}
        answer = ask(f"{self.url}/auth/tokens", "POST", {"auth": auth})
        assert answer.status == 201, answer.body
        return answer.headers.get("X-Subject-Token") or answer.headers["x-subject-token"]

    def provision(self) -> None:
        """Make projects, people, and what this service needs."""
        admin = self.token("admin", "admin")

        def make(plural: str, noun: str, **values: Any) -> str:
            answer = ask(f"{self.url}/{plural}", "POST", {noun: values}, admin)
            assert answer.status == 201, answer.body
            return str(answer.json[noun]["id"])

        roles = {r["name"]: r["id"] for r in ask(f"{self.url}/roles", token=admin).json["roles"]}
        for project in ("demo", "other", "service"):
            self.ids[project] = make("projects", "project", name=project, domain_id="default")
        for user, project, names in (
            ("member", "demo", ["member"]),
            ("reader", "demo", ["reader"]),
            ("stranger", "other", ["member"]),
            ("blockstore", "service", ["admin", "service"]),
            ("nova", "service", ["service"]),
        ):
            self.ids[user] = make("users", "user", name=user, domain_id="default", password=PASSWORD)
            for name in names:
                place = f"{self.url}/projects/{self.ids[project]}/users/{self.ids[user]}/roles/{roles[name]}"
                assert ask(place, "PUT", None, admin).status == 204

    def register(self, url: str) -> None:
        """Put the service into the catalogue."""
        admin = self.token("admin", "admin")
        service = {"service": {"type": "block-storage", "name": "cinder"}}
        made = ask(f"{self.url}/services", "POST", service, admin).json["service"]["id"]
        endpoint = {"service_id": made, "interface": "public", "region_id": "RegionOne", "url": url}
        assert ask(f"{self.url}/endpoints", "POST", {"endpoint": endpoint}, admin).status == 201


@pytest.fixture(scope="session")
def keystone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keystone]:
    """A Keystone with people in it."""
    install()
    place = tmp_path_factory.mktemp("keystone")
    for name in ("etc", "fernet", "credential"):
        (place / name).mkdir(mode=0o700)
    (place / "etc" / "keystone.conf").write_text(CONFIG.format(place=place))
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    url = f"http://{listen}/v3"
    environment = {"PATH": os.environ["PATH"], "OS_KEYSTONE_CONFIG_DIR": str(place / "etc"), "LANG": "C.UTF-8"}
    manage = [VENV / "bin" / "keystone-manage", "--config-dir", place / "etc"]
    user, group = "root" if os.geteuid() == 0 else os.environ["USER"], "root" if os.geteuid() == 0 else str(os.getgid())
    for words in (
        ["db_sync"],
        ["fernet_setup", "--keystone-user", user, "--keystone-group", group],
        ["bootstrap", "--bootstrap-password", PASSWORD, "--bootstrap-region-id", "RegionOne",
            "--bootstrap-public-url", url, "--bootstrap-internal-url", url],
    ):  # fmt: skip
        done = subprocess.run([*manage, *words], env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
    with (place / "log").open("wb") as log:
        argv = [VENV / "bin" / "python", "-c", SERVE.format(listen=listen)]
        process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log)
    try:
        running = Keystone(url, process.pid)
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                if ask(url).status == 200:
                    break
            assert time.monotonic() < deadline, (place / "log").read_text()[-2000:]
            assert process.poll() is None, (place / "log").read_text()[-2000:]
            time.sleep(0.2)
        running.provision()
        yield running
    finally:
        process.kill()
        process.wait()
