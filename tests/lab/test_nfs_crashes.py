"""A service on two shares, killed by SIGKILL at every step; what takes the lab longer is tried by hand.

By hand, some minutes for each scenario: ``KILL_SCENARIOS="clone or move]"`` here, or tests/crash/test_every_step.py;
``KILL_KIND=layered`` tries it on layers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import SERVED, run

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SECTION = """
[backend:{name}]
plugin = nfs
exports = 127.0.0.1:/{name}
{kind}
max_over_subscription_ratio = {ratio}
reserved_percentage = 0
fill_limit_percentage = 100
"""


KINDS = {"raw": "target = local", "layered": "format = qcow2\nmount_options = vers=4.1"}


def test_killed_at_any_step_it_recovers(tmp_path: Path) -> None:
    config = tmp_path / "blockstore.ini"
    shares = {"first": 1000, "spare": 900}
    config.write_text(
        "".join(
            SECTION.format(name=name, ratio=ratio, kind=KINDS[os.environ.get("KILL_KIND", "raw")])
            for name, ratio in shares.items()
        )
    )
    SERVED.chmod(0o755)
    for name in shares:
        (SERVED / name).mkdir()
    wanted = os.environ.get("KILL_SCENARIOS", "any_step and create]")
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-s", "-k", wanted]
    done = subprocess.run(
        [*argv, "tests/crash/test_every_step.py"],
        env={**os.environ, "KILL_CONFIG": str(config), "KILL_SAMPLE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    print(done.stdout)
    for name in shares:
        left = [path for path in (SERVED / name).rglob("*") if path.suffix in (".raw", ".qcow2", ".tmp", ".next")]
        assert left == []
        run("rm", "-rf", str(SERVED / name))
