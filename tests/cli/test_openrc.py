"""The address that ``blockstore openrc`` names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.cli.invoking import MEMORY, said
from tests.conftest import Served


def test_openrc_names_the_address_that_is_served(serve: Callable[..., Served]) -> None:
    served = serve(MEMORY)
    options = f"--state-dir {served.state_dir} --config {served.state_dir}/config.ini"
    script = f'eval "$({sys.executable} -m blockstore openrc {options})" && echo $OS_ENDPOINT'
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{served.url}\n"


def test_openrc_without_a_server_names_the_configured_address(tmp_path: Path) -> None:
    config = tmp_path / "config.ini"
    config.write_text("[service]\nauth = none\n")
    output = said("openrc", "--state-dir", tmp_path / "none", "--config", config)
    assert "OS_ENDPOINT=http://127.0.0.1:8776/v3;\n" in output
