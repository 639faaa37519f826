"""Run a command in the process of the test, and look at what it prints."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from blockstore.cli import main

MEMORY = "[backend:m]\nplugin = memory\n"


def run(*arguments: object) -> Result:
    words = [str(argument) for argument in arguments]
    if "--state-dir" in words and "--config" not in words:
        config = Path(words[words.index("--state-dir") + 1]) / "config.ini"
        words += ["--config", str(config)] if config.exists() else []  # what it is served with
    return CliRunner().invoke(main, words)


def said(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    (line,) = result.output.splitlines()
    assert line.startswith("blockstore: ")
    return line
