"""Fixtures for all tests of caches."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def pack_single_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack one tile at a time, as on a CPU, on any device."""
    monkeypatch.setattr("tqchat.kv.storage.side.kernels", lambda: None)
