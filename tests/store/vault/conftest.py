"""A small model and an empty vault."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tqchat.store.vault import Vault

if TYPE_CHECKING:
    from tqchat.engine.models import LoadedModel


@pytest.fixture(scope="module")
def model(llama_folder: Path) -> LoadedModel:
    from tqchat.engine import models

    return models.load(str(llama_folder))


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "caches")
