"""When a kernel is used, and when the plain operations are; on a GPU the kernels themselves."""

from __future__ import annotations

import copy

import mlx.core as mx
import pytest
from mlx_lm.models import llama

from tests.kv.kernels.test_emulated import add
from tqchat import kv
from tqchat.kv.attention.placeholders import accepts_placeholders
from tqchat.kv.attention.reference import attention
from tqchat.kv.cache import SchemeCache
from tqchat.kv.kernels import device
from tqchat.kv.kernels.device import Kernels
from tqchat.kv.kernels.fused import FusedAttention, with_own_tail
from tqchat.kv.kernels.launch import StepLauncher, Workspace
from tqchat.kv.kernels.plan import plan_for
from tqchat.kv.kernels.probe import probe
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
    """Kernels whose launches are ``run``."""
    made = Kernels(language)
    monkeypatch.setattr("tqchat.kv.kernels.fused.kernels", lambda: made)
    monkeypatch.setattr(StepLauncher, "run", run)
    return made


def attend(monkeypatch, layer, answer):
    """Attention with kernels that give ``answer``, as no machine without a GPU can run them."""
    made = use_kernels(monkeypatch, lambda *arguments: answer())
    cache, queries = layer
    expected = attention(queries, *cache.sides, 0.1, None)
    fused = FusedAttention()
    first = fused(queries, *cache.sides, 0.1, None)
    return made, expected, first, fused(queries, *cache.sides, 0.1, None)


def test_a_kernel_that_agrees_is_trusted(monkeypatch, layer):
    cache, queries = layer
    right = attention(queries, *cache.sides, 0.1, None)
    made, expected, first, second = attend(monkeypatch, layer, lambda: right)
    assert len(made.trusted) == 1 and not made.refused
    assert mx.array_equal(first, expected) and mx.array_equal(second, expected)


def test_a_kernel_that_disagrees_is_refused_once_and_for_all(monkeypatch, layer, caplog):
    made, expected, first, second = attend(monkeypatch, layer, lambda: mx.zeros((1, 4, 1, 64)))
    assert mx.array_equal(first, expected)
    assert second is None
    assert "differs from the plain operations" in next(iter(made.refused.values()))
    assert len(caplog.records) == 1


def test_a_kernel_that_does_not_compile_is_refused(monkeypatch, layer):
    def fails():
        raise RuntimeError("no such word\nin line 3")

    made, expected, first, second = attend(monkeypatch, layer, fails)
    assert mx.array_equal(first, expected) and second is None
    assert list(made.refused.values()) == ["it does not run: no such word"]


def with_tails(changed):
    """``StepLauncher.run`` as a kernel that writes tails, perhaps others than it should; without a token that has_pending
    it is right.
    """

    def run(steps, queries, keys, values, scale, mask, sink):
        right = attention(queries, with_own_tail(keys), with_own_tail(values), 0.1, "causal")
        for side in (keys, values):
            if side.recent.has_pending:
                held, token = side.recent.parts
                tail = held[...]
                tail[:, :, side.recent.length - 1 : side.recent.length] = token + changed
                side.recent.mark_written(tail)
        return right

    return run


def waiting(layer):
    cache, _ = layer
    x = mx.random.normal((1, 2, 1, 64)).astype(mx.float16)
    add(cache, x, x + 1)
    stores = [side.recent for side in cache.sides]
    assert all(store.has_pending for store in stores)
    return stores, (x, x + 1)


def test_the_tail_that_a_trusted_kernel_wrote_is_the_cache_s(monkeypatch, layer):
    made = use_kernels(monkeypatch, with_tails(0))
    cache, queries = layer
    for number in range(3):
        stores, tokens = waiting(layer)
        held = [store.parts[0] for store in stores]
        length = cache.size()
        cache._fused(queries, *cache.sides, 0.1, None)
        for store, array, token in zip(stores, held, tokens, strict=True):
            assert not store.has_pending and mx.array_equal(store.view()[0][:, :, -1:], token)
            # The first time the plain operations write; what they write to stays the same.
            assert (store.arrays[0] is array) == (number == 0)
        assert cache.size() == length and len(made.trusted) == 1


def test_a_kernel_that_writes_another_tail_is_refused_and_serves_where_nothing_waits(monkeypatch, layer):
    made = use_kernels(monkeypatch, with_tails(0.25))
    cache, queries = layer
    for _ in range(3):
        stores, tokens = waiting(layer)
        assert cache._fused(queries, *cache.sides, 0.1, None) is not None
        for store, token in zip(stores, tokens, strict=True):
            assert mx.array_equal(store.view()[0][:, :, -1:], token)
    assert "does not write the last token" in next(iter(made.refused.values()))
    assert [plan.key.writes_tail for plan in made.trusted] == [False]


def test_launches_for_one_token_and_for_a_few_are_kept_beside_each_other(monkeypatch, layer):
    use_kernels(monkeypatch, with_tails(0))
    cache, queries = layer
    kept = []
    for number in range(9):
        waiting(layer)
        if number % 3:
            for side in cache.sides:
                side.recent.write_pending()
        rows = mx.concatenate([queries] * (1, 3, 4)[number % 3], axis=2)
        cache._fused(rows, *cache.sides, 0.1, "causal")
        kept.append(dict(cache._fused._steps))
    # The first of each was a trial.
    assert kept[2] == {} and len(kept[5]) == 3 and kept[5] == kept[-1]


def test_what_a_refused_launch_leaves_nobody_finds(monkeypatch, layer):
    cache, queries = layer
    shared, workspaces = Workspace(), []
    cache.share(shared)
    run = with_tails(0)

    def noted(steps, *arguments):
        workspaces.append(steps.workspace)
        return run(steps, *arguments)

    use_kernels(monkeypatch, noted, "cuda")
    for _ in range(3):
        cache._fused(queries, *cache.sides, 0.1, None)
    assert workspaces[0] is not shared and workspaces[1:] == [shared, shared]


@pytest.fixture
def compiling():
    mx.enable_compile()
    yield
    if mx.default_device() == mx.cpu:  # as the engine leaves it
        mx.disable_compile()


def test_a_step_of_a_trusted_plan_is_put_together_once(monkeypatch, layer, compiling):
    """With a kernel of MLX's own operations, as no other runs here."""
    cache, queries = layer
    traced = []

    def kernel(text):
        def launch(inputs, output_shapes, output_dtypes, **_):
            traced.append(text.kernel)
            assert output_dtypes == [inputs[0].dtype]
            return [mx.broadcast_to(inputs[0].max(), output_shapes[0])]

        return launch

    made = Kernels("cuda")
    for module in ("fused", "launch"):
        monkeypatch.setattr(f"tqchat.kv.kernels.{module}.kernels", lambda: made)
    monkeypatch.setattr(Kernels, "_compile", lambda self, text: kernel(text))
    shared = Workspace()
    for side in cache.sides:
        side.recent.write_pending()
    layers = [cache, copy.deepcopy(cache), copy.deepcopy(cache)]
    for one in layers:
        one.share(shared)
    fused = cache._fused
    made.trusted.add(plan_for(queries, *cache.sides, False, made))
    expected = queries.max().item()
    shared.before = queries
    for one in (*layers, cache):
        found = one._fused(queries, *one.sides, 0.1, None)
        assert found.shape == queries.shape and found.max().item() == pytest.approx(expected, rel=1e-2)
        assert shared.before is found and len(traced) == 1
    # Other queries are noticed without being looked at.
    other = mx.concatenate([queries, queries], axis=2)
    assert fused(other, *cache.sides, 0.1, None) is None
    found = fused(2 * queries, *cache.sides, 0.1, None)
    assert found.max().item() == pytest.approx(2 * expected, rel=1e-2) and len(traced) == 1


def test_masks_that_a_kernel_does_not_know_go_to_the_plain_operations(monkeypatch, layer):
    monkeypatch.setattr("tqchat.kv.kernels.fused.kernels", lambda: Kernels("metal"))
    cache, queries = layer
    mask = mx.ones((1, 200), dtype=mx.bool_)
    assert FusedAttention()(queries, *cache.sides, 0.1, mask) is None


def tiny():
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


def made_for(model):
    def make():
        cache = kv.make_prompt_cache(model, "turbo4")
        return cache, flat_layers(cache)

    return make


def test_a_model_that_only_attends_answers_the_same_without_decoded_keys():
    model = tiny()
    assert accepts_placeholders(model, made_for(model))
    cache = kv.make_prompt_cache(model, "turbo4")
    tokens = mx.arange(180)[None] % 64
    for part in (tokens[:, :170], tokens[:, 170:171]):
        model(part, cache=cache)
    twin = copy.deepcopy(cache)
    for one in twin:
        one.uses_placeholders = True
    # One token, and more than a GPU attends to from packed storage.
    for part in (tokens[:, 171:172], mx.arange(30)[None]):
        assert mx.array_equal(model(part, cache=cache), model(part, cache=twin))


def test_a_model_that_looks_at_decoded_keys_is_given_them():
    model = tiny()
    inner = model.model.layers[0].self_attn
    projection = inner.o_proj

    class Looks:
        def __call__(self, x):
            return projection(x) + 0 * cache[0].keys_and_values()[0].sum()

    cache = kv.make_prompt_cache(model, "turbo4")
    inner.o_proj = Looks()

    def make():
        nonlocal cache
        cache = kv.make_prompt_cache(model, "turbo4")
        return cache, flat_layers(cache)

    original = copy.deepcopy

    def follow(pair, memo=None):
        nonlocal cache
        copied = original(pair)
        cache = copied[0]
        return copied

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tqchat.kv.attention.placeholders.copy.deepcopy", follow)
        assert not accepts_placeholders(model, make)


def test_doctor_tells_of_the_kernels():
    told = probe()
    assert told == "none: plain operations on a CPU" or "agree with plain operations" in told


@pytest.mark.skipif(device.kernels() is None, reason="no GPU")
@pytest.mark.parametrize(
    "scheme", ["turbo4", "turbo3", "turbo8v4", "turbo0v2", "affine8", "affine4", "turbo2"]
)
@pytest.mark.parametrize(("dims", "group"), [((128, 128), 3), ((64, 64), 7), ((96, 80), 2), ((256, 256), 1)])
def test_the_device_s_kernels_agree(scheme, dims, group):
    mx.random.seed(4)
    cache = SchemeCache(parse_scheme(scheme))
    keys, values = (mx.random.normal((1, 2, 500, dim)).astype(mx.float16) for dim in dims)
    for part in (slice(0, 499), slice(499, 500)):
        cache.update_and_fetch(keys[:, :, part], values[:, :, part])
    queries = mx.random.normal((1, 2 * group, 1, dims[0])).astype(mx.float16)
    fused = FusedAttention()
    for _ in range(2):
        add(cache, keys[:, :, :1], values[:, :, :1])
        # First with a token that has_pending, then with none.
        for _ in range(2):
            assert fused(queries, *cache.sides, 0.1, None) is not None, device.kernels().refused
    assert not device.kernels().refused
