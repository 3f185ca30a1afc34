"""Steps of several tokens give the bits of single steps on a CPU, so verified tokens are the plain ones."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx_lm.models import base

from tqchat.kv.attention import routing
from tqchat.kv.cache import SchemeCache, verifying
from tqchat.kv.scheme import parse_scheme

ROWS = 7


@pytest.fixture(autouse=True)
def routed() -> None:
    if mx.default_device() != mx.cpu:
        pytest.skip("a GPU's products of several rows have other bits")
    routing.install()


def filled(scheme: str, tokens: int, packs: bool) -> SchemeCache:
    cache = SchemeCache(parse_scheme(scheme), mx.float16)
    attend(cache, random_tokens(tokens, 20), 0, tokens)
    if packs:
        cache.pack_due()
    attend(cache, random_tokens(1, 30), 0, 1)
    return cache


def random_tokens(count: int, seed: int) -> list[mx.array]:
    """Keys, values and queries."""
    return [
        mx.random.normal((1, heads, count, 64), key=mx.random.key(seed + number))
        for number, heads in enumerate((2, 2, 6))
    ]


def attend(
    cache: SchemeCache, tokens: list[mx.array], begin: int, end: int, verify: bool = False
) -> mx.array:
    keys, values, queries = (array[:, :, begin:end] for array in tokens)
    mask = cache.make_mask(end - begin)
    with verifying([cache] if verify else []):
        fetched = cache.update_and_fetch(keys, values)
        output = base.scaled_dot_product_attention(queries, *fetched, cache=cache, scale=0.1, mask=mask)
    mx.eval(output)
    return output


@pytest.mark.parametrize("scheme", ["fp16", "turbo4", "affine4", "trellis3"])
def test_rows_have_the_bits_of_single_steps(scheme: str) -> None:
    tokens = random_tokens(ROWS, 9)
    count = 4 + 160 + parse_scheme(scheme).tail  # nothing is packed in the steps that follow
    alone, together = filled(scheme, count, packs=True), filled(scheme, count, packs=True)
    assert (alone.packed_tokens > 0) == (scheme != "fp16")
    single = mx.concatenate([attend(alone, tokens, n, n + 1) for n in range(ROWS)], axis=2)
    assert mx.array_equal(attend(together, tokens, 0, ROWS, verify=True), single)
    # Rejected tokens leave nothing behind.
    together.trim(3)
    assert mx.array_equal(attend(together, tokens, ROWS - 3, ROWS, verify=True), single[:, :, -3:])


def test_queries_of_rejected_tokens_are_not_fitted_to() -> None:
    tokens = random_tokens(ROWS, 9)
    alone, together = filled("turbo4", 30, packs=False), filled("turbo4", 30, packs=False)
    for number in range(2):
        attend(alone, tokens, number, number + 1)
    attend(together, tokens, 0, ROWS, verify=True)
    together.trim(ROWS - 2)
    assert together.queries.count == alone.queries.count
    assert together.queries.energy is not None and alone.queries.energy is not None
    assert mx.array_equal(together.queries.energy, alone.queries.energy)


@pytest.mark.parametrize("kept", [1, 3, 6, ROWS])
def test_while_packing_is_held_back_as_many_queries_are_observed_as_without(kept: int) -> None:
    tokens = random_tokens(ROWS, 9)
    scheme = parse_scheme("turbo4")
    usual = scheme.sinks + scheme.least_to_encode()
    caches = [filled("turbo4", usual - 4, packs=False) for _ in range(2)]
    for cache in caches:
        for side in cache.sides:
            side.least_packed = 256
    alone, together = caches
    for number in range(kept):
        attend(alone, tokens, number, number + 1)
    attend(together, tokens, 0, ROWS, verify=True)
    together.trim(ROWS - kept)
    queries_per_token = 3
    assert alone.queries.count == queries_per_token * min(usual, usual - 3 + kept)
    assert together.queries.count == alone.queries.count
    assert together.queries.energy is not None and alone.queries.energy is not None
    assert mx.array_equal(together.queries.energy, alone.queries.energy)
    assert not alone.is_due and not alone.packed_tokens
