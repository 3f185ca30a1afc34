"""Who may import whom, and what must not be loaded on the way to the first paint."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tqchat

PACKAGE = Path(tqchat.__file__).parent
HEAVY = ("mlx", "mlx_lm", "transformers", "numpy")

# What each room may import from tqchat, besides itself. Single modules are rooms of their own.
GROUND = {"tqchat", "errors", "files", "paths", "text", "units"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "files": GROUND,
    "paths": GROUND,
    "text": GROUND,
    "units": set(),
    "kv": GROUND,
    "store": GROUND | {"kv"},
    "engine": GROUND | {"kv", "store"},
    "settings": GROUND | {"kv", "engine.commands"},
    "api": GROUND | {"kv", "engine", "store", "settings"},
    "lab": GROUND | {"kv", "engine", "store", "settings", "api", "ui"},
    "ui": GROUND | {"kv", "engine", "store", "settings", "api"},
    "commands": GROUND | {"kv", "engine", "store", "settings", "api", "lab", "ui", "terminal"},
    "terminal": GROUND,
    "cli": GROUND | {"commands", "terminal"},
    "__main__": {"cli"},
    "tqchat": set(),
}
# The thread that they run on need not be theirs, but the screen's library must not be.
WITHOUT_TEXTUAL = {"kv", "engine", "store", "settings", "api", *GROUND, "terminal", "cli"} - {"tqchat"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(file: Path) -> str:
    parts = ("tqchat", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def imports(file: Path, *, at_import_only: bool = False) -> Iterator[str]:
    """The full names of the modules a file imports; ``from package import module`` is not a mere name."""
    known = {name_of(other) for other in modules()}
    for node in _nodes(ast.parse(file.read_text("utf-8")), at_import_only):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} line {node.lineno}: imports are written in full"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else str(node.module)


def _nodes(tree: ast.AST, at_import_only: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if at_import_only and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        ):
            continue
        yield node
        yield from _nodes(node, at_import_only)


@pytest.mark.parametrize("file", modules(), ids=name_of)
def test_layers_point_one_way(file: Path) -> None:
    room = room_of(name_of(file))
    assert room in ALLOWED, f"say in {Path(__file__).name} what the new room {room!r} may import"
    for module in imports(file):
        if module.split(".")[0] != "tqchat" or room_of(module) == room:
            continue
        allowed = ALLOWED[room]
        assert room_of(module) in allowed or module.removeprefix("tqchat.") in allowed, (
            f"{room} imports {module}"
        )


@pytest.mark.parametrize("file", modules(), ids=name_of)
def test_textual_stays_on_the_screen(file: Path) -> None:
    if room_of(name_of(file)) in WITHOUT_TEXTUAL:
        assert not any(module.split(".")[0] in ("textual", "rich") for module in imports(file))


def test_no_module_imports_itself_round_a_circle() -> None:
    graph = {
        name_of(file): {
            module
            for module in imports(file, at_import_only=True)
            if module.split(".")[0] == "tqchat" and module != name_of(file)
        }
        for file in modules()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def loaded_by(*names: str) -> set[str]:
    """The top-level and tqchat modules that a fresh interpreter has after importing these."""
    code = (
        "import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint(*sys.modules)"
    )
    command = [sys.executable, "-c", code, *names]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "name",
    [
        "tqchat.cli",
        "tqchat.commands.chat",
        "tqchat.commands.conversations.listing",
        "tqchat.commands.run",
        "tqchat.engine",
        "tqchat.engine.commands",
        "tqchat.engine.events",
        "tqchat.engine.worker",
        "tqchat.kv",
        "tqchat.kv.memory",
        "tqchat.kv.scheme",
        "tqchat.settings",
        "tqchat.store.database",
        "tqchat.ui.app",
    ],
)
def test_first_paint_does_not_wait_for_mlx(name: str) -> None:
    assert not loaded_by(name) & set(HEAVY)


def in_room(room: str) -> list[str]:
    return [name for name in map(name_of, modules()) if room_of(name) == room]


def test_kv_stands_alone() -> None:
    loaded = loaded_by(*in_room("kv"))
    assert not any(
        name.startswith(("textual", "tqchat.engine", "tqchat.store", "tqchat.ui")) for name in loaded
    )


def test_engine_runs_without_a_screen() -> None:
    loaded = loaded_by(*in_room("engine"))
    assert not any(name.startswith(("textual", "tqchat.ui")) for name in loaded)


def test_the_controller_runs_without_a_screen() -> None:
    controller = [name for name in in_room("ui") if name.startswith("tqchat.ui.controller")]
    assert "tqchat.ui.controller.controller" in controller
    assert not any(name.split(".")[0] in ("textual", *HEAVY) for name in loaded_by(*controller))


def test_the_command_line_does_not_load_textual_to_answer() -> None:
    assert not any(name.startswith("textual") for name in loaded_by("tqchat.cli", "tqchat.commands.run"))
