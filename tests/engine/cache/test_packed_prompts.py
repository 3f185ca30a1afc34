"""Prompts that are packed while they are read."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generation_stream

from tqchat import kv
from tqchat.engine.cache import prompt_cache
from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.models import LoadedModel
from tqchat.engine.models.token_arrays import token_array
from tqchat.kv import cache as cache_module
from tqchat.kv.attention import routing
from tqchat.kv.cache import SchemeCache
from tqchat.kv.codec.turbo import TurboFormat
from tqchat.kv.kernels.device import Kernels
from tqchat.kv.prompt_cache import scheme_caches
from tqchat.kv.storage import joint_encode

TOKENS = [3 + number * 7 % 90 for number in range(900)]
CHUNK = 300


@pytest.fixture(autouse=True)
def chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_cache, "prefill_chunk_tokens", lambda model, cache: CHUNK)


def empty(model: LoadedModel, scheme: str, placeholders: bool = False) -> PromptCache:
    held = PromptCache(model, scheme)
    held.pack_prompts(True)
    for layer in scheme_caches(held.cache):
        layer.uses_placeholders = placeholders
    return held


def layer_by_layer(model: LoadedModel, held: PromptCache, first: int = CHUNK) -> list[SchemeCache]:
    """The same prompt, read by the model without ``PromptCache``."""
    ends = [0, *range(first, len(TOKENS), CHUNK), len(TOKENS)]
    with mx.stream(generation_stream):
        for start, end in itertools.pairwise(ends):
            model.model(token_array(TOKENS[start:end])[None], cache=held.cache)
            held.evaluate()
    return scheme_caches(held.cache)


def packed_arrays(layer: SchemeCache) -> dict[str, mx.array]:
    """Packed tokens and fits. What is raw differs: without ``PromptCache`` no call ends the prompt."""
    _, arrays = layer.state
    return {name: array for name, array in arrays.items() if "packed" in name or "fitted" in name}


def check_same(found: list[SchemeCache], expected: list[SchemeCache]) -> None:
    for one, other in zip(found, expected, strict=True):
        ours, theirs = packed_arrays(one), packed_arrays(other)
        assert ours.keys() == theirs.keys() and ours
        for name, array in ours.items():
            assert mx.array_equal(array, theirs[name]).item(), name


@pytest.mark.parametrize("scheme", ["turbo4", "turbo3", "trellis3", "turbo8v4"])
def test_layers_are_fitted_together_to_what_each_would_be_fitted_to(
    tiny: LoadedModel, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[Any] = []
    fit = TurboFormat.fit
    monkeypatch.setattr(TurboFormat, "fit", lambda *given: fits.append(1) or fit(*given))
    held = empty(tiny, scheme)
    after = []
    for _ in held.prefill_in_chunks(TOKENS):
        layers = scheme_caches(held.cache)
        after.append({(layer.key_side.packed.length, layer.key_side.fine.length) for layer in layers})
        assert all(layer.unsubmitted is None for layer in layers)
    rotated = 1 + (scheme != "turbo8v4")  # keys and values, or values alone
    assert len(layers) > 1 and len(fits) == rotated
    # All layers hold as much; no token is encoded that the next chunk would encode again.
    assert [len(one) for one in after] == [1, 1, 1] and all(fine == 0 for ((_, fine),) in after)
    packed = [one for ((one, _),) in after]
    assert 0 < packed[0] < packed[1] < packed[2]
    fits.clear()
    check_same(layers, layer_by_layer(tiny, empty(tiny, scheme)))
    assert len(fits) == rotated * len(layers)
    # After the last chunk nothing stays raw that would be fine.
    assert {layer.key_side.fine.length for layer in layers} == {kv.parse_scheme(scheme).fine}
    assert not any(layer.is_due for layer in layers)


@pytest.mark.parametrize("scheme", ["turbo3", "trellis2"])
@pytest.mark.parametrize("first", [100, 150, 200])
def test_layers_are_fitted_when_the_first_tokens_are_packed(
    tiny: LoadedModel, scheme: str, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to the short first chunk of a prompt whose chunks are limited in time."""
    monkeypatch.setattr(prompt_cache, "FIRST_CHUNK_TOKENS", first)
    held = empty(tiny, scheme)
    held.chunk_seconds = 1e9
    for _ in held.prefill_in_chunks(TOKENS):
        for layer in scheme_caches(held.cache):
            for side in layer.sides:
                assert bool(side.format.fitted) is bool(side.packed.length) is bool(side.sinks.length)
    check_same(scheme_caches(held.cache), layer_by_layer(tiny, empty(tiny, scheme), first))


@pytest.mark.parametrize("chunk", [300, 450])
def test_on_a_cpu_layers_are_encoded_together_as_each_would_be(
    tiny: LoadedModel, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the longer chunk, 4-bit trellis codes are searched among few branches."""
    monkeypatch.setattr(prompt_cache, "prefill_chunk_tokens", lambda model, cache: chunk)
    encoded: list[int] = []
    encode = joint_encode.encode
    monkeypatch.setattr(
        joint_encode, "encode", lambda format_, x: encoded.append(len(x)) or encode(format_, x)
    )
    held = empty(tiny, "trellis4")
    chunks = -(-len(TOKENS) // chunk)
    for _ in held.prefill_in_chunks(TOKENS):
        pass
    layers = scheme_caches(held.cache)
    assert encoded[: 2 * chunks] == [len(layers)] * 2 * chunks  # keys and values of each chunk
    monkeypatch.setattr(f"{__name__}.CHUNK", chunk)
    check_same(layers, layer_by_layer(tiny, empty(tiny, "trellis4"), chunk))


def test_room_that_is_given_back_is_a_change_of_the_side(tiny: LoadedModel) -> None:
    """Launches of kernels keep the capacity of arrays until the revision changes."""
    held = empty(tiny, "turbo4")
    reading = held.prefill_in_chunks(TOKENS * 10)
    next(reading)
    held.pack_due()
    sides = [side for layer in scheme_caches(held.cache) for side in layer.sides]
    before = [(side.revision, side.packed.capacity) for side in sides]
    del reading
    held.settle(certain=True)
    for side, (revision, capacity) in zip(sides, before, strict=True):
        assert side.packed.capacity < capacity and side.revision is not revision
    before = [(side.revision, side.packed.capacity) for side in sides]
    held.settle(certain=True)
    assert [(side.revision, side.packed.capacity) for side in sides] == before


def test_a_prompt_takes_the_room_that_it_needs(tiny: LoadedModel) -> None:
    held = empty(tiny, "turbo4")
    rooms = []
    for read in held.prefill_in_chunks(TOKENS):
        rooms.append(held.cache[0].key_side.packed.capacity)
        assert read <= len(TOKENS)
    assert len(set(rooms)) == 1 and 0 <= rooms[0] - held.cache[0].key_side.packed.length < 256


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "on another thread"])
def test_a_prompt_that_is_stopped_gives_back_the_room_for_the_rest(
    tiny: LoadedModel, elsewhere: bool
) -> None:
    held = empty(tiny, "turbo4")
    reading = held.prefill_in_chunks(TOKENS * 10)
    next(reading)
    packed = held.cache[0].key_side.packed
    assert packed.capacity > 8000
    abandoned = [reading]
    del reading
    if elsewhere:
        (thread := threading.Thread(target=abandoned.clear)).start()
        thread.join()
    abandoned.clear()
    held.settle(certain=True)
    assert packed.capacity <= packed.length + 2 * 256 and len(held.tokens) == CHUNK


@pytest.mark.parametrize("bytes_per_start", [1, 1 << 30])
def test_layers_submitted_together_hold_what_they_hold_one_by_one(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, bytes_per_start: int
) -> None:
    """As on a GPU, where a chunk of a prompt attends to decoded tokens."""
    monkeypatch.setattr(cache_module, "_attends_packed", lambda rows: rows <= cache_module.MAX_DECODE_ROWS)
    monkeypatch.setattr(cache_module, "kernels", lambda: Kernels("metal"))
    monkeypatch.setattr(routing, "DECODED_BYTES_PER_START", bytes_per_start)
    started: list[Any] = []
    start = routing.RoutedAttention._start

    def counted(self: Any, output: mx.array, decoded: int, unsubmitted: list[SchemeCache] | None) -> None:
        start(self, output, decoded, unsubmitted)
        started.append(len(unsubmitted or ()))

    monkeypatch.setattr(routing.RoutedAttention, "_start", counted)
    held = empty(tiny, "turbo3", placeholders=True)
    for _ in held.prefill_in_chunks(TOKENS):
        assert all(layer._is_submitted for layer in scheme_caches(held.cache))
    layers = len(scheme_caches(held.cache))
    # The first chunk attends to no decoded tokens.
    expected = [0] * layers if bytes_per_start == 1 else list(range(1, layers + 1))
    assert started == 2 * expected
    check_same(scheme_caches(held.cache), layer_by_layer(tiny, empty(tiny, "turbo3", placeholders=True)))
