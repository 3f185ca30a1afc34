from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.models import STARTER_FOLDER
from tqchat.engine import backend

# Before anything imports MLX, as in the application.
backend.prepare()

if TYPE_CHECKING:
    from tqchat.engine.models import LoadedModel


@pytest.fixture(scope="session")
def starter() -> LoadedModel:
    from tqchat.engine import models

    return models.load(str(STARTER_FOLDER))


@pytest.fixture(scope="session")
def tiny(llama_folder: Path) -> LoadedModel:
    from tqchat.engine import models

    return models.load(str(llama_folder))
