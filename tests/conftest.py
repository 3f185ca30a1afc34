from __future__ import annotations

from pathlib import Path

import pytest

from tests import environment  # noqa: F401  first of all: see there
from tests.models import tiny_llama
from tqchat.paths import Paths, locate


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches a person's files."""
    folder = tmp_path / "home"
    monkeypatch.setenv("TQCHAT_HOME", str(folder))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


@pytest.fixture
def paths(home: Path) -> Paths:
    places = locate()
    places.ensure()
    return places


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random llama and the starter's tokenizer. Read it, don't change it."""
    return tiny_llama(tmp_path_factory.mktemp("llama"))
