"""Steps of several sequences in one call of a model, for many architectures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from tests.kv import families
from tests.kv.test_families import short
from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.decoding.step import Step, can_batch
from tqchat.engine.models.token_arrays import token_array
from tqchat.kv.cache import verifying
from tqchat.kv.prompt_cache import flat_layers

LENGTHS = 71, 30, 5
STEPS = 6

BATCHED = (
    "llama with windows",
    "gemma3n",
    "gemma4_text",
    "gpt_oss",
    "deepseek_v2",
    "gpt2",
    "iquestloopcoder",
    "phi3",
)
NOT_BATCHED = {
    "baichuan_m1": "convolution states",
    "llama4": "chunked attention",
    "minimax_m3_vl": "an index over keys",
    "gpt_bigcode": "takes one position",
    "gemma2": "its own attention mixes up the sequences' masks",
}


def held(family: str, count: int, scheme: str = "turbo4") -> PromptCache:
    """A cache of a model of this family, with tokens."""
    model: Any = SimpleNamespace(
        model=families.model(family), resolve_scheme=short, cache_dtype=None, on_cpu=True
    )
    cache = PromptCache(model, scheme)
    cache.prefill([3 + n % 70 for n in range(count)])
    return cache


def run(steps: list[Step]) -> list[mx.array]:
    """Their logits; the tokens are in the caches then."""
    Step.run_together(steps)
    logits = [step.result() for step in steps]
    for step in steps:
        step.held.tokens += [0] * step.tokens.size
    return logits


@pytest.mark.parametrize(
    ("family", "scheme"),
    [
        *((family, "turbo4") for family in (*BATCHED, *NOT_BATCHED)),
        *((family, "fp16") for family in ("llama with windows", "gpt_oss", "gemma3n")),
    ],
)
def test_steps_have_the_same_logits_in_a_batch_and_alone(family: str, scheme: str) -> None:
    together, alone = ([held(family, count, scheme) for count in LENGTHS] for _ in range(2))
    assert can_batch(together[0]) == (family in BATCHED)
    for number in range(STEPS):
        tokens = [token_array([5 + number + row]) for row in range(len(LENGTHS))]
        steps = [Step(*pair) for pair in zip(together, tokens, strict=True)]
        found = run(steps)
        assert all(step.shared == (family in BATCHED) for step in steps)
        expected = [run([Step(*pair)])[0] for pair in zip(alone, tokens, strict=True)]
        for one, other in zip(found, expected, strict=True):
            assert mx.abs(one - other).max().item() <= 1e-5 * mx.abs(other).max().item()
    for one, other in zip(together, alone, strict=True):  # type: ignore[assignment]
        assert one.report() == other.report()  # type: ignore[attr-defined]


def test_proposed_tokens_are_verified_by_themselves() -> None:
    caches = [held("llama", count) for count in LENGTHS]
    steps = [Step(cache, token_array([5])) for cache in caches[:2]]
    steps.append(Step(caches[2], token_array([5, 6, 7]), verifying))
    logits = run(steps)
    assert [one.shape[0] for one in logits] == [1, 1, 3] and all(step.shared for step in steps)
    assert [layer.offset for cache in caches for layer in flat_layers(cache.cache)[:1]] == [72, 31, 8]


def test_a_single_step_is_not_shared() -> None:
    step = Step(held("llama", 5), token_array([5]))
    run([step])
    assert not step.shared


@pytest.mark.parametrize(
    ("family", "scheme"),
    [("llama", "fp16"), ("llama with windows", "turbo4"), ("llama with windows", "fp16")],
)
def test_a_step_that_failed_in_some_layers_is_undone(family: str, scheme: str) -> None:
    broken, whole = (held(family, 71, scheme) for _ in range(2))
    flat_layers(broken.cache)[0].update_and_fetch(mx.ones((1, 2, 1, 32)), mx.ones((1, 2, 1, 32)))
    broken.drop_unfinished_step()
    assert [layer.offset for layer in flat_layers(broken.cache)] == [71] * len(flat_layers(whole.cache))
    found, expected = (run([Step(cache, token_array([5]))])[0] for cache in (broken, whole))
    assert mx.allclose(found, expected, atol=1e-5)
