"""The built wheel: its files, and a chat from it outside the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_WHEEL_BYTES = 100_000_000
MAX_FILE_BYTES = 45_000_000
"""Of one file of the bundled model: larger ones are a burden in a repository."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_contains_themes_and_the_bundled_model(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = list((ROOT / "assets" / "starter").iterdir())
    assert max(file.stat().st_size for file in files) < MAX_FILE_BYTES
    starter = {f"tqchat/assets/starter/{file.name}" for file in files}
    assert "tqchat/assets/starter/LICENSE" in starter
    assert wheel.stat().st_size < MAX_WHEEL_BYTES
    themes = {f"tqchat/themes/{file.name}" for file in (ROOT / "themes").glob("*.toml")}
    assert themes
    assert {
        "tqchat/py.typed",
        "tqchat/ui/tqchat.tcss",
        "tqchat/engine/hub/recommended.toml",
        "tqchat/assets/starter-profile.json",
    } | starter | themes <= names
    assert not [name for name in names if name.startswith(("tests/", "themes/", "assets/"))]


def test_the_wheel_answers_outside_the_checkout(wheel: Path, tmp_path: Path, home: Path) -> None:
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    # -P, and first on the path: the checkout must not be imported instead.
    code = (
        "import sys, pathlib, tqchat\n"
        "assert pathlib.Path(tqchat.__file__).is_relative_to(sys.argv.pop(1)), tqchat.__file__\n"
        "from tqchat.cli import main\n"
        "sys.exit(main())"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", code, str(installed), "run", "Hello!", "--json", "--max-tokens", "20"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["reply"].strip()
