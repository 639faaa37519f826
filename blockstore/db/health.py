"""The health check of the database: a test write at most once a second, on a thread of its own.

Callers get the last result, so that strangers cause no load. Only the caller that finds a check due waits for it,
while another thread answers the others.
"""

from __future__ import annotations

import logging
import threading
import time

from sqlalchemy import text, update

from blockstore.db import reserve, wait_limits
from blockstore.db.models import ServiceRow
from blockstore.db.session import Database
from blockstore.errors import BlockstoreError, DatabaseAway
from blockstore.log_limiter import LogLimiter
from blockstore.service_names import VOLUME_SERVICE

log = logging.getLogger(__name__)
log_limiter = LogLimiter(log)

FRESH_S = 1.0
WAIT_S = 1.0
"""A check that takes longer shows by its duration that the database is not well."""

SLOW = "The database has not completed a write for a second."
EMPTIED = "The database was replaced or emptied after the start of the service. An administrator must restore a copy."
NO_THREAD = "No thread can be started to check the database. Raise the limit of processes of the service."
FAILED = "The database cannot be written. The log says why."


class Health:
    """The last check of the database."""

    def __init__(self, db: Database, lend_thread: wait_limits.LendThread) -> None:
        """``lend_thread`` is entered by the caller that waits for a check."""
        self._db, self._lend_thread = db, lend_thread
        self._lock = threading.Lock()
        self._running: threading.Event | None = None
        """The running check's event, set when the check has ended."""
        self._begun = 0.0
        self._ended = 0.0
        self._complaint: str | None = None

    def complaint(self) -> str | None:
        """Return the problem as a sentence, or None if the database takes writes."""
        with self._lock:
            now = time.monotonic()
            if self._ended and now - self._ended < FRESH_S and self._running is None:
                return self._complaint
            if self._running is not None:
                # Another caller waits for the check, or has given up.
                return SLOW if now - self._begun > WAIT_S else self._complaint
            check = threading.Event()
            try:
                threading.Thread(target=self._check, args=(check,), name="health", daemon=True).start()
            except RuntimeError:  # the limit of processes
                return NO_THREAD
            self._running = check
            self._begun = now
            well_before = self._complaint is None
        with self._db.interpreter.released():
            if not well_before:  # the outage is known, and a later caller learns of its end
                check.wait(0.01)
            elif not check.wait(0.05):
                with self._lend_thread() as may_wait:
                    check.wait(WAIT_S if may_wait else 0)
        with self._lock:
            if self._running is check:
                return SLOW if well_before else self._complaint
            return self._complaint

    def _check(self, check: threading.Event) -> None:
        complaint: str | None = FAILED
        try:
            with self._db.explained(), wait_limits.limited(2 * WAIT_S), reserve.usable(by=False):
                self._write()
            complaint = self._db.damage
        except DatabaseAway as exc:
            complaint = exc.message
            log_limiter.log(logging.ERROR, exc.message, "the health check failed: %s", exc.detail)
        except BlockstoreError as exc:
            complaint = exc.message
            log_limiter.log(logging.ERROR, exc.message, "the health check failed: %s", exc)
        except Exception:
            log.exception("the health check failed")
        finally:
            with self._lock:
                self._complaint, self._ended, self._running = complaint, time.monotonic(), None
            check.set()

    def _write(self) -> None:
        self._db.prove_file()
        with self._db.write() as session:
            # Changes no visible data. PostgreSQL writes the unchanged rows; SQLite would not, so it writes a pragma.
            if self._db.is_sqlite:
                session.execute(text(f"PRAGMA user_version = {time.time_ns() // 10**8 % 2**31}"))
            found = session.execute(
                update(ServiceRow)
                .values(disabled=ServiceRow.disabled)
                .where(ServiceRow.binary == VOLUME_SERVICE)
                .execution_options(synchronize_session=False)
            )
            if found.rowcount == 0:  # type: ignore[attr-defined]
                raise BlockstoreError(EMPTIED)
