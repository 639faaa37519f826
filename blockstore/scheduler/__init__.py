"""The component that decides where. ``HANDLERS`` is its contents page.

Knows pools from the pool reports and the reservations only; never sees a backend.
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
