"""The weekly look for a newer version, with the real pip and a folder in place of its index."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.ui.conftest import OpenApp
from tqchat import __version__
from tqchat.paths import Paths
from tqchat.settings import Settings, State
from tqchat.ui.parts import updates
from tqchat.ui.parts.preferences import Preferences

WEEK_S = 7 * 24 * 3600


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of releases where pip looks, and nowhere else."""
    folder = tmp_path / "releases"
    folder.mkdir()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def release(index: Path, version: str) -> None:
    (index / f"tqchat-{version}-py3-none-any.whl").touch()


async def test_a_newer_version_is_named_once_a_week(
    open_app: OpenApp, paths: Paths, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(index, "98.10")
    release(index, "98.9.1")
    release(index, "99.0rc1")
    # A file in the folder that tqchat is started in is not taken for pip.
    (tmp_path / "pip.py").write_text("open('run', 'w')\nprint('tqchat (100.0)')\n")
    monkeypatch.chdir(tmp_path)
    State(version_checked=int(time.time()) - WEEK_S - 1).save(paths)
    async with open_app() as ui:
        await ui.shows(f"tqchat 98.10 is there; this is {__version__}.")
    assert not (tmp_path / "run").exists()
    checked = State.load(paths).version_checked
    assert 0 <= time.time() - checked < WEEK_S
    assert not updates.is_due(Preferences(paths, Settings())), "a week has just begun"


def test_when_it_looks(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert not updates.is_due(Preferences(paths, Settings())), "the first start only begins the week"
    old = int(time.time()) - WEEK_S - 1
    for settings, offline, due in (
        (Settings(update_check=False), "", False),
        (Settings(), "1", False),
        (Settings(), "", True),
        (Settings(), "", False),
    ):
        if due or offline or not settings.update_check:
            State(version_checked=old).save(paths)
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        assert updates.is_due(Preferences(paths, settings)) is due
    State(version_checked=int(time.time()) + 10 * WEEK_S).save(paths)
    assert updates.is_due(Preferences(paths, Settings())), "the clock went back"


def test_nothing_is_found_where_pip_cannot_look(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert updates.newest_version() is None
    monkeypatch.setattr("sys.executable", str(index / "missing"))
    assert updates.newest_version() is None
