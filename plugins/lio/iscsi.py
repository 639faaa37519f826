"""iSCSI names and portals: checks names of initiators, parses addresses, builds the connection data for os-brick.

Used by ``__init__.py``. Knows nothing of LIO.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blockstore.errors import ConfigError, InvalidConnector

PORT = 3260
LUN = 0
MAX_NAME = 223

# The characters of names by RFC 3720, 3.2.6, and RFC 3722. The name becomes the name of a directory.
_NAME = re.compile(
    r"iqn\.[0-9]{4}-(?:0[1-9]|1[0-2])\.[a-z0-9-]+(?:\.[a-z0-9-]+)+(?::[a-z0-9.:-]+)?"
    r"|eui\.[0-9a-f]{16}"
    r"|naa\.[125c-f][0-9a-f]{15}"
)


@dataclass(frozen=True)
class Portal:
    """An address and port at which the target listens."""

    address: str
    port: int

    @property
    def host(self) -> str:
        """The address as written before a port: IPv6 in brackets."""
        return f"[{self.address}]" if ":" in self.address else self.address

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def portals(text: str, where: str) -> tuple[Portal, ...]:
    """Return the portals of a comma-separated list. Raise ConfigError if one is invalid or named twice."""
    found = tuple(_portal(part.strip(), where) for part in text.split(","))
    if len(set(found)) < len(found):
        raise ConfigError(f"{where} names a portal twice: {text}")
    return found


def _portal(text: str, where: str) -> Portal:
    wrong = ConfigError(f"{where}: {text!r} is not a portal; use ADDRESS:PORT, such as 192.0.2.10:3260 or [::1].")
    parts = re.fullmatch(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<four>[0-9.]+))(?::(?P<port>[0-9]{1,5}))?", text)
    if parts is None:
        raise wrong
    try:
        address = ipaddress.IPv6Address(parts["six"]) if parts["six"] else ipaddress.IPv4Address(parts["four"])
    except ValueError:
        raise wrong from None
    port = int(parts["port"] or PORT)
    if not 0 < port < 65536:
        raise wrong
    if address.is_unspecified:
        raise ConfigError(f"{where}: initiators are told the portal, and cannot connect to {text}; name an address.")
    return Portal(str(address), port)


def initiator(connector: Mapping[str, Any]) -> str:
    """Return the initiator's name in lower case, as targets compare it. Raise InvalidConnector if it is not an iSCSI
    name."""
    iqn = connector.get("initiator")
    name = iqn.lower() if isinstance(iqn, str) and iqn.isascii() else ""
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise InvalidConnector.for_everybody(
            f"The connector's initiator is {str(iqn)[:MAX_NAME]!r}; the name of an iSCSI initiator is expected, of at"
            f" most {MAX_NAME} characters, such as iqn.1993-08.org.debian:01:4f1c2d."
        )
    return name


def connection(
    iqn: str, at: Sequence[Portal], user: str, *, discard: bool, connector: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the connection data for os-brick's iSCSI connector, without the password."""
    data: dict[str, Any] = {
        "target_discovered": False,
        "target_portal": str(at[0]),
        "target_iqn": iqn,
        "target_lun": LUN,
        "auth_method": "CHAP",
        "auth_username": user,
        "discard": discard,
    }
    if len(at) > 1 or connector.get("multipath") is True:
        data["target_portals"] = [str(portal) for portal in at]
        data["target_iqns"] = [iqn] * len(at)
        data["target_luns"] = [LUN] * len(at)
    return data
