"""What is around every reply: versions, headers, error bodies, paths, links."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
from sqlalchemy.exc import OperationalError

from blockstore.api import ROUTE_TABLES
from blockstore.api.http.routes import Endpoint
from blockstore.db import health
from blockstore.microversions import MAXIMUM
from tests.api.conftest import SharedService, unknown_id
from tests.api.test_isolation import body_of, place
from tests.conftest import Answer, Client, Served

VERSION = "OpenStack-API-Version"
REQUEST_ID = re.compile(r"req-[0-9a-f]{8}-[0-9a-f-]{27}")


@pytest.fixture
def admin(sqlite_service: SharedService) -> Client:
    """An administrator with a project of his own."""
    return sqlite_service.admin()


def ask(sqlite_service: SharedService, method: str, path: str, **headers: str) -> Answer:
    """Send a request to a path that need not be below /v3."""
    got = Client(sqlite_service.service).http.open(path, method=method, headers=headers)
    return Answer(got.status_code, dict(got.headers), got.data)


# --- discovery -----------------------------------------------------------------------------------------------


def test_the_root_lists_the_versions_to_anybody(sqlite_service: SharedService) -> None:
    answer = ask(sqlite_service, "GET", "/", **{VERSION: "volume 9.9", "X-Project-Id": "no such id"})
    assert answer.status == 300
    assert (answer.headers[VERSION], answer.headers["Vary"]) == ("volume 3.0", VERSION)
    (version,) = answer.json["versions"]
    assert (version["id"], version["version"], version["min_version"]) == ("v3.0", "3.71", "3.0")
    assert version["links"][1]["href"] == "http://localhost/v3/"


def test_v3_is_the_same_document(sqlite_service: SharedService) -> None:
    answer = ask(sqlite_service, "GET", "/v3/", **{VERSION: "volume 3.5"})
    assert (answer.status, answer.headers[VERSION]) == (200, "volume 3.5")
    assert answer.json == ask(sqlite_service, "GET", "/").json


def test_v3_without_a_slash_leads_there(sqlite_service: SharedService) -> None:
    answer = ask(sqlite_service, "GET", "/v3")
    assert (answer.status, answer.headers["Location"]) == (302, "http://localhost/v3/")


def test_healthcheck(sqlite_service: SharedService) -> None:
    answer = ask(sqlite_service, "GET", "/healthcheck")
    assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, b"OK", "text/plain; charset=utf-8")
    assert VERSION not in answer.headers


def test_healthcheck_says_when_the_database_is_away(
    sqlite_service: SharedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise OperationalError("connect", None, Exception("refused"))

    for session in ("read", "write"):
        monkeypatch.setattr(sqlite_service.service.db, session, away)
    monkeypatch.setattr(health, "FRESH_S", 0)
    answer = ask(sqlite_service, "GET", "/healthcheck")
    assert (answer.status, answer.body) == (503, b"The database does not answer. Try again in a moment.\n")
    refused = sqlite_service.admin()("GET", "/volumes")
    assert (refused.status, refused.json) == (
        503,
        {"serviceUnavailable": {"code": 503, "message": "The database does not answer. Try again in a moment."}},
    )
    assert refused.headers["Retry-After"] == "5"


# --- microversions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        (None, "3.0"),
        ("volume 3.0", "3.0"),
        ("volume 3.71", "3.71"),
        ("volume latest", "3.71"),
        ("VOLUME LATEST", "3.71"),
        ("compute 2.1, volume 3.27", "3.27"),
        ("volume 3.27,volume 3.50", "3.27"),
        ("  volume   3.9  ", "3.9"),
        ("volumev3 3.42", "3.42"),
        ("volumev3 latest", "3.71"),
        ("volumev2 3.0", "3.0"),
        ("VolumeV3\t3.42", "3.42"),
        ("volumes 3.5", "3.5"),
        ("block-storage 3.42", "3.42"),
        ("Block-Storage 3.42", "3.42"),
        ("block-store 3.42", "3.42"),
        ("compute 2.1 , volumev3 3.27 , volume 3.50", "3.27"),
        ("block-storage 3.27, volume 3.50", "3.27"),
        (",,volume 3.9,", "3.9"),
        ("compute, volume 3.9", "3.9"),
    ],
)
def test_the_version_that_is_used_is_told(sqlite_service: SharedService, asked: str | None, used: str) -> None:
    answer = ask(sqlite_service, "GET", "/v3/volumes", **({VERSION: asked} if asked else {}))
    assert (answer.status, answer.headers[VERSION], answer.headers["Vary"]) == (200, f"volume {used}", VERSION)


@pytest.mark.parametrize(
    ("asked", "echo"),
    [
        ("volume 3.72", "volume 3.72"),
        ("volume 4.0", "volume 4.0"),
        ("compute 2.1,volume 3.99", "volume 3.99"),
        ("volumev3 3.99", "volume 3.99"),
        ("block-storage 3.99", "volume 3.99"),
        ("volumev3 2.0", None),
        ("volume 1.0", None),
        ("volume 2.0", None),
    ],
)
def test_a_version_out_of_range(sqlite_service: SharedService, asked: str, echo: str | None) -> None:
    answer = ask(sqlite_service, "GET", "/v3/volumes", **{VERSION: asked})
    number = asked.split()[-1]
    message = f"Version {number} is not supported by the API. Minimum is 3.0 and maximum is 3.71."
    assert (answer.status, answer.json) == (406, {"computeFault": {"code": 406, "message": message}})
    assert answer.headers.get(VERSION) == echo
    assert answer.headers.get("Vary") == (VERSION if echo else None)


@pytest.mark.parametrize("text", ["abc", "3", "3.", "3.01", "03.1", "3.1.1", "-3.1", "3.x", "3,1", "٣.1", ""])
def test_a_version_that_is_none(sqlite_service: SharedService, text: str) -> None:
    answer = ask(sqlite_service, "GET", "/v3/volumes", **{VERSION: f"volume {text}".encode().decode("latin-1")})
    assert answer.status == 400
    assert answer.message.endswith("is of invalid format. Must be of format MajorNum.MinorNum.")
    assert VERSION not in answer.headers


@pytest.mark.parametrize("text", ["volume", "volume 3.5 3.6", "volumev3", "volume3.5", "block-storage", "volume=3.5"])
def test_an_entry_that_is_not_a_name_and_a_version(sqlite_service: SharedService, text: str) -> None:
    answer = ask(sqlite_service, "GET", "/v3/volumes", **{VERSION: text})
    assert (answer.status, "invalid format" in answer.message, VERSION in answer.headers) == (400, True, False)


@pytest.mark.parametrize("text", ["compute 2.1", "3.5", "", ",", "shared-file-system 2.5", "block 3.5"])
def test_a_header_without_this_service(sqlite_service: SharedService, text: str) -> None:
    answer = ask(sqlite_service, "GET", "/v3/volumes", **{VERSION: text})
    assert (answer.status, "badRequest" in answer.json) == (400, True)


GATED = [
    (method, path, name, endpoint)
    for table in ROUTE_TABLES
    for (method, path), target in table.routes.items()
    for name, endpoint in ([("", target)] if isinstance(target, Endpoint) else target.items())
    if endpoint.since.minor
]


@pytest.mark.parametrize(
    ("method", "path", "name", "endpoint"), GATED, ids=[f"{m} {p} {n} {e.since}" for m, p, n, e in GATED]
)
def test_one_version_below_there_is_nothing(
    admin: Client, method: str, path: str, name: str, endpoint: Endpoint
) -> None:
    body = body_of(method, path, name, endpoint)
    answer = admin(method, place(path), body, version=f"3.{endpoint.since.minor - 1}")
    missing = {"itemNotFound": {"code": 404, "message": "The resource could not be found."}}
    assert (answer.status, answer.json) == (404, missing)
    answer = admin(method, place(path), body, version=str(endpoint.since))
    assert answer.json != missing if answer.body else answer.status in (202, 204)


def test_the_gates_are_those_of_the_reference() -> None:
    """As its facts have them; an action is named before its path."""
    names = {
        (f"{name} {path}" if name else f"{method} {path}"): str(endpoint.since)
        for method, path, name, endpoint in GATED
    }
    assert names == {
        "GET /volumes/summary": "3.12",
        "revert /volumes/<volume_id>/action": "3.40",
        "GET /attachments": "3.27",
        "GET /attachments/detail": "3.27",
        "GET /attachments/<attachment_id>": "3.27",
        "POST /attachments": "3.27",
        "PUT /attachments/<attachment_id>": "3.27",
        "os-complete /attachments/<attachment_id>/action": "3.44",
        "DELETE /attachments/<attachment_id>": "3.27",
        "GET /default-types": "3.62",
        "GET /default-types/<for_project>": "3.62",
        "PUT /default-types/<for_project>": "3.62",
        "DELETE /default-types/<for_project>": "3.62",
        "PUT /os-services/get-log": "3.32",
        "PUT /os-services/set-log": "3.32",
        "GET /clusters": "3.7",
        "GET /clusters/detail": "3.7",
        "GET /clusters/<cluster_name>": "3.7",
        "PUT /clusters/enable": "3.7",
        "PUT /clusters/disable": "3.7",
        "POST /workers/cleanup": "3.24",
        "GET /messages": "3.3",
        "GET /messages/<message_id>": "3.3",
        "DELETE /messages/<message_id>": "3.3",
        "GET /resource_filters": "3.33",
        "os-reimage /volumes/<volume_id>/action": "3.68",
        "GET /groups": "3.13",
        "GET /groups/detail": "3.13",
        "GET /groups/<one_id>": "3.13",
        "GET /group_snapshots": "3.14",
        "GET /group_snapshots/detail": "3.14",
        "GET /group_snapshots/<one_id>": "3.14",
        "PUT /backups/<one_id>": "3.9",
        "PUT /groups/<one_id>": "3.13",
        "DELETE /group_snapshots/<one_id>": "3.14",
        "GET /group_types/<one_id>": "3.11",
        "PUT /group_types/<one_id>": "3.11",
        "DELETE /group_types/<one_id>": "3.11",
        "GET /group_types/<one_id>/group_specs": "3.11",
        "POST /group_types/<one_id>/group_specs": "3.11",
        "GET /group_types/<one_id>/group_specs/<key>": "3.11",
        "PUT /group_types/<one_id>/group_specs/<key>": "3.11",
        "DELETE /group_types/<one_id>/group_specs/<key>": "3.11",
        "delete /groups/<one_id>/action": "3.13",
        "reset_status /groups/<one_id>/action": "3.20",
        "enable_replication /groups/<one_id>/action": "3.38",
        "disable_replication /groups/<one_id>/action": "3.38",
        "failover_replication /groups/<one_id>/action": "3.38",
        "list_replication_targets /groups/<one_id>/action": "3.38",
        "reset_status /group_snapshots/<one_id>/action": "3.19",
        "POST /groups": "3.13",
        "POST /group_snapshots": "3.14",
        "POST /group_types": "3.11",
        "GET /manageable_volumes": "3.8",
        "GET /manageable_volumes/detail": "3.8",
        "POST /manageable_volumes": "3.8",
        "GET /manageable_snapshots": "3.8",
        "GET /manageable_snapshots/detail": "3.8",
        "POST /manageable_snapshots": "3.8",
        "GET /group_types": "3.11",
        "create-from-src /groups/action": "3.14",
    }


# --- paths ---------------------------------------------------------------------------------------------------


def test_paths_with_and_without_the_project_at_every_version(sqlite_service: SharedService) -> None:
    admin = sqlite_service.admin()
    project, volume = admin.headers["X-Project-Id"], sqlite_service.volume(admin)
    for minor in range(MAXIMUM.minor + 1):
        for prefix, path in ((f"/{project}", f"/{project}"), ("", "")):
            shown = admin.get(f"{prefix}/volumes/{volume}", version=f"3.{minor}")["volume"]
            assert shown["links"] == [
                {"rel": "self", "href": f"http://localhost/v3{path}/volumes/{volume}"},
                {"rel": "bookmark", "href": f"http://localhost{path}/volumes/{volume}"},
            ]


def test_the_project_of_the_path_is_the_caller_s(sqlite_service: SharedService) -> None:
    owner = sqlite_service.member()
    sqlite_service.volume(owner, name="mine")
    names = Client(sqlite_service.service).get(f"/{owner.headers['X-Project-Id']}/volumes")["volumes"]
    assert [v["name"] for v in names] == ["mine"]


def test_the_suffix_json_is_taken(sqlite_service: SharedService) -> None:
    admin = sqlite_service.admin()
    volume = sqlite_service.volume(admin)
    for path in ("/volumes", "/volumes/detail", f"/volumes/{volume}", "/types", "/extensions/os-services"):
        assert admin.get(f"{path}.json") == admin.get(path)
        assert admin("GET", f"/{admin.headers['X-Project-Id']}{path}.json").status == 200
    body = {"os-set_bootable": {"bootable": True}}
    assert admin("POST", f"/volumes/{volume}/action.json", body).status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nothing"),
        ("GET", "/v1/volumes"),
        ("GET", "/v2/volumes"),
        ("GET", "/v3/nothing"),
        ("GET", "/v3/a.b/volumes"),
        ("GET", f"/v3/{'x' * 65}/volumes"),
        ("GET", "/v3//nothing"),
        ("GET", "/v3/volumes/x/y/z"),
        ("PATCH", "/v3/volumes"),
        ("DELETE", "/v3/volumes"),
        ("HEAD", "/v3/volumes"),
        ("HEAD", "/v3//volumes/"),
        ("OPTIONS", "/v3/volumes"),
        ("POST", "/v3/"),
        ("TRACE", "/v3/volumes"),
        ("BREW", "/v3/volumes"),
        ("GET", "/static/x"),
        ("GET", "/v3/../../etc/passwd"),
    ],
)
def test_what_is_not_routed_is_plain_text(sqlite_service: SharedService, method: str, path: str) -> None:
    answer = ask(sqlite_service, method, path)
    assert (answer.status, answer.headers["Content-Type"]) == (404, "text/plain; charset=utf-8")
    assert REQUEST_ID.fullmatch(answer.headers["x-openstack-request-id"])
    assert "x-compute-request-id" not in answer.headers
    if method != "HEAD":
        assert answer.body == b"404 Not Found\n\nThe resource could not be found.\n"


@pytest.mark.parametrize("collection", ["volumes", "snapshots", "types", "messages"])
@pytest.mark.parametrize(
    "ref", [unknown_id(), "x", "x" * 300, "%00", "..%2f..", "'", unknown_id().replace("-", ""), "1;2"]
)
def test_an_id_that_is_not_there(admin: Client, collection: str, ref: str) -> None:
    answer = admin("GET", f"/{collection}/{ref}")
    assert answer.status == 404
    if answer.headers["Content-Type"] == "application/json":
        assert answer.message.endswith("could not be found.")


# --- headers -------------------------------------------------------------------------------------------------


def test_request_ids(sqlite_service: SharedService) -> None:
    seen = set()
    for path in ("/", "/v3/volumes", f"/v3/volumes/{unknown_id()}"):
        answer = ask(sqlite_service, "GET", path, **{"X-OpenStack-Request-ID": f"req-{unknown_id()}"})
        own = answer.headers["x-openstack-request-id"]
        assert REQUEST_ID.fullmatch(own)
        assert answer.headers["x-compute-request-id"] == own
        seen.add(own)
    assert len(seen) == 3
    assert REQUEST_ID.fullmatch(ask(sqlite_service, "GET", "/x").headers["x-openstack-request-id"])


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("application/json", "application/json"),
        ("application/vnd.openstack.volume+json", "application/vnd.openstack.volume+json"),
        ("*/*", "application/json"),
        ("text/html", "application/json"),
        ("application/xml", "application/json"),
        ("", "application/json"),
    ],
)
def test_accept_is_echoed_where_it_is_known(admin: Client, asked: str, sent: str) -> None:
    assert admin("GET", "/volumes", Accept=asked).headers["Content-Type"] == sent


def test_the_other_json_is_a_body_too(admin: Client) -> None:
    kind = {"Content-Type": "application/vnd.openstack.volume+json; charset=utf-8"}
    assert admin("POST", f"/volumes/{unknown_id()}/metadata", {"metadata": {}}, **kind).status == 404


def test_links_name_the_host_that_was_asked(sqlite_service: SharedService) -> None:
    admin = sqlite_service.admin()
    volume = sqlite_service.volume(admin)
    host = "[2001:db8::1]:8776"
    shown = admin.get(f"/volumes/{volume}", Host=host)["volume"]
    assert shown["links"][0]["href"] == f"http://{host}/v3/volumes/{volume}"
    page = admin.get("/volumes?limit=1", Host=host)
    assert page["volumes_links"][0]["href"] == f"http://{host}/v3/volumes?limit=1&marker={volume}"
    assert ask(sqlite_service, "GET", "/v3", Host=host).headers["Location"] == f"http://{host}/v3/"


def test_public_endpoint_is_what_links_start_with(start_service: Callable[..., Any]) -> None:
    from blockstore.config import ServiceConfig

    api = Client(start_service(service=ServiceConfig(public_endpoint="https://cloud/block/")))
    volume = api.volume()
    assert volume["links"][0]["href"] == f"https://cloud/block/v3/volumes/{volume['id']}"


# --- errors --------------------------------------------------------------------------------------------------


def test_an_error_of_ours_says_nothing_but_that(
    sqlite_service: SharedService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_args: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("blockstore.api.volumes.volumes.render", broken)
    monkeypatch.setattr("blockstore.api.metadata.Metadata.of_many", broken)
    answer = sqlite_service.admin()("GET", "/volumes/detail")
    message = "The server has either erred or is incapable of performing the requested operation."
    assert (answer.status, answer.json) == (500, {"computeFault": {"code": 500, "message": message}})
    assert "secret detail" in caplog.text


def test_bodies_of_refusals_name_their_code(admin: Client, sqlite_service: SharedService) -> None:
    answers = {
        "badRequest": admin("GET", "/volumes?limit=x"),
        "itemNotFound": admin("GET", f"/volumes/{unknown_id()}"),
        "forbidden": sqlite_service.nobody()("GET", "/volumes"),
        "badMediaType": admin("POST", "/volumes", {}, **{"Content-Type": "text/plain"}),
    }
    for fault, answer in answers.items():
        ((name, inner),) = orjson.loads(answer.body).items()
        assert (name, inner["code"]) == (fault, answer.status)
        assert sorted(inner) == ["code", "message"]
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers[VERSION] == "volume 3.71"


# --- over a socket -------------------------------------------------------------------------------------------


POST = b"POST /v3/volumes HTTP/1.1\r\nHost: [::]\r\nContent-Type: application/json\r\n"


def peak_kib(pid: int) -> int:
    """Return the most memory a process has had."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


def test_bodies_over_a_socket(serve: Callable[..., Served]) -> None:
    """Bodies that are too large, endless or cut off: refused, and not kept in memory."""
    served = serve()
    address = urlsplit(served.url)
    before = peak_kib(served.process.pid)

    def connect() -> socket.socket:
        connection = socket.create_connection((address.hostname, address.port), timeout=60)
        connection.settimeout(60)
        return connection

    # A hundred million bytes, announced.
    with connect() as connection:
        head = POST + b"Content-Length: 100000000\r\n\r\n"
        connection.sendall(head)
        sent = 0
        with contextlib.suppress(OSError):  # it hangs up on us
            while sent < 100_000_000:
                sent += connection.send(b"x" * 65536)
        with connect() as second:
            second.sendall(head)
            assert b" 413 " in second.recv(64)
    # And not announced.
    with connect() as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(1500):
                connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
    # Between what the API takes and what the server reads.
    plain = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    plain.request("POST", "/v3/volumes", b" " * 200_000, {"Content-Type": "application/json"})
    answer = plain.getresponse()
    assert (answer.status, b"114688" in answer.read()) == (413, True)
    plain.close()
    # Cut off.
    with connect() as connection:
        connection.sendall(b'POST /v3/volumes HTTP/1.1\r\nHost: [::]\r\nContent-Length: 50\r\n\r\n{"volume"')
    # Smuggled, torn and overlong heads.
    for torn in (
        b"POST /v3/volumes HTTP/1.1\r\nHost: [::]\r\nContent-Length: -1\r\n\r\n",
        b"POST /v3/volumes HTTP/1.1\r\nHost: [::]\r\nContent-Length: 1, 2\r\n\r\n",
        b"GET /v3/volumes HTTP/1.1\r\nHost: [::]\r\nX-Project-Id: a\x00b\r\n\r\n",
        b"GET /v3/volumes HTTP/1.1\r\nHost: [::]\r\nBad Header: 1\r\n\r\n",
        b"GET /v3/volumes?" + b"a" * 300_000 + b" HTTP/1.1\r\nHost: [::]\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ):
        with connect() as connection, contextlib.suppress(OSError):
            connection.sendall(torn)
            assert b" 50" not in connection.recv(32)
    assert peak_kib(served.process.pid) - before < 30_000
    plain = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    plain.request("GET", "/v3/volumes")
    assert json.loads(plain.getresponse().read()) == {"volumes": []}
    plain.close()


# --- web pages ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example:8776"},
        {"Host": "localhost.evil.example"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_authentication_a_web_page_is_refused(api: Client, headers: dict[str, str], method: str) -> None:
    answer = api(method, "/volumes", {"volume": {"size": 1}} if method == "POST" else None, **headers)
    assert answer.status == 403, answer.body
    assert "Without authentication" in answer.message
    assert api.get("/volumes")["volumes"] == []


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8776", "192.0.2.1:8776", socket.gethostname()])
def test_without_authentication_own_names_and_addresses_are_answered(api: Client, host: str) -> None:
    api.get("/volumes", Host=host)
