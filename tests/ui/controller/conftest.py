from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ui.controller.rig import Rig


@pytest.fixture
def rig(path: Path) -> Iterator[Rig]:
    rig = Rig(path)
    yield rig
    rig.database.close()
