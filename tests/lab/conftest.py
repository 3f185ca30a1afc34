from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tqchat.engine import backend

# Before anything imports MLX, as in the application.
backend.prepare()

if TYPE_CHECKING:
    from tqchat.engine.models import LoadedModel


@pytest.fixture(scope="session")
def tiny(llama_folder: Path) -> LoadedModel:
    """Two layers of random weights. Shared by all tests: do not modify."""
    from tqchat.engine import models

    return models.load(str(llama_folder))


@pytest.fixture(scope="session")
def prose() -> str:
    import tqchat.lab

    return (Path(tqchat.lab.__file__).parent / "text.txt").read_text("utf-8")
