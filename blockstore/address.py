"""The address of the service: the only module that knows the URL by which clients reach it.

``AddressMiddleware`` wraps the application and determines the base URL of each request. This is ``public_endpoint`` if
configured; else the URL that the client requested, from a trusted proxy's headers or from the request itself.
Links, the catalogue, the version documents and WWW-Authenticate start with ``base_url`` of the request.
``own_url`` is the URL outside of requests: for ``blockstore openrc`` and the endpoint file.
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
"""Dropped like HTTP_X_FORWARDED_*, and never used: a proxy may pass on the values that its client sent."""


# --- hosts and ports ---------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def authority(text: str) -> str | None:
    """Return HOST or HOST:PORT as written in a URL; None if the text is neither."""
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
    """Return host and port as written in a URL, without the port if it is the scheme's default."""
    host = f"[{host}]" if ":" in host else host
    return host if DEFAULT_PORTS[scheme] == port else f"{host}:{port}"


def check_base_url(text: str) -> str | None:
    """Return why a text cannot be a base URL; None if it can."""
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
    """Return the networks of a comma separated list of addresses and networks.

    Raise ValueError with the first invalid item.
    """
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
    """Return the address of an element of X-Forwarded-For, with or without a port; None if it is no address."""
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
    """Return the network that counts as one caller: an IPv4 address, or the /64 of an IPv6 address."""
    return networks_of(address)[0]


def wide_network_of(caller: str) -> str:
    """Return a key for the /16 (IPv6: /48) around a result of ``network_of``. Works on its text, which is fast."""
    if ":" not in caller:
        return ".".join(caller.split(".")[:2])
    return ":".join(group or "0" for group in caller.partition("/")[0].split(":")[:3])


@functools.lru_cache(maxsize=256)
def networks_of(address: str) -> tuple[str, str, str]:
    """Return the result of ``network_of`` and two wider networks around it: /24 and /16, or /56 and /48 of IPv6."""
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

    ``connected`` is the peer address of the connection. If the peer is a trusted proxy, the client is the last element
    of X-Forwarded-For that is not a trusted proxy.
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
    """WSGI middleware: determines the client's address and the base URL of each request.

    It copies a trusted proxy's X-Forwarded-For, -Proto, -Host and -Prefix into REMOTE_ADDR, wsgi.url_scheme, HTTP_HOST
    and SCRIPT_NAME. The application never sees the headers themselves, whoever sent them.
    """

    def __init__(
        self, application: Callable[..., Any], *, own_host: str, public_endpoint: str, trusted: Sequence[Network]
    ) -> None:
        """Wrap an application; ``own_host`` is the host of a request without the header Host."""
        self._application = application
        self._own_host = own_host
        self._public_endpoint = public_endpoint.rstrip("/")
        self._trusted = trusted

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """Answer one request."""
        try:
            if is_trusted(self._trusted, environ.get("REMOTE_ADDR", "")):
                self._apply_forwarded(environ)
            base = self._requested(environ)
            environ[_KEY] = _Requested(self._public_endpoint or base)
        except BadRequest as exc:
            environ[_KEY] = _Requested(self._public_endpoint or self._own(environ), exc.message)
            environ.pop("HTTP_HOST", None)
        for name in [name for name in environ if name.startswith("HTTP_X_FORWARDED_") or name in _FORWARDED]:
            del environ[name]
        return self._application(environ, start_response)

    def _apply_forwarded(self, environ: dict[str, Any]) -> None:
        """Apply the headers of a trusted proxy. Raise BadRequest if one is malformed.

        Each proxy may append to the headers. Values to the left of the outermost trusted proxy's were written by the
        client. X-Forwarded-For tells the number of trusted proxies.
        """
        forwarded_for = environ.get("HTTP_X_FORWARDED_FOR", "")
        environ["REMOTE_ADDR"], proxies = client_of(self._trusted, environ["REMOTE_ADDR"], forwarded_for)

        def header(name: str) -> str:
            return _elements(environ, name)[-proxies:][0]

        if scheme := header("PROTO").lower():
            if scheme not in SCHEMES:
                raise BadRequest("The header X-Forwarded-Proto must be http or https.")
            environ["wsgi.url_scheme"] = scheme
        if host := header("HOST"):
            if authority(host) is None:
                raise BadRequest("The header X-Forwarded-Host must be HOST or HOST:PORT.")
            environ["HTTP_HOST"] = host
        if prefix := header("PREFIX").rstrip("/"):
            if not _PREFIX.fullmatch(prefix):
                raise BadRequest("The header X-Forwarded-Prefix must be a path, such as /volume.")
            environ["SCRIPT_NAME"] = prefix

    def _requested(self, environ: dict[str, Any]) -> str:
        host_header = environ.get("HTTP_HOST", "")
        if not host_header:  # HTTP/1.0, or a header without a value
            environ.pop("HTTP_HOST", None)
            return self._own(environ)
        host = authority(host_header)
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
    """Return True if Host is missing, one of ``names``, or an IP address, which no DNS record can redirect."""
    host_header = environ.get("HTTP_HOST", "")
    name = (urlsplit(f"//{host_header}").hostname or "").lower()
    return not host_header or name in names or _parse_address(name) is not None


def base_url(environ: dict[str, Any]) -> str:
    """Return the base URL for links in the reply to a request, without a slash at the end."""
    requested: _Requested = environ[_KEY]
    return requested.base


def check_request(environ: dict[str, Any]) -> None:
    """Raise BadRequest if Host or an X-Forwarded header is malformed, so that no reply repeats it in a URL."""
    requested: _Requested = environ[_KEY]
    if requested.problem:
        raise BadRequest(requested.problem)


# --- the service's own name --------------------------------------------------------------------------------


def own_host(listen: str, tls_certificate: Path | None, tls_key: Path | None) -> str:
    """Return the host by which clients on this node reach the service.

    With a certificate it is the first of these that the certificate covers: the address listened on, or loopback when
    listening on all addresses (0.0.0.0, ::); this machine's name; the first name, then the first address in the
    certificate; this machine's short name below a wildcard. Without a certificate, or if it cannot be read or names
    nothing, it is the address listened on, or loopback.
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
    """Return True if a host is an IP address, not a name."""
    return _parse_address(host) is not None


def own_url(host: str, port: int, tls_certificate: Path | None, tls_key: Path | None) -> str:
    """Return the base URL of a service that listens on this host and port."""
    scheme = "http" if tls_certificate is None else "https"
    name = own_host(host, tls_certificate, tls_key)
    return f"{scheme}://{joined(name, port, scheme)}"


# --- the endpoint file -------------------------------------------------------------------------------------


def endpoint_file(state_dir: Path) -> Path:
    """Return the path of the file in which a running service stores its own URL for commands on this node."""
    return state_dir / "endpoint"


def note(state_dir: Path, url: str) -> None:
    """Write the endpoint file atomically: commands may read it at any time. Raises ConfigError."""
    with private_files.explained(state_dir):
        private_files.write(endpoint_file(state_dir), f"{url}/v3\n".encode())


def recorded_url(state_dir: Path) -> str | None:
    """Return the base URL in the endpoint file; None if no service has used the directory. Raises ConfigError."""
    path = endpoint_file(state_dir)
    try:
        private_files.prove_state_dir(state_dir)
        return private_files.read(path).decode().strip().removesuffix("/v3")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} cannot be read: {getattr(exc, 'strerror', 'it is not text')}.") from exc
