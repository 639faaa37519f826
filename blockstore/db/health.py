"""Whether the database takes a write: asked by anybody, found out at most once a second, on a thread of its own.

Who asks is answered from the last look, so that strangers make no load. Only the one who finds that a look is due
waits for it, while another thread answers the others.
"""

from __future__ import annotations

import logging
import threading
import time

from sqlalchemy import text, update

from blockstore.db import patience, reserve
from blockstore.db.models import ServiceRow
from blockstore.db.session import Database
from blockstore.errors import BlockstoreError, DatabaseAway
from blockstore.repeats import Repeats

log = logging.getLogger(__name__)
repeats = Repeats(log)

FRESH_S = 1.0
WAIT_S = 1.0
"""A look that takes longer says by that alone that the database is not well."""

SLOW = "The database has not taken a write for a second."
EMPTIED = "The database is not the one that the service was started with. An administrator has to bring back a copy."
FAILED = "The database cannot be written. The log says why."


class Health:
    """The last look at the database."""

    def __init__(self, db: Database, aside: patience.Aside) -> None:
        """``aside`` is entered by the one who waits for a look."""
        self._db, self._aside = db, aside
        self._lock = threading.Lock()
        self._look: threading.Event | None = None
        """Set when the look that goes on has ended."""
        self._begun = 0.0
        self._ended = 0.0
        self._complaint: str | None = None

    def complaint(self) -> str | None:
        """Return what is wrong, as a sentence; None if the database takes writes."""
        with self._lock:
            now = time.monotonic()
            if self._ended and now - self._ended < FRESH_S and self._look is None:
                return self._complaint
            if self._look is not None:
                # Somebody else waits for it, or has given up.
                return SLOW if now - self._begun > WAIT_S else self._complaint
            look = self._look = threading.Event()
            self._begun = now
            well_before = self._complaint is None
        threading.Thread(target=self._find_out, args=(look,), name="health", daemon=True).start()
        if well_before:  # else it is known to be away, and the next who asks is told when it is back
            if not look.wait(0.05):
                with self._aside() as may_wait:
                    look.wait(WAIT_S if may_wait else 0)
        else:
            look.wait(0.01)
        with self._lock:
            if self._look is look:
                return SLOW if well_before else self._complaint
            return self._complaint

    def _find_out(self, look: threading.Event) -> None:
        complaint: str | None = FAILED
        try:
            with self._db.explained(), patience.limited(2 * WAIT_S), reserve.usable(by=False):
                self._write()
            complaint = self._db.damage
        except DatabaseAway as exc:
            complaint = exc.message
            repeats.log(logging.ERROR, exc.message, "the health check failed: %s", exc.detail)
        except BlockstoreError as exc:
            complaint = exc.message
            repeats.log(logging.ERROR, exc.message, "the health check failed: %s", exc)
        except Exception:
            log.exception("the health check failed")
        finally:
            with self._lock:
                self._complaint, self._ended, self._look = complaint, time.monotonic(), None
            look.set()

    def _write(self) -> None:
        self._db.prove_file()
        with self._db.write() as session:
            # Changes nothing that anybody sees. PostgreSQL writes it all the same; SQLite would not.
            if self._db.is_sqlite:
                session.execute(text(f"PRAGMA user_version = {time.time_ns() // 10**8 % 2**31}"))
            found = session.execute(
                update(ServiceRow)
                .values(disabled=ServiceRow.disabled)
                .where(ServiceRow.binary == "cinder-volume")
                .execution_options(synchronize_session=False)
            )
            if found.rowcount == 0:  # type: ignore[attr-defined]
                raise BlockstoreError(EMPTIED)
