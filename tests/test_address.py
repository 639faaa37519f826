"""The address of a request, and of the service: whatever is asked, forwarded or configured."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result

from blockstore import address
from blockstore.cli import main
from blockstore.errors import BadRequest

from .conftest import ROOT, Served
from .server.certificates import certificate

OWN = "http://node:8776"


def seen(
    peer: str = "192.0.2.1", trusted: str = "", public_endpoint: str = "", scheme: str = "http", **headers: str
) -> dict[str, Any]:
    """Return the environ that the application gets."""
    found: dict[str, Any] = {}

    def application(environ: dict[str, Any], _start_response: Any) -> list[bytes]:
        found.update(environ)
        return []

    middleware = address.AddressMiddleware(
        application, own_host="node", public_endpoint=public_endpoint, trusted=address.parse_networks(trusted)
    )
    environ = {"REMOTE_ADDR": peer, "wsgi.url_scheme": scheme, "SERVER_PORT": "8776", "SERVER_NAME": "waitress.invalid"}
    middleware({**environ, **{f"HTTP_{name.upper()}": value for name, value in headers.items()}}, None)
    return found


def base(**kw: str) -> str:
    environ = seen(**kw)
    address.check_request(environ)
    return address.base_url(environ)


# --- what was asked ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("api.example.org", "http://api.example.org"),
        ("block_store:8776", "http://block_store:8776"),
        ("_srv", "http://_srv"),
        ("127.0.0.1:1", "http://127.0.0.1:1"),
        ("[2001:db8::1]:8776", "http://[2001:db8::1]:8776"),
        ("[::1]", "http://[::1]"),
        ("name:", "http://name"),
        ("name:00443", "http://name:443"),
        ("", OWN),
    ],
)
def test_a_host_is_what_links_start_with(host: str, url: str) -> None:
    assert base(host=host) == url


BAD_HOSTS = [
    "name:0", "name:65536", "name:99999", "name:-1", "name:x", ":8776", "[::1", "::1", "2001:db8::1", "[name]", "[]",
    "[::1%eth0]", "user@name", "user:secret@name", "a b", "name/path", "name?x", "name#x", "name\\x", "-name",
    "naïve", "name\x00", "name\r\nx: y", '"><script>', "a" * 256, "name:80:80", "{x}", "%41", "a;b",
]  # fmt: skip


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_a_host_that_is_no_host_is_refused_and_reaches_no_reply(host: str) -> None:
    for kw in ({"host": host}, {"host": "fine", "x_forwarded_host": host, "trusted": "192.0.2.1"}):
        environ = seen(**kw)
        with pytest.raises(BadRequest, match=r"must be HOST or HOST:PORT") as caught:
            address.check_request(environ)
        assert host not in caught.value.message
        assert address.base_url(environ) == OWN
        assert "HTTP_HOST" not in environ
        with pytest.raises(BadRequest):
            base(public_endpoint="https://cloud", **kw)


def test_without_a_host_it_is_the_services_own() -> None:
    assert base() == OWN
    assert base(scheme="https") == "https://node:8776"


def test_public_endpoint_comes_before_everything() -> None:
    assert base(public_endpoint="https://cloud/volume/", host="other", x_forwarded_host="x", trusted="192.0.2.1") == (
        "https://cloud/volume"
    )


# --- what proxies say --------------------------------------------------------------------------------------

FORWARDED = {
    "x_forwarded_for": "198.51.100.7",
    "x_forwarded_proto": "https",
    "x_forwarded_host": "cloud",
    "x_forwarded_prefix": "/volume/",
}


@pytest.mark.parametrize("trusted", ["", "192.0.2.2", "198.51.100.7", "::/0"])
def test_who_is_not_trusted_says_nothing(trusted: str) -> None:
    others = {"forwarded": "host=evil", "x_real_ip": "1.2.3.4", "x_forwarded_port": "1"}
    environ = seen(trusted=trusted, host="asked", **FORWARDED, **others)
    assert address.base_url(environ) == "http://asked"
    assert (environ["REMOTE_ADDR"], environ["wsgi.url_scheme"]) == ("192.0.2.1", "http")
    assert not [name for name in environ if "FORWARDED" in name or name == "HTTP_X_REAL_IP"]


@pytest.mark.parametrize("trusted", ["192.0.2.1", "192.0.2.0/24, 10.0.0.0/8", "::1, 192.0.2.1"])
def test_a_trusted_proxy_is_believed(trusted: str) -> None:
    environ = seen(trusted=trusted, host="asked", **FORWARDED)
    assert address.base_url(environ) == "https://cloud/volume"
    assert environ["REMOTE_ADDR"] == "198.51.100.7"
    assert (environ["wsgi.url_scheme"], environ["SCRIPT_NAME"], environ["HTTP_HOST"]) == ("https", "/volume", "cloud")
    assert not [name for name in environ if "FORWARDED" in name]


def test_a_proxy_may_say_only_some() -> None:
    assert base(trusted="192.0.2.1", host="asked", x_forwarded_proto="HTTPS") == "https://asked"
    assert base(trusted="192.0.2.1", x_forwarded_prefix="/") == OWN
    assert base(peer="::ffff:192.0.2.1", trusted="192.0.2.1", x_forwarded_host="x") == "http://x"


@pytest.mark.parametrize(
    ("forwarded_for", "client"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("1.2.3.4, 203.0.113.9", "203.0.113.9"),  # the first is the client's own invention
        ("1.2.3.4, 203.0.113.9, 192.0.2.2", "203.0.113.9"),
        ("203.0.113.9:4711", "203.0.113.9"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("unknown, 192.0.2.2", "192.0.2.2"),
        ("unknown", "192.0.2.1"),
        ("", "192.0.2.1"),
        ("192.0.2.3, 192.0.2.2", "192.0.2.3"),
        ("1.2.3.4, <script>", "192.0.2.1"),
    ],
)
def test_the_client_is_the_last_that_is_not_trusted(forwarded_for: str, client: str) -> None:
    assert seen(trusted="192.0.2.0/24", x_forwarded_for=forwarded_for)["REMOTE_ADDR"] == client


@pytest.mark.parametrize(
    ("forwarded_for", "host", "url"),
    [
        ("203.0.113.9", "cloud", "http://cloud"),
        ("203.0.113.9", "forged, cloud", "http://cloud"),  # a proxy that appends, as Apache does
        ("203.0.113.9, 192.0.2.2", "cloud, inner", "http://cloud"),
        ("203.0.113.9, 192.0.2.2", "forged, cloud, inner", "http://cloud"),
        ("203.0.113.9, 192.0.2.2", "cloud", "http://cloud"),  # the inner one keeps what the outer one said
    ],
)
def test_of_a_list_the_outermost_trusted_proxy_counts(forwarded_for: str, host: str, url: str) -> None:
    assert base(trusted="192.0.2.0/24", x_forwarded_for=forwarded_for, x_forwarded_host=host) == url


@pytest.mark.parametrize(
    "headers",
    [
        {"x_forwarded_proto": "wss"},
        {"x_forwarded_proto": "javascript"},
        {"x_forwarded_prefix": "volume"},
        {"x_forwarded_prefix": "//evil.example"},
        {"x_forwarded_prefix": "/a/../b"},
        {"x_forwarded_prefix": "/a\r\nb"},
        {"x_forwarded_prefix": "/" + "a/" * 17},
    ],
)
def test_a_proxy_s_mistake_is_said(headers: dict[str, str]) -> None:
    with pytest.raises(BadRequest, match="The header X-Forwarded-"):
        base(trusted="192.0.2.1", host="asked", **headers)


# --- the service's own -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen", "names", "host"),
    [
        ("0.0.0.0", ["cloud.example.org"], "cloud.example.org"),
        ("0.0.0.0", ["cloud.example.org", "127.0.0.1"], "127.0.0.1"),
        ("0.0.0.0", ["cloud.example.org", "localhost"], "localhost"),
        ("0.0.0.0", ["cloud.example.org", "MACHINE"], "MACHINE"),
        ("0.0.0.0", ["*.example.org", "192.0.2.10"], "192.0.2.10"),
        ("0.0.0.0", ["*.example.org"], "MACHINE.example.org"),
        ("0.0.0.0", [""], "127.0.0.1"),
        ("::", ["::1"], "::1"),
        ("::", ["127.0.0.1"], "127.0.0.1"),
        ("192.0.2.10", ["192.0.2.10", "cloud.example.org"], "192.0.2.10"),
        ("192.0.2.10", ["cloud.example.org", "127.0.0.1"], "cloud.example.org"),
        ("node.example.org", ["*.example.org"], "node.example.org"),
    ],
)
def test_with_a_certificate_it_is_a_name_that_the_certificate_is_for(
    listen: str, names: list[str], host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "MACHINE")
    assert address.own_host(listen, *certificate(tmp_path, *names)) == host


def test_an_expired_certificate_has_names_and_a_broken_one_has_none(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "cloud.example.org", days=-1)
    assert address.own_host("0.0.0.0", cert, key) == "cloud.example.org"
    cert.write_text("nonsense")
    assert address.own_host("0.0.0.0", cert, key) == "127.0.0.1"
    assert address.own_host("0.0.0.0", tmp_path / "none", key) == "127.0.0.1"


@pytest.mark.parametrize(
    ("listen", "port", "url"),
    [
        ("127.0.0.1", 8776, "http://127.0.0.1:8776"),
        ("0.0.0.0", 8776, "http://127.0.0.1:8776"),
        ("::", 8776, "http://[::1]:8776"),
        ("localhost", 80, "http://localhost"),
    ],
)
def test_without_a_certificate_it_is_where_it_listens(listen: str, port: int, url: str) -> None:
    assert address.own_url(listen, port, None, None) == url


def test_no_other_module_asks_for_the_address_of_a_request() -> None:
    asking = re.compile(
        r"host_url|url_root|root_url|base_url\b(?!\()|request\.(host|url|scheme|root_path)\b|X-Forwarded"
    )
    allowed = {"address.py", "config.py"}
    for path in (ROOT / "blockstore").rglob("*.py"):
        lines = [line for line in path.read_text().splitlines() if "import" not in line]
        assert path.name in allowed or not any(asking.search(line) for line in lines), path


# --- by the real server ------------------------------------------------------------------------------------


def ask(url: str, *lines: str, context: ssl.SSLContext | None = None) -> http.client.HTTPResponse:
    """Send a request as it stands here, byte by byte."""
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    sock = socket.create_connection((parts.hostname, parts.port), 10)
    with context.wrap_socket(sock, server_hostname=parts.hostname) if context else sock as sock:
        sock.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1"))
        response = http.client.HTTPResponse(sock)
        response.begin()
        response.body = response.read()  # type: ignore[attr-defined]
    return response


def link(response: http.client.HTTPResponse) -> str:
    """Return what the self link of a version document starts with."""
    document = json.loads(response.body)  # type: ignore[attr-defined]
    return str(document["versions"][0]["links"][1]["href"]).removesuffix("/v3/")


@pytest.fixture(scope="module", params=["plain", "TLS"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Any]]:
    """One that trusts nobody but 127.0.0.2, with and without TLS, on all addresses."""
    directory = tmp_path_factory.mktemp("address")
    lines, context = "trusted_proxies = 127.0.0.2\nauth = builtin\n", None
    if request.param == "TLS":
        cert, key = certificate(directory, "127.0.0.1")
        lines += f"tls_certificate = {cert}\ntls_key = {key}\ntls_ca = {cert}\n"
        context = ssl.create_default_context(cafile=cert)
    config = f"[service]\n{lines}[backend:m]\nplugin = memory\n"
    process = Served(directory, config, "--listen", "0.0.0.0:0", trusting=context)
    yield process, context
    process.kill()


def test_the_server_repeats_what_was_asked(served: tuple[Served, Any]) -> None:
    process, context = served
    own = process.url.removesuffix("/v3")
    scheme = urlsplit(own).scheme
    assert urlsplit(own).hostname == "127.0.0.1"
    forged = ("X-Forwarded-Host: evil", "X-Forwarded-Proto: gopher", "X-Forwarded-For: 9.9.9.9", "Forwarded: host=evil")
    for lines, url in (
        (("GET / HTTP/1.1", "Host: block_store:8776"), f"{scheme}://block_store:8776"),
        (("GET / HTTP/1.1", "Host: [2001:db8::1]:8776", *forged), f"{scheme}://[2001:db8::1]:8776"),
        (("GET / HTTP/1.0",), own),
        (("GET / HTTP/1.0", *forged), own),
    ):
        assert link(ask(own, *lines, context=context)) == url, lines
    refused = ask(own, "GET /v3/volumes HTTP/1.1", "Host: name", context=context)
    assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, f'Keystone uri="{scheme}://name/identity"')


@pytest.mark.parametrize("host", ["user@name", "name:99999", "a b", "a,b", "name/x", "\x01", "na\xefve"])
def test_the_server_refuses_a_host_that_is_none(served: tuple[Served, Any], host: str) -> None:
    process, context = served
    for lines in (("GET / HTTP/1.1", f"Host: {host}"), ("GET / HTTP/1.0", f"Host: {host}")):
        response = ask(process.url, *lines, context=context)
        assert response.status == 400, lines
        assert host.encode("latin-1") not in response.body  # type: ignore[attr-defined]


@pytest.mark.slow
def test_commands_reach_a_service_that_listens_everywhere_by_the_name_of_its_certificate(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    """Whether or not the name can be resolved: `attach` connects to this node, and checks the certificate."""
    cert, key = certificate(tmp_path, "cloud.invalid")
    config = (
        f"[service]\nauth = builtin\nlisten = 0.0.0.0:0\ntls_certificate = {cert}\ntls_key = {key}\ntls_ca = {cert}\n"
    )
    process = serve(config, "--listen", "0.0.0.0:0", trusting=ssl.create_default_context(cafile=cert))
    options = ["--state-dir", str(process.state_dir), "--config", str(process.state_dir / "config.ini")]

    def run(*words: str) -> Result:
        return CliRunner().invoke(main, [*words, *options])

    port = urlsplit(process.url).port
    assert process.url == f"https://cloud.invalid:{port}/v3"
    assert f"export OS_AUTH_URL=https://cloud.invalid:{port}/identity/v3;" in run("openrc").stdout
    assert run("attach", "nothing").stderr == "blockstore: No volumes are named nothing; give the id.\n"
    (process.state_dir / "config.ini").write_text(config.replace(f"tls_ca = {cert}\n", ""))
    (line,) = run("attach", "nothing").stderr.splitlines()
    assert line.startswith(f"blockstore: The certificate of https://cloud.invalid:{port} is not accepted: self-signed")
    process.stop()
    (line,) = run("attach", "nothing").stderr.splitlines()
    assert line.startswith(
        f"blockstore: Nothing answers at https://cloud.invalid:{port}; is `blockstore serve` running"
    )
    done = run("openrc")
    assert "export OS_AUTH_URL=https://cloud.invalid:" in done.stdout
    assert done.stderr == (
        f"blockstore: nothing answers at https://cloud.invalid:{port}, the last address of the service with"
        f" {process.state_dir}; this output works once it is started.\n"
    )


@pytest.mark.parametrize(
    ("connected", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("2001:db8:0:1:ffff::2", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("unix:", "unix:"),
    ],
)
def test_addresses_are_counted_by_network(connected: str, network: str) -> None:
    assert address.network_of(connected) == network


@pytest.mark.parametrize(
    ("connected", "networks"),
    [
        ("192.0.2.1", ("192.0.2.1", "192.0.2.0/24", "192.0.0.0/16")),
        ("::ffff:192.0.2.1", ("192.0.2.1", "192.0.2.0/24", "192.0.0.0/16")),
        ("2001:db8:1:203::4", ("2001:db8:1:203::/64", "2001:db8:1:200::/56", "2001:db8:1::/48")),
        ("::1", ("::/64", "::/56", "::/48")),
        ("unix:", ("unix:", "unix:", "unix:")),
    ],
)
def test_wider_networks_of_an_address(connected: str, networks: tuple[str, str, str]) -> None:
    assert address.networks_of(connected) == networks


def test_the_text_of_a_caller_tells_the_wide_network_around_it() -> None:
    texts = ("10.1.2.3", "10.1.9.9", "10.2.2.3", "2001::1", "::1", "fe80::1", "2001:db8:10::1", "2001:db8::1")
    for one, other in itertools.product((*texts, "2001:db8:0:9::1", "2001:db8:1::1", "2001:db8:1:2:3:4:5:6"), repeat=2):
        wide = {address.wide_network_of(address.network_of(text)) for text in (one, other)}
        assert len(wide) == len({address.networks_of(text)[2] for text in (one, other)}), (one, other)
