"""The shape of the code: how deep classes inherit, how many modules a folder has."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tqchat

PACKAGE = Path(tqchat.__file__).parent
TESTS = Path(__file__).parent
MAX_DEPTH = 1
"""Levels of inheritance between classes of tqchat: composition instead of towers."""
MAX_MODULES = 16
"""Modules of one folder, ``__init__`` aside."""
MAX_UI_ROOT_MODULES = 8
FREE_ROOTS = {"TqchatError", "Event", "Command"}
"""Errors, and the engine's events and commands, may be families of any depth."""


def classes() -> dict[str, list[str]]:
    """The bases of every class, both by module and name; bases from elsewhere as they are written."""
    found: dict[str, list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(("tqchat", *file.relative_to(PACKAGE).with_suffix("").parts))
        tree = ast.parse(file.read_text("utf-8"))
        imported = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found[f"{module}.{node.name}"] = [
                    f"{module}.{name}" if name in own else _full_name(name, imported)
                    for name in (_written(base) for base in node.bases)
                ]
    return found


def _written(base: ast.expr) -> str:
    """``Screen`` of ``Screen[None]``."""
    return ast.unparse(base.value if isinstance(base, ast.Subscript) else base)


def _full_name(name: str, imported: dict[str, str]) -> str:
    """The full name of a class that was imported itself or through its module."""
    first, dot, rest = name.partition(".")
    return f"{imported.get(first, first)}{dot}{rest}"


def lineage(name: str, found: dict[str, list[str]]) -> list[str]:
    """The longest chain of classes of tqchat from a class up."""
    chains = [lineage(base, found) for base in found[name] if base in found]
    return [name, *max(chains, key=len, default=[])]


def is_free(name: str, found: dict[str, list[str]]) -> bool:
    """Whether a class is an error, an event, a command or a protocol."""
    bases = found[name]
    if name.rpartition(".")[2] in FREE_ROOTS or any(
        b == "Exception" or b.endswith(".Protocol") for b in bases
    ):
        return True
    return any(is_free(base, found) for base in found[name] if base in found)


def test_no_class_inherits_more_than_one_level_deep_from_our_own() -> None:
    found = classes()
    assert any(len(lineage(name, found)) > 1 for name in found), "bases are resolved"
    deep = [
        " <- ".join(reversed(chain))
        for name in found
        if len(chain := lineage(name, found)) - 1 > MAX_DEPTH and not is_free(name, found)
    ]
    assert not deep


def modules_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.py") if file.name != "__init__.py")


def folders() -> list[Path]:
    return sorted({file.parent for root in (PACKAGE, TESTS) for file in root.rglob("*.py")})


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: str(folder.relative_to(TESTS.parent)))
def test_no_folder_has_too_many_modules(folder: Path) -> None:
    assert len(modules_in(folder)) <= MAX_MODULES, modules_in(folder)


def test_the_root_of_the_screen_has_few_modules() -> None:
    assert len(modules_in(PACKAGE / "ui")) <= MAX_UI_ROOT_MODULES, modules_in(PACKAGE / "ui")
