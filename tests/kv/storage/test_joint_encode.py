"""Tokens of several layers that are encoded together."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from tests.kv import families, tiny
from tqchat.kv import SchemeCache, make_prompt_cache
from tqchat.kv.cache import packing_later
from tqchat.kv.kernels.device import kernels
from tqchat.kv.prompt_cache import flat_layers, pack_together
from tqchat.kv.scheme import parse_scheme
from tqchat.kv.storage import joint_encode

STEPS = 100


def packed(family: str, scheme: str, together: bool) -> tuple[list[SchemeCache], list[int]]:
    """Layers after a prompt and a reply, and the packed tokens of the first layer after each step."""
    model = families.model(family)
    cache = make_prompt_cache(model, scheme)
    mx.eval(model(tiny.tokens(300, seed=5), cache=cache))
    layers = [layer for layer in flat_layers(cache) if isinstance(layer, SchemeCache)]
    counts = []
    for token in tiny.tokens(STEPS, seed=6)[0].tolist():
        with packing_later(layers):
            mx.eval(model(mx.array([[token]]), cache=cache))
        if together:
            pack_together(layers)
        else:
            for layer in layers:
                if layer.is_due:
                    layer.pack_due()
        counts.append(layers[0].packed_tokens)
    return layers, counts


@pytest.mark.parametrize("family", ["llama", "llama with windows", "gemma3_text", "qwen3_next"])
@pytest.mark.parametrize("scheme", ["turbo4", "turbo2", "trellis3", "turbo8v4", "turbo0v4", "affine4"])
def test_tokens_are_encoded_as_by_each_layer_alone(family: str, scheme: str) -> None:
    (alone, expected), (together, counts) = packed(family, scheme, False), packed(family, scheme, True)
    assert counts == expected and len(set(counts)) > 2
    differing = count = 0
    for one, other in zip(alone, together, strict=True):
        arrays, found = one.state[1], other.state[1]
        assert arrays.keys() == found.keys()
        for name, array in arrays.items():
            if "packed" in name or "fine" in name or "recent" in name:
                differing += int((array != found[name]).sum().item())
                count += array.size
    # Formats that are fitted together differ in the last bit, and a few codes with them.
    assert differing <= 0.01 * count


@pytest.mark.skipif(kernels() is not None, reason="a GPU encodes each side in one kernel")
def test_a_step_encodes_each_kind_of_side_once(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors: list[int] = []
    real = joint_encode.encode

    def counted(format_: Any, x: mx.array) -> Any:
        vectors.append(x.shape[0] * x.shape[1] * x.shape[2])
        return real(format_, x)

    monkeypatch.setattr(joint_encode, "encode", counted)
    layers, counts = packed("llama", "turbo4", True)
    packings = sum(a != b for a, b in zip([0, *counts], counts, strict=False))
    assert len(layers) > 1
    assert len(vectors) == 2 * packings  # keys, values
    # Many vectors are encoded in parts.
    monkeypatch.setattr(joint_encode, "MAX_VECTORS", 1)
    vectors.clear()
    packed("llama", "turbo4", True)
    assert len(vectors) == 2 * packings * len(layers)


@pytest.mark.skipif(kernels() is not None, reason="a GPU encodes each side in one kernel")
def test_a_long_prompt_is_released_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    real = joint_encode.encode

    def measured(format_: Any, x: mx.array) -> Any:
        held.append(mx.get_active_memory())
        return real(format_, x)

    monkeypatch.setattr(joint_encode, "encode", measured)
    layers = [SchemeCache(parse_scheme("turbo4")) for _ in range(6)]
    for number, layer in enumerate(layers):
        raw = mx.random.normal((1, 2, 4096, 64), key=mx.random.key(number)).astype(mx.float16)
        layer.append(raw, raw + 1)
        mx.eval(layer.state[1])
        raw_bytes = 2 * raw.nbytes
        del raw
    pack_together(layers)
    assert held[0] - held[-1] > 2 * raw_bytes
