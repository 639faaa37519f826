"""What a certificate is for, and what a handshake with it costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockstore import certificate
from tests.server import certificates


def test_names_are_those_of_the_certificate_an_expired_one_too(tmp_path: Path) -> None:
    pair = certificates.certificate(tmp_path, "cloud.example", "192.0.2.1", days=-1)
    assert certificate.names(*pair) == (["cloud.example"], ["192.0.2.1"])


def test_a_key_that_makes_handshakes_costly_is_warned_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "COSTLY_S", 10)  # on any machine
    assert certificate.handshake_warning(*certificates.certificate(tmp_path)) == ""
    costly = certificates.certificate(tmp_path, rsa_bits=4096)
    monkeypatch.setattr(certificate, "COSTLY_S", 0.001)  # on any machine
    assert "P-256" in certificate.handshake_warning(*costly)
