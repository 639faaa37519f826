"""The component that chooses pools. ``HANDLERS`` lists its handlers.

It knows pools only from the pool reports and the reservations. It never calls a backend.
"""

from __future__ import annotations

from blockstore.operations.runner import by_kind
from blockstore.scheduler import placement

HANDLERS = by_kind(
    placement.place_volume,
    placement.place_snapshot,
    placement.place_extension,
    placement.retype_volume,
    placement.place_managed,
    placement.place_migration,
)
