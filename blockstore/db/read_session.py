"""A session for reading: a connection, with an ORM session that is made at its first use.

Most requests run two statements on the connection. Making a ``Session`` costs as much as both.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session


class ReadSession:
    """Stands in for a ``Session`` that only reads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None
        self._session: Session | None = None

    def connection(self) -> Connection:
        """Return the connection, which the ORM session uses too."""
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def __getattr__(self, name: str) -> Any:
        if self._session is None:
            self._session = Session(self.connection(), expire_on_commit=False, autoflush=False)
        return getattr(self._session, name)

    def close(self) -> None:
        """Give the connection back."""
        try:
            if self._session is not None:
                self._session.close()
        finally:
            if self._connection is not None:
                self._connection.close()
