"""Behind a real HAProxy and a real nginx, configured as docs/proxies.md says: every URL is the one that was used."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.clients.conftest import BIN, openrc
from tests.conftest import ROOT, Served, need
from tests.server.certificates import certificate

pytestmark = pytest.mark.slow

CONFIG = """\
[service]
auth = builtin
trusted_proxies = 127.0.0.1
[identity]
login_failures = 2
[backend:m]
plugin = memory
"""
CLIENT, ANOTHER = "127.0.0.8", "127.0.0.9"
"""Where clients come from: not from the proxy's own address, which is trusted."""


def documented(heading: str) -> str:
    """Return the configuration below a heading of docs/proxies.md."""
    section = (ROOT / "docs" / "proxies.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return section.split("```", 2)[1].partition("\n")[2]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Proxy:
    """A proxy in front of a served process, by HTTP and HTTPS."""

    def __init__(self, name: str, served: Served, directory: Path) -> None:
        self.served = served
        self.ca, key = certificate(directory, "127.0.0.1")
        both = directory / "cloud.pem"
        both.write_text(self.ca.read_text() + key.read_text())
        ports = {"http": free_port(), "https": free_port()}
        self.urls = {scheme: f"{scheme}://127.0.0.1:{port}" for scheme, port in ports.items()}
        text = documented({"haproxy": "HAProxy", "nginx": "nginx"}[name])
        for old, new in {
            "192.0.2.10:80": f"127.0.0.1:{ports['http']}",
            "192.0.2.10:443": f"127.0.0.1:{ports['https']}",
            "127.0.0.1:8776": urlsplit(served.url).netloc,
            "/etc/haproxy/cloud.pem": str(both),
            "/etc/nginx/cloud.pem": str(both),
            "/etc/nginx/cloud.key": str(key),
        }.items():
            text = re.sub(re.escape(old) + r"(?=[\s;/]|$)", new, text)
        config = directory / f"{name}.conf"
        if name == "haproxy":
            argv = ["haproxy", "-db", "-f", str(config)]
        else:
            places = "".join(
                f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            )
            text = f"daemon off; pid {directory}/pid; events {{}} http {{ access_log off; {places}\n{text}}}\n"
            argv = ["nginx", "-p", str(directory), "-e", "stderr", "-c", str(config)]
        config.write_text(text)
        self.log = directory / "proxy.log"
        with self.log.open("wb") as log:
            environment = {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)

    def wait(self, timeout_s: float = 60) -> None:
        """Wait until it answers for the service."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError):
                if self.ask("https", "GET", "/healthcheck")[0] == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def ask(
        self, scheme: str, method: str, path: str, body: Any = None, source: str = CLIENT, **headers: str
    ) -> tuple[int, Any, bytes]:
        """Send a request from an address of this machine; return status, headers and body."""
        port = urlsplit(self.urls[scheme]).port
        kw: dict[str, Any] = {"timeout": 30, "source_address": (source, 0)}
        connection = (
            http.client.HTTPSConnection("127.0.0.1", port, context=ssl.create_default_context(cafile=self.ca), **kw)
            if scheme == "https"
            else http.client.HTTPConnection("127.0.0.1", port, **kw)
        )
        with contextlib.closing(connection):
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json", **given})
            response = connection.getresponse()
            return response.status, response.headers, response.read()


def login(password: str) -> dict[str, Any]:
    user = {"name": "admin", "domain": {"id": "default"}, "password": password}
    scope = {"project": {"name": "admin", "domain": {"id": "default"}}}
    return {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope}}


@pytest.fixture(scope="module", params=["haproxy", "nginx"])
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy of Debian in front of one process."""
    need(shutil.which(request.param, path=f"{os.environ['PATH']}:/usr/sbin"), f"apt-get install {request.param}")
    served = Served(tmp_path_factory.mktemp("served"), CONFIG)
    found = None
    try:
        found = Proxy(request.param, served, tmp_path_factory.mktemp(request.param))
        found.wait()
        yield found
    finally:
        if found is not None:
            found.process.terminate()
            found.process.wait(60)
        served.kill()


@pytest.mark.parametrize("prefix", ["", "/volume"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_every_url_starts_with_the_one_that_was_used(proxy: Proxy, scheme: str, prefix: str) -> None:
    """Also when the client writes the proxies' headers itself."""
    base = proxy.urls[scheme] + prefix
    forged = {
        "X_Forwarded_Host": "evil.example",
        "X_Forwarded_Proto": "gopher",
        "X_Forwarded_Prefix": "/evil",
        "X_Forwarded_For": "9.9.9.9",
        "Forwarded": "host=evil.example",
    }
    status, headers, body = proxy.ask(scheme, "GET", f"{prefix}/v3/volumes", **forged)
    assert (status, headers["WWW-Authenticate"]) == (401, f'Keystone uri="{base}/identity"')
    assert b"evil" not in body
    status, headers, body = proxy.ask(scheme, "GET", f"{prefix}/v3", **forged)
    assert (status, headers["Location"]) == (302, f"{base}/v3/")
    for path, link in (("/", "/v3/"), ("/identity", "/identity/v3/"), ("/image", "/image/v2/")):
        _, _, body = proxy.ask(scheme, "GET", prefix + path, **forged)
        assert f'"{base}{link}"'.encode() in body
    password = (proxy.served.state_dir / "admin-password").read_text().strip()
    status, headers, body = proxy.ask(scheme, "POST", f"{prefix}/identity/v3/auth/tokens", login(password), **forged)
    assert status == 201
    urls = {e["url"] for service in json.loads(body)["token"]["catalog"] for e in service["endpoints"]}
    assert urls == {f"{base}/v3", f"{base}/v3/admin", f"{base}/identity", f"{base}/image"}
    token = headers["X-Subject-Token"]
    volume = {"volume": {"size": 1, "name": "a"}}
    status, _, body = proxy.ask(scheme, "POST", f"{prefix}/v3/volumes", volume, X_Auth_Token=token, **forged)
    assert status == 202
    assert json.loads(body)["volume"]["links"][0]["href"].startswith(f"{base}/v3/volumes/")
    assert b"evil" not in body


def test_failed_logins_count_for_the_client(proxy: Proxy) -> None:
    """Whatever it says in X-Forwarded-For: two are free, the next one waits; and each client has a count of its own."""
    path = "/identity/v3/auth/tokens"
    began = []
    for number in range(3):
        began.append(time.monotonic())
        forged = {"X_Forwarded_For": f"198.51.100.{number}"}
        assert proxy.ask("http", "POST", path, login("wrong"), **forged)[0] == 401
    assert time.monotonic() - began[1] >= 1
    assert proxy.ask("http", "POST", path, login("wrong"), source=ANOTHER)[0] == 401
    password = (proxy.served.state_dir / "admin-password").read_text().strip()
    assert proxy.ask("http", "POST", path, login(password), source=ANOTHER)[0] == 201
    counted = re.findall(r"a login from (\S+) failed", proxy.served.log.read_text())
    assert counted == [CLIENT] * 3 + [ANOTHER]


@pytest.mark.parametrize(("scheme", "prefix"), [("http", ""), ("https", "/volume")])
def test_the_openstack_client_works_through_it(proxy: Proxy, scheme: str, prefix: str, tmp_path: Path) -> None:
    """With what openrc prints when public_endpoint names the proxy; it follows the catalogue from there."""
    need((BIN / "openstack").exists(), "pip install 'blockstore[clients]'")
    config = tmp_path / "public.ini"
    base = proxy.urls[scheme] + prefix
    section = f"[service]\npublic_endpoint = {base}\ntls_ca = {proxy.ca}\n"
    config.write_text(CONFIG.replace("[service]\n", section))
    environment = openrc(proxy.served.state_dir, tmp_path, config)
    assert environment["OS_AUTH_URL"] == f"{base}/identity/v3"
    name = f"through-{scheme}"
    for command in (f"volume create --size 1 {name}", "volume list -f value -c Name"):
        done = subprocess.run(
            [str(BIN / "openstack"), *command.split()], env=environment, capture_output=True, text=True, timeout=120
        )
        assert (done.returncode, done.stderr) == (0, ""), command
    assert name in done.stdout.split()
