"""The three clients log in with an application credential instead of a person's password."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from typing import Any

import pytest

from tests.clients.conftest import BIN, Cloud

SDK = """\
import openstack
cloud = openstack.connect()
print([volume.name for volume in cloud.block_storage.volumes()])
"""


LIBRARY = """\
import os
from cinderclient import client
from keystoneauth1 import session
from keystoneauth1.identity import v3
auth = v3.ApplicationCredential(
    os.environ["OS_AUTH_URL"],
    application_credential_id=os.environ["OS_APPLICATION_CREDENTIAL_ID"],
    application_credential_secret=os.environ["OS_APPLICATION_CREDENTIAL_SECRET"],
)
print([volume.name for volume in client.Client("3.71", session=session.Session(auth=auth)).volumes.list()])
"""


class TestApplicationCredential:
    """One credential of the administrator's, with the role reader only."""

    backend = "plugin = directory\n"

    @pytest.fixture
    def environment(self, cloud: Cloud) -> dict[str, str]:
        """What a program is given: an id and a secret."""
        body = {"application_credential": {"name": os.urandom(4).hex(), "roles": [{"name": "reader"}]}}
        request = urllib.request.Request(
            f"{cloud.environment['OS_AUTH_URL']}/users/admin/application_credentials",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "X-Auth-Token": cloud.token},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            made: dict[str, Any] = json.load(answer)["application_credential"]
        return {
            "PATH": cloud.environment["PATH"],
            "HOME": cloud.environment["HOME"],
            "LANG": "C.UTF-8",
            "PYTHONWARNINGS": cloud.environment["PYTHONWARNINGS"],
            "OS_AUTH_TYPE": "v3applicationcredential",
            "OS_AUTH_URL": cloud.environment["OS_AUTH_URL"],
            "OS_APPLICATION_CREDENTIAL_ID": made["id"],
            "OS_APPLICATION_CREDENTIAL_SECRET": made["secret"],
            "OS_VOLUME_API_VERSION": "3.71",
        }

    def run(self, environment: dict[str, str], *argv: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(a) for a in argv], env=environment, capture_output=True, text=True, timeout=120)

    def test_openstack(self, cloud: Cloud, environment: dict[str, str]) -> None:
        """It lists, and may not create."""
        done = self.run(environment, BIN / "openstack", "volume", "list", "-f", "json")
        assert (done.returncode, json.loads(done.stdout)) == (0, []), done.stderr
        done = self.run(environment, BIN / "openstack", "volume", "create", "--size", "1", "no")
        assert done.returncode == 1
        assert "Policy doesn't allow volume:create" in done.stderr

    def test_cinderclient(self, cloud: Cloud, environment: dict[str, str]) -> None:
        """The library lists; the command ``cinder`` asks for a project, whatever the way of logging in."""
        done = self.run(environment, sys.executable, "-W", "ignore", "-c", LIBRARY)
        assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr

    def test_openstacksdk(self, cloud: Cloud, environment: dict[str, str]) -> None:
        """It lists, connected from the environment alone."""
        done = self.run(environment, sys.executable, "-c", SDK)
        assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
