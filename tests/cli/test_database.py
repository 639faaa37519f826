"""The database is upgraded by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tests.cli.invoking import MEMORY, refused, said
from tests.conftest import Served


def test_db_upgrade_says_where_the_database_is(tmp_path: Path) -> None:
    assert re.fullmatch(r"The database is at revision \d+\.\n", said("db", "upgrade", "--state-dir", tmp_path / "s"))


def test_db_upgrade_keeps_off_a_served_state_directory(serve: Callable[..., Served]) -> None:
    served = serve(MEMORY)
    assert "Another blockstore uses" in refused("db", "upgrade", "--state-dir", served.state_dir)
