"""Formats that are fitted together."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from tests.kv import families, tiny
from tqchat.kv import SchemeCache, make_prompt_cache
from tqchat.kv.prompt_cache import flat_layers
from tqchat.kv.storage import joint_fit
from tqchat.kv.storage.joint_fit import fit_together

FAMILIES = ("llama", "llama with windows", "gemma3_text", "qwen3_next")


def read(family: str, scheme: str) -> list[SchemeCache]:
    """The layers of a cache that has read a prompt, of which nothing is packed."""
    model = families.model(family)
    cache = make_prompt_cache(model, scheme)
    mx.eval(model(tiny.tokens(300, seed=5), cache=cache))
    return [layer for layer in flat_layers(cache) if isinstance(layer, SchemeCache)]


def arrays(layers: list[SchemeCache]) -> list[dict[str, mx.array]]:
    return [layer.state[1] for layer in layers]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scheme", ["turbo4", "trellis3", "turbo8v4", "turbo0v4", "affine4"])
def test_packed_tokens_are_those_of_fits_one_by_one(family: str, scheme: str) -> None:
    alone, together = read(family, scheme), read(family, scheme)
    fit_together(side for layer in together for side in layer.unfitted)
    for layer in (*alone, *together):
        layer.pack_due()
    assert any(layer.packed_tokens for layer in together)
    for expected, found in zip(arrays(alone), arrays(together), strict=True):
        assert expected.keys() == found.keys()
        for name, array in expected.items():
            assert mx.allclose(array.astype(mx.float32), found[name].astype(mx.float32), rtol=1e-2).item(), (
                name
            )


def test_sides_are_fitted_in_few_batches_and_each_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    real = joint_fit._fit_batch

    def counted(batch: Any) -> None:
        batches.append(len(batch))
        real(batch)

    monkeypatch.setattr(joint_fit, "_fit_batch", counted)
    layers = read("llama", "turbo4")
    fit_together(side for layer in layers for side in layer.unfitted)
    assert batches == [len(layers)] * 2  # keys, values
    fit_together(side for layer in layers for side in layer.unfitted)
    assert batches == [len(layers)] * 2
    # Many vectors are fitted in parts.
    monkeypatch.setattr(joint_fit, "MAX_BYTES", 1)
    batches.clear()
    fit_together(side for layer in read("llama", "turbo4") for side in layer.unfitted)
    assert batches == [1] * (2 * len(layers))


def test_nothing_is_fitted_before_something_is_due() -> None:
    model = families.model("llama")
    cache = make_prompt_cache(model, "turbo4")
    mx.eval(model(tiny.tokens(40), cache=cache))
    assert not any(layer.unfitted for layer in cache)
