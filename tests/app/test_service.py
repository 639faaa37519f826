"""The service without a socket: what its configuration may not hold, and backends that come back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from blockstore.app.service import Service
from blockstore.app.wiring import load_policy
from blockstore.errors import ConfigError
from tests.conftest import Client, backend_section, make_config


@pytest.mark.parametrize("name", ["policy.yaml", "attachments.key", "blockstore.db", "blockstore.db-wal"])
def test_planted_file_stops_the_start(tmp_path: Path, name: str) -> None:
    state, victim = tmp_path / "s", tmp_path / "victim"
    state.mkdir(mode=0o700)
    victim.write_bytes(b"")
    (state / name).symlink_to(victim)
    config = make_config(state)
    with pytest.raises(ConfigError, match=f"{state}/{name}.* it is a symbolic link"):
        load_policy(config) if name == "policy.yaml" else Service(config)
    assert victim.read_bytes() == b""


def test_backend_comes_back_without_a_restart(start_service: Callable[..., Service], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    service = start_service(backends=(backend_section("d", "directory", path=str(disk / "volumes")),))
    api = Client(service)
    assert api.volume()["status"] == "error"
    disk.mkdir()
    service.report()
    assert api.volume()["status"] == "available"


def test_unknown_plugin_is_refused_at_start(tmp_path: Path) -> None:
    config = make_config(tmp_path / "s", backends=(backend_section("x", "cephalopod"),))
    with pytest.raises(ConfigError, match="plugin is 'cephalopod'; installed are directory, lvm, memory"):
        Service(config)


def test_unknown_filter_is_refused_at_start(tmp_path: Path) -> None:
    from blockstore.config import SchedulerConfig

    with pytest.raises(ConfigError, match="There is no scheduler filter 'Sieve'"):
        Service(make_config(tmp_path / "s", scheduler=SchedulerConfig(filters="Sieve")))
