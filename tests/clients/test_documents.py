"""README.md and docs/*.md do what they say: their commands are run, page by page, against a served process.

A page is one story: its ``sh`` and ``console`` blocks run in one shell, with a new home and a service of their own. The
output in ``console`` blocks is compared. A block that needs root, a cluster or other machines has a comment before it:
``<!-- tested by FILE -->``. ``<!-- file: NAME -->`` writes an ``ini`` block to a file.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from blockstore.backends import loader
from blockstore.cli import main
from blockstore.config import load
from blockstore.conformance import backend as conformance
from blockstore.targets import loader as target_loader
from tests.clients.conftest import INSTALL
from tests.clients.documents import PAGES, Block, Clients, Shell, alike, blocks, environment
from tests.conftest import ROOT, need

ALL = [block for page in PAGES for block in blocks(page)]
LANGUAGES = {"sh", "console", "ini", "mermaid", "text", "python", "haproxy", "nginx"}


def name_of(block: Block) -> str:
    return f"{block.page}:{block.line}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all pages, for a client looks for its files where home was when it was imported."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def clients(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    for module in ("openstackclient", "cinderclient"):
        need(importlib.util.find_spec(module), INSTALL)
    made = Clients(tmp_path_factory.mktemp("socket"), environment(home))
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.is_run for block in blocks(page))])
def test_commands_of_a_page_do_what_it_says(page: str, home: Path, tmp_path: Path, clients: Clients) -> None:
    for left in home.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    shell = Shell(tmp_path / "blockstore", environment(home), clients)
    try:
        for block in blocks(page):
            if block.mark.startswith("file: "):
                (shell.directory / block.mark.removeprefix("file: ")).write_text(block.text)
            if not block.is_run:
                continue
            for command, shown in block.commands():
                output = shell.run(command)
                if shown is not None:
                    assert alike(output) == alike(shown), f"{name_of(block)}: {command}\n{output}"
        shell.stop()
    finally:
        shell.close()


def test_every_block_says_what_it_is_and_where_it_is_tested() -> None:
    for block in ALL:
        where = name_of(block)
        assert block.language in LANGUAGES, f"{where}: {block.language!r} is none of {LANGUAGES}"
        kind, _, rest = block.mark.partition(" ")
        if kind == "tested":
            files = re.findall(r"[\w./-]+", rest.removeprefix("by ").partition(" (")[0])
            assert files, where
            assert all((ROOT / file).is_file() for file in files), f"{where}: {block.mark}"
            for test in re.findall(r"\btest_\w+(?!\.py|\w)", rest.partition("(")[2]):
                assert any(f"def {test}(" in (ROOT / file).read_text() for file in files), f"{where}: {test}"
        elif block.mark:
            assert (kind, block.language) == ("file:", "ini"), f"{where}: {block.mark}"
        if block.is_run:
            assert "sudo " not in block.text, (
                f"{where}: needs root: name the file that tests it: <!-- tested by ... -->"
            )


def test_every_block_has_a_fence() -> None:
    for page in PAGES:
        rest = re.sub(r"^( *)```.*?^\1```$", "", (ROOT / page).read_text(), flags=re.M | re.S)
        assert not re.search(r"\n\n {4}\S", rest), f"{page} has an indented block"


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "ini"], ids=name_of)
def test_configuration_is_one_that_the_service_takes(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "blockstore.ini"
    path.write_text(block.text)
    path.chmod(0o600)
    config = load(path)
    for section in config.backends:
        loader.options(section)
    for target in config.targets:
        target_loader.options(target)


@pytest.mark.parametrize("block", [block for block in ALL if block.language in ("sh", "console")], ids=name_of)
def test_commands_and_options_exist(block: Block) -> None:
    for command, _ in block.commands():
        for words in re.findall(r"(?:^(?:sudo (?:-u \w+ )?)?|/|\()blockstore (?=[a-z])([^#|)&;]*)", command):
            group: click.Command = main
            for word in words.split():
                if word.startswith("--"):
                    known = {option for parameter in group.params for option in parameter.opts}
                    assert word.partition("=")[0] in known, f"{name_of(block)}: {command}"
                elif isinstance(group, click.Group):
                    assert word in group.commands, f"{name_of(block)}: {command}"
                    group = group.commands[word]


def test_examples_of_plugins_keep_every_promise(tmp_path: Path) -> None:
    """The backend of docs/plugins.md passes the conformance suite, and its filter gives its reason."""
    names: dict[str, Any] = {"pytest": pytest, "__name__": "docs_plugins"}
    module = types.ModuleType("docs_plugins")
    sys.modules["docs_plugins"] = module
    module.__dict__.update(names)
    for block in blocks("docs/plugins.md"):
        if block.language == "python":
            exec(compile(block.text, name_of(block), "exec"), module.__dict__)
    backend = module.FolderBackend("folder", module.FolderOptions(folder=str(tmp_path)), tmp_path)
    results = conformance.run(backend, report=lambda _line: None)
    assert [result for result in results if result.outcome == "failed"] == []
    assert {result.outcome for result in results} >= {"passed"}
    pool = types.SimpleNamespace(total_gib=10.0)
    assert module.at_most_half(types.SimpleNamespace(size_gib=5), pool) is None
    assert module.at_most_half(types.SimpleNamespace(size_gib=6), pool) == "6 GiB asked, half of the pool is 5 GiB"
