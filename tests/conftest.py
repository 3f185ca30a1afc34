from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.models import tiny_llama
from tqchat.paths import Paths, locate

# Two cores, two workers: more threads than that only get into each other's way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# On CUDA, MLX multiplies float32 matrices in TF32 unless told otherwise; the tests compare to float32
# rounding.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
# A test that reaches for the network is a mistake, and should fail at once rather than wait.
os.environ["HF_HUB_OFFLINE"] = "1"


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
