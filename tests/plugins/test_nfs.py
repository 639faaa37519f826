"""What of the NFS plugin needs no server; the rest is in tests/lab/test_nfs.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from blockstore_plugins.nfs import NfsBackend, NfsOptions, mounts

from blockstore.errors import ConfigError, Unreachable


@pytest.mark.parametrize(
    "exports",
    [
        "",
        "host",
        "host:path",
        "-o:/x",
        "host:/a\tb",
        "host:/a/../b",
        "host:/a,host:/a",
        "[::1:/a",
        "[::g]:/a",
        "[::1%]:/a",
        "ho st:/a",
        "$(id):/a",
        ":/a",
    ],
)
def test_an_export_that_is_none_is_a_mistake_of_the_file(exports: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[backend:share\] exports"):
        NfsBackend.open_pools("share", NfsOptions(exports=exports), tmp_path)


@pytest.mark.parametrize("options", ["vers=4.2 -o x", "a,,b", "a,", "a;b", "$(id)", "a=b=c"])
def test_mount_options_are_words(options: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mount_options"):
        NfsBackend.open_pools("share", NfsOptions(exports="host:/a", mount_options=options), tmp_path)


def test_each_export_is_a_pool(tmp_path: Path) -> None:
    pools = NfsBackend.open_pools("nas", NfsOptions(exports="host:/a, [fe80::1%eth0]:/b,[::1]:/c d /e"), tmp_path)
    assert [backend.pool for backend in pools] == ["host:/a", "[fe80::1%eth0]:/b", "[::1]:/c d /e"]
    (one,) = NfsBackend.open_pools("nas", NfsOptions(exports="host:/a"), tmp_path)
    assert one.pool == "nas"


def test_a_local_directory_is_never_taken_for_the_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (backend,) = NfsBackend.open_pools("nas", NfsOptions(exports="host:/a"), tmp_path)
    assert isinstance(backend, NfsBackend)
    backend.path.mkdir(parents=True)
    monkeypatch.setattr(mounts, "mounted", lambda *_args: -1)
    with pytest.raises(Unreachable, match="is not mounted"):
        backend.create_volume("volume-1", 1)
    assert list(backend.path.iterdir()) == []
