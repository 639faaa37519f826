"""The component that decides where. ``HANDLERS`` is its contents page.

Knows pools from the board and the ledger only; never sees a backend.
"""

from __future__ import annotations

from blockstore.runner import by_kind
from blockstore.scheduler import placing

HANDLERS = by_kind(
    placing.place_volume,
    placing.place_snapshot,
    placing.place_extension,
    placing.retype_volume,
    placing.place_managed,
    placing.place_migration,
)
