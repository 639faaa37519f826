"""The plugin lio without a kernel: its options, the names of initiators, and what it says when something is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from blockstore_plugins.lio import LioOptions, LioTarget, iscsi, targets
from blockstore_plugins.lio.backstores import Backstore

from blockstore.errors import BackendError, ConfigError, InvalidConnector, Unreachable


def lio(**options: object) -> LioTarget:
    return LioTarget("disks", LioOptions(**options), Path("/nonexistent"), "abcd0123")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("127.0.0.1:3260", ["127.0.0.1:3260"]),
        ("192.0.2.1", ["192.0.2.1:3260"]),
        ("192.0.2.1:1, [2001:DB8::0:1]:65535,[::1]", ["192.0.2.1:1", "[2001:db8::1]:65535", "[::1]:3260"]),
    ],
)
def test_portals_are_read(text: str, shown: list[str]) -> None:
    assert [str(portal) for portal in iscsi.portals(text, "here")] == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "localhost",
        "::1",
        "[::1",
        "[127.0.0.1]",
        "1.2.3",
        "1.2.3.4:0",
        "1.2.3.4:65536",
        "1.2.3.4:x",
        "1.2.3.4,",
        "[fe80::1%eth0]",
        "0.0.0.0",
        "[::]:3260",
        "1.2.3.4, 1.2.3.4:3260",
        "1.2.3.4:3260/x",
        "1.2.3.4 5.6.7.8",
    ],
)
def test_portals_that_nobody_could_use_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^\[target:disks\] portals"):
        lio(portals=text)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_time_limit_must_be_one(seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"^\[target:disks\] session_timeout_s"):
        lio(session_timeout_s=seconds)


@pytest.mark.parametrize(
    "name",
    [
        "iqn.1993-08.org.debian:01:4f1c2d",
        "iqn.1991-05.com.microsoft:HOST.example.org",
        "iqn.2010-10.org.example",
        "eui.02004567A425678D",
        "naa.5001405abcdef012",
        "iqn.1993-08.org.debian:" + "x" * 200,
    ],
)
def test_initiators_are_let_in_in_small_letters(name: str) -> None:
    lio().check_connector({"initiator": name})
    assert iscsi.initiator({"initiator": name}) == name.lower()


@pytest.mark.parametrize(
    "name",
    [
        *(None, 7, "", "ALL", "*", "iqn", "iqn.1993-08", "iqn.1993-13.org.x:y", "iqn.1993-08.org", "eui.0200"),
        *(
            "naa.6" + "0" * 15,
            "iqn.1993-08.org.debian:01\n",
            " iqn.1993-08.org.debian:01",
            ["iqn.1993-08.org.debian:1"],
        ),
        *(
            f"iqn.1993-08.org.debian:{tail}"
            for tail in ("../x", "a/b", "a b", "a\n", "a\0", "a,b", "a_b", "ü", "\u212a")
        ),
        "iqn.1993-08.org.debian:" + "x" * 201,
    ],
)
def test_what_is_no_initiator_is_refused(name: object) -> None:
    with pytest.raises(InvalidConnector, match="initiator"):
        lio().check_connector({"initiator": name})
    with pytest.raises(InvalidConnector, match="initiator"):
        lio().check_connector({})


@pytest.mark.parametrize("export_id", ["", "..", "x", "../../../core", "ABCDEF01-0000-0000-0000-000000000000"])
def test_an_id_that_is_no_uuid_reaches_no_path(export_id: str) -> None:
    with pytest.raises(BackendError, match="uuid"):
        lio().withdraw(export_id)


def test_a_volume_has_one_identity_everywhere() -> None:
    volume = "volume-0b5f3a52-7a5c-4b2f-9d52-0c5f3d1b7a11"
    assert Backstore("one", volume).serial == Backstore("two", volume).serial == volume.removeprefix("volume-")
    assert Backstore("one", "v").serial == Backstore("two", "v").serial != Backstore("one", "w").serial
    assert Backstore("one", volume).name != Backstore("two", volume).name


@pytest.mark.skipif(os.geteuid() != 0, reason="root comes first")
def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rtslib_fb", None)
    with pytest.raises(Unreachable, match=r"pip install 'blockstore\[lio\]'"):
        lio().check()


@pytest.mark.skipif(os.geteuid() != 0, reason="root comes first")
@pytest.mark.skipif(targets.FABRIC.parent.is_dir(), reason="this kernel has it")
def test_a_missing_kernel_target_is_named() -> None:
    with pytest.raises(Unreachable, match=r"configfs|modprobe"):
        lio().check()
    assert lio().list_exports() == frozenset()
    assert lio().sessions() == {}


def test_starting_the_service_does_not_load_the_library() -> None:
    code = "import sys, blockstore_plugins.lio; sys.exit('rtslib_fb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
