"""Decode steps of a whole model as one function: on the CPU by emulated kernels, on a GPU compiled."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace
from types import SimpleNamespace

import mlx.core as mx
import pytest
from mlx.utils import tree_map
from mlx_lm.tuner.utils import linear_to_lora_layers

from tests.kv import families
from tests.kv.kernels import test_in_place
from tests.kv.kernels.emulator import CPLUSPLUS
from tests.kv.tiny import build
from tqchat import kv
from tqchat.engine.decoding.step import Step
from tqchat.kv.attention import compiled_step
from tqchat.kv.attention.compiled_step import logits_of
from tqchat.kv.attention.traced_layer import TracedLayer
from tqchat.kv.cache import SchemeCache, packing_later, verifying
from tqchat.kv.kernels import device, fused, launch, steady, workspace
from tqchat.kv.prompt_cache import pack_together
from tqchat.lab.bench import shapes

emulator = test_in_place.emulator
kernels = test_in_place.kernels

needs_compiler = pytest.mark.skipif(
    CPLUSPLUS is None or device.kernels() is not None, reason="no C++ compiler, or arrays are on a GPU"
)


LLAMA = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "vocab_size": 64,
}


def tiny_llama():
    return build("llama", dtype=mx.float16, **LLAMA)


def cache_for(model, scheme, shared):
    cache = kv.make_prompt_cache(model, scheme)
    for layer in cache:
        layer.uses_placeholders = True
        layer.share(shared)
    model(mx.arange(150)[None] % 64, cache=cache)
    return cache


class Chat:
    """A cache that is read in compiled steps where possible, and its twin without any."""

    def __init__(self, model, caches):
        self.model, self.caches = model, caches

    def step(self, packs=True):
        token = mx.array([[self.caches[0][0].offset * 7 % 64]])
        cache, twin = self.caches
        with packing_later([*cache, *twin]):
            found, expected = logits_of(self.model, token, cache), self.model(token, cache=twin)
        if packs:  # the twin at the same time, by the same kernels
            pack_together(cache)
            pack_together(twin)
        assert mx.array_equal(found, expected), self.caches[0][0].offset
        assert [layer.offset for layer in cache] == [layer.offset for layer in twin]

    def draft(self, count, accepted):
        """A step of several tokens, of which some are trimmed again."""
        tokens = mx.arange(count)[None]
        with verifying([layer for cache in self.caches for layer in cache]):
            found, expected = (self.model(tokens, cache=cache) for cache in self.caches)
        assert mx.array_equal(found, expected)
        self.trim(count - accepted)

    def branch(self):
        return Chat(self.model, copy.deepcopy(self.caches))

    def trim(self, count):
        for layer in (*self.caches[0], *self.caches[1]):
            layer.trim(count)

    def assert_same_tokens(self):
        for layer, twin in zip(*self.caches, strict=True):
            (_, arrays), (_, expected) = layer.state, twin.state
            assert arrays.keys() == expected.keys()
            assert all(mx.array_equal(arrays[name], expected[name]) for name in arrays)


@pytest.fixture
def compiled(monkeypatch):
    """Numbers of steps that ran as one function."""
    counts = []

    def mark_appended(layer, *arguments):
        counts.append(layer)
        return marked(layer, *arguments)

    marked = SchemeCache.mark_appended
    monkeypatch.setattr(SchemeCache, "mark_appended", mark_appended)
    return counts


@pytest.fixture
def eager(kernels, monkeypatch):
    """Emulated kernels that run when they are launched, on arrays that are not views."""
    launch_later = kernels._launch

    def run(*arguments):
        outputs = launch_later(*arguments)
        kernels.finish()
        kernels.last_output = None
        return outputs

    monkeypatch.setattr(kernels, "_launch", run)
    monkeypatch.setattr(steady, "flat", lambda array: array)
    return kernels


@needs_compiler
@pytest.mark.parametrize("scheme", ["turbo4", "trellis3"])
def test_compiled_steps_give_the_same_logits_and_tokens(eager, compiled, scheme):
    model = tiny_llama()
    chat = Chat(model, [cache_for(model, scheme, eager.workspace) for _ in range(2)])
    for _ in range(40):
        chat.step()
    other = chat.branch()
    for part in (*other.caches[0], *other.caches[1]):
        part.share(eager.workspace)
        part.uses_placeholders = True
    chat.trim(5)
    for _ in range(12):
        chat.step()
        other.step()
    # All layers, and most steps: not the first of a kind, nor those after packing, a branch and a cut.
    assert len(compiled) > 25 * 3 and len(set(compiled)) == 6
    chat.assert_same_tokens()
    other.assert_same_tokens()


def attends_twice(layer, *arguments):
    attend = attends_twice.original
    attend(layer, *arguments)
    return attend(layer, *arguments)


def attends_otherwise(layer, *arguments):
    return attends_twice.original(layer, *arguments) * 1.5


attends_twice.original = TracedLayer.attend


@needs_compiler
@pytest.mark.parametrize("attend", [attends_twice, attends_otherwise])
def test_a_model_that_uses_its_caches_otherwise_is_read_without(monkeypatch, eager, compiled, attend):
    model = tiny_llama()
    chat = Chat(model, [cache_for(model, "turbo4", eager.workspace) for _ in range(2)])
    monkeypatch.setattr(TracedLayer, "attend", attend)
    for _ in range(20):
        chat.step()
    assert not compiled
    chat.assert_same_tokens()


@needs_compiler
def test_layers_at_different_positions_and_other_caches_are_read_without(eager, compiled):
    model = tiny_llama()
    cache = cache_for(model, "turbo4", eager.workspace)
    for _ in range(4):
        logits_of(model, mx.array([[3]]), cache)
    assert compiled
    compiled.clear()
    cache[1].trim(1)
    logits_of(model, mx.array([[3]]), cache)
    mixed = [*cache[:2], kv.make_prompt_cache(model, "fp16")[2]]
    logits_of(model, mx.array([[3]]), mixed)
    assert not compiled


class PlainKernels(device.Kernels):
    """Kernels of MLX's operations, as MLX traces no emulated ones. Attention depends on the queries alone."""

    def compiled(self, spec):
        def run(inputs, **launch_):
            shapes = zip(launch_["output_shapes"], launch_["output_dtypes"], strict=True)
            outputs = [mx.zeros(*pair) for pair in shapes]
            if spec.kernel.startswith("attend"):
                outputs[0] += inputs[0].sum(axis=-1, keepdims=True) / 8
            return outputs

        return run

    def verify_first_use(self, plan, inputs, reference, candidate, error):
        self.trusted.add(plan)
        return candidate()


@pytest.fixture
def tracing(monkeypatch):
    kernels = PlainKernels("cuda")
    for module in (fused, launch, workspace):
        monkeypatch.setattr(module, "kernels", lambda: kernels)
    launch._layout_factory.cache_clear()
    mx.enable_compile()
    yield
    if mx.default_device() == mx.cpu:  # the engine's setting
        mx.disable_compile()
    launch._layout_factory.cache_clear()


def test_a_step_is_traced_once_however_the_caches_grow(monkeypatch, tracing, compiled):
    traced = []
    model = tiny_llama()
    call = type(model).__call__
    monkeypatch.setattr(
        type(model),
        "__call__",
        lambda self, *arguments, cache: (
            traced.append(isinstance(cache[0], TracedLayer)),
            call(self, *arguments, cache=cache),
        )[1],
    )
    cache = cache_for(model, "turbo4", workspace.Workspace())
    with packing_later(cache):
        for _ in range(200):
            mx.eval(logits_of(model, mx.array([[3]]), cache))
            pack_together(cache)
    assert cache[0].packed_tokens > 200 and len(compiled) > 3 * 130
    assert sum(traced) <= 3, "once for each number of threadgroups, and not at another length"


@pytest.mark.parametrize(
    "name", ["cohere", "deepseek_v2", "gemma", "gpt2", "granitemoe", "gpt_bigcode", "phi3", "qwen3_moe"]
)
def test_models_of_other_kinds_give_the_same_logits_however_long_they_run(tracing, compiled, name):
    model = families.model(name)
    chat = Chat(model, [cache_for(model, "turbo4", workspace.Workspace()) for _ in range(2)])
    for _ in range(40):
        chat.step()
    # The positions of one of them are numbers of Python, which cannot be traced.
    assert bool(compiled) == (name != "gpt_bigcode")


def test_a_step_is_compiled_anew_with_an_adapter(tracing, compiled):
    loaded = shapes.build("tiny")
    caches = [cache_for(loaded.model, "turbo4", workspace.Workspace()) for _ in range(2)]

    def step():
        token = mx.array([[7]])
        with packing_later(caches[1]):
            expected = loaded.model(token, cache=caches[1])[0]
        found = Step(SimpleNamespace(model=loaded, cache=caches[0]), token[0]).result()
        for cache in caches:
            pack_together(cache)
        assert mx.allclose(found, expected, atol=1e-4)
        return expected

    for _ in range(12):
        plain = step()
    assert compiled
    compiled.clear()
    linear_to_lora_layers(loaded.model, 2, {"rank": 4, "scale": 20.0, "dropout": 0.0})
    loaded.model.update(tree_map(lambda x: x + 0.1, loaded.model.trainable_parameters()))
    loaded = replace(loaded)  # as every change of the adapter makes another one
    for _ in range(12):
        adapted = step()
    assert compiled and not mx.allclose(plain, adapted, atol=0.1)


def test_a_model_that_is_dropped_frees_its_weights_at_once(tracing, compiled):
    gc.collect()
    gc.disable()
    try:
        before = mx.get_active_memory()
        model = build("llama", **{**LLAMA, "hidden_size": 1024})
        weights = mx.get_active_memory() - before
        cache = cache_for(model, "turbo4", workspace.Workspace())
        for _ in range(12):
            mx.eval(logits_of(model, mx.array([[3]]), cache))
        assert compiled
        compiled.clear()
        del model, cache
        assert mx.get_active_memory() - before < weights / 4
    finally:
        gc.enable()


@pytest.mark.skipif(device.kernels() is None, reason="no GPU")
@pytest.mark.parametrize("scheme", ["turbo4", "trellis3", "turbo8v4"])
def test_compiled_steps_of_this_device_give_the_same_logits(compiled, scheme):
    model = tiny_llama()
    chat = Chat(model, [cache_for(model, scheme, workspace.Workspace()) for _ in range(2)])
    for _ in range(150):
        chat.step()
    assert len(compiled) > 100 * 3 and not compiled_step._steps.get(model, lambda: None)._refused
    chat.assert_same_tokens()
