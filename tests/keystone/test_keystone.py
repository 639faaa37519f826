"""With ``auth = keystone`` tokens are Keystone's: taken, refused, scoped, and service tokens with them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Answer, Served
from tests.keystone.conftest import PASSWORD, Keystone, ask

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # pip installs Keystone

CONFIG = """\
[service]
auth = keystone
[keystone]
auth_url = {url}
password = {password}
interface = public
token_cache_s = -1
[backend:m]
plugin = memory
"""


@pytest.fixture(scope="module")
def served(keystone: Keystone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served"), CONFIG.format(url=keystone.url, password=PASSWORD))
    keystone.register(served.url)
    yield served
    assert served.stop() == 0
    log = served.log.read_text()
    assert PASSWORD not in log
    assert "Traceback" not in log


def volumes(
    served: Served, token: str | None, method: str = "GET", path: str = "", body: Any = None, **kw: str
) -> Answer:
    return ask(f"{served.url}{path}/volumes", method, body, token, **kw)


def test_without_a_good_token_nobody_gets_in(served: Served) -> None:
    for token in (None, "", "forged", "x" * 300):
        answer = volumes(served, token)
        assert answer.status == 401
    claimed = {"X_Identity_Status": "Confirmed", "X_Project_Id": "demo", "X_Roles": "admin", "X_User_Id": "x"}
    assert volumes(served, None, **claimed).status == 401
    assert volumes(served, "forged", **claimed).status == 401
    for path in ("/", "/healthcheck"):
        assert ask(served.url.removesuffix("/v3") + path).status in (200, 300)


def test_roles_and_projects(served: Served, keystone: Keystone) -> None:
    member, reader = keystone.token("member", "demo"), keystone.token("reader", "demo")
    stranger, admin = keystone.token("stranger", "other"), keystone.token("admin", "admin")
    made = volumes(served, member, "POST", body={"volume": {"size": 1}})
    assert made.status == 202
    volume = made.json["volume"]["id"]
    assert volumes(served, member, path=f"/{keystone.ids['demo']}").status == 200
    assert volumes(served, member, path=f"/{keystone.ids['other']}").status == 400
    assert ask(f"{served.url}/volumes/{volume}", token=reader).status == 200
    assert ask(f"{served.url}/volumes/{volume}", token=stranger).status == 404
    assert ask(f"{served.url}/volumes/{volume}", token=admin).status == 200
    assert volumes(served, reader, "POST", body={"volume": {"size": 1}}).status == 403
    claimed = volumes(served, reader, "POST", body={"volume": {"size": 1}}, X_Roles="admin")
    assert claimed.status == 403
    assert "os-vol-host-attr:host" not in ask(f"{served.url}/volumes/{volume}", token=reader).json["volume"]


def test_service_tokens(served: Served, keystone: Keystone) -> None:
    member, nova = keystone.token("member", "demo"), keystone.token("nova", "service")
    assert volumes(served, member, X_Service_Token=nova).status == 200
    assert volumes(served, member, X_Service_Token="forged").status == 401
    assert volumes(served, nova).status == 403


def test_a_revoked_token_is_refused(served: Served, keystone: Keystone) -> None:
    token = keystone.token("member", "demo")
    assert volumes(served, token).status == 200
    assert ask(f"{keystone.url}/auth/tokens", "DELETE", None, token, X_Subject_Token=token).status == 204
    assert volumes(served, token).status == 401


def test_the_command_line_finds_it_in_the_catalogue(served: Served, keystone: Keystone) -> None:
    environment = {
        "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(served.state_dir), "OS_AUTH_URL": keystone.url,
        "OS_USERNAME": "member", "OS_PASSWORD": PASSWORD, "OS_PROJECT_NAME": "demo", "OS_USER_DOMAIN_ID": "default",
        "OS_PROJECT_DOMAIN_ID": "default", "OS_IDENTITY_API_VERSION": "3",
    }  # fmt: skip
    openstack = Path(sys.executable).parent / "openstack"
    done = subprocess.run(
        [openstack, "volume", "create", "--size", "1", "byname", "-f", "value", "-c", "name"],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "byname\n"), done.stderr


def test_openrc_says_whom_to_ask(served: Served, keystone: Keystone) -> None:
    argv = [sys.executable, "-m", "blockstore", "openrc", "--config", str(served.state_dir / "config.ini")]
    done = subprocess.run([*argv, "--state-dir", str(served.state_dir)], capture_output=True, text=True)
    assert done.returncode == 1
    assert keystone.url in done.stderr
