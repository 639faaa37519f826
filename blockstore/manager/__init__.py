"""The component that carries out operations on backends. ``HANDLERS`` and ``MIGRATION_HANDLERS`` list its handlers.

Its operations come from the scheduler and the API. A failure is recorded with its reason.
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
"""Handlers with workers of their own: draining a backend takes hours, and no other operation waits for it."""
