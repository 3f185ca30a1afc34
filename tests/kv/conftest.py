"""What holds for all tests of caches."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def packs_tile_by_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU, wherever this runs."""
    monkeypatch.setattr("tqchat.kv.storage.side.kernels", lambda: None)
