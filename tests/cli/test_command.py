"""What all commands have in common: help, version, configuration, and one sentence for an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import blockstore
from blockstore.cli import main
from tests.cli.invoking import refused, said


def test_version() -> None:
    assert said("--version") == f"blockstore, version {blockstore.__version__}\n"


def test_every_command_has_help_and_takes_the_state_directory() -> None:
    for name, command in main.commands.items():
        for path, leaf in [([name], command), *(([name, n], c) for n, c in getattr(command, "commands", {}).items())]:
            text = said(*path, "--help")
            assert leaf.help, path
            if not hasattr(leaf, "commands") and path != ["config", "example"]:
                assert "--state-dir" in text, path
                assert "--config" in text, path


def test_help_needs_no_database_library() -> None:
    code = "import sys, blockstore.cli; sys.exit('sqlalchemy' in sys.modules or 'flask' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_mistake_in_the_configuration_is_one_line(tmp_path: Path) -> None:
    config = tmp_path / "blockstore.ini"
    config.write_text("[service]\nlissen = 1\n")
    assert "[service] lissen is not an option" in refused("operation", "list", "--config", config)
