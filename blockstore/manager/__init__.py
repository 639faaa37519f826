"""The room that lets backends do the work. ``HANDLERS`` and ``MOVERS`` are its contents page.

Its orders come from the scheduler and the API; what it cannot do it explains, and settles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from blockstore.manager import attachments, managing, moving, snapshots, volumes
from blockstore.orders import (
    ChangeType,
    ConnectAttachment,
    CreateSnapshot,
    CreateVolume,
    DeleteSnapshot,
    DeleteVolume,
    DisconnectAttachment,
    ExtendVolume,
    ManageVolume,
    MoveToType,
    MoveVolume,
    Order,
    RemoveCopy,
    RevertVolume,
)

HANDLERS: Mapping[type[Order], Callable[[Any, Any], None]] = {
    CreateVolume: volumes.create_volume,
    ManageVolume: managing.manage_volume,
    DeleteVolume: volumes.delete_volume,
    ExtendVolume: volumes.extend_volume,
    ChangeType: volumes.change_type,
    RevertVolume: volumes.revert_volume,
    RemoveCopy: moving.remove_copy,
    CreateSnapshot: snapshots.create_snapshot,
    DeleteSnapshot: snapshots.delete_snapshot,
    ConnectAttachment: attachments.connect_attachment,
    DisconnectAttachment: attachments.disconnect_attachment,
}

MOVERS: Mapping[type[Order], Callable[[Any, Any], None]] = {
    MoveVolume: moving.move_volume,
    MoveToType: moving.move_to_type,
}
"""What takes hours when a backend is drained, and so has workers of its own: nothing else waits for it."""
