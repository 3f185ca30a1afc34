"""Restored caches produce bit-identical logits, for every cache type and scheme."""

from __future__ import annotations

from collections.abc import Sequence
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
from tqchat.store.vault.manifest import trim_pieces  # noqa: E402

FAMILIES_ALL_SCHEMES = [
    "llama",
    "gemma3_text",  # windows
    "jamba",  # recurrent state
    "gpt_oss",  # attention sinks, windows
]
FAMILIES_FEW_SCHEMES = [
    "gemma3n",  # layers that share keys and values
    "qwen3_next",  # linear attention
    "recurrent_gemma",  # windows and recurrent state only
    "deepseek_v3",  # latent attention
    "deepseek_v32",  # latent attention, two caches to a layer
    "llama4",  # chunked attention
]
CASES = [(name, scheme.name) for name in FAMILIES_ALL_SCHEMES for scheme in SCHEMES] + [
    (name, scheme) for name in FAMILIES_FEW_SCHEMES for scheme in ("fp16", "turbo0v4", "turbo2")
]


def save(
    vault: Vault,
    cache: list[Any],
    count: int,
    scheme: str,
    pieces: Any = (),
    checkpoints: Sequence[Checkpoint] = (),
) -> Any:
    mx.eval([layer.state for layer in cache if not layer.empty()])
    metadata: dict[str, Any] = {
        "fingerprint": "f",
        "scheme": scheme,
        "pieces": pieces,
        "checkpoints": checkpoints,
    }
    return vault.save("talk", cache, list(range(count)), **metadata).pieces


def restored(vault: Vault, count: int, scheme: str) -> Restored:
    found = vault.load("talk", fingerprint="f", scheme=scheme)
    assert isinstance(found, Restored), found
    assert (found.tokens, found.damage) == (list(range(count)), None)
    return found


CONTINUATION_TOKENS = 24


def same_logits(model: Any, mine: list[Any], theirs: list[Any]) -> bool:
    more = tiny.tokens(CONTINUATION_TOKENS, seed=4)
    return bool(mx.array_equal(logits(model, mine, more, 20), logits(model, theirs, more, 20)))


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_a_restored_cache_gives_identical_logits(vault: Vault, name: str, scheme: str) -> None:
    model = families.model(name)
    cache = kv.make_prompt_cache(model, scheme, dtype=mx.float16)
    logits(model, cache, tiny.tokens(280), 270)
    pieces = save(vault, cache, 280, scheme)
    checkpoints = [checkpoint.take(cache, 280)] if checkpoint.needs_checkpoints(cache) else []
    logits(model, cache, tiny.tokens(120, seed=9), 115)
    pieces = save(vault, cache, 400, scheme, pieces, checkpoints)
    # Trim into the packed tokens and continue; the next save reuses segments.
    if checkpoints:
        keep = 280
        cache = checkpoint.roll_back(cache, checkpoints[0], 400 - keep)
    else:
        keep = 230
        mlx_cache.trim_prompt_cache(cache, 400 - keep)
    logits(model, cache, tiny.tokens(70, seed=3), 60)
    count = keep + 70
    save(vault, cache, count, scheme, trim_pieces(pieces, keep), checkpoints)
    found = restored(vault, count, scheme)
    assert tiny.report_at_rest(found.cache).bytes == tiny.report_at_rest(cache).bytes
    assert same_logits(model, found.cache, cache)
    for mine, theirs in zip(found.checkpoints, checkpoints, strict=True):
        backs = [
            checkpoint.roll_back(one, at, 70 + CONTINUATION_TOKENS)
            for one, at in ((found.cache, mine), (cache, theirs))
        ]
        assert same_logits(model, *backs)


@pytest.mark.parametrize("name", [*FAMILIES_ALL_SCHEMES, *FAMILIES_FEW_SCHEMES, "minimax_m3_vl"])
@pytest.mark.parametrize("scheme", ["fp16", "turbo0v4"])
def test_files_are_read_to_their_place(
    vault: Vault, name: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = families.model(name)
    cache = kv.make_prompt_cache(model, scheme, dtype=mx.float16)
    logits(model, cache, tiny.tokens(280), 270)
    pieces = save(vault, cache, 280, scheme)
    logits(model, cache, tiny.tokens(90, seed=9), 85)
    save(vault, cache, 370, scheme, pieces)

    def fail(*files: object) -> None:
        raise AssertionError("files are read one by one")

    monkeypatch.setattr("tqchat.store.vault.segments.read", fail)
    assert same_logits(model, restored(vault, 370, scheme).cache, cache)


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "jamba"])
@pytest.mark.parametrize("change", [("fp16", "turbo0v4"), ("turbo2", "affine8"), ("turbo0v4", "fp16")])
def test_a_converted_cache_is_restored(vault: Vault, name: str, change: tuple[str, str]) -> None:
    model = families.model(name)
    cache = kv.make_prompt_cache(model, change[0], dtype=mx.float16)
    logits(model, cache, tiny.tokens(280), 270)
    save(vault, cache, 280, change[0])
    cache = kv.convert(cache, change[1])
    logits(model, cache, tiny.tokens(20, seed=9), 15)
    save(vault, cache, 300, change[1])
    assert same_logits(model, restored(vault, 300, change[1]).cache, cache)
    assert isinstance(vault.load("talk", fingerprint="f", scheme=change[0]), Refused)


@pytest.mark.parametrize("name", ["gpt_oss", "jamba"])
def test_damaged_windows_or_recurrent_state_are_refused(vault: Vault, name: str) -> None:
    model = families.model(name)
    cache = kv.make_prompt_cache(model, "turbo0v4", dtype=mx.float16)
    logits(model, cache, tiny.tokens(400), 390)
    save(vault, cache, 400, "turbo0v4")
    newest = max((vault.folder / "talk").glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-1])
    found = vault.load("talk", fingerprint="f", scheme="turbo0v4")
    assert isinstance(found, Refused)
    assert "damaged" in found.reason
