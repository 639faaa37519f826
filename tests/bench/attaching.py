"""Attach over iSCSI: from the request to the connection info, with few and with many targets; reads and writes.

Anywhere: files through a tgtd of its own. In the lab (`tests/lab/lab-run --with target -- .venv/bin/python -m
tests.bench attach`): a logical volume through LIO and through tgtd, beside the bare device. The initiator is qemu's,
in user space, so the figures hold the whole way but no SCSI disk of the kernel.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.bench.client import Client
from tests.bench.figures import Figure, quantile, timed
from tests.bench.server import CONFIG, Server, served, state_dir

MANY = 500
CONNECTOR = {"initiator": "iqn.2008-11.org.linux-kvm", "host": "bench", "ip": "127.0.0.1"}
"""The initiator name that qemu-img has."""
LOADS = (
    ("1 MiB writes", ("-w", "-s", "1M"), 2**20),
    ("1 MiB reads", ("-s", "1M"), 2**20),
    ("4 KiB writes", ("-w", "-s", "4096"), 4096),
    ("4 KiB reads", ("-s", "4096"), 4096),
)


def measure(quick: bool) -> Iterator[Figure]:
    """Time attaches; then compare reads and writes with the bare file or device."""
    from tests.lab.conftest import in_lab

    if in_lab():
        yield from _in_lab(quick)
        return
    from tests.tgtd import Tgtd

    with Tgtd() as tgtd, state_dir() as directory:
        target = f"\ntarget = tgt\n[target:tgt]\nportals = {tgtd.portal}\ncontrol_socket = {tgtd.socket}\n"
        with served(directory, CONFIG + target) as server:
            client = Client(server.port)
            volume = _volume(client)
            others = [_volume(client) for _ in range(50 if quick else MANY)]
            _attach(client, others[0])
            yield _attaches(server, client, volume, 1, 50 if quick else 300)
            for other in others[1:]:
                _attach(client, other)
            yield _attaches(server, client, volume, len(others), 50 if quick else 300)
            bare = directory / "directory" / "volumes" / f"volume-{others[0]}.raw"
            yield from _reads_and_writes({"bare file": _file(bare)}, quick)
            data = _attach(client, volume)["connection_info"]
            yield from _reads_and_writes({"tgt": _iscsi(data)}, quick)


def _volume(client: Client) -> str:
    volume_id = client.create()
    client.wait_available(volume_id, 0.002)
    return volume_id


def _attach(client: Client, volume_id: str) -> dict[str, Any]:
    status, body = client("POST", "/attachments", {"attachment": {"volume_uuid": volume_id, "connector": CONNECTOR}})
    if status != 200:
        raise RuntimeError(f"attach: {status} {body!r}")
    return dict(json.loads(body)["attachment"])


def _attaches(server: Server, client: Client, volume_id: str, present: int, times: int) -> Figure:
    watch, attaching, detaching = server.watch(), [], []
    for _ in range(times):
        started = time.perf_counter()
        made = _attach(client, volume_id)
        attached = time.perf_counter()
        status, body = client("DELETE", f"/attachments/{made['id']}")
        if status != 200:
            raise RuntimeError(f"detach: {status} {body!r}")
        attaching.append(attached - started)
        detaching.append(time.perf_counter() - attached)
    return timed(
        f"attach on tgt beside {present} targets",
        attaching,
        target="p50 ≤ 60, p99 ≤ 150 ms",
        met=statistics.median(attaching) <= 0.060 and quantile(attaching, 99) <= 0.150,
        load=watch.read(),
        note=f"detach p50 {1000 * statistics.median(detaching):.1f} ms",
    )


# --- reads and writes --------------------------------------------------------------------------------------


Image = tuple[tuple[str, ...], dict[str, str]]
"""What qemu-img is told of an image, and what of it stands in the environment."""


def _file(path: Path) -> Image:
    return ("-f", "raw", str(path)), {}


def _iscsi(data: Mapping[str, Any]) -> Image:
    url = f"iscsi://{data['target_portal']}/{data['target_iqn']}/{data['target_lun']}"
    secret = {"LIBISCSI_CHAP_USERNAME": data["auth_username"], "LIBISCSI_CHAP_PASSWORD": data["auth_password"]}
    return ("-f", "raw", url), secret


def _reads_and_writes(images: Mapping[str, Image], quick: bool) -> Iterator[Figure]:
    for where, (image, secret) in images.items():
        for what, load, size in LOADS:
            count = (2000 if quick else 20000) if size == 4096 else (100 if quick else 500)
            argv = ["qemu-img", "bench", "-c", str(count), "-d", "16", "-t", "none", *load, *image]
            said = subprocess.run(
                argv,
                env={**os.environ, **secret},
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=600,
                check=False,
            )
            found = re.search(r"completed in ([0-9.]+) seconds", said.stdout)
            if said.returncode or not found:
                raise RuntimeError(f"qemu-img bench on {where}: {said.stderr or said.stdout}")
            rate = count / float(found[1])
            yield Figure(name=f"{what}, {where}", unit="MiB/s", median=rate * size / 2**20, rate=rate, samples=count)


# --- in the lab --------------------------------------------------------------------------------------------


def _in_lab(quick: bool) -> Iterator[Figure]:
    from blockstore.app.service import Service
    from tests.conftest import Client as DirectConnection
    from tests.conftest import backend_section, make_config, target_section
    from tests.lab.conftest import Disk
    from tests.tgtd import Tgtd

    disk = Disk(16)
    try:
        with Tgtd() as tgtd, tempfile.TemporaryDirectory(prefix="blockstore-bench-") as directory:
            lvm = {"volume_group": disk.vg, "lvm_type": "thick"}
            backends = tuple(
                backend_section(name, "lvm", {"target": name}, **lvm) for name in ("lio", "tgt")
            )  # two names for one volume group, so that each volume has its own target
            targets = (
                target_section("lio"),
                target_section("tgt", portals=tgtd.portal, control_socket=str(tgtd.socket)),
            )
            service = Service(make_config(Path(directory), backends=backends, targets=targets))
            service.start()
            try:
                yield from _through_each(DirectConnection(service), disk.vg, quick)
            finally:
                service.stop()
    finally:
        disk.close()


def _through_each(api: Any, vg: str, quick: bool) -> Iterator[Figure]:
    for name in ("lio", "tgt"):
        api("POST", "/types", {"volume_type": {"name": name, "extra_specs": {"volume_backend_name": name}}})
        volume = api.volume(volume_type=name)
        if name == "lio":
            device = Path(f"/dev/{vg}/volume-{volume['id']}")
            yield from _reads_and_writes({"bare device": _file(device)}, quick)
        asked = {"attachment": {"volume_uuid": volume["id"], "connector": CONNECTOR}}
        attaching = []
        for _ in range(5 if quick else 20):
            started = time.perf_counter()
            made = api("POST", "/attachments", asked).json["attachment"]
            attaching.append(time.perf_counter() - started)
            if len(attaching) < (5 if quick else 20):
                api("DELETE", f"/attachments/{made['id']}")
        yield timed(f"attach on {name}, in the lab", attaching)
        yield from _reads_and_writes({name: _iscsi(made["connection_info"])}, quick)
        api("DELETE", f"/attachments/{made['id']}")
