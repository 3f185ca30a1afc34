"""``tqchat.kv`` used with mlx-lm directly."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm import stream_generate
from mlx_lm.generate import generate_step
from mlx_lm.models import cache as mlx_cache
from transformers import PreTrainedTokenizerBase

from tests.kv import tiny
from tqchat.kv import convert, load, make_prompt_cache, memory_report, save


class StubTokenizer(PreTrainedTokenizerBase):  # type: ignore[misc]
    """The minimum that ``stream_generate`` needs; the model is real."""

    bos_token = eos_token_id = chat_template = None

    def __init__(self) -> None: ...

    def get_vocab(self) -> dict[str, int]:
        return {}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) % 97 for c in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(97 + i % 26) for i in ids)


@pytest.mark.parametrize("scheme", ["fp16", "affine8", "affine4", "turbo0v4", "turbo0v2"])
def test_the_cache_works_in_stream_generate(scheme: str) -> None:
    model = tiny.llama()
    cache = make_prompt_cache(model, scheme)
    prompt = tiny.tokens(250)[0]
    replies = list(stream_generate(model, StubTokenizer(), prompt, max_tokens=12, prompt_cache=cache))
    assert replies[-1].generation_tokens == 12
    assert cache[0].offset == 250 + 12


def test_a_cache_saved_and_loaded_between_turns_gives_the_same_greedy_tokens(tmp_path: Path) -> None:
    model = tiny.llama()
    prompt, more = tiny.tokens(300)[0], tiny.tokens(40, seed=8)[0]

    def turn(cache: list[object], tokens: mx.array) -> list[int]:
        return [token for token, _ in generate_step(tokens, model, prompt_cache=cache, max_tokens=20)]

    whole = make_prompt_cache(model, "turbo0v4")
    turn(whole, prompt)
    cut = make_prompt_cache(model, "turbo0v4")
    turn(cut, prompt)
    save(tmp_path / "c.safetensors", cut)
    cut, _ = load(tmp_path / "c.safetensors")
    assert turn(cut, more) == turn(whole, more)
    smaller = convert(cut, "turbo0v2")
    assert memory_report(smaller).bytes < memory_report(cut).bytes
    assert len(turn(smaller, more)) == 20


def test_speculative_decoding_gives_the_same_tokens() -> None:
    model, draft = tiny.llama(), tiny.llama(seed=3, num_hidden_layers=1)
    prompt = tiny.tokens(200)[0]
    plain = [
        r.token
        for r in stream_generate(
            model, StubTokenizer(), prompt, max_tokens=30, prompt_cache=make_prompt_cache(model, "fp16")
        )
    ]
    caches = make_prompt_cache(model, "fp16") + make_prompt_cache(draft, "turbo0v4")
    drafted = [
        r.token
        for r in stream_generate(
            model, StubTokenizer(), prompt, max_tokens=30, draft_model=draft, prompt_cache=caches
        )
    ]
    assert drafted == plain
    assert all(mlx_cache.can_trim_prompt_cache([layer]) for layer in caches)
