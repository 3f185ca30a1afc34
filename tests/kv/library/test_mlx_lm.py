"""mlx-lm's own functions on our caches: batches, files, speculative decoding, quantisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import BatchGenerator, generate_step, speculative_generate_step
from mlx_lm.models import cache as mlx_cache

from tests.kv import families, tiny
from tests.kv.test_cache import logits
from tests.kv.test_families import short
from tqchat.kv import make_prompt_cache, memory_report, use_scheme
from tqchat.kv.attention import routing
from tqchat.kv.batch import BatchCache
from tqchat.kv.cache import SchemeCache
from tqchat.kv.scheme import TILE, parse_scheme

LENGTHS = (90, 1, 40, 63)


def prompts(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    return [list(tiny.tokens(count, seed=count)[0].tolist()) for count in lengths]  # type: ignore[arg-type, union-attr]


def alone(
    model: Any, prompt: list[int], cache: list[Any], count: int = 24
) -> tuple[list[int], list[mx.array]]:
    pairs = list(generate_step(mx.array(prompt), model, prompt_cache=cache, max_tokens=count))
    return [token for token, _ in pairs], [logprobs for _, logprobs in pairs]


def batched(
    model: Any, texts: list[list[int]], caches: list[list[Any]], count: int = 24
) -> dict[int, tuple[list[int], list[mx.array], list[Any]]]:
    """Tokens, log-probabilities and final cache by sequence; one joins after the others began."""
    generator = BatchGenerator(model, max_tokens=count, prefill_step_size=32)
    generator.insert(texts[:-1], caches=caches[:-1])
    generator.next_generated()
    results: dict[int, Any] = {number: ([], [], []) for number in range(len(texts))}
    generator.insert(texts[-1:], caches=caches[-1:])
    while responses := generator.next_generated():
        for response in responses:
            tokens, logprobs, cache = results[response.uid]
            tokens.append(response.token)
            logprobs.append(response.logprobs)
            cache += response.prompt_cache or []
    return results


def stored_bytes(cache: list[Any]) -> int:
    return sum(array.nbytes for layer in cache for array in layer.state[1].values())


def divergence(a: mx.array, b: mx.array) -> float:
    return float((mx.exp(a) * (a - b)).sum().item())


@pytest.mark.parametrize("name", ["fp16", "turbo4", "turbo0v4", "affine8"])
def test_a_batch_gives_each_sequence_what_it_gives_alone(name: str) -> None:
    model = tiny.llama()
    texts = prompts()
    results = batched(model, texts, [make_prompt_cache(model, short(name)) for _ in texts])
    for number, prompt in enumerate(texts):
        tokens, logprobs, cache = results[number]
        own = make_prompt_cache(model, short(name))
        expected_tokens, expected = alone(model, prompt, own)
        # The first response of the batch was read before the last sequence joined.
        last = len(tokens)
        assert tokens == expected_tokens[-last:]
        assert max(map(divergence, logprobs, expected[-last:])) < 1e-4
        assert memory_report(cache).packed_tokens == memory_report(own).packed_tokens
        assert name == "fp16" or number == 1 or memory_report(cache).packed_tokens
        assert stored_bytes(cache) == stored_bytes(own)


@pytest.mark.parametrize("family", ["llama with windows", "gemma3n", "gpt_oss", "qwen3_next"])
def test_other_architectures_batch_too(family: str) -> None:
    model = families.model(family)
    texts = prompts((70, 33))
    merged = [
        layers[0].merge(list(layers))
        for layers in zip(*(make_prompt_cache(model, short("turbo4")) for _ in texts), strict=True)
    ]
    longest = max(map(len, texts))
    for layer in merged:
        layer.prepare(lengths=[len(text) for text in texts], right_padding=[longest - len(t) for t in texts])
    model(mx.array([text + [0] * (longest - len(text)) for text in texts]), cache=merged)
    for layer in merged:
        layer.finalize()
    steps = mx.concatenate([tiny.tokens(30, seed=seed) for seed in (5, 6)])
    together = mx.concatenate([model(steps[:, at : at + 1], cache=merged) for at in range(30)], axis=1)
    for row, text in enumerate(texts):
        own = make_prompt_cache(model, short("turbo4"))
        logits(model, own, mx.array([text]), len(text))
        expected = logits(model, own, steps[row : row + 1])
        assert mx.abs(together[row : row + 1] - expected).max().item() < 5e-3 * mx.abs(expected).max().item()


def test_left_padding_is_not_stored() -> None:
    model = tiny.llama()
    texts = prompts((50, 20))
    merged = [
        layers[0].merge(list(layers))
        for layers in zip(*(make_prompt_cache(model, "turbo4") for _ in texts), strict=True)
    ]
    for layer in merged:
        layer.prepare(left_padding=[0, 30])
    padded = mx.array([texts[0], [0] * 30 + texts[1]])
    together = model(padded, cache=merged)
    assert merged[0].offset.tolist() == [50, 20] and [row.offset for row in merged[0].rows] == [50, 20]
    expected = model(mx.array([texts[1]]), cache=make_prompt_cache(model, "turbo4"))
    assert mx.allclose(together[1:, 30:], expected, atol=1e-4)


@pytest.mark.parametrize("window", [None, 24])
def test_unrouted_attention_gets_a_batch_decoded_and_masked(window: int | None) -> None:
    model = families.model("llama with windows") if window else tiny.llama()
    texts = prompts((70, 33))
    caches = [make_prompt_cache(model, short("turbo4")) for _ in texts]
    for cache, text in zip(caches, texts, strict=True):
        logits(model, cache, mx.array([text]), len(text) - 1)
    twins = [[layers[0].merge(list(layers)) for layers in zip(*caches, strict=True)] for _ in range(2)]
    step = mx.array([[3], [4]])
    routed = model(step, cache=twins[0])
    routing.uninstall()
    try:
        plain = model(step, cache=twins[1])
    finally:
        routing.install()
    assert mx.allclose(routed, plain, atol=1e-3)


def test_a_batch_is_filtered_extended_and_extracted() -> None:
    model = tiny.llama()
    texts = prompts((40, 30, 20))
    singles = [make_prompt_cache(model, "turbo4") for _ in texts]
    for cache, text in zip(singles, texts, strict=True):
        model(mx.array([text]), cache=cache)
    batch = BatchCache.merge([cache[0] for cache in singles[:2]])
    batch.filter([1])
    batch.extend(BatchCache.merge([singles[2][0]]))
    own = mlx_cache.KVCache()  # type: ignore[no-untyped-call]
    own.update_and_fetch(*(side.fetch(mx.float32) for side in singles[0][0].sides))  # type: ignore[no-untyped-call]
    batch.extend(mlx_cache.BatchKVCache.merge([own]))  # type: ignore[no-untyped-call]
    assert batch.offset.tolist() == [30, 20, 40] and batch.size() == 40 and not batch.empty()
    taken = batch.extract(0)
    assert batch.trim(5) == 5 and batch.offset.tolist() == [25, 15, 35]
    assert taken.offset == 30 and mx.array_equal(taken.decoded()[0], singles[1][0].decoded()[0])
    assert singles[1][0].offset == 30, "merged caches are copies"
    with pytest.raises(ValueError, match="make_prompt_cache"):
        BatchCache.merge([singles[0][0], mlx_cache.RotatingKVCache(8)])  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("family", ["llama", "llama with windows", "deepseek_v3"])
@pytest.mark.parametrize("name", ["turbo4", "turbo0v4", "fp16"])
def test_mlx_lms_cache_files_hold_our_caches(family: str, name: str, tmp_path: Path) -> None:
    model = tiny.llama() if family == "llama" else families.model(family)
    empty, cache = make_prompt_cache(model, short(name)), make_prompt_cache(model, short(name))
    logits(model, cache, tiny.tokens(60), 58)
    for saved in (cache, empty):
        path = str(tmp_path / "cache.safetensors")
        mlx_cache.save_prompt_cache(path, saved, {"model": "tiny"})
        loaded, metadata = mlx_cache.load_prompt_cache(path, return_metadata=True)
        assert metadata == {"model": "tiny"}
        more = tiny.tokens(30, seed=4)
        assert mx.array_equal(logits(model, loaded, more, 5), logits(model, saved, more, 5))
        assert memory_report(loaded).packed_tokens == memory_report(saved).packed_tokens


@pytest.mark.parametrize("drafted", [1, 2, 5, 15, 40])
@pytest.mark.parametrize("name", ["turbo4", "turbo0v4", "turbo2"])
def test_speculative_decoding_packs_the_models_cache(name: str, drafted: int) -> None:
    model, draft = tiny.llama(), tiny.llama(seed=3, num_hidden_layers=1)
    caches = make_prompt_cache(model, name) + make_prompt_cache(draft, name)
    prompt, count = tiny.tokens(200)[0], 50
    for _ in speculative_generate_step(
        prompt, model, draft, prompt_cache=caches, max_tokens=count, num_draft_tokens=drafted
    ):
        # What was trimmed again was never packed.
        assert caches[0].key_side.recent.length >= min(parse_scheme(name).tail, caches[0].offset)
    for layer in caches:
        held = max(side.recent.length for side in layer.sides if side.spec.kind != "raw")
        assert layer.packed_tokens and held < layer.scheme.tail + 2 * TILE + min(drafted, 15)


def test_a_prompts_last_chunk_is_not_a_decode_step() -> None:
    model, tokens = tiny.llama(), tiny.tokens(400)
    cache = make_prompt_cache(model, "turbo4")
    logits(model, cache, tokens[:, :210], 200, 10)
    assert not cache[0].packed_tokens
    logits(model, cache, tokens[:, 210:212], 2)  # the first step of speculative decoding
    assert cache[0].packed_tokens
    packed = cache[0].packed_tokens
    logits(model, cache, tokens[:, 212:320], 100, 8)  # the next message
    assert cache[0].packed_tokens == packed


def test_mlx_lms_quantisation_is_refused_in_words() -> None:
    model = tiny.llama()
    cache = make_prompt_cache(model, "turbo4")
    steps = generate_step(tiny.tokens(20)[0], model, prompt_cache=cache, kv_bits=4, quantized_kv_start=0)
    with pytest.raises(NotImplementedError, match=r"turbo4.*kv_bits"):
        next(steps)


def test_mlx_lm_makes_its_caches_under_a_scheme() -> None:
    model = tiny.llama()
    use_scheme("turbo4")
    try:
        cache = mlx_cache.make_prompt_cache(model)
        assert [layer.scheme.name for layer in cache] == ["turbo4"] * 2
        with pytest.raises(ValueError, match="max_kv_size"):
            mlx_cache.make_prompt_cache(model, max_kv_size=100)
    finally:
        use_scheme(None)
    assert not any(isinstance(layer, SchemeCache) for layer in mlx_cache.make_prompt_cache(model))
