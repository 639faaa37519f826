"""A session that only looks: one connection, whether the ORM is asked or not, which is given back in any case."""

from __future__ import annotations

from sqlalchemy import create_engine, text
from sqlalchemy.pool import QueuePool

from blockstore.db.read_session import ReadSession


def test_the_orm_and_the_connection_see_the_same_and_it_is_given_back() -> None:
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.1)
    for _ in range(3):
        look = ReadSession(engine)
        look.connection().execute(text("CREATE TEMP TABLE t (a)"))
        look.connection().execute(text("INSERT INTO t VALUES (1)"))
        assert look.execute(text("SELECT a FROM t")).scalar_one() == 1
        look.close()
        with engine.connect() as connection:
            connection.execute(text("DROP TABLE IF EXISTS t"))
            connection.commit()
    engine.dispose()


def test_who_asks_nothing_takes_no_connection() -> None:
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=1)
    look = ReadSession(engine)
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    look.close()
