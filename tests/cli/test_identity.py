"""Names and passwords are checked as the API checks them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from blockstore.cli import main
from tests.cli.invoking import refused


@pytest.mark.parametrize(
    ("name", "words"),
    [("", "0 characters"), ("   ", "0 characters"), ("x" * 300, "300 characters"), ("a\0b", "NUL")],
    ids=["empty", "blank", "long", "NUL"],
)
def test_names_are_checked_as_the_api_checks_them(tmp_path: Path, name: str, words: str) -> None:
    where = ("--state-dir", tmp_path)
    for noun in ("user", "project"):
        line = refused(noun, "create", *where, "--", name)
        assert line.startswith(f"blockstore: Invalid input for field/attribute {noun}.name. Value: ")
        assert words in line


def test_a_password_is_checked_as_the_api_checks_it(tmp_path: Path) -> None:
    long = "secret-canary" * 400
    arguments = ["user", "create", "n", "--password-stdin", "--state-dir", str(tmp_path)]
    result = CliRunner().invoke(main, arguments, input=f"{long}\n")
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert "user.password" in line
    assert "at most 4096 are allowed" in line
    assert "canary" not in line
