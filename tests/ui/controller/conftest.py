from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ui.controller.rig import Core, Rig


@pytest.fixture
def rig(path: Path) -> Iterator[Rig]:
    rig = Rig(path)
    yield rig
    rig.database.close()


@pytest.fixture
def core(path: Path) -> Iterator[Core]:
    core = Core(path)
    yield core
    core.database.close()
