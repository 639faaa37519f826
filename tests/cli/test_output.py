"""Tables of names that tenants choose."""

from __future__ import annotations

import pytest

from blockstore.cli.output import print_table


def test_names_that_tenants_choose_do_not_speak_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME", "HOST"), [("a", "\x1b]0;title\x07\x1b[2J\nforged"), ("b", "c")], empty="")
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert len(said.splitlines()) == 3
    assert r"\x1b[2J\nforged" in said
