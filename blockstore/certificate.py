"""The names that a certificate is for, read with nothing but the standard library."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which ``ssl`` does not name: an expired certificate has names, too."""


def names(certificate: Path, key: Path) -> tuple[list[str], list[str]]:
    """Return the DNS names and the IP addresses in the subjectAltName of a certificate. Raises OSError, SSLError.

    ``ssl`` shows the fields of a certificate only to a client that has verified it. So a client and a server shake
    hands in memory; the client takes the certificate itself for its authority.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key, password="")  # without it, it would ask the terminal
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(certificate)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(4):  # flights of a handshake
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    fields: Any = sides[0].getpeercert()
    found: tuple[tuple[str, str], ...] = (fields or {}).get("subjectAltName", ())
    dns = [value for kind, value in found if kind == "DNS"]
    return dns, [value for kind, value in found if kind == "IP Address"]
