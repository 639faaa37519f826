"""Reads the names in a TLS certificate and measures the cost of a handshake, with the standard library alone."""

from __future__ import annotations

import ssl
import time
from pathlib import Path
from typing import Any

COSTLY_S = 0.004
"""Seconds of processor time: both sides of a handshake take 1 to 2 ms with RSA of 2,048 bits, and 5 to 9 with 4,096."""
_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which ``ssl`` does not name: the names of an expired certificate count."""


def names(certificate: Path, key: Path) -> tuple[list[str], list[str]]:
    """Return the DNS names and the IP addresses in the subjectAltName of a certificate. Raises OSError, SSLError.

    ``ssl`` shows the fields of a certificate only to a client that has verified it. So a client and a server run a
    handshake in memory; the client trusts the certificate itself as its CA.
    """
    fields: Any = _handshake(certificate, key).getpeercert()
    found: tuple[tuple[str, str], ...] = (fields or {}).get("subjectAltName", ())
    dns = [value for kind, value in found if kind == "DNS"]
    return dns, [value for kind, value in found if kind == "IP Address"]


def handshake_warning(certificate: Path, key: Path) -> str:
    """Return a warning if a handshake is so expensive here that many of them delay all callers; else ''."""
    took = []
    for _ in range(5):
        began = time.thread_time()
        _handshake(certificate, key)
        took.append(time.thread_time() - began)
    if min(took) < COSTLY_S:
        return ""
    return (
        f"a TLS handshake with tls_key takes {min(took) * 1000:.0f} ms of processor time, so that anybody who can reach"
        " this service can keep it busy; a key on the curve P-256 (openssl ... -newkey ec -pkeyopt"
        " ec_paramgen_curve:P-256) takes less than 1 ms"
    )


def _handshake(certificate: Path, key: Path) -> ssl.SSLObject:
    """Return the client's side of a handshake in memory. Raises OSError, SSLError."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key, password="")  # without a password, OpenSSL would prompt on the terminal
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
    return sides[0]
