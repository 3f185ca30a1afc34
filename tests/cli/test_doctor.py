from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import mlx.core as mx
import pytest

import tqchat
from tests.models import STARTER_FOLDER
from tqchat import paths as locations
from tqchat.cli import main
from tqchat.commands import doctor
from tqchat.paths import Paths

ROOT = Path(__file__).parents[2]
Captured = pytest.CaptureFixture[str]


def test_doctor_lists_versions_and_locations(capsys: Captured, paths: Paths) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    rows = dict(line.split(maxsplit=1) for line in shown.splitlines() if line and not line.startswith(" "))
    assert rows["tqchat"] == tqchat.__version__
    assert rows["mlx"].startswith(mx.__version__)
    assert rows["backend"] in ("metal", "cuda", "cpu")
    assert rows["memory"].endswith("GB")
    assert rows["model"] == "SmolLM2-135M-Instruct (llama)"
    assert rows["conversations"] == str(paths.database)
    assert {"device", "blas", "settings", "caches"} <= rows.keys()


def test_problems_are_listed_after_the_other_rows(capsys: Captured, paths: Paths) -> None:
    paths.config_file.write_text("model = '/no/where'", "utf-8")
    assert main(["doctor"]) == 1
    assert "'/no/where'" in capsys.readouterr().out
    paths.config_file.write_text("scheme = 'zip'", "utf-8")
    paths.database.write_bytes(b"no database " * 1000)
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "backend" in shown
    problems = shown[shown.index("Problems to fix:") :]
    assert str(paths.config_file) in problems
    assert str(paths.database) in problems


def test_the_report_names_versions_and_speeds_but_no_path(
    capsys: Captured, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A smaller model in the bundled one's place.
    monkeypatch.setitem(locations._RESOURCES, "starter", STARTER_FOLDER.relative_to(ROOT))
    assert main(["doctor", "--report"]) == 0
    shown = capsys.readouterr().out
    rows = dict(line.split(maxsplit=1) for line in shown.split("```")[1].splitlines() if line)
    assert rows["tqchat"] == tqchat.__version__
    assert rows["mlx"] == metadata.version("mlx") and rows["mlx-lm"] == metadata.version("mlx-lm")
    assert {"python", "system", "backend", "device", "memory", "blas", "kernels"} <= rows.keys()
    for scheme in ("mlx16", "turbo4"):
        assert re.search(rf"`{scheme}` +\| .*\d tok|`{scheme}` .*\d", shown)
    for own in (ROOT, Path.home(), paths.data_dir):
        assert str(own) not in shown or str(own) == "/"


@pytest.mark.parametrize("path", ["/home/ada/x.so", "~/models/secret", "C:\\Users\\Ada\\x"])
def test_a_report_hides_paths(path: str) -> None:
    assert doctor._without_paths(f"cannot open '{path}': 12.5 GB/s, x/s") == (
        "cannot open '(path)': 12.5 GB/s, x/s"
    )


def test_everything_that_is_to_be_put_right_is_listed_at_once(capsys: Captured, paths: Paths) -> None:
    paths.config_file.write_text(
        'scheme = "zip"\nmodle = "x"\ntemperature = 99\ntheme = "nowhere"\n[keys]\nschem = "f12"\n', "utf-8"
    )
    paths.state_file.write_text('sidebar = "left"\n')
    paths.presets.write_text("[brief\n")
    paths.themes.mkdir()
    (paths.themes / "broken.toml").write_text("= 1")
    paths.log_dir.rmdir()
    paths.log_dir.write_text("in the way")
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    problems = shown[shown.index("Problems to fix:") :].split("\n\n")[0].splitlines()[1:]
    expected = (
        *(
            "scheme is 'zip'",
            "'modle'; did you mean 'model'?",
            "temperature is 99",
            "There is no theme 'nowhere'",
        ),
        *("no action 'schem'", str(paths.state_file), str(paths.presets), "broken.toml", str(paths.log_dir)),
    )
    assert len(problems) == len(expected)
    for words in expected:
        assert any(words in line for line in problems), words
    assert "scheme" in shown and "backend" in shown


def test_other_commands_report_all_config_errors_at_once(capsys: Captured, paths: Paths) -> None:
    paths.config_file.write_text('scheme = "zip"\nmodle = "x"\ntemperature = 99\n', "utf-8")
    for command in (["run", "hi"], ["cache"]):
        assert main(command) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 3 and all(line.startswith(f"tqchat: {paths.config_file}: ") for line in lines)
