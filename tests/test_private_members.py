"""No private member crosses a package: what one folder keeps for itself is not used, or overridden, in another.

Read from the sources, so an object that is passed around is known by the names of its attributes only: a private
attribute counts as another package's if a class of another package has it, and none of this one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from .conftest import ROOT

NAMED_TUPLE = {"_replace", "_asdict", "_make", "_fields"}


@dataclass
class Class:
    """A class, as its source has it."""

    module: str
    package: str
    node: ast.ClassDef
    private: set[str] = field(default_factory=set)


@dataclass
class Module:
    """A module, as its source has it."""

    name: str
    package: str
    tree: ast.Module
    names: dict[str, str] = field(default_factory=dict)
    """What its imports bring in: full names of modules, classes and functions."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name.strip("_") != "" and name not in NAMED_TUPLE


class Sources:
    """All modules together."""

    def __init__(self, texts: Mapping[str, str]):
        """``texts``: by path below the root, with / and .py."""
        self.modules: dict[str, Module] = {}
        self.classes: dict[str, Class] = {}
        for path, text in texts.items():
            parts = path.removesuffix(".py").replace("plugins", "blockstore_plugins", 1).split("/")
            package = ".".join(parts[:-1])
            name = package if parts[-1] == "__init__" else ".".join(parts)
            self.modules[name] = Module(name, package, ast.parse(text))
        for module in self.modules.values():
            self._read(module)
        self.having: dict[str, set[str]] = {}
        """Packages by private attribute of their classes."""
        for cls in self.classes.values():
            for name in cls.private:
                self.having.setdefault(name, set()).add(cls.package)

    def _read(self, module: Module) -> None:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.asname:
                        module.names[alias.asname] = alias.name
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    module.names[alias.asname or alias.name] = f"{source_of(module, node)}.{alias.name}"
            elif isinstance(node, ast.ClassDef):
                self.classes[f"{module.name}.{node.name}"] = Class(
                    module.name, module.package, node, set(private_members(node))
                )

    def resolve(self, module: Module, node: ast.expr) -> str:
        """Return the full name of what an expression names, through imports; nothing when it is no name."""
        if isinstance(node, ast.Subscript):
            return self.resolve(module, node.value)
        if isinstance(node, ast.Attribute):
            before = self.resolve(module, node.value)
            return self.final(f"{before}.{node.attr}") if before else ""
        if isinstance(node, ast.Name):
            return self.final(module.names.get(node.id, f"{module.name}.{node.id}"))
        return ""

    def final(self, name: str, depth: int = 0) -> str:
        """Follow a name to the module that defines it."""
        if name in self.modules or name in self.classes or depth > 9:
            return name
        place, _, last = name.rpartition(".")
        if place in self.modules and last in self.modules[place].names:
            return self.final(self.modules[place].names[last], depth + 1)
        return name

    def ancestors(self, cls: Class) -> Iterator[Class]:
        for base in cls.node.bases:
            found = self.classes.get(self.resolve(self.modules[cls.module], base))
            if found:
                yield found
                yield from self.ancestors(found)

    # --- the rule

    def violations(self) -> list[str]:
        return sorted({*self._imports(), *self._attributes(), *self._inherited()})

    def _imports(self) -> Iterator[str]:
        for module in self.modules.values():
            for node in ast.walk(module.tree):
                if isinstance(node, ast.ImportFrom):
                    source = self.modules.get(source_of(module, node))
                    for alias in node.names:
                        if source and source.package != module.package and is_private(alias.name):
                            yield f"{module.name}:{node.lineno} imports {alias.name} of {source.name}"

    def _attributes(self) -> Iterator[str]:
        for module in self.modules.values():
            for node in ast.walk(module.tree):
                name = attribute(node)
                if not name:
                    continue
                value = node.value if isinstance(node, ast.Attribute) else None
                if isinstance(value, ast.Name) and value.id in ("self", "cls"):
                    continue  # what a class inherits is looked at below
                owner = self.modules.get(self.resolve(module, value)) if value else None
                if owner:
                    if owner.package != module.package:
                        yield f"{module.name}:{node.lineno} uses {name} of {owner.name}"
                    continue
                packages = self.having.get(name, set())
                if packages and module.package not in packages:
                    yield f"{module.name}:{node.lineno} uses {name}, which is private in {', '.join(sorted(packages))}"

    def _inherited(self) -> Iterator[str]:
        for cls in self.classes.values():
            uses = {name for node in ast.walk(cls.node) if (name := attribute(node))} | cls.private
            for base in self.ancestors(cls):
                if base.package != cls.package:
                    for name in sorted(uses & base.private):
                        yield (
                            f"{cls.module}.{cls.node.name} uses or overrides {name} of {base.module}.{base.node.name}"
                        )


def source_of(module: Module, node: ast.ImportFrom) -> str:
    """Return the module that an import names, also a relative one."""
    if not node.level:
        return node.module or ""
    above = module.package.split(".")
    return ".".join([*above[: len(above) - node.level + 1], *([node.module] if node.module else [])])


def attribute(node: ast.AST) -> str:
    """Return the private attribute that a node uses, also by getattr; nothing for any other node."""
    if isinstance(node, ast.Attribute) and is_private(node.attr):
        return node.attr
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr"):
        name = node.args[1] if len(node.args) > 1 else None
        if isinstance(name, ast.Constant) and isinstance(name.value, str) and is_private(name.value):
            return name.value
    return ""


def private_members(cls: ast.ClassDef) -> Iterator[str]:
    """Yield the private members that a class has: its own, and those that its methods set on self."""
    for node in cls.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from filter(is_private, [node.name])
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        yield from (target.id for target in targets if isinstance(target, ast.Name) and is_private(target.id))
    for found in ast.walk(cls):
        if (
            isinstance(found, ast.Attribute)
            and isinstance(found.ctx, ast.Store)
            and isinstance(found.value, ast.Name)
            and found.value.id == "self"
            and is_private(found.attr)
        ):
            yield found.attr


def test_no_private_member_crosses_a_package() -> None:
    paths = [path for top in ("blockstore", "plugins") for path in (ROOT / top).rglob("*.py")]
    found = Sources({str(path.relative_to(ROOT)): path.read_text() for path in paths}).violations()
    assert not found, "\n".join(found)


BASE = """
class Store:
    def __init__(self):
        self._lock = 1

    def _open(self):
        return self._lock

_secret = 1
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("from blockstore_plugins.a.store import _secret", "imports _secret"),
        ("from ..a.store import _secret", "imports _secret"),
        ("from blockstore_plugins.a import store\nstore._secret", "uses _secret of blockstore_plugins.a.store"),
        ("import blockstore_plugins.a.store as s\ns._secret", "uses _secret of blockstore_plugins.a.store"),
        ("from blockstore_plugins.a import Store\nclass B(Store):\n def _open(self): pass", "overrides _open"),
        ("from blockstore_plugins.a import Store\nclass B(Store):\n def f(self): self._lock", "overrides _lock"),
        ("from blockstore_plugins.a import Store\nclass B(Store):\n def f(self): super()._open()", "overrides _open"),
        ("from blockstore_plugins import a\nclass M(a.Store): pass\nclass B(M):\n _open = None", "overrides _open"),
        ("def f(store): store._open()", "uses _open, which is private in blockstore_plugins.a"),
        ("def f(store): getattr(store, '_open')", "uses _open, which is private in blockstore_plugins.a"),
    ],
)
def test_a_planted_use_is_found(text: str, said: str) -> None:
    sources = {
        "plugins/a/__init__.py": "from blockstore_plugins.a.store import Store as Store",
        "plugins/a/store.py": BASE,
        "plugins/b/__init__.py": text,
    }
    found = Sources(sources).violations()
    assert any(said in line for line in found), found


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("plugins/a/other.py", "from .store import Store, _secret\nclass B(Store):\n def f(self): self._open()"),
        ("plugins/b/__init__.py", "class B:\n def _open(self): pass\n def f(self, other): other._open()"),
        ("plugins/b/__init__.py", "import os\nos._exit(1)"),
        (
            "plugins/b/__init__.py",
            "from blockstore_plugins.a import Store\nclass B(Store):\n def _own(self): self._own()",
        ),
    ],
)
def test_what_stays_in_its_package_is_not(path: str, text: str) -> None:
    sources = {
        "plugins/a/__init__.py": "from blockstore_plugins.a.store import Store as Store",
        "plugins/a/store.py": BASE,
        path: text,
    }
    assert Sources(sources).violations() == []
