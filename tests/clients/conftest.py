"""A served process, and the clients that know of it by nothing but ``eval "$(blockstore openrc)"``."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.interpreter import Interpreter
from tests.conftest import Served, need

BIN = Path(sys.executable).parent
INSTALL = "pip install 'blockstore[clients]'"

MAX_LIMIT = 3
"""The served process pages by so many, so that each client has to follow links."""

CONFIG = f"""\
[service]
auth = builtin
max_limit = {MAX_LIMIT}
[quota]
volumes = 40
snapshots = 40
gigabytes = 1000
[backend:disk]
max_over_subscription_ratio = 1000
reserved_percentage = 0
fill_limit_percentage = 100
"""

ON_THEIR_WAY = ("creating", "extending", "deleting", "reverting", "restoring", "managing", "retyping", "maintenance")
"""Statuses that end by themselves."""

SERVICE = "blockstore@disk"
POOL = "blockstore@disk#"

ANOTHER_CLOUD = {
    "OS_CLOUD": "production",
    "OS_AUTH_TYPE": "v3password",
    "OS_AUTH_URL": "http://127.0.0.1:9/identity",
    "OS_USERNAME": "operator",
    "OS_PASSWORD": "not-for-you",
    "OS_PROJECT_ID": "0123456789abcdef",
    "OS_PROJECT_NAME": "payroll",
    "OS_PROJECT_DOMAIN_NAME": "Default",
    "OS_USER_DOMAIN_NAME": "Default",
    "OS_REGION_NAME": "RegionOne",
    "OS_INTERFACE": "internal",
    "OS_IDENTITY_API_VERSION": "3",
    "OS_VOLUME_API_VERSION": "3.50",
    "OS_BLOCK_STORAGE_DEFAULT_MICROVERSION": "3.44",
    "OS_BLOCK_STORAGE_ENDPOINT_OVERRIDE": "http://127.0.0.1:9/v3",
    "CINDER_USERNAME": "operator",
}
"""What a shell holds after the openrc of some other cloud: none of it may be in the way."""


def openrc(state_dir: Path, home: Path, config: Path | None = None) -> dict[str, str]:
    """Return the environment of a shell that knew another cloud and has then evaluated our openrc."""
    options = ["--config", str(config)] if config else []
    blockstore = shlex.join([sys.executable, "-m", "blockstore", "openrc", "--state-dir", str(state_dir), *options])
    done = subprocess.run(
        ["/bin/sh", "-euc", f'eval "$({blockstore})"; exec env -0'],
        env={
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PYTHONWARNINGS": "ignore:::oslo_privsep.daemon",  # cinder loads os-brick's plugin, which loads eventlet
            **ANOTHER_CLOUD,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if line)


class Cloud:
    """One served process, with both command lines."""

    def __init__(self, served: Served, home: Path) -> None:
        self.served = served
        self.environment = openrc(served.state_dir, home)
        self._known: set[str] = set()
        self._interpreter: Interpreter | None = None

    @functools.cached_property
    def token(self) -> str:
        """A token of the administrator's, for what is done without a client."""
        user = {"name": "admin", "domain": {"id": "default"}, "password": self.environment["OS_PASSWORD"]}
        project = {"name": "admin", "domain": {"id": "default"}}
        identity = {"methods": ["password"], "password": {"user": user}}
        request = urllib.request.Request(
            f"{self.environment['OS_AUTH_URL']}/auth/tokens",
            data=json.dumps({"auth": {"identity": identity, "scope": {"project": project}}}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(answer.headers["X-Subject-Token"])

    def close(self) -> None:
        """End what later commands were run in."""
        if self._interpreter is not None:
            self._interpreter.close()

    def session(self) -> Any:
        """A session of keystoneauth, logged in by the environment."""
        from keystoneauth1 import session
        from keystoneauth1.identity import v3

        names = ("username", "password", "project_name", "user_domain_id", "project_domain_id")
        settings = {name: self.environment[f"OS_{name.upper()}"] for name in names}
        return session.Session(auth=v3.Password(self.environment["OS_AUTH_URL"], **settings))

    def run(self, *argv: str) -> tuple[int, str, str]:
        """Run a command line and return its exit status and what it printed; a traceback is never right.

        The first command of each program is run as a user runs it, later ones in an interpreter that is warm.
        """
        if argv[0] in self._known:
            self._interpreter = self._interpreter or Interpreter(self.environment)
            status, out, err = self._interpreter.run(argv, self.environment)
            assert "Traceback" not in err, err
            return status, out, err
        self._known.add(argv[0])
        done = subprocess.run(
            [str(BIN / argv[0]), *argv[1:]],
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    def openstack(self, command: str, *arguments: str) -> str:
        """Run an openstack command that must succeed without a complaint."""
        status, out, err = self.run("openstack", *command.split(), *arguments)
        assert (status, err) == (0, ""), (command, arguments, out, err)
        return out

    def openstack_json(self, command: str, *arguments: str) -> Any:
        """Run an openstack command and return what it shows."""
        return json.loads(self.openstack(command, *arguments, "-f", "json"))

    def openstack_fails(self, command: str, *arguments: str) -> str:
        """Run an openstack command that must fail, and return what it says."""
        status, _, err = self.run("openstack", *command.split(), *arguments)
        assert status != 0, (command, arguments)
        return err

    def cinder(self, *arguments: str) -> list[dict[str, str]]:
        """Run a cinder command that must succeed without a complaint, and return the rows of its table."""
        status, out, err = self.run("cinder", *arguments)
        assert (status, err) == (0, ""), (arguments, out, err)
        table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line[:1] == "|"]
        return [dict(zip(table[0], row, strict=True)) for row in table[1:]]

    def cinder_shown(self, *arguments: str) -> dict[str, str]:
        """Run a cinder command whose table is of properties and values."""
        return {row["Property"]: row["Value"] for row in self.cinder(*arguments)}

    def cinder_fails(self, *arguments: str) -> str:
        """Run a cinder command that must fail, and return what it says."""
        status, out, err = self.run("cinder", *arguments)
        assert status != 0, arguments
        return out + err

    def get(self, path: str) -> Any:
        """Look without a client."""
        headers = {"OpenStack-API-Version": "volume 3.71", "X-Auth-Token": self.token}
        request = urllib.request.Request(self.served.url + path, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def delete(self, path: str) -> None:
        """Delete without a client."""
        request = urllib.request.Request(self.served.url + path, method="DELETE", headers={"X-Auth-Token": self.token})
        urllib.request.urlopen(request, timeout=60).close()

    def make_volumes(self, number: int) -> str:
        """Create volumes without a client, and return what their names begin with."""
        prefix = f"page-{uuid.uuid4().hex[:8]}-"
        for i in range(number):
            request = urllib.request.Request(
                f"{self.served.url}/volumes",
                data=json.dumps({"volume": {"size": 1, "name": f"{prefix}{i}"}}).encode(),
                headers={"Content-Type": "application/json", "X-Auth-Token": self.token},
            )
            urllib.request.urlopen(request, timeout=60).close()
        self.settle()
        return prefix

    def remove(self, *volume_ids: str) -> None:
        """Delete volumes without a client, with their snapshots."""
        for volume_id in volume_ids:
            self.delete(f"/volumes/{volume_id}?cascade=true")
        self.settle()

    def settle(self, timeout_s: float = 60) -> None:
        """Wait until nothing is on its way; for where a client offers no waiting."""
        deadline = time.monotonic() + timeout_s
        for kind in ("volumes", "snapshots"):
            for status in ON_THEIR_WAY:
                while self.get(f"/{kind}/detail?status={status}&limit=1")[kind]:
                    assert time.monotonic() < deadline, (kind, status)
                    time.sleep(0.02)

    def status(self, volume_id: str) -> str:
        """Return the status of a volume."""
        return str(self.get(f"/volumes/{volume_id}")["volume"]["status"])


@pytest.fixture(scope="class")
def cloud(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Serve from the backend that the class names in ``backend``: lines of its section; at the end nothing broke."""
    for module in ("openstackclient", "cinderclient", "openstack"):
        need(importlib.util.find_spec(module), INSTALL)
    served = Served(tmp_path_factory.mktemp("served"), CONFIG + request.cls.backend)
    cloud = None
    try:
        cloud = Cloud(served, tmp_path_factory.mktemp("home"))
        yield cloud
        assert served.stop() == 0
        broken = [line for line in served.log.read_text().splitlines() if " ERROR " in line or "Traceback" in line]
        assert broken == []
    finally:
        if cloud is not None:
            cloud.close()
        if served.process.poll() is None:
            served.kill()


@pytest.fixture
def name() -> str:
    """A name that nothing else has."""
    return f"t-{uuid.uuid4().hex[:10]}"
