"""How an export is broken behind the service's back: by its own tools, or by a fault. For ``Pair.damages``.

Each returns damages by their names, which take a made export; what they break, a look must notice and make again.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from blockstore_plugins.local import LocalTarget
from blockstore_plugins.nbd import NbdTarget
from blockstore_plugins.tgt.management import Tgtd as Management

from blockstore.conformance.target import ExportedVolume
from tests.tgtd import SEARCH, Tgtd

Damages = Mapping[str, Callable[[ExportedVolume], object]]


TGTADM = {
    "the target is offline": "--op update --mode target --name state --value offline",
    "the initiator is unbound": "--op unbind --mode target --initiator-name {initiator}",
    "everybody is bound": "--op bind --mode target --initiator-address ALL",
    "the account is unbound": "--op unbind --mode account --user {account}",
    "the LUN is offline": "--op update --mode logicalunit --lun 1 --params online=0",
    "the LUN is deleted": "--op delete --mode logicalunit --lun 1",
    "the target is deleted": "--op delete --mode target --force",
}
"""What ``tgtadm`` can do to an export, and how."""


def of_local(target: LocalTarget) -> Damages:
    """Return what can happen to a path."""

    def forgotten(made: ExportedVolume) -> None:
        (target.state_dir / made.id).unlink()

    def deactivated(made: ExportedVolume) -> None:
        if made.export.path.parts[1] == "dev":
            subprocess.run(["lvchange", "-an", str(made.export.path)], check=True, capture_output=True)
        else:
            forgotten(made)

    return {"its record is gone": forgotten, "its device is deactivated": deactivated}


def of_nbd(target: NbdTarget) -> Damages:
    """Return what can happen to a server."""

    def killed(made: ExportedVolume) -> None:
        server = target._folder(made.id)._server()
        assert server is not None
        os.kill(server, signal.SIGKILL)

    def unreachable(made: ExportedVolume) -> None:
        Path(made.connection.data.get("socket") or target.state_dir / made.id / "keys.psk").unlink()

    return {"qemu-nbd is killed": killed, "its socket or its key is removed": unreachable}


def of_tgt(tgtd: Tgtd) -> Damages:
    """Return what ``tgtadm`` can do."""

    def tgtadm(made: ExportedVolume, *options: str) -> None:
        iqn = made.connection.data["target_iqn"]
        (tid,) = (shown.tid for shown in Management.find(tgtd.socket).targets() if shown.name == iqn)
        words = [
            option.format(account=made.connection.data["auth_username"], **made.export.connector) for option in options
        ]
        subprocess.run(
            ["tgtadm", "--lld", "iscsi", "--tid", str(tid), *words],
            env={"TGT_IPC_SOCKET": str(tgtd.socket).removesuffix(".0"), "PATH": SEARCH},
            check=True,
            capture_output=True,
        )

    return {
        name: partial(lambda options, made: tgtadm(made, *options), options.split()) for name, options in TGTADM.items()
    }


def of_lio() -> Damages:
    """Return what targetcli, which is rtslib, can do."""

    def tpg(made: ExportedVolume) -> Any:
        import rtslib_fb as rtslib

        return rtslib.TPG(rtslib.Target(rtslib.FabricModule("iscsi"), made.connection.data["target_iqn"]), 1)

    def deleted(parts: str, made: ExportedVolume) -> None:
        for part in list(getattr(tpg(made), parts)):
            part.delete()

    def shared(made: ExportedVolume) -> None:
        import rtslib_fb as rtslib

        rtslib.NodeACL(tpg(made), "iqn.1993-08.org.debian:01:intruder")

    return {
        "the portal group is disabled": lambda made: setattr(tpg(made), "enable", False),
        "the LUN is deleted": partial(deleted, "luns"),
        "the ACL is deleted": partial(deleted, "node_acls"),
        "the portal is deleted": partial(deleted, "network_portals"),
        "another initiator is let in": shared,
        "no password is asked for": lambda made: tpg(made).set_attribute("authentication", "0"),
        "the target is deleted": lambda made: tpg(made).parent_target.delete(),
    }
