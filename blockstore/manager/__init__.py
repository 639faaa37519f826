"""The component that lets backends do the work. ``HANDLERS`` and ``MIGRATION_HANDLERS`` are its contents page.

Its operations come from the scheduler and the API; what it cannot do it explains, and settles.
"""

from __future__ import annotations

from blockstore.manager import attachments, manageable, migration, snapshots, volumes
from blockstore.operations.runner import by_kind

HANDLERS = by_kind(
    volumes.create_volume,
    manageable.manage_volume,
    volumes.delete_volume,
    volumes.extend_volume,
    volumes.change_type,
    volumes.revert_volume,
    migration.remove_copy,
    snapshots.create_snapshot,
    snapshots.delete_snapshot,
    attachments.connect_attachment,
    attachments.disconnect_attachment,
)

MIGRATION_HANDLERS = by_kind(migration.migrate_volume, migration.migrate_to_type)
"""What takes hours when a backend is drained, and so has workers of its own: nothing else waits for it."""
