"""Caches that several threads use in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step

from tests.kv import families, tiny
from tests.kv.test_families import short
from tqchat.kv import convert, make_prompt_cache

Run = Callable[[Callable[[], Any]], Any]


@pytest.fixture
def threads() -> Iterator[tuple[Run, Run]]:
    """Two threads that stay; each runs one function at a time."""
    with ExitStack() as stack:
        pools = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(2)]

        def run_in(pool: ThreadPoolExecutor) -> Run:
            return lambda function: pool.submit(function).result()

        yield run_in(pools[0]), run_in(pools[1])


def in_a_new_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def step(model: Any, cache: list[Any], tokens: mx.array) -> mx.array:
    """A step as a library's user may write it: only the output is evaluated."""
    output: mx.array = model(tokens, cache=cache)
    mx.eval(output)
    return output


@pytest.mark.parametrize("family", ["llama", "llama with windows", "gemma3n"])
@pytest.mark.parametrize("name", ["fp16", "affine8", "turbo4", "turbo0v4"])
def test_two_threads_decode_in_turn(name: str, family: str, threads: tuple[Run, Run]) -> None:
    model = tiny.llama() if family == "llama" else families.model(family)
    tokens = tiny.tokens(140)
    mx.eval(tokens)
    first, second = threads

    def read(*runs: Run) -> mx.array:
        cache = runs[0](lambda: make_prompt_cache(model, short(name)))
        outputs = [runs[-1](lambda: step(model, cache, tokens[:, :60]))]
        for at in range(60, 130):
            outputs.append(runs[at % len(runs)](lambda at=at: step(model, cache, tokens[:, at : at + 1])))
            if at % 20 == 0 and all(layer.is_trimmable() for layer in cache):
                runs[at // 20 % len(runs)](lambda: [layer.trim(3) for layer in cache])
        outputs.append(runs[0](lambda: step(model, cache, tokens[:, 130:135])))
        outputs.append(runs[-1](lambda: step(model, cache, tokens[:, 135:])))
        return mx.concatenate(outputs, axis=1)

    assert mx.array_equal(read(first, second), read(lambda function: function()))


@pytest.mark.parametrize("name", ["turbo4", "turbo0v4"])
def test_every_step_of_a_conversation_may_have_its_own_thread(name: str) -> None:
    model = tiny.llama()
    cache = in_a_new_thread(lambda: make_prompt_cache(model, short(name)))

    def turn(tokens: mx.array, count: int) -> list[int]:
        steps = generate_step(tokens, model, prompt_cache=cache, max_tokens=30)
        # Stopped in the middle, as by a user.
        return [token for token, _ in zip((next(steps)[0] for _ in range(count)), range(count), strict=True)]

    for number in range(4):
        assert (
            len(in_a_new_thread(lambda n=number: turn(tiny.tokens(20 + n, seed=n)[0], 25 + n))) == 25 + number
        )
        in_a_new_thread(lambda: [layer.trim(20) for layer in cache])
    cache = in_a_new_thread(lambda: convert(cache, "turbo3"))
    assert len(turn(tiny.tokens(5)[0], 5)) == 5
