"""The rules of the house, as docs/architecture.md gives them: each is a few lines here, and fails with a sentence."""

from __future__ import annotations

import ast
import configparser
import dataclasses
import importlib
import importlib.metadata
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blockstore import manager, scheduler
from blockstore.api import ROUTE_TABLES
from blockstore.api.http.routes import Endpoint
from blockstore.app import service
from blockstore.operations import catalogue, states
from blockstore.operations.catalogue import KINDS, Operation
from blockstore.policy import rules
from tests.backends_table import short, table

from .conftest import ROOT

SOURCES = sorted(path for top in ("blockstore", "plugins") for path in (ROOT / top).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in SOURCES}
HANDLERS = {"scheduler": scheduler.HANDLERS, "manager": manager.HANDLERS, "migration": manager.MIGRATION_HANDLERS}


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


def nodes(*, without: tuple[str, ...] = ()) -> Iterator[tuple[str, ast.AST]]:
    for name, tree in TREES.items():
        if name not in without:
            for node in ast.walk(tree):
                yield name, node


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return {name.partition(".")[0] for name in found}


# --- operations ------------------------------------------------------------------------------------------------


def example_of(kind: type[Operation]) -> Operation:
    values: dict[str, Any] = {field.name: field.name for field in dataclasses.fields(kind)}
    return kind(**values)


def test_every_operation_has_exactly_one_handler_in_its_component() -> None:
    handled = Counter(kind for handlers in HANDLERS.values() for kind in handlers)
    assert handled == Counter(KINDS.values())
    for component, handlers in HANDLERS.items():
        assert all(kind.component == component for kind in handlers), component
    functions = [handler.function for handlers in HANDLERS.values() for handler in handlers.values()]
    assert len(set(functions)) == len(functions)
    assert set(service.HANDLERS.values()) == {handler for found in HANDLERS.values() for handler in found.values()}


def test_every_handler_is_named_after_its_operation() -> None:
    for handlers in HANDLERS.values():
        for kind, handler in handlers.items():
            assert handler.function.__name__ == re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def test_every_decorated_function_is_on_a_contents_page() -> None:
    """A page is made of the handlers themselves; one that is on no page, or one page twice, would never be called."""
    decorated = [
        node.args[0].id
        for _, node in nodes()
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("handles", "handles_until_done")
        and isinstance(node.args[0], ast.Name)
    ]
    assert sorted(decorated) == sorted(KINDS)


ENGINE = (
    *(f"operations/{name}" for name in ("bus", "journal", "messages", "recovery", "runner", "states", "transitions")),
    "db/session",
    "db/writer",
)
"""What carries operations, ends them and tells of them, whatever they are."""


def kinds_named_in(source: str) -> set[str]:
    return set(re.findall(r"\w+", source)) & {kind.__name__ for kind in (*KINDS.values(), *Operation.__subclasses__())}


@pytest.mark.parametrize("module", ENGINE)
def test_the_engine_names_no_operation(module: str) -> None:
    """What an operation does, undoes and tells stands beside its handler, so that a new one is added in one place."""
    assert not kinds_named_in((ROOT / "blockstore" / f"{module}.py").read_text())


def test_an_operation_that_the_engine_named_would_be_found() -> None:
    assert kinds_named_in("if isinstance(operation, ExtendVolume | operations.MigrateToType):\n    ...") == {
        "ExtendVolume",
        "MigrateToType",
    }


def made() -> Iterator[tuple[str, type[Operation], set[str | None]]]:
    """Yield where the code makes an operation, of which kind, and the fields it gives beside the ids."""
    for name, node in nodes(without=("blockstore/operations/catalogue.py",)):
        if not isinstance(node, ast.Call):
            continue
        kind: ast.expr = node.func
        if isinstance(kind, ast.Attribute) and kind.attr == "of":
            kind = kind.value
        elif isinstance(kind, ast.Attribute) and kind.attr in ("operation", "then", "beside") and node.args:
            kind = node.args[0]
        if isinstance(kind, ast.Name) and kind.id in KINDS:
            yield f"{name}:{node.lineno}", KINDS[kind.id], {keyword.arg for keyword in node.keywords}


def test_every_operation_is_made_somewhere() -> None:
    kinds = {kind for _, kind, _ in made()}
    assert set(KINDS.values()) == kinds, f"never enqueued: {set(KINDS.values()) - kinds}"


def test_every_operation_is_made_with_the_fields_that_it_has_and_needs() -> None:
    """The helpers that fill in the ids take any fields, so that no type checker looks at them."""
    for where, kind, given in made():
        ids = {"operation_id", "request_id", "project_id", "attempt", f"{kind.resource_type}_id"}
        fields = {field.name: field for field in dataclasses.fields(kind) if field.name not in ids}
        missing = dataclasses.MISSING
        needed = {n for n, f in fields.items() if f.default is missing and f.default_factory is missing}
        assert needed <= given <= set(fields), f"{where}: {kind.__name__} has {set(fields)} and needs {needed}"


# --- statuses ----------------------------------------------------------------------------------------------


def test_every_transitional_status_has_an_operation_a_failure_and_a_way_out() -> None:
    covered = {(noun, status) for kind in KINDS.values() for noun, _, status in example_of(kind).covers()}
    transitional = {(noun, str(status)) for noun, machine in states.MACHINES.items() for status in machine.failure}
    assert covered == transitional
    for noun, machine in states.MACHINES.items():
        for status, failure in machine.failure.items():
            assert failure not in machine.failure, f"{noun} {failure} is no rest"
            assert status in machine.moves[failure], f"{noun} may not go from {status} to {failure}"


def test_only_transitions_writes_a_status() -> None:
    for name, node in nodes(without=("blockstore/operations/transitions.py",)):
        where = f"{name}:{getattr(node, 'lineno', 0)} writes a status; that is for transitions.py"
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        assert not any(isinstance(t, ast.Attribute) and t.attr == "status" for t in targets), where
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("values", "Volume", "Snapshot", "Attachment"):
                assert "status" not in [keyword.arg for keyword in node.keywords], where
            if called == "setattr":
                assert not any(isinstance(a, ast.Constant) and a.value == "status" for a in node.args), where


# --- policies ----------------------------------------------------------------------------------------------


def endpoints() -> Iterator[tuple[str, Endpoint]]:
    for component in ROUTE_TABLES:
        for (method, path), target in component.routes.items():
            for action, endpoint in ({"": target} if isinstance(target, Endpoint) else target).items():
                yield f"{method} {path} {action}".strip(), endpoint


def test_every_endpoint_names_a_policy_that_exists() -> None:
    for name, endpoint in endpoints():
        assert endpoint.policy in rules.RULES, f"{name}: {endpoint.policy}"


def test_every_policy_is_used() -> None:
    words = {node.value for _, node in nodes(without=("blockstore/policy/rules.py",)) if isinstance(node, ast.Constant)}
    assert rules.RULES.keys() <= words, f"never asked: {rules.RULES.keys() - words}"


def test_every_endpoint_says_what_it_does() -> None:
    for name, endpoint in endpoints():
        assert (endpoint.function.__doc__ or "").strip(), f"{name} has no docstring"


# --- imports and files -------------------------------------------------------------------------------------

PROCESSES = {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile"}


def test_only_the_bus_and_the_server_import_asyncio() -> None:
    names = {name for name, tree in TREES.items() if "asyncio" in imports(tree)}
    assert {name for name in names if not name.startswith("blockstore/server/")} == {"blockstore/operations/bus.py"}


def test_only_process_starts_processes() -> None:
    starters = [name for name, tree in TREES.items() if imports(tree) & {"subprocess", "multiprocessing", "pty"}]
    assert starters == ["blockstore/backends/process.py"]
    for name, node in nodes():
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in PROCESSES, f"{name}:{node.lineno}"
            assert not node.attr.startswith(("exec", "spawn")), f"{name}:{node.lineno}"


def test_imports_go_one_way() -> None:
    # In a process of its own, since it disables the loggers of the process that it runs in.
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports('setup.cfg', no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_packages_in_setup_cfg_are_the_folders_on_disk() -> None:
    listed = setup_cfg()["options"]["packages"].split()
    folders = {path.parent.relative_to(ROOT) for path in SOURCES if path.name == "__init__.py"}
    names = {".".join(folder.parts).replace("plugins", "blockstore_plugins", 1) for folder in folders}
    assert sorted(listed) == sorted(names)
    assert not [path for path in SOURCES if not (path.parent / "__init__.py").exists()]


def test_every_entry_point_loads() -> None:
    section = setup_cfg()["options.entry_points"]
    for group, text in section.items():
        declared = dict(re.split(r"\s*=\s*", line, maxsplit=1) for line in text.strip().splitlines())
        installed = {
            ep.name: ep.value for ep in importlib.metadata.distribution("blockstore").entry_points.select(group=group)
        }
        assert installed == declared, f"[{group}] is installed otherwise; run: make install"
        for value in declared.values():
            module, _, attribute = value.partition(":")
            assert callable(getattr(importlib.import_module(module), attribute)), value


def test_every_backend_plugin_has_a_conformance_test() -> None:
    suites = [path for path in TESTS if re.search(r"^class \w+\(BackendConformance\):", path.read_text(), re.M)]
    for name in importlib.metadata.distribution("blockstore").entry_points.select(group="blockstore.backends").names:
        assert any(f"test_{name}" in path.name for path in suites), f"no test_{name}*.py has a BackendConformance"


def test_every_target_plugin_has_a_conformance_test() -> None:
    suites = [path for path in TESTS if re.search(r"^class \w+\(TargetConformance\):", path.read_text(), re.M)]
    for name in importlib.metadata.distribution("blockstore").entry_points.select(group="blockstore.targets").names:
        assert any(f"test_{name}" in path.name for path in suites), f"no test_{name}*.py has a TargetConformance"


def test_no_module_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "common", "helpers", "helper", "misc", "tools"}
    assert not [path for path in (*SOURCES, *TESTS) if path.stem in drawers]


def test_no_package_hides_a_module_of_its_own() -> None:
    """A name that a package imports must not stand for another thing than the module of that name below it."""
    for path in SOURCES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        package, _, name = ".".join(parts).removesuffix(".__init__").rpartition(".")
        if package.startswith("blockstore") and f"{package}.{name}" in sys.modules:
            assert getattr(sys.modules[package], name) is sys.modules[f"{package}.{name}"], f"{package} hides {name}"


def test_every_module_says_what_it_is_for() -> None:
    for path in (*SOURCES, *TESTS):
        text = path.read_text()
        if path in TESTS and path.name == "__init__.py":
            continue
        assert ast.get_docstring(ast.parse(text)), f"{path.relative_to(ROOT)} has no docstring"


# --- words -------------------------------------------------------------------------------------------------


DOCUMENTS = ("README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")))


def test_files_that_the_documents_name_exist() -> None:
    for document in DOCUMENTS:
        for name in re.findall(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|md|ini|cfg|toml|sh))`", (ROOT / document).read_text()):
            found = [
                base for base in ("", "blockstore", "blockstore/backends", "docs") if (ROOT / base / name).exists()
            ]
            assert found or name == "blockstore.ini" or re.search("[A-Z]{4}", name), f"{document} names {name}"


def test_links_of_the_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text()):
            assert ((ROOT / document).parent / link).exists(), f"{document} links to {link}"
    index = (ROOT / "docs" / "README.md").read_text()
    missing = [name for name in DOCUMENTS[1:] if f"({Path(name).name})" not in index and name != "docs/README.md"]
    assert not missing, f"docs/README.md does not list {missing}"


def test_what_a_document_says_of_one_place_alone_names_its_test() -> None:
    """A sentence "only X does Y" is true for as long as a test holds it."""
    for document in DOCUMENTS:
        text = re.sub(r"```.*?```", "", (ROOT / document).read_text(), flags=re.S)
        for sentence in re.split(r"(?<=[.:;])\s+(?=[A-Z`*|-])|\n\n|\n- ", text):
            if re.search(r"\b(the only|[Oo]nly \S+ \S+s\b|[Nn]othing else|[Nn]o other module)\b", sentence):
                assert "tests/" in sentence, f"{document}: no test is named: {' '.join(sentence.split())}"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_what_security_promises_names_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    for name in set(re.findall(r"`(tests/[\w/]+\.py)`", page)):
        assert (ROOT / name).exists(), f"docs/security.md names {name}"
    attacks = {number for row in re.findall(r"^\| (A[0-9A, ]+) \|.*`tests/", page, re.M) for number in row.split(", ")}
    assert attacks == {f"A{number}" for number in range(1, 35)}


def test_targets_that_the_documents_name_exist() -> None:
    said = subprocess.run(
        ["make", "-C", ROOT, "--no-print-directory", "help"], capture_output=True, text=True, check=True
    )
    targets = set(re.findall(r"^  make ([a-z-]+)", said.stdout, re.M))
    makefile = (ROOT / "Makefile").read_text()
    assert targets == set(re.findall(r"^([a-z][a-z-]*):", makefile, re.M)), "each target has a ## comment"
    for document in DOCUMENTS:
        named = set(re.findall(r"(?:^|`)(?:sudo )?make ([a-z][a-z-]+)", (ROOT / document).read_text(), re.M))
        assert named <= targets, f"{document}: {named - targets}"


def test_commands_that_the_documents_name_exist() -> None:
    from blockstore.cli import main

    known = {f"{name}" for name in main.commands}
    known |= {f"{name} {sub}" for name, group in main.commands.items() for sub in getattr(group, "commands", {})}
    for document in DOCUMENTS:
        for words in re.findall(r"(?:^|[`/ ])blockstore ((?:[a-z-]+ ?){1,2})", (ROOT / document).read_text(), re.M):
            first, *rest = words.split()
            if first in main.commands and hasattr(main.commands[first], "commands") and rest:
                assert f"{first} {rest[0]}" in known, f"{document}: blockstore {words}"


def test_licence_is_the_whole_text() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_version_is_said_once() -> None:
    import blockstore

    assert setup_cfg()["metadata"]["version"] in (blockstore.__version__, "attr: blockstore.__version__")
    assert re.search(rf"^## \[?{re.escape(blockstore.__version__)}\b|^## \[Unreleased\]", changelog(), re.M)


def changelog() -> str:
    return (Path(ROOT) / "CHANGELOG.md").read_text()


def test_an_operation_that_follows_another_holds_what_that_held() -> None:
    """Else two of them could wait for each other."""
    facts = {"operation_id": "o", "request_id": "r", "project_id": "p"}
    source = {"snapshot_id": "s", "source_volume_id": "w"}
    pairs = (
        (
            catalogue.PlaceVolume(volume_id="v", **source, **facts),
            catalogue.CreateVolume(volume_id="v", **source, **facts),
        ),
        (
            catalogue.PlaceSnapshot(snapshot_id="s", volume_id="v", **facts),
            catalogue.CreateSnapshot(snapshot_id="s", volume_id="v", **facts),
        ),
        (
            catalogue.PlaceExtension(volume_id="v", new_size_gib=2, growth_gib=1, **facts),
            catalogue.ExtendVolume(volume_id="v", new_size_gib=2, growth_gib=1, pool="p", **facts),
        ),
    )
    for before, following in pairs:
        assert set(following.keys()) == set(before.keys())


def test_the_table_of_backends_is_what_the_plugins_declare() -> None:
    page = Path(__file__).parents[1] / "docs" / "backends.md"
    assert page.read_text() == table(), "run: python -m tests.backends_table > docs/backends.md"
    assert short() in (ROOT / "README.md").read_text(), "run: python -m tests.backends_table --short"


def test_a_class_name_means_one_thing() -> None:
    """A name that two modules give to classes is looked up twice; `Meta` is marshmallow's."""
    defined: dict[str, set[str]] = {}
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name != "Meta":
                defined.setdefault(node.name, set()).add(path)
    assert {name: paths for name, paths in defined.items() if len(paths) > 1} == {}


def test_words_of_the_api_are_written_once() -> None:
    """Each is a constant of one module; a second spelling could be changed alone."""
    words = ("cinder-volume", "cinder-scheduler", "cinder-api", "cinder-backup", "attach_local", "<is> True")
    written = [
        (node.value, path)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in words
    ]
    assert sorted(word for word, _ in written) == sorted(words), written


def test_schemas_of_bodies_say_so() -> None:
    for path in (ROOT / "blockstore" / "schemas").glob("*.py"):
        if path.stem in ("__init__", "base", "listing"):
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and any("Field" not in ast.unparse(base) for base in node.bases):
                is_part = any(ast.unparse(base) in ("Part", "Pairs", "fields.Field") for base in node.bases)
                assert is_part or node.name.endswith(("Body", "Query", "Schema")), f"{path.name}: {node.name}"
