"""What the README promises, held against what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.models import STARTER_FOLDER
from tqchat import settings
from tqchat.lab.tables import scheme_table
from tqchat.paths import Paths, bundled
from tqchat.ui.actions.markdown import key_table
from tqchat.ui.actions.table import ACTIONS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
MAX_CHARACTERS = 12_000


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_library_example_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (example,) = blocks("python")
    # mlx-lm alone computes with quantised weights, which takes minutes on a CPU: a smaller model stands in.
    assert '"assets/starter"' in example and bundled("starter") == ROOT / "assets" / "starter"
    names: dict[str, object] = {}
    exec(example.replace("assets/starter", str(STARTER_FOLDER)).replace("=200", "=20"), names)
    assert re.search(r"\d+ bytes, \d\.\d\dx smaller than FP16", capsys.readouterr().out)


def test_the_short_settings_example_is_accepted(paths: Paths) -> None:
    (example,) = blocks("toml")
    paths.config_file.write_text(example, "utf-8")
    assert settings.load(paths).keys == {"scheme": "f12"}


def test_the_settings_example_names_every_setting(paths: Paths) -> None:
    paths.config_file.write_text((ROOT / "assets" / "config.example.toml").read_text("utf-8"), "utf-8")
    loaded = settings.load(paths)
    assert all(getattr(loaded, key) is not None for key in settings.Settings.__dataclass_fields__)


def test_the_scheme_table_is_the_one_that_the_lab_prints() -> None:
    assert scheme_table().strip() in README


def test_the_key_table_is_made_from_the_registry() -> None:
    footer = [action.name for action in ACTIONS.footer("app")]
    assert key_table(ACTIONS, footer).strip() in README


def test_links_and_pictures_lead_to_files() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).is_file()] == []


def test_a_newcomer_can_read_it_in_one_go() -> None:
    assert len(README) < MAX_CHARACTERS


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    (pattern,) = re.findall(r'grep -m1 -E "([^"]+)" README\.md', script)
    (command,) = [line for block in blocks("sh") for line in block.splitlines() if re.match(pattern, line)]
    assert command.endswith(".venv/bin/pytest -n 2")
