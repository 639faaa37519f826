"""What is asked before anything else, of the real server: version documents, health checks, and keys in paths."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import Served, need


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server with built-in identity."""
    served = Served(tmp_path_factory.mktemp("discovery") / "state", "[service]\nauth = builtin\n")
    yield served
    served.kill()


def ask(served: Served, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes, Any]:
    address = urlsplit(served.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    sent = {"Content-Type": "application/json", **headers}
    connection.request(method, path, None if body is None else json.dumps(body), sent)
    answer = connection.getresponse()
    result = answer.status, answer.read(), answer.headers
    connection.close()
    return result


def token(served: Served) -> str:
    password = (served.state_dir / "admin-password").read_text().strip()
    user = {"name": "admin", "domain": {"id": "default"}, "password": password}
    identity = {"methods": ["password"], "password": {"user": user}}
    scope = {"project": {"name": "admin", "domain": {"id": "default"}}}
    status, _, headers = ask(
        served, "POST", "/identity/v3/auth/tokens", {"auth": {"identity": identity, "scope": scope}}
    )
    assert status == 201
    return str(headers["X-Subject-Token"])


@pytest.mark.parametrize(("path", "status"), [("/", 300), ("/v3/", 200), ("//", 300), ("//v3//", 200)])
@pytest.mark.parametrize("method", ["GET", "OPTIONS", "HEAD"])
def test_the_versions_are_told_without_a_token(served: Served, path: str, status: int, method: str) -> None:
    got, body, headers = ask(served, method, path)
    assert (got, headers["Content-Type"]) == (status, "application/json")
    if method == "HEAD":
        assert body == b""
    else:
        assert json.loads(body)["versions"][0]["version"] == "3.71"
    # A token that has ended makes no difference: clients ask here before they get a new one.
    assert ask(served, method, path, **{"X-Auth-Token": "ended"})[0] == status


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "HEAD"])
def test_the_address_without_a_slash_leads_there(served: Served, method: str) -> None:
    status, _, headers = ask(served, method, "/v3")
    assert (status, urlsplit(headers["Location"]).path) == (302, "/v3/")


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "HEAD"])
def test_health_by_each_method(served: Served, method: str) -> None:
    status, body, _ = ask(served, method, "/healthcheck")
    assert (status, body) == (200, b"" if method == "HEAD" else b"OK")


@pytest.mark.parametrize("path", ["/", "/healthcheck"])
def test_the_health_check_of_a_proxy_without_a_host(served: Served, path: str) -> None:
    """As HAProxy's plain ``option httpchk`` asks; it takes 2xx and 3xx."""
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(f"OPTIONS {path} HTTP/1.0\r\n\r\n".encode())
        reply = b""
        while block := connection.recv(65536):
            reply += block
    assert reply.split(b" ")[1] in (b"200", b"300")


@pytest.mark.parametrize("address", ["", "/"])
def test_this_address_for_that_of_identity_is_an_error_at_once(served: Served, address: str) -> None:
    """OS_AUTH_URL=http://HOST:8776/v3: the client used to ask for ever."""
    try:
        from keystoneauth1 import exceptions, session
        from keystoneauth1.identity import generic
    except ImportError:
        need(False, "pip install keystoneauth1")
    password = generic.Password(
        auth_url=f"{served.url}{address}", username="admin", password="x", project_name="admin",
        user_domain_id="default", project_domain_id="default",
    )  # fmt: skip
    started = time.monotonic()
    with pytest.raises(exceptions.ClientException):
        session.Session(auth=password, timeout=60).get_token()
    assert time.monotonic() - started < 60


def test_pairs_whose_keys_hold_slashes(served: Served) -> None:
    headers = {"X-Auth-Token": token(served), "OpenStack-API-Version": "volumev3 3.42"}
    status, body, got = ask(served, "POST", "/v3//volumes", {"volume": {"size": 1}}, **headers)
    assert (status, got["OpenStack-API-Version"]) == (202, "volume 3.42")
    place = f"/v3/volumes/{json.loads(body)['volume']['id']}/metadata"
    assert ask(served, "POST", place, {"metadata": {"a/b.json": "1", "c": "2"}}, **headers)[0] == 200
    key = f"{place}/a%2Fb.json"
    assert ask(served, "PUT", key, {"meta": {"a/b.json": "3"}}, **headers)[0] == 200
    assert json.loads(ask(served, "GET", f"{place}/a/b.json", **headers)[1]) == {"meta": {"a/b.json": "3"}}
    assert ask(served, "DELETE", key, **headers)[0] == 200
    assert json.loads(ask(served, "GET", place, **headers)[1]) == {"metadata": {"c": "2"}}
