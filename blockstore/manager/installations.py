"""Detects two installations on one storage: each pool carries the mark of the installation that uses it.

Checked at every health check, and before the first action on a pool without a health check. Storage without a mark is
new, or was used by a version that made none: it gets ours. Several sections of one installation may share storage.
"""

from __future__ import annotations

import logging

from blockstore.backends.contract import Backend
from blockstore.errors import BackendError, Unreachable

log = logging.getLogger(__name__)


def claim(backend: Backend, installation: str) -> None:
    """Mark a pool as ours unless it is marked. Raise Unreachable if it is another installation's."""
    if not backend.capabilities().owner_mark:
        return
    owner = backend.owner()
    if owner is None:
        try:
            backend.change_owner(None, installation)
        except BackendError as exc:
            log.warning(
                "backend %s could not be marked as ours, so other installations cannot see that it is in use: %s",
                backend.pool,
                exc,
            )
            return
        owner = backend.owner()
        log.info("backend %s is now marked as storage of installation %s", backend.pool, owner)
    refuse_foreign(backend, installation, owner)


def refuse_foreign(backend: Backend, installation: str, owner: str | None) -> None:
    """Raise Unreachable if a mark is another installation's."""
    if owner not in (None, installation):
        raise Unreachable(
            f"The storage of {backend.pool} is used by another installation of blockstore, {owner}; this one is"
            f" {installation}. Two installations would delete each other's volumes. If the other one no longer exists,"
            f" take its storage over: blockstore backend takeover {backend.name} --from {owner}"
        )
