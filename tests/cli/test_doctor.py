from __future__ import annotations

import mlx.core as mx
import pytest

import tqchat
from tqchat.cli import main
from tqchat.paths import Paths

Captured = pytest.CaptureFixture[str]


def test_doctor_lists_versions_and_locations(capsys: Captured, paths: Paths) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    rows = dict(line.split(maxsplit=1) for line in shown.splitlines() if line and not line.startswith(" "))
    assert rows["tqchat"] == tqchat.__version__
    assert rows["mlx"].startswith(mx.__version__)
    assert rows["backend"] in ("metal", "cuda", "cpu")
    assert rows["memory"].endswith("GiB")
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
