"""Restored caches answer bit for bit as those that were never saved, whatever the model and the scheme."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tqchat.engine import backend

backend.prepare()

import mlx.core as mx  # noqa: E402
from mlx_lm.models import cache as mlx_cache  # noqa: E402

from tests.kv import families, tiny  # noqa: E402
from tests.kv.test_cache import logits  # noqa: E402
from tqchat import kv  # noqa: E402
from tqchat.kv import checkpoint  # noqa: E402
from tqchat.kv.checkpoint import Checkpoint  # noqa: E402
from tqchat.kv.scheme import SCHEMES  # noqa: E402
from tqchat.store.vault import Refused, Restored, Vault  # noqa: E402
from tqchat.store.vault.manifest import cut  # noqa: E402

EVERY_SCHEME = [
    "llama",
    "gemma3_text",  # windows
    "jamba",  # recurrent state
    "gpt_oss",  # attention sinks, windows
]
FEW_SCHEMES = [
    "gemma3n",  # layers that share keys and values
    "qwen3_next",  # linear attention
    "recurrent_gemma",  # windows and recurrent state only
    "deepseek_v3",  # latent attention
    "deepseek_v32",  # latent attention, two caches to a layer
    "llama4",  # chunked attention
]
CASES = [(name, scheme.name) for name in EVERY_SCHEME for scheme in SCHEMES] + [
    (name, scheme) for name in FEW_SCHEMES for scheme in ("fp16", "turbo0v4", "turbo2")
]


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "caches")


def save(
    vault: Vault,
    cache: list[Any],
    count: int,
    scheme: str,
    pieces: Any = (),
    places: Sequence[Checkpoint] = (),
) -> Any:
    mx.eval([layer.state for layer in cache if not layer.empty()])
    told: dict[str, Any] = {"fingerprint": "f", "scheme": scheme, "pieces": pieces, "checkpoints": places}
    return vault.save("talk", cache, list(range(count)), **told).pieces


def restored(vault: Vault, count: int, scheme: str) -> Restored:
    found = vault.load("talk", fingerprint="f", scheme=scheme)
    assert isinstance(found, Restored), found
    assert (found.tokens, found.damage) == (list(range(count)), None)
    return found


MORE = 24


def same_answers(model: Any, mine: list[Any], theirs: list[Any]) -> bool:
    more = tiny.tokens(MORE, seed=4)
    return bool(mx.array_equal(logits(model, mine, more, 20), logits(model, theirs, more, 20)))


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_a_restored_cache_answers_bit_for_bit(vault: Vault, name: str, scheme: str) -> None:
    model = families.model(name)
    cache = kv.make_prompt_cache(model, scheme, dtype=mx.float16)
    logits(model, cache, tiny.tokens(280), 270)
    pieces = save(vault, cache, 280, scheme)
    places = [checkpoint.take(cache, 280)] if checkpoint.needs_checkpoints(cache) else []
    logits(model, cache, tiny.tokens(120, seed=9), 115)
    pieces = save(vault, cache, 400, scheme, pieces, places)
    # Back into what was packed, and on; the save after it shares segments with the one before.
    if places:
        keep = 280
        cache = checkpoint.go_back(cache, places[0], 400 - keep)
    else:
        keep = 230
        mlx_cache.trim_prompt_cache(cache, 400 - keep)
    logits(model, cache, tiny.tokens(70, seed=3), 60)
    count = keep + 70
    save(vault, cache, count, scheme, cut(pieces, keep), places)
    found = restored(vault, count, scheme)
    assert kv.memory_report(found.cache).bytes == kv.memory_report(cache).bytes
    assert same_answers(model, found.cache, cache)
    for mine, theirs in zip(found.checkpoints, places, strict=True):
        backs = [
            checkpoint.go_back(one, place, 70 + MORE) for one, place in ((found.cache, mine), (cache, theirs))
        ]
        assert same_answers(model, *backs)


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "jamba"])
@pytest.mark.parametrize("change", [("fp16", "turbo0v4"), ("turbo2", "affine8"), ("turbo0v4", "fp16")])
def test_a_scheme_change_before_the_save_too(vault: Vault, name: str, change: tuple[str, str]) -> None:
    model = families.model(name)
    cache = kv.make_prompt_cache(model, change[0], dtype=mx.float16)
    logits(model, cache, tiny.tokens(280), 270)
    save(vault, cache, 280, change[0])
    cache = kv.convert(cache, change[1])
    logits(model, cache, tiny.tokens(20, seed=9), 15)
    save(vault, cache, 300, change[1])
    assert same_answers(model, restored(vault, 300, change[1]).cache, cache)
    assert isinstance(vault.load("talk", fingerprint="f", scheme=change[0]), Refused)


@pytest.mark.parametrize("name", ["gpt_oss", "jamba"])
def test_windows_and_recurrent_state_are_all_or_nothing(vault: Vault, name: str) -> None:
    model = families.model(name)
    cache = kv.make_prompt_cache(model, "turbo0v4", dtype=mx.float16)
    logits(model, cache, tiny.tokens(400), 390)
    save(vault, cache, 400, "turbo0v4")
    newest = max((vault.folder / "talk").glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-1])
    found = vault.load("talk", fingerprint="f", scheme="turbo0v4")
    assert isinstance(found, Refused)
    assert "damaged" in found.reason
