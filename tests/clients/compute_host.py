"""A compute host that uses a volume as nova-compute does: python-cinderclient speaks, os-brick connects.

A process of its own (``python -m tests.clients.compute_host ENDPOINT VOLUME``), because os-brick brings eventlet along
and changes how the whole process looks for its privileges. Prints what it saw as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

HELPER = "sudo"
"""What os-brick would put in front of commands that need root; not used by a process that is root."""

BLOCK = b"written by a server ".ljust(4096, b".")


def main(endpoint: str, volume: str) -> dict[str, Any]:
    """Attach a volume to a server, use it, and detach it."""
    import os_brick.privileged
    from cinderclient import client
    from keystoneauth1 import session
    from keystoneauth1.token_endpoint import Token
    from os_brick.initiator import connector

    # We are root: without a daemon of os-brick's own behind sudo.
    os_brick.privileged.default.set_client_mode(False)
    auth = Token(endpoint, os.environ["OS_TOKEN"])
    cinder = client.Client("3.44", session=session.Session(auth=auth))
    seen: dict[str, Any] = {}

    server = str(uuid.uuid4())
    attachment = cinder.attachments.create(volume, None, server)["id"]
    seen["reserved"] = cinder.volumes.get(volume).status
    properties = connector.get_connector_properties(HELPER, "127.0.0.1", False, False)
    seen["properties"] = properties
    info = cinder.attachments.update(attachment, {**properties, "mountpoint": "/dev/vdb"}).connection_info
    seen["info"] = info
    brick = connector.InitiatorConnector.factory(info["driver_volume_type"], HELPER, use_multipath=False)
    device = brick.connect_volume(info)
    seen["device"] = device
    cinder.attachments.complete(attachment)
    seen["attached"] = cinder.volumes.get(volume).status
    with Path(device["path"]).open("r+b") as disk:
        seen["size"] = disk.seek(0, os.SEEK_END)
        disk.seek(8192)
        disk.write(BLOCK)
        disk.flush()
        os.fsync(disk.fileno())
        cinder.volumes.begin_detaching(volume)
        try:
            cinder.attachments.delete(attachment)
        except Exception as exc:
            seen["while_open"] = str(exc)
    seen["kept"] = cinder.attachments.show(attachment).status
    brick.disconnect_volume(info, device)
    cinder.attachments.delete(attachment)
    seen["detached"] = cinder.volumes.get(volume).status
    return seen


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
