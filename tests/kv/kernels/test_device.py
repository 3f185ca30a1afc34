"""Verification, fallback and reuse of kernels; on a GPU also the kernels themselves."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import llama

from tests.kv.kernels.emulator import write_into
from tests.kv.kernels.test_emulated import append_unread, mixed, short_of_packing
from tqchat import kv
from tqchat.kv.attention import routing
from tqchat.kv.attention.placeholders import accepts_placeholders
from tqchat.kv.attention.reference import attention
from tqchat.kv.cache import SchemeCache
from tqchat.kv.kernels import device
from tqchat.kv.kernels.device import Kernels
from tqchat.kv.kernels.fused import FusedAttention, with_own_tail
from tqchat.kv.kernels.launch import StepLauncher, _LayoutsByTail
from tqchat.kv.kernels.plan import plan_for
from tqchat.kv.kernels.probe import probe
from tqchat.kv.kernels.workspace import LayerLaunches, Workspace
from tqchat.kv.prompt_cache import flat_layers
from tqchat.kv.scheme import parse_scheme


@pytest.fixture
def layer():
    mx.random.seed(3)
    cache = SchemeCache(parse_scheme("turbo4"))
    x = mx.random.normal((1, 2, 200, 64)).astype(mx.float16)
    for part in (x[:, :, :199], x[:, :, 199:]):
        cache.update_and_fetch(part, part)
    return cache, mx.random.normal((1, 4, 1, 64)).astype(mx.float16)


def use_kernels(monkeypatch, run, language="metal"):
    """Use kernels whose launches call ``run``."""
    device_kernels = Kernels(language)
    monkeypatch.setattr("tqchat.kv.kernels.fused.kernels", lambda: device_kernels)
    monkeypatch.setattr(StepLauncher, "run", run)
    return device_kernels


def attend(monkeypatch, layer, result):
    """Attend twice with kernels that return ``result()``; works without a GPU."""
    device_kernels = use_kernels(monkeypatch, lambda *arguments: result())
    cache, queries = layer
    expected = attention(queries, *cache.sides, 0.1, None)
    fused = FusedAttention()
    first = fused(queries, *cache.sides, 0.1, None)
    return device_kernels, expected, first, fused(queries, *cache.sides, 0.1, None)


@pytest.mark.parametrize("language, device_of_reference", [("cuda", mx.cpu), ("metal", None)])
def test_the_cpu_computes_what_a_cuda_kernel_is_compared_with(monkeypatch, language, device_of_reference):
    chosen = [None]

    @contextmanager
    def stream(chosen_device):
        chosen.append(chosen_device)
        yield
        chosen.append(None)

    monkeypatch.setattr(mx, "stream", stream)
    seen = []

    given = mx.arange(3)
    evaluated = []
    real = mx.eval
    monkeypatch.setattr(mx, "eval", lambda *arrays: (evaluated.append((chosen[-1], arrays)), real(*arrays)))

    def computed():
        seen.append(chosen[-1])
        return mx.zeros(2)

    def error(expected, found):
        seen.append(chosen[-1])

    Kernels(language).verify_first_use("plan", lambda: [given], computed, computed, error)
    assert seen == [None, device_of_reference, device_of_reference]
    # What the reference reads is complete before any operation of another device is in the graph.
    assert [where for where, _ in evaluated] == [None, device_of_reference]
    assert evaluated[0][1][1][0] is given


def test_a_kernel_that_agrees_is_trusted(monkeypatch, layer):
    cache, queries = layer
    right = attention(queries, *cache.sides, 0.1, None)
    device_kernels, expected, first, second = attend(monkeypatch, layer, lambda: right)
    assert len(device_kernels.trusted) == 1 and not device_kernels.refused
    assert mx.array_equal(first, expected) and mx.array_equal(second, expected)


def test_a_kernel_that_disagrees_is_refused_permanently(monkeypatch, layer, caplog):
    device_kernels, expected, first, second = attend(monkeypatch, layer, lambda: mx.zeros((1, 4, 1, 64)))
    assert mx.array_equal(first, expected)
    assert second is None
    assert "differs from the plain operations" in next(iter(device_kernels.refused.values()))
    assert len(caplog.records) == 1


def test_a_kernel_that_does_not_compile_is_refused(monkeypatch, layer):
    def fails():
        raise RuntimeError("unknown identifier\nin line 3")

    device_kernels, expected, first, second = attend(monkeypatch, layer, fails)
    assert mx.array_equal(first, expected) and second is None
    assert list(device_kernels.refused.values()) == ["it does not run: unknown identifier"]


def run_writing_tails(error):
    """A ``StepLauncher.run`` that writes tails like a kernel, off by ``error``, with correct output."""

    def run(launcher, queries, keys, values, scale, mask, sink):
        right = attention(queries, with_own_tail(keys), with_own_tail(values), 0.1, "causal")
        mx.eval(right)
        for tail in (keys.recent, values.recent):
            if tail.pending is not None:
                (memory,) = tail.memory
                written = memory[...]
                written[:, :, tail.length - 1 : tail.length] = tail.pending + error
                mx.eval(memory)
                write_into(memory, np.asarray(written))
                tail.mark_written(launcher._launches)
        return right

    return run


def append_pending(layer):
    cache, _ = layer
    x = mx.random.normal((1, 2, 1, 64)).astype(mx.float16)
    append_unread(cache, x, x + 1)
    stores = [side.recent for side in cache.sides]
    assert all(store.pending is not None for store in stores)
    return stores, (x, x + 1)


@pytest.fixture
def copying(monkeypatch):
    """Reading tails that were written copies them, without a kernel."""

    def copy_of(array):
        mx.eval(array)
        return mx.array(np.array(array))

    monkeypatch.setattr(LayerLaunches, "copy_of", lambda self, array, capacity: copy_of(array))


def test_the_cache_has_the_tail_written_by_a_trusted_kernel(monkeypatch, layer, copying):
    device_kernels = use_kernels(monkeypatch, run_writing_tails(0))
    cache, queries = layer
    for number in range(3):
        stores, tokens = append_pending(layer)
        length = cache.size()
        cache._fused(queries, *cache.sides, 0.1, None)
        for store, token in zip(stores, tokens, strict=True):
            # On first use the plain operations write.
            assert store.pending is None and (store.writer is not None) == (number > 0)
            assert mx.array_equal(store.view()[0][:, :, -1:], token) and store.writer is None
        assert cache.size() == length and len(device_kernels.trusted) == 1


def test_a_kernel_that_writes_a_wrong_tail_is_used_only_without_pending_tokens(monkeypatch, layer, copying):
    device_kernels = use_kernels(monkeypatch, run_writing_tails(0.25))
    cache, queries = layer
    for _ in range(3):
        stores, tokens = append_pending(layer)
        assert cache._fused(queries, *cache.sides, 0.1, None) is not None
        for store, token in zip(stores, tokens, strict=True):
            assert mx.array_equal(store.view()[0][:, :, -1:], token)
    assert "does not write the last token" in next(iter(device_kernels.refused.values()))
    assert [plan.key.writes_tail for plan in device_kernels.trusted] == [False]


def test_launchers_are_kept_for_each_number_of_rows_and_pending_tokens(monkeypatch, layer, copying):
    use_kernels(monkeypatch, run_writing_tails(0))
    cache, queries = layer
    kept = []
    for number in range(9):
        append_pending(layer)
        if number % 3:
            for side in cache.sides:
                side.recent.write_pending()
        rows = mx.concatenate([queries] * (1, 3, 4)[number % 3], axis=2)
        cache._fused(rows, *cache.sides, 0.1, "causal")
        kept.append(dict(cache._fused._launchers))
    # The first launch of each kind is the verification.
    assert kept[2] == {} and len(kept[5]) == 3 and kept[5] == kept[-1]


def test_verification_does_not_use_the_shared_workspace(monkeypatch, layer):
    cache, queries = layer
    shared, workspaces = Workspace(), []
    cache.share(shared)
    run = run_writing_tails(0)

    def recording_run(launcher, *arguments):
        workspaces.append(launcher.workspace)
        return run(launcher, *arguments)

    use_kernels(monkeypatch, recording_run, "cuda")
    for _ in range(3):
        cache._fused(queries, *cache.sides, 0.1, None)
    assert workspaces[0] is not shared.of_thread and workspaces[1:] == [shared.of_thread] * 2


@pytest.fixture
def compiling():
    mx.enable_compile()
    yield
    if mx.default_device() == mx.cpu:  # the engine's setting
        mx.disable_compile()


def test_a_trusted_plan_is_traced_once(monkeypatch, layer, compiling):
    """The kernel is replaced by MLX operations, as none can run without a GPU."""
    cache, queries = layer
    traced = []

    def kernel(text):
        def launch(inputs, output_shapes, output_dtypes, **_):
            traced.append(text.kernel)
            assert output_dtypes == [inputs[0].dtype]
            return [mx.broadcast_to(inputs[0].max(), output_shapes[0])]

        return launch

    device_kernels = Kernels("cuda")
    for module in ("fused", "launch"):
        monkeypatch.setattr(f"tqchat.kv.kernels.{module}.kernels", lambda: device_kernels)
    monkeypatch.setattr(Kernels, "_compile", lambda self, text: kernel(text))
    shared = Workspace()
    for side in cache.sides:
        side.recent.write_pending()
    layers = [cache, copy.deepcopy(cache), copy.deepcopy(cache)]
    for one in layers:
        one.share(shared)
    fused = cache._fused
    device_kernels.trusted.add(plan_for(queries, *cache.sides, False, device_kernels))
    expected = queries.max().item()
    shared.of_thread.reserve(1 << 20, _LayoutsByTail)
    shared.of_thread.before = queries  # like an output, so that it is not traced once more
    for one in (*layers, cache):
        found = one._fused(queries, *one.sides, 0.1, None)
        assert found.shape == queries.shape and found.max().item() == pytest.approx(expected, rel=1e-2)
        assert shared.of_thread.before is found and len(traced) == 1
    # Queries of another shape are detected by MLX's retracing.
    other = mx.concatenate([queries, queries], axis=2)
    assert fused(other, *cache.sides, 0.1, None) is None
    found = fused(2 * queries, *cache.sides, 0.1, None)
    assert found.max().item() == pytest.approx(2 * expected, rel=1e-2) and len(traced) == 1


def test_array_masks_are_left_to_plain_operations(monkeypatch, layer):
    monkeypatch.setattr("tqchat.kv.kernels.fused.kernels", lambda: Kernels("metal"))
    cache, queries = layer
    mask = mx.ones((1, 200), dtype=mx.bool_)
    assert FusedAttention()(queries, *cache.sides, 0.1, mask) is None


def tiny_llama():
    mx.random.seed(1)
    arguments = llama.ModelArgs(
        model_type="llama",
        hidden_size=64,
        num_hidden_layers=2,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        rms_norm_eps=1e-5,
        vocab_size=64,
    )
    model = llama.Model(arguments)
    mx.eval(model.parameters())
    return model


def cache_factory(model, scheme):
    def make():
        cache = kv.make_prompt_cache(model, scheme)
        return cache, flat_layers(cache)

    return make


@pytest.mark.parametrize("scheme", ["turbo4", "trellis3", "turbo2", "trellis4v2", "turbo0v3"])
def test_a_model_that_only_attends_gives_the_same_logits_with_placeholders(scheme):
    model = tiny_llama()
    assert accepts_placeholders(model, cache_factory(model, scheme))
    cache = kv.make_prompt_cache(model, scheme)
    tokens = mx.arange(180)[None] % 64
    for part in (tokens[:, :170], tokens[:, 170:171]):
        model(part, cache=cache)
    twin = copy.deepcopy(cache)
    for one in twin:
        one.uses_placeholders = True
    # One token, and more rows than a GPU attends to from packed storage.
    for part in (tokens[:, 171:172], mx.arange(30)[None]):
        assert mx.array_equal(model(part, cache=cache), model(part, cache=twin))


def test_a_model_that_reads_decoded_keys_does_not_accept_placeholders():
    model = tiny_llama()
    inner = model.model.layers[0].self_attn
    projection = inner.o_proj

    class ReadsKeys:
        def __call__(self, x):
            return projection(x) + 0 * cache[0].keys_and_values()[0].sum()

    routing.install()
    cache = []
    inner.o_proj = ReadsKeys()

    def make():
        # Not by ``make_prompt_cache``, which asks the same question on a GPU and keeps the answer.
        nonlocal cache
        cache = [SchemeCache(parse_scheme("turbo4")) for _ in model.layers]
        return cache, flat_layers(cache)

    original = copy.deepcopy

    def copy_and_track(pair, memo=None):
        nonlocal cache
        copied = original(pair)
        cache = copied[0]
        return copied

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tqchat.kv.attention.placeholders.copy.deepcopy", copy_and_track)
        assert not accepts_placeholders(model, make)


def test_probe_describes_the_kernels():
    line = probe()
    assert line == "none: plain operations on a CPU" or "agree with plain operations" in line


@pytest.mark.skipif(device.kernels() is None, reason="no GPU")
@pytest.mark.parametrize(
    "scheme",
    [
        "turbo4",
        "turbo3",
        "turbo8v4",
        "turbo0v2",
        "affine8",
        "affine4",
        "turbo2",
        "trellis2",
        "trellis3",
        "trellis4",
        "trellis3v2",
        mixed(("trellis", 3), ("turbo", 1)),
        mixed(("turbo", 1), ("trellis", 2)),
    ],
)
@pytest.mark.parametrize(("dims", "group"), [((128, 128), 3), ((64, 64), 7), ((96, 80), 2), ((256, 256), 1)])
def test_the_kernels_of_this_device_agree_with_plain_operations(scheme, dims, group):
    mx.random.seed(4)
    cache = SchemeCache(parse_scheme(scheme) if isinstance(scheme, str) else scheme)
    keys, values = (mx.random.normal((1, 2, 500, dim)).astype(mx.float16) for dim in dims)
    for part in (slice(0, 499), slice(499, 500)):
        cache.update_and_fetch(keys[:, :, part], values[:, :, part])
    queries = mx.random.normal((1, 2 * group, 1, dims[0])).astype(mx.float16)
    fused = FusedAttention()
    for _ in range(2):
        append_unread(cache, keys[:, :, :1], values[:, :, :1])
        # First with a pending token, then without.
        for _ in range(2):
            assert fused(queries, *cache.sides, 0.1, None) is not None, device.kernels().refused
    # All tokens in one array, as prefill needs them.
    for side in cache.sides:
        if side.packed.length:
            encoded = [(side.format, side.packed), (side.fine_format, side.fine)]
            decoded = [f.decode(store.view()).astype(mx.float16) for f, store in encoded if store.length]
            expected = [side.sinks.view()[0], *decoded, side.recent.view()[0]]
            whole = mx.concatenate(expected, axis=2).astype(mx.float32)
            found = side.fetch(mx.float16).astype(mx.float32)
            assert mx.abs(found - whole).max().item() <= 4e-3 * mx.abs(whole).max().item()
    assert not device.kernels().refused


@pytest.mark.skipif(device.kernels() is None, reason="no GPU")
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(
    "scheme", ["turbo2", "turbo3", "trellis2", "trellis3", "turbo5v2", mixed(("turbo", 1), ("trellis", 3))]
)
@pytest.mark.parametrize(("dims", "group"), [((128, 128), 2), ((64, 64), 7), ((80, 80), 3), ((256, 256), 2)])
def test_the_kernels_of_this_device_attend_to_fine_tokens(scheme, dims, group, rows):
    mx.random.seed(6)
    cache = SchemeCache(parse_scheme(scheme) if isinstance(scheme, str) else scheme)
    keys, values = (mx.random.normal((2, 2, 900, dim)).astype(mx.float16) for dim in dims)
    queries = mx.random.normal((2, 2 * group, rows, dims[0])).astype(mx.float16)
    sink_logits = mx.random.normal((2 * group,))
    fused = FusedAttention()
    only_fine = short_of_packing(scheme) - rows
    for begin, end in ((0, only_fine), (only_fine, 700), (700, 780), (780, 860)):
        cache.update_and_fetch(keys[:, :, begin:end], values[:, :, begin:end])
        cache.pack_due()
        assert all(side.fine.length for side in cache.sides)
        assert any(side.packed.length for side in cache.sides) == (begin > 0)
        append_unread(cache, keys[:, :, :rows], values[:, :, :rows])
        for _ in range(2):
            twins = [with_own_tail(side) for side in cache.sides]
            expected = attention(queries, *twins, 0.1, "causal", sink_logits).astype(mx.float32)
            found = fused(queries, *cache.sides, 0.1, "causal", sink_logits)
            assert found is not None, device.kernels().refused
            error = mx.abs(found.astype(mx.float32) - expected).max() / mx.abs(expected).max()
            assert error.item() < 1e-2
    assert not device.kernels().refused
