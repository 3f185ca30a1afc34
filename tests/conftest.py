from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import environment  # noqa: F401  must come first
from tests.models import tiny_llama
from tqchat.paths import Paths, locate

if TYPE_CHECKING:
    from tests.kv.storage.disks import Disk


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep tests away from the user's files."""
    folder = tmp_path / "home"
    monkeypatch.setenv("TQCHAT_HOME", str(folder))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


@pytest.fixture
def paths(home: Path) -> Paths:
    located = locate()
    located.ensure()
    return located


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random llama and the starter's tokenizer; read-only."""
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """The disk that holds the tokens of earlier schemes, to be made slow."""
    from tests.kv.storage import disks

    with disks.opened(monkeypatch) as disk:
        yield disk
