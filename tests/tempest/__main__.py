"""Serve blockstore with two backends, let Tempest test it, and compare with what Cinder passes.

    python -m tests.tempest [--all] [--keep DIRECTORY] [REGEX]

``REGEX`` limits the tests; ``--all`` runs what is left out, too. Tempest has an environment of its own, ``.tempest``.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import ROOT, Served
from tests.tempest.report import Outcome, outcomes

HERE = Path(__file__).parent
VENV = ROOT / ".tempest"
REQUIREMENTS = HERE / "requirements.txt"
MOST_S = 444
"""Half of the 888 s that Cinder takes on two cores. A quiet machine takes a quarter, a busy one twice that."""

SERVICE = """\
[service]
auth = builtin
report_interval_s = 10
[quota]
volumes = 200
snapshots = 200
gigabytes = 10000
[backend:one]
plugin = directory
max_over_subscription_ratio = 1000
reserved_percentage = 0
fill_limit_percentage = 100
[backend:two]
plugin = directory
max_over_subscription_ratio = 1000
reserved_percentage = 0
fill_limit_percentage = 100
"""

# neutron and glance: many classes refuse to start without them, although most of their tests need neither network nor
# image. Nothing here claims to be one: both names lead to the Identity API, whose 404 is what Tempest needs when it
# looks for security groups to clear up.
TEMPEST = """\
[DEFAULT]
log_file = {directory}/tempest.log
[oslo_concurrency]
lock_path = {directory}/lock
[auth]
use_dynamic_credentials = true
create_isolated_networks = false
admin_username = admin
admin_password = {password}
admin_project_name = admin
admin_domain_name = Default
[identity]
uri_v3 = {identity}
auth_version = v3
region = RegionOne
v3_endpoint_type = publicURL
[identity-feature-enabled]
api_v2 = false
api_v2_admin = false
[enforce_scope]
cinder = true
[service_available]
cinder = true
glance = true
nova = false
neutron = true
swift = false
horizon = false
[network]
catalog_type = identity
[image]
catalog_type = identity
[network-feature-enabled]
api_extensions =
[volume]
catalog_type = block-storage
build_interval = 1
build_timeout = 60
storage_protocol = file
vendor_name = Open Source
backend_names = one,two
disk_format = raw
min_microversion = 3.0
max_microversion = latest
[volume-feature-enabled]
multi_backend = true
backup = {everything}
snapshot = true
clone = true
manage_volume = true
manage_snapshot = true
replication = false
extend_attached_volume = false
extend_volume_with_snapshot = true
volume_revert = true
consistency_group = false
concurrency_tests = true
enable_volume_image_dep_tests = true
"""


def main() -> int:
    """Run, compare, and return the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("regex", nargs="?", default="", help="only tests whose name matches")
    parser.add_argument("--all", action="store_true", help="what is left out, too")
    parser.add_argument("--keep", type=Path, help="directory for everything that is written; else it is removed")
    arguments = parser.parse_args()
    install()
    passed_there = set(lines("reference-passed.txt"))
    left_out = set(lines("left-out.txt"))
    assert left_out <= passed_there, f"left out, and unknown: {left_out - passed_there}"
    wanted = passed_there if arguments.all else passed_there - left_out
    wanted = {name for name in wanted if re.search(arguments.regex, name)}
    with tempfile.TemporaryDirectory(prefix="blockstore-tempest-", dir="/var/tmp") as place:
        directory = arguments.keep or Path(place)
        directory.mkdir(parents=True, exist_ok=True)
        served = Served(directory / "state", SERVICE)
        try:
            started = time.monotonic()
            found = run(served, directory, wanted, everything=arguments.all)
            took_s = time.monotonic() - started
        finally:
            served.stop()
    return compare(wanted, left_out, found, took_s, limited=bool(arguments.regex or arguments.all))


def lines(name: str) -> list[str]:
    """Return the lines of a list beside this file, without comments."""
    text = (HERE / name).read_text()
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def install() -> None:
    """Make .tempest, when it is not there or the requirements have changed."""
    stamp = VENV / ".installed"
    if stamp.exists() and stamp.read_text() == REQUIREMENTS.read_text():
        return
    print("installing Tempest into .tempest", flush=True)
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    pip = [VENV / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", REQUIREMENTS], check=True)
    stamp.write_text(REQUIREMENTS.read_text())


def run(served: Served, directory: Path, wanted: set[str], *, everything: bool) -> dict[str, Outcome]:
    """Let Tempest run the wanted tests; return what became of them."""
    config, names = directory / "tempest.conf", directory / "wanted.txt"
    config.touch(mode=0o600)
    config.write_text(
        TEMPEST.format(
            directory=directory,
            password=(served.state_dir / "admin-password").read_text().strip(),
            identity=served.url.removesuffix("/v3") + "/identity/v3",
            everything=str(everything).lower(),
        )
    )
    names.write_text("".join(f"^{re.escape(name)}(\\[|$)\n" for name in sorted(wanted)))
    workspace = directory / "workspace"
    workspace.mkdir()
    environment = {"PATH": f"{VENV}/bin:{os.environ['PATH']}", "HOME": str(workspace), "LANG": "C.UTF-8"}
    with (directory / "console.log").open("wb") as console:
        subprocess.run(
            [VENV / "bin/tempest", "run", "--config-file", config, "--include-list", names, "--concurrency", "2"],
            cwd=workspace, env=environment, stdout=console, stderr=console, check=False,
        )  # fmt: skip
        done = subprocess.run(
            [VENV / "bin/stestr", "last", "--subunit"], cwd=workspace, env=environment, stdout=subprocess.PIPE,
            stderr=console, check=False,
        )  # fmt: skip
    if not done.stdout:
        sys.exit((directory / "console.log").read_text()[-4000:])
    return outcomes(VENV / "bin/python", done.stdout)


def compare(wanted: set[str], left_out: set[str], found: dict[str, Outcome], took_s: float, *, limited: bool) -> int:
    """Print what differs from what was wanted; return the exit status."""
    passed = {name for name, outcome in found.items() if outcome.status == "success"}
    missing = sorted(wanted - left_out - passed)
    for name in missing:
        group = next((o for other, o in found.items() if other == f"setUpClass ({name.rpartition('.')[0]})"), None)
        outcome = found.get(name) or group
        print(f"NOT PASSED {name}\n    {outcome.status + ': ' + outcome.reason if outcome else 'not run'}")
    grown = sorted(left_out & passed)
    for name in grown:
        print(f"PASSED, and yet in left-out.txt: {name}")
    print(f"{len(passed & wanted)} of {len(wanted)} passed in {took_s:.0f} s; {len(left_out)} are left out")
    slow = not limited and took_s > MOST_S
    if slow:
        print(f"That is more than the {MOST_S} s that it may take.")
    return 1 if missing or grown or slow else 0


if __name__ == "__main__":
    sys.exit(main())
