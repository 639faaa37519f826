"""The room that decides where. ``HANDLERS`` is its contents page.

Knows pools from the board and the ledger only; never sees a backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from blockstore.orders import (
    Order,
    PlaceExtension,
    PlaceManaged,
    PlaceMigration,
    PlaceSnapshot,
    PlaceVolume,
    RetypeVolume,
)
from blockstore.scheduler import placing

HANDLERS: Mapping[type[Order], Callable[[Any, Any], None]] = {
    PlaceVolume: placing.place_volume,
    PlaceSnapshot: placing.place_snapshot,
    PlaceExtension: placing.place_extension,
    RetypeVolume: placing.retype_volume,
    PlaceManaged: placing.place_managed,
    PlaceMigration: placing.place_migration,
}
