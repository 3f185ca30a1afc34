"""The list of local models, from their files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.models import tiny_llama
from tqchat.engine.commands import STARTER
from tqchat.engine.hub import catalog, local_cache, other_apps
from tqchat.engine.hub.catalog import LocalModel, quantisation


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(other_apps, "folders", tuple)
    return tmp_path


def by_ref(*folders: Path) -> dict[str, LocalModel]:
    return {one.ref: one for one in catalog.scan([str(folder) for folder in folders])}


def in_hub(hub: Path, repo: str, commit: str = "c0ffee" + "0" * 34) -> Path:
    """A complete model in the Hugging Face cache."""
    storage = hub / f"models--{repo.replace('/', '--')}"
    (storage / "refs").mkdir(parents=True)
    (storage / "refs" / "main").write_text(commit)
    return tiny_llama(storage / "snapshots" / commit)


def test_the_bundled_model_is_always_listed() -> None:
    found = catalog.scan()
    assert [one.ref for one in found] == [STARTER]
    assert found[0].context_limit and found[0].disk_bytes and found[0].quantisation
    assert found[0].problem is None


def test_models_are_found_below_a_folder_and_at_it(tmp_path: Path) -> None:
    deep = tiny_llama(tmp_path / "models" / "org" / "tiny", quantization={"bits": 4, "group_size": 64})
    alone = tiny_llama(tmp_path / "alone")
    (tmp_path / "models" / "notes").mkdir()
    (tmp_path / "models" / "notes" / "config.json").write_text('{"editor": 1}')
    found = by_ref(tmp_path / "models", alone, tmp_path / "not there")
    assert set(found) == {STARTER, str(deep), str(alone)}
    one = found[str(deep)]
    assert (one.name, one.source, one.quantisation, one.context_limit) == ("tiny", "folder", "4-bit", 512)
    assert one.disk_bytes == (deep / "model.safetensors").stat().st_size


def test_a_folder_reached_by_two_paths_is_listed_once(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "models" / "tiny")
    (tmp_path / "link").symlink_to(folder)
    assert len(by_ref(tmp_path / "models", folder, tmp_path / "link")) == 2


def test_a_model_that_cannot_be_loaded_is_listed_with_the_reason(tmp_path: Path) -> None:
    short = tiny_llama(tmp_path / "short")
    (short / "model.safetensors").write_bytes(b"abc")
    gguf = tmp_path / "gguf"
    gguf.mkdir()
    (gguf / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (gguf / "weights.gguf").write_bytes(b"GGUF")
    own = tiny_llama(tmp_path / "own", model_file="own.py")
    found = by_ref(tmp_path)
    assert "cut short" in (found[str(short)].problem or "")
    assert "GGUF" in (found[str(gguf)].problem or "")
    assert "never runs" in (found[str(own)].problem or "")


def test_only_complete_models_in_the_hub_cache_are_listed(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    in_hub(hub, "org/na-me")
    half = hub / "models--org--half" / "snapshots" / "1" / "config.json"
    half.parent.mkdir(parents=True)
    half.write_text("{}")
    for stray in ("datasets--org--data", "models--org", "models--org--a--b", "models--"):
        (hub / stray).mkdir()
    found = by_ref()
    assert set(found) == {STARTER, "org/na-me"}
    assert found["org/na-me"].source == "hub"


def test_an_unfinished_download_is_listed_and_can_be_deleted(tmp_path: Path) -> None:
    blobs = tmp_path / "hub" / "models--org--big" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "whole").write_bytes(b"x" * 10)
    (blobs / f"half{local_cache.PARTIAL_SUFFIX}").write_bytes(b"x" * 32)
    one = by_ref()["org/big"]
    assert (one.folder, one.disk_bytes) == (None, 42)
    local_cache.discard_partial("org/big")
    assert set(by_ref()) == {STARTER}
    assert not blobs.parent.exists()
    local_cache.discard_partial("org/big")


def test_deleting_a_download_keeps_files_of_other_programs(tmp_path: Path) -> None:
    in_hub(tmp_path / "hub", "org/big")
    blobs = tmp_path / "hub" / "models--org--big" / "blobs"
    blobs.mkdir()
    (blobs / f"newer{local_cache.PARTIAL_SUFFIX}").write_bytes(b"x")
    local_cache.discard_partial("org/big")
    assert list(blobs.iterdir()) == []
    assert by_ref()["org/big"].folder is not None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quantization": {"bits": 6, "group_size": 64}}, "6-bit"),
        ({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}, "mxfp4"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "4-bit"),
        ({"quantization_config": {"quant_method": "bitnet"}}, "bitnet"),
        ({"torch_dtype": "bfloat16"}, "bf16"),
        ({"text_config": {"dtype": "float16"}}, "fp16"),
        ({"quantization": 3, "text_config": []}, ""),
    ],
)
def test_short_names_of_weight_formats(config: dict[str, object], said: str) -> None:
    assert quantisation(config) == said
