"""The address of the service: the only module that knows by which URL clients reach it.

``AddressMiddleware`` stands in front of the application and finds out the URL of each request: ``public_endpoint`` if
it is configured, else what the caller asked for, as a trusted proxy says or as the request itself does. Links, the
catalogue, the version documents and WWW-Authenticate start with ``base_url`` of the request.
``own_url`` is the URL for those who have asked nothing yet: ``blockstore openrc``, the endpoint file.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from blockstore import certificate, private_files
from blockstore.errors import BadRequest, ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SCHEMES = ("http", "https")
DEFAULT_PORTS = {"http": 80, "https": 443}

_NAME = re.compile(r"[0-9A-Za-z_][0-9A-Za-z._~\-]{0,254}")  # with underscores: names of containers have them
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::(?P<port>[0-9]{0,5}))?")
_PREFIX = re.compile(r"(?:/[0-9A-Za-z_~\-][0-9A-Za-z._~\-]*){1,16}")
_KEY = "blockstore.address"
_FORWARDED = ("HTTP_FORWARDED", "HTTP_X_REAL_IP")
"""Dropped like HTTP_X_FORWARDED_*, and never used: a proxy that sets the others lets these of its clients through."""


# --- hosts and ports ---------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def authority(text: str) -> str | None:
    """Return HOST or HOST:PORT as it stands in a URL; None if the text is neither."""
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        return None
    host, port = match["host"], match["port"]
    if host[0] == "[":
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            return None
    elif not _NAME.fullmatch(host):
        return None
    if not port:
        return host
    return f"{host}:{int(port)}" if 0 < int(port) <= 65535 else None


def joined(host: str, port: int, scheme: str) -> str:
    """Return host and port as they stand in a URL, without the port if it is the scheme's own."""
    host = f"[{host}]" if ":" in host else host
    return host if DEFAULT_PORTS[scheme] == port else f"{host}:{port}"


def check_base_url(text: str) -> str | None:
    """Return why a text cannot be what URLs start with; None if it can."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return "it must be an HTTP URL"
    if parts.scheme not in SCHEMES or authority(parts.netloc) is None:
        return "it must be an HTTP URL"
    path = parts.path.rstrip("/")
    if parts.query or parts.fragment or "?" in text or "#" in text or (path and not _PREFIX.fullmatch(path)):
        return "it must be an HTTP URL of a host and a path"
    if path.rpartition("/")[2] in ("v3", "identity"):
        return f"it must not end in /{path.rpartition('/')[2]}, which the service adds itself"
    return None


# --- trusted proxies ---------------------------------------------------------------------------------------


def parse_networks(text: str) -> tuple[Network, ...]:
    """Return the networks of a comma separated list of addresses and networks. Raises ValueError of the wrong item."""
    found = []
    for item in (part.strip() for part in text.split(",")):
        if not item:
            continue
        try:
            found.append(ipaddress.ip_network(item))
        except ValueError:
            raise ValueError(item) from None
    return tuple(found)


@functools.lru_cache(maxsize=256)
def _parse_address(text: str) -> Address | None:
    """Return the address of an element of X-Forwarded-For, with or without a port; None if it is not one."""
    match = re.fullmatch(r"\[([^\]]+)\](?::[0-9]+)?|([0-9.]+):[0-9]+", text)
    try:
        found = ipaddress.ip_address((match[1] or match[2]) if match else text)
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def is_trusted(trusted: Sequence[Network], text: str) -> bool:
    """Return True if an address is that of a trusted proxy."""
    if not trusted:
        return False
    address = _parse_address(text)
    return address is not None and any(address in network for network in trusted)


def network_of(address: str) -> str:
    """Return what counts as one caller: an IPv4 address, or the /64 of an IPv6 address."""
    return networks_of(address)[0]


def wide_network_of(caller: str) -> str:
    """Return what stands for the /16, or the /48 of IPv6, around what ``network_of`` returned; quick, by its text."""
    if ":" not in caller:
        return ".".join(caller.split(".")[:2])
    return ":".join(group or "0" for group in caller.partition("/")[0].split(":")[:3])


@functools.lru_cache(maxsize=256)
def networks_of(address: str) -> tuple[str, str, str]:
    """Return what ``network_of`` returns, and two wider networks around it: /24 and /16, or /56 and /48 of IPv6."""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address, address, address
    if isinstance(known, ipaddress.IPv6Address) and known.ipv4_mapped is not None:
        known = known.ipv4_mapped
    if isinstance(known, ipaddress.IPv4Address):
        return str(known), _network(known, 24), _network(known, 16)
    return _network(known, 64), _network(known, 56), _network(known, 48)


def _network(address: Address, bits: int) -> str:
    return str(ipaddress.ip_network((address, bits), strict=False))


def client_of(trusted: Sequence[Network], connected: str, forwarded_for: str) -> tuple[str, int]:
    """Return the address of the client, and how many trusted proxies are between it and this service.

    ``connected`` is the other end of the connection. If that is a trusted proxy, the client is the last element of
    X-Forwarded-For that is not one.
    """
    if not is_trusted(trusted, connected):
        return connected, 0
    client, proxies = connected, 1
    for element in reversed([part.strip() for part in forwarded_for.split(",")]):
        address = _parse_address(element)
        if address is None:
            break
        client = str(address)
        if not is_trusted(trusted, element):
            break
        proxies += 1
    return client, proxies


def _elements(environ: dict[str, Any], name: str) -> list[str]:
    return [element.strip() for element in environ.get(f"HTTP_X_FORWARDED_{name}", "").split(",")]


@dataclass(frozen=True, slots=True)
class _Requested:
    """The address of one request."""

    base: str
    problem: str = ""
    """Why the request is refused."""


class AddressMiddleware:
    """WSGI middleware: finds out who asks, and by which URL.

    Of a trusted proxy it puts what X-Forwarded-For, -Proto, -Host and -Prefix say into REMOTE_ADDR, wsgi.url_scheme,
    HTTP_HOST and SCRIPT_NAME; the headers themselves go no further, whoever sent them.
    """

    def __init__(
        self, application: Callable[..., Any], *, own_host: str, public_endpoint: str, trusted: Sequence[Network]
    ) -> None:
        """Wrap an application; ``own_host`` is what a request without the header Host has asked for."""
        self._application = application
        self._own_host = own_host
        self._public_endpoint = public_endpoint.rstrip("/")
        self._trusted = trusted

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """Answer one request."""
        try:
            if is_trusted(self._trusted, environ.get("REMOTE_ADDR", "")):
                self._believe(environ)
            base = self._requested(environ)
            environ[_KEY] = _Requested(self._public_endpoint or base)
        except BadRequest as exc:
            environ[_KEY] = _Requested(self._public_endpoint or self._own(environ), exc.message)
            environ.pop("HTTP_HOST", None)
        for name in [name for name in environ if name.startswith("HTTP_X_FORWARDED_") or name in _FORWARDED]:
            del environ[name]
        return self._application(environ, start_response)

    def _believe(self, environ: dict[str, Any]) -> None:
        """Take what a trusted proxy says. Raises BadRequest.

        Each proxy may append to the headers, and what stands left of what the outermost trusted one appended was
        written by the client. X-Forwarded-For tells how many trusted ones there are.
        """
        forwarded_for = environ.get("HTTP_X_FORWARDED_FOR", "")
        environ["REMOTE_ADDR"], proxies = client_of(self._trusted, environ["REMOTE_ADDR"], forwarded_for)

        def said(name: str) -> str:
            return _elements(environ, name)[-proxies:][0]

        if scheme := said("PROTO").lower():
            if scheme not in SCHEMES:
                raise BadRequest("The header X-Forwarded-Proto must be http or https.")
            environ["wsgi.url_scheme"] = scheme
        if host := said("HOST"):
            if authority(host) is None:
                raise BadRequest("The header X-Forwarded-Host must be HOST or HOST:PORT.")
            environ["HTTP_HOST"] = host
        if prefix := said("PREFIX").rstrip("/"):
            if not _PREFIX.fullmatch(prefix):
                raise BadRequest("The header X-Forwarded-Prefix must be a path, such as /volume.")
            environ["SCRIPT_NAME"] = prefix

    def _requested(self, environ: dict[str, Any]) -> str:
        asked = environ.get("HTTP_HOST", "")
        if not asked:  # HTTP/1.0, or a header without a value
            environ.pop("HTTP_HOST", None)
            return self._own(environ)
        host = authority(asked)
        if host is None:
            raise BadRequest("The header Host must be HOST or HOST:PORT.")
        environ["HTTP_HOST"] = host
        return f"{environ['wsgi.url_scheme']}://{host}{environ.get('SCRIPT_NAME', '')}"

    def _own(self, environ: dict[str, Any]) -> str:
        scheme = str(environ["wsgi.url_scheme"])
        return (
            f"{scheme}://{joined(self._own_host, int(environ['SERVER_PORT']), scheme)}{environ.get('SCRIPT_NAME', '')}"
        )


def names_us(environ: dict[str, Any], names: frozenset[str]) -> bool:
    """Return True if a request asked for an address, which leads nowhere else, or for one of these names."""
    asked = environ.get("HTTP_HOST", "")
    name = (urlsplit(f"//{asked}").hostname or "").lower()
    return not asked or name in names or _parse_address(name) is not None


def base_url(environ: dict[str, Any]) -> str:
    """Return what the URLs in the reply to a request start with, without a slash at the end."""
    requested: _Requested = environ[_KEY]
    return requested.base


def check_request(environ: dict[str, Any]) -> None:
    """Raise BadRequest if the request says where it went in a form that no reply may repeat."""
    requested: _Requested = environ[_KEY]
    if requested.problem:
        raise BadRequest(requested.problem)


# --- the service's own name --------------------------------------------------------------------------------


def own_host(listen: str, tls_certificate: Path | None, tls_key: Path | None) -> str:
    """Return the host by which clients on this node reach the service.

    With a certificate it is one that the certificate is for: the address listened on; for all addresses (0.0.0.0, ::)
    loopback; else this machine's name; else the first name, else the first address in the certificate. When the
    certificate cannot be read or names nothing, as without one, it is the address listened on, or loopback.
    """
    everywhere = is_unspecified(listen)
    near = [("::1" if ":" in listen else "127.0.0.1"), "localhost", "127.0.0.1", "::1"] if everywhere else [listen]
    if tls_certificate is None or tls_key is None:
        return near[0]
    try:
        dns, addresses = certificate.names(tls_certificate, tls_key)
    except OSError:
        return near[0]
    machine = socket.gethostname()
    for host in (*near, machine):
        if _is_for(host, dns, addresses):
            return host
    plain = [name for name in dns if "*" not in name]
    below = [machine.partition(".")[0] + name[1:] for name in dns if name.startswith("*.")]
    return next((host for host in (*plain, *addresses, *below) if authority(joined(host, 1, "http"))), near[0])


def _is_for(host: str, dns: Sequence[str], addresses: Sequence[str]) -> bool:
    address = _parse_address(host)
    if address is not None:
        return any(address == _parse_address(other) for other in addresses)
    parent = host.partition(".")[2]
    names = {name.lower() for name in dns}
    return host.lower() in names or ("." in parent and f"*.{parent}".lower() in names)


def is_unspecified(listen: str) -> bool:
    """Return True if an address stands for all addresses of the machine."""
    try:
        return ipaddress.ip_address(listen).is_unspecified
    except ValueError:
        return False


def is_literal(host: str) -> bool:
    """Return True if a host is an address, and no name."""
    return _parse_address(host) is not None


def own_url(host: str, port: int, tls_certificate: Path | None, tls_key: Path | None) -> str:
    """Return the base URL of a service that listens on this host and port."""
    scheme = "http" if tls_certificate is None else "https"
    name = own_host(host, tls_certificate, tls_key)
    return f"{scheme}://{joined(name, port, scheme)}"


# --- the endpoint file -------------------------------------------------------------------------------------


def endpoint_file(state_dir: Path) -> Path:
    """Return the file in which a serving process notes its own URL, for commands on this node."""
    return state_dir / "endpoint"


def note(state_dir: Path, url: str) -> None:
    """Write the endpoint file, whole, because commands may read it at any instant. Raises ConfigError."""
    with private_files.explained(state_dir):
        private_files.write(endpoint_file(state_dir), f"{url}/v3\n".encode())


def noted(state_dir: Path) -> str | None:
    """Return the base URL that was noted last; None if nothing has served from the directory. Raises ConfigError."""
    path = endpoint_file(state_dir)
    try:
        private_files.prove_state_dir(state_dir)
        return private_files.read(path).decode().strip().removesuffix("/v3")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} cannot be read: {getattr(exc, 'strerror', 'it is not text')}.") from exc
