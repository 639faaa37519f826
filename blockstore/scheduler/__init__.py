"""The room that decides where. ``HANDLERS`` is its contents page.

Knows pools from the board and the ledger only; never sees a backend.
"""

from __future__ import annotations

from blockstore.scheduler import placing
from blockstore.settling import by_kind

HANDLERS = by_kind(
    placing.place_volume,
    placing.place_snapshot,
    placing.place_extension,
    placing.retype_volume,
    placing.place_managed,
    placing.place_migration,
)
