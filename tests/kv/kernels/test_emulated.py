"""The kernels' Metal source, run on the CPU, compared with plain operations."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import mlx.core as mx
import pytest

from tests.kv.kernels.emulator import CPLUSPLUS, Emulator, Everything, assert_same_in_place, shared_folder
from tqchat.kv.attention.reference import attention
from tqchat.kv.cache import SchemeCache
from tqchat.kv.codec.fitting import NO_STATISTICS, QueryStatistics
from tqchat.kv.codec.formats import make_format
from tqchat.kv.codec.turbo import TurboFormat
from tqchat.kv.kernels import decode, encode, launch, workspace
from tqchat.kv.kernels.decode import decode_inputs, decode_launch, decode_plan
from tqchat.kv.kernels.device import MIN_INPUT_SIZE, Kernels
from tqchat.kv.kernels.encode import MAX_ERROR_RATIO, encode_inputs, encode_launch, encode_plan
from tqchat.kv.kernels.fused import with_own_tail
from tqchat.kv.kernels.launch import StepLauncher
from tqchat.kv.kernels.plan import MAX_BLOCKS, MAX_FINE_SPLITS, plan_for
from tqchat.kv.kernels.workspace import Workspace
from tqchat.kv.prompt_cache import pack_together
from tqchat.kv.scheme import FormatSpec, parse_scheme
from tqchat.kv.storage import joint_encode
from tqchat.kv.storage import side as side_module

METAL, CUDA, TENSOR_CORES = Kernels("metal"), Kernels("cuda"), Kernels("cuda", tensor_cores=True)
WIDE_TABLES = Kernels("cuda", tensor_cores=True, shared_memory=227 * 1024)

pytestmark = pytest.mark.skipif(CPLUSPLUS is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    emulator = Emulator(shared_folder(tmp_path_factory))
    with pytest.MonkeyPatch.context() as patch:
        # Tails that were written are read through a kernel.
        patch.setattr(workspace, "kernels", lambda: emulated_by(emulator))
        yield emulator


def emulated_by(emulator, workspace_array=None):
    """Kernels that are run by an emulator."""

    def compiled(spec):
        return lambda inputs, **launch_: emulator.run(spec, inputs, launch_, workspace_array)

    return SimpleNamespace(compiled=compiled)


def mixed(key, value):
    """A scheme of these formats, as bits by layer give them: not every pair has a name of its own."""
    return replace(parse_scheme("trellis2"), key=FormatSpec(*key), value=FormatSpec(*value))


def filled(scheme, batch, heads, group, tokens, dims, dtype, rows):
    mx.random.seed(5)
    cache = SchemeCache(parse_scheme(scheme) if isinstance(scheme, str) else scheme)
    keys, values = (
        (mx.random.normal((batch, heads, tokens, dim)) + mx.random.normal((batch, heads, 1, dim))).astype(
            dtype
        )
        for dim in dims
    )
    cache.update_and_fetch(keys, values)
    cache.observe(
        mx.random.normal((batch, heads * group, 8, dims[0])) * mx.random.uniform(0.2, 3, (dims[0],))
    )
    cache.update_and_fetch(keys[:, :, :1], values[:, :, :1])
    append_unread(cache, keys[:, :, :rows], values[:, :, :rows])
    return cache, mx.random.normal((batch, heads * group, rows, dims[0])).astype(dtype)


def append_unread(cache, keys, values):
    """Append tokens without reading the tail, so that a single one stays pending."""
    cache.key_side.append(keys)
    cache.value_side.append(values)
    cache.offset += keys.shape[2]


def launcher_for(cache, queries, on, sink):
    plan = plan_for(queries, *cache.sides, sink is not None, on)
    assert plan is not None
    return StepLauncher(plan, queries, *cache.sides, 0.1, "causal", sink, Workspace())


def run_emulated(emulator, launcher, queries, *sides, sink=None):
    """``StepLauncher.run`` with emulated kernels; it writes to the sides."""
    workspace_array = launcher.workspace.array if launcher.plan.single_launch else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "kernels", lambda: emulated_by(emulator, workspace_array))
        mx.disable_compile()
        found = launcher.run(queries, *sides, 0.1, "causal", sink)
        if mx.default_device() != mx.cpu:  # the engine's setting
            mx.enable_compile()
    return found


def assert_matches_plain_operations(emulator, launcher, queries, cache, sink=None):
    """Output and tails equal those of plain operations."""
    twins = [with_own_tail(side) for side in cache.sides]
    expected = attention(queries, *cache.sides, 0.1, "causal", sink).astype(mx.float32)
    output = run_emulated(emulator, launcher, queries, *twins, sink=sink)
    largest = mx.abs(expected).max().item()
    # Both outputs are rounded to the queries' dtype: bfloat16 has steps of up to 1/128 of a value.
    step = largest / 128 if queries.dtype == mx.bfloat16 else 0
    assert mx.abs(output.astype(mx.float32) - expected).max().item() <= max(4e-3 * largest, step)
    for side, twin in zip(cache.sides, twins, strict=True):
        assert twin.recent.pending is None
        assert mx.array_equal(side.recent.view()[0], twin.recent.view()[0])


@pytest.mark.parametrize(
    ("scheme", "shape", "dims", "dtype", "rows", "on"),
    [
        ("turbo4", (1, 2, 3), (128, 128), mx.float16, 1, METAL),
        ("turbo3", (2, 1, 2), (64, 64), mx.bfloat16, 3, METAL),
        ("turbo8v2", (1, 1, 7), (128, 128), mx.float16, 1, METAL),
        ("turbo0v1", (1, 2, 1), (80, 80), mx.float16, 1, METAL),
        ("affine4", (1, 1, 4), (64, 64), mx.float16, 1, METAL),
        ("turbo3v4", (1, 1, 2), (192, 96), mx.float32, 1, METAL),
        ("turbo4", (1, 1, 12), (256, 256), mx.float16, 1, METAL),
        ("turbo2", (2, 2, 5), (80, 80), mx.bfloat16, 2, CUDA),
        ("turbo3", (2, 1, 7), (96, 192), mx.float16, 3, CUDA),
        ("affine4", (1, 2, 1), (64, 64), mx.float16, 1, CUDA),
        ("turbo4v3", (1, 2, 3), (128, 64), mx.float16, 2, TENSOR_CORES),
        ("turbo8v4", (1, 1, 8), (128, 128), mx.bfloat16, 1, TENSOR_CORES),
        ("turbo0v2", (2, 1, 4), (64, 256), mx.float16, 1, TENSOR_CORES),
        ("turbo3", (2, 2, 3), (128, 128), mx.float16, 4, TENSOR_CORES),
        ("turbo2v3", (1, 3, 2), (64, 64), mx.bfloat16, 5, TENSOR_CORES),
        ("turbo3v1", (1, 1, 7), (128, 64), mx.float16, 1, TENSOR_CORES),
        ("turbo4v2", (1, 1, 3), (256, 256), mx.float16, 3, TENSOR_CORES),
        ("turbo4", (1, 1, 8), (256, 256), mx.float16, 1, TENSOR_CORES),  # the most threadgroup memory
        ("turbo8v4", (1, 1, 8), (256, 256), mx.float16, 1, TENSOR_CORES),
        ("turbo4v3", (1, 1, 8), (128, 128), mx.float16, 1, TENSOR_CORES),
        ("turbo8v3", (1, 1, 2), (64, 256), mx.float16, 2, TENSOR_CORES),
        ("turbo4", (1, 1, 2), (64, 128), mx.float16, 1, TENSOR_CORES),
        ("turbo4", (1, 1, 2), (64, 256), mx.float16, 1, METAL),
        ("turbo3", (1, 1, 2), (32, 128), mx.float16, 1, CUDA),
        ("trellis4", (1, 1, 2), (64, 64), mx.float16, 1, TENSOR_CORES),
        ("trellis3", (2, 1, 3), (64, 128), mx.float16, 2, TENSOR_CORES),
        ("trellis4v2", (1, 2, 2), (128, 256), mx.float16, 1, TENSOR_CORES),
        ("trellis2v4", (1, 1, 3), (256, 128), mx.float16, 1, TENSOR_CORES),
        ("trellis8v3", (1, 1, 2), (128, 64), mx.float16, 1, TENSOR_CORES),
        ("trellis4", (1, 1, 3), (128, 128), mx.float16, 1, WIDE_TABLES),
        ("trellis4v2", (1, 2, 2), (64, 128), mx.bfloat16, 2, WIDE_TABLES),
        ("trellis8v4", (1, 1, 2), (128, 256), mx.float16, 1, WIDE_TABLES),
        ("trellis3v2", (1, 1, 2), (64, 64), mx.float16, 1, WIDE_TABLES),
        (mixed(("trellis", 4), ("turbo", 4)), (1, 1, 2), (64, 64), mx.float16, 1, WIDE_TABLES),
        ("trellis2", (1, 2, 3), (64, 64), mx.float16, 1, METAL),
        ("trellis3", (1, 1, 2), (80, 80), mx.float16, 1, METAL),
        ("trellis4v2", (2, 1, 2), (128, 128), mx.bfloat16, 2, METAL),
        ("trellis4v3", (1, 2, 2), (56, 96), mx.float16, 1, CUDA),
        ("turbo6", (1, 2, 3), (128, 64), mx.float16, 1, CUDA),
        ("turbo5v4", (1, 1, 2), (64, 128), mx.float16, 2, METAL),
        ("turbo8v5", (1, 1, 4), (80, 80), mx.bfloat16, 1, METAL),
        (mixed(("trellis", 3), ("turbo", 1)), (1, 2, 3), (64, 64), mx.float16, 1, TENSOR_CORES),
        (mixed(("turbo", 1), ("trellis", 2)), (1, 1, 2), (128, 128), mx.float16, 2, TENSOR_CORES),
        (mixed(("trellis", 2), ("turbo", 1)), (1, 1, 3), (64, 64), mx.float16, 1, METAL),
        (mixed(("turbo", 1), ("trellis", 3)), (1, 1, 2), (80, 80), mx.float16, 1, CUDA),
    ],
)
def test_attention_matches_plain_operations(emulator, scheme, shape, dims, dtype, rows, on):
    batch, heads, group = shape
    fine = (parse_scheme(scheme) if isinstance(scheme, str) else scheme).fine
    cache, queries = filled(scheme, batch, heads, group, 190 + fine, dims, dtype, rows)
    sink = mx.random.normal((heads * group,)) if scheme == "turbo3" else None
    launcher = launcher_for(cache, queries, on, sink)
    assert launcher.plan.has_fine == bool(fine) == bool(cache.key_side.fine.length)
    assert launcher.plan.tensor_cores == on.tensor_cores and launcher.plan.single_launch == (
        on.language == "cuda"
    )
    assert bool(launcher.plan.wide_tables) == bool(on.shared_memory)
    assert launcher.plan.value.writes_tail == (rows == 1)
    assert_matches_plain_operations(emulator, launcher, queries, cache, sink)


FINE_CASES = [
    ("turbo2", (1, 2, 3), (64, 64), mx.float16, 1, TENSOR_CORES),
    ("turbo3", (1, 1, 7), (128, 128), mx.bfloat16, 3, TENSOR_CORES),
    ("turbo2", (1, 1, 2), (256, 256), mx.float16, 1, TENSOR_CORES),
    ("trellis2", (2, 1, 3), (128, 128), mx.float16, 1, TENSOR_CORES),
    ("trellis3", (1, 2, 1), (64, 128), mx.bfloat16, 4, TENSOR_CORES),
    ("trellis3", (1, 1, 4), (256, 64), mx.float16, 2, TENSOR_CORES),
    ("trellis4v2", (1, 1, 5), (128, 256), mx.float16, 1, TENSOR_CORES),
    (mixed(("trellis", 3), ("turbo", 1)), (1, 2, 3), (64, 64), mx.float16, 1, TENSOR_CORES),
    (mixed(("turbo", 2), ("trellis", 3)), (1, 1, 12), (128, 128), mx.float16, 1, TENSOR_CORES),
    ("turbo2", (1, 2, 3), (80, 80), mx.bfloat16, 1, CUDA),
    ("turbo3", (2, 1, 2), (128, 64), mx.float16, 3, METAL),
    ("trellis2", (1, 1, 2), (256, 256), mx.float16, 1, METAL),
    ("trellis3", (1, 2, 2), (56, 104), mx.float16, 2, CUDA),
    ("trellis3", (1, 1, 1), (40, 40), mx.float32, 1, METAL),
    ("turbo5v2", (1, 1, 3), (64, 64), mx.float16, 1, TENSOR_CORES),
    (mixed(("turbo", 1), ("trellis", 2)), (1, 1, 9), (96, 80), mx.float16, 1, METAL),
]


def short_of_packing(scheme):
    """Tokens of which those between sinks and tail are all fine."""
    scheme = parse_scheme(scheme) if isinstance(scheme, str) else scheme
    return scheme.sinks + scheme.fine + scheme.tail - 5


@pytest.mark.parametrize(("scheme", "shape", "dims", "dtype", "rows", "on"), FINE_CASES)
def test_attention_where_nothing_is_packed_but_tokens_are_fine(
    emulator, scheme, shape, dims, dtype, rows, on
):
    batch, heads, group = shape
    cache, queries = filled(scheme, batch, heads, group, short_of_packing(scheme), dims, dtype, rows)
    assert not any(side.packed.length for side in cache.sides)
    sink = mx.random.normal((heads * group,)) if rows > 1 else None
    launcher = launcher_for(cache, queries, on, sink)
    assert launcher.plan.tensor_cores == (on.tensor_cores and scheme != "turbo5v2")
    assert_matches_plain_operations(emulator, launcher, queries, cache, sink)
    # The same kernel serves when the first tokens are packed.
    new = [mx.random.normal((batch, heads, 70, dim)).astype(dtype) for dim in dims]
    cache.update_and_fetch(*new)
    cache.pack_due()
    assert all(side.packed.length for side in cache.sides)
    assert plan_for(queries, *cache.sides, sink is not None, on) == replace(
        launcher.plan,
        key=replace(launcher.plan.key, writes_tail=False),
        value=replace(launcher.plan.value, writes_tail=False),
    )
    if rows > 1:
        assert_matches_plain_operations(emulator, launcher, queries, cache, sink)


@pytest.mark.parametrize("on", [METAL, TENSOR_CORES])
@pytest.mark.parametrize("scheme", ["turbo3", "trellis2"])
def test_unfitted_fine_tokens(emulator, monkeypatch, scheme, on):
    monkeypatch.setattr(TurboFormat, "fit", lambda self, x, statistics: self)
    cache, queries = filled(scheme, 1, 2, 2, 190 + parse_scheme(scheme).fine, (64, 64), mx.float16, 2)
    launcher = launcher_for(cache, queries, on, None)
    assert launcher.plan.has_fine and not (launcher.plan.key.centres or launcher.plan.value.centres)
    assert_matches_plain_operations(emulator, launcher, queries, cache)


@pytest.mark.parametrize(("dropped", "on"), [(9, TENSOR_CORES), (9, METAL), (153, TENSOR_CORES), (153, CUDA)])
def test_fine_tokens_after_tokens_left_the_window(emulator, dropped, on):
    cache, queries = filled("trellis2", 1, 2, 2, 318, (64, 64), mx.float16, 1)
    for side in cache.sides:
        side.drop_front(dropped)
        packed, fine = side.packed, side.fine
        assert (packed.start, fine.start) == ((5, 0) if packed.length else (0, 5))
    launcher = launcher_for(cache, queries, on, None)
    assert_matches_plain_operations(emulator, launcher, queries, cache)


@pytest.mark.parametrize("on", [METAL, TENSOR_CORES])
def test_many_fine_tokens_are_processed_by_few_threadgroups(emulator, monkeypatch, on):
    monkeypatch.setattr(launch, "TARGET_SIMD_GROUPS", 1)
    launch._layout_factory.cache_clear()
    scheme = replace(parse_scheme("trellis3"), fine=400)
    cache, queries = filled(scheme, 1, 1, 3, 700, (64, 64), mx.float16, 2)
    launcher = launcher_for(cache, queries, on, None)
    layout = launcher._layouts[cache.value_side.recent.length]
    launch._layout_factory.cache_clear()
    assert layout.splits == 3 and cache.value_side.fine.length >= 400
    assert_matches_plain_operations(emulator, launcher, queries, cache)


def test_fine_tokens_at_different_places_have_no_kernel():
    cache, queries = filled("trellis2", 1, 2, 2, 318, (64, 64), mx.float16, 1)
    launcher = launcher_for(cache, queries, CUDA, None)
    keys, values = cache.sides
    values.fine = values.fine.snapshot()
    values.fine.take_front(0)
    values.revision = object()
    assert keys.fine.capacity == values.fine.capacity
    assert plan_for(queries, keys, values, False, CUDA) == launcher.plan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values.packed, "length", values.packed.length - 1)
        assert plan_for(queries, keys, values, False, CUDA) is None
    values.fine._grow(values.fine.length, values.fine.view())
    assert keys.fine.capacity < values.fine.capacity
    assert plan_for(queries, keys, values, False, CUDA) is None
    assert launcher.run(queries, keys, values, 0.1, "causal", None) is None


@pytest.mark.parametrize(
    ("scheme", "shape", "on"),
    [
        ("turbo4", (1, 1, 7), TENSOR_CORES),
        ("turbo8v4", (1, 2, 3), TENSOR_CORES),
        ("turbo0v4", (1, 1, 2), TENSOR_CORES),
        ("turbo3", (1, 1, 3), METAL),
        ("trellis2", (1, 1, 3), TENSOR_CORES),
    ],
)
def test_few_threadgroups_process_many_tokens_each(emulator, monkeypatch, scheme, shape, on):
    monkeypatch.setattr(launch, "TARGET_SIMD_GROUPS", 1)
    launch._layout_factory.cache_clear()
    # Not a whole number of tiles, so that the last ones overlap.
    cache, queries = filled(scheme, *shape, 1500, (128, 128), mx.float16, 2)
    cache.trim(cache.size() - 1300)
    new = mx.random.normal((shape[0], shape[1], 500, 128)).astype(mx.float16)
    cache.update_and_fetch(new, new)
    launcher = launcher_for(cache, queries, on, None)
    layout = launcher._layouts[cache.value_side.recent.length]
    launch._layout_factory.cache_clear()
    assert layout.splits == (3 if launcher.plan.has_fine else 2) and cache.value_side.packed.length % 32
    assert_matches_plain_operations(emulator, launcher, queries, cache)


@pytest.mark.parametrize(("dims", "on"), [((128, 128), TENSOR_CORES), ((80, 80), CUDA)])
def test_counters_return_to_zero_after_every_launch(emulator, dims, on):
    cache, queries = filled("turbo4", 2, 2, 3, 190, dims, mx.float16, 1)
    for side in cache.sides:
        side.recent.write_pending()
    launcher = launcher_for(cache, queries, on, None)
    emulator.workspaces.clear()
    for number in range(3):
        assert_matches_plain_operations(emulator, launcher, queries, cache)
        ((_, workspace),) = emulator.workspaces.values()
        assert workspace.any() and not workspace[:MAX_BLOCKS].any()
        queries = 2 * queries
        new = mx.random.normal((2, 2, 20 * number + 1, dims[0])).astype(mx.float16)
        cache.update_and_fetch(new, new)
        cache.pack_due()


@pytest.mark.parametrize("on", [CUDA, TENSOR_CORES])
def test_layers_can_share_a_workspace(emulator, on):
    shared = Workspace()
    emulator.workspaces.clear()
    layers = []
    for arguments in (
        ("turbo4", 1, 1, 2, 190, (64, 64), mx.float16, 1),
        ("turbo4", 2, 2, 3, 700, (128, 128), mx.float16, 1),
        ("turbo3", 1, 2, 2, 400, (64, 64), mx.float16, 3),
    ):
        cache, queries = filled(*arguments)
        for side in cache.sides:
            side.recent.write_pending()
        plan = plan_for(queries, *cache.sides, False, on)
        layers.append(
            (StepLauncher(plan, queries, *cache.sides, 0.1, "causal", None, shared), queries, cache)
        )
        for launcher, layer_queries, layer_cache in layers * 2:
            assert_matches_plain_operations(emulator, launcher, layer_queries, layer_cache)
            assert not emulator.workspaces[id(shared.of_thread.array)][1][:MAX_BLOCKS].any()
    assert len(emulator.workspaces) > 1  # it was replaced by a larger one


@pytest.mark.parametrize("on", [METAL, CUDA, TENSOR_CORES])
def test_attention_after_tokens_left_the_window(emulator, on):
    cache, queries = filled("turbo8v4", 1, 2, 2, 190, (64, 64), mx.float16, 1)
    cache.trim(0)
    for side in cache.sides:
        side.drop_front(side.sinks.length + 5)
    assert {side.packed.start for side in cache.sides} == {5}
    launcher = launcher_for(cache, queries, on, None)
    assert_matches_plain_operations(emulator, launcher, queries, cache)


@pytest.mark.parametrize("on", [METAL, CUDA, TENSOR_CORES])
def test_a_pending_token_with_any_strides_is_written(emulator, on):
    cache, queries = filled("turbo4", 1, 2, 2, 190, (64, 64), mx.float16, 1)
    for side in cache.sides:
        side.recent.write_pending()
    # Slices of one projection of keys and values.
    both = mx.random.normal((1, 1, 2, 2 * 64)).astype(mx.float16).transpose(0, 2, 1, 3)
    append_unread(cache, both[..., :64], both[..., 64:])
    assert all(side.recent.pending is not None for side in cache.sides)
    launcher = launcher_for(cache, queries, on, None)
    assert launcher.plan.key.writes_tail and launcher.plan.value.writes_tail
    assert_matches_plain_operations(emulator, launcher, queries, cache)


@pytest.fixture
def recorded_strides():
    """Strides in bytes of the ``sizes`` of each launch.

    The kernels are replaced by one that returns the queries.
    """
    sizes = []

    def run(queries, before, sizes_, *stored):
        sizes.append(memoryview(sizes_).strides)
        return queries

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_function", lambda plan, shape, attend, merge: run)
        launch._layout_factory.cache_clear()
        yield sizes
    launch._layout_factory.cache_clear()


def serves(launcher, queries, sides, scale=0.1, mask="causal", sink=None):
    """Whether the launcher serves the arguments; tails are not changed."""
    return launcher.run(queries, *(with_own_tail(side) for side in sides), scale, mask, sink) is not None


def test_a_launcher_serves_only_its_own_sinks(recorded_strides):
    cache, queries = filled("turbo4", 1, 1, 2, 190, (64, 64), mx.float16, 1)
    launcher = launcher_for(cache, queries, CUDA, None)
    snapshots = [side.snapshot() for side in cache.sides]
    assert serves(launcher, queries, cache.sides) and serves(launcher, queries, snapshots)
    x = mx.random.normal((1, 1, 190, 64)).astype(mx.float16)
    cache.trim(cache.size() - 2)
    cache.update_and_fetch(x, x)
    cache.pack_due()
    assert not serves(launcher, queries, cache.sides) and serves(launcher, queries, snapshots)


def test_a_launcher_serves_only_its_own_scale_mask_and_sink(recorded_strides):
    cache, queries = filled("turbo4", 1, 1, 2, 190, (64, 64), mx.float16, 1)
    sink = mx.zeros((2,))
    launcher = launcher_for(cache, queries, CUDA, sink)
    assert serves(launcher, queries + 1, cache.sides, 0.1, "causal", sink)
    other_arguments = [
        (0.2, "causal", sink),
        (0.1, None, sink),
        (0.1, mx.ones((1, 1), mx.bool_), sink),
        (0.1, "causal", None),
    ]
    assert not any(serves(launcher, queries, cache.sides, *other) for other in other_arguments)


def test_a_launcher_does_not_serve_once_its_fine_tokens_are_gone(recorded_strides):
    cache, queries = filled("trellis2", 1, 1, 2, 318, (64, 64), mx.float16, 1)
    launcher = launcher_for(cache, queries, CUDA, None)
    assert serves(launcher, queries, cache.sides)
    cache.trim(cache.value_side.recent.length + cache.value_side.fine.length)
    new = mx.random.normal((1, 1, 2, 64)).astype(mx.float16)
    append_unread(cache, new, new)
    assert cache.value_side.packed.length and not cache.value_side.fine.length
    assert not serves(launcher, queries, cache.sides)
    assert serves(launcher_for(cache, queries, CUDA, None), queries, cache.sides)


def test_queries_of_another_shape_or_dtype_are_not_served():
    cache, queries = filled("turbo4", 1, 1, 2, 190, (64, 64), mx.float16, 1)
    launcher = launcher_for(cache, queries, CUDA, None)
    for other_queries in (queries.astype(mx.bfloat16), mx.concatenate([queries, queries], axis=2)):
        assert launcher.run(other_queries, *cache.sides, 0.1, "causal", None) is None
        assert all(side.recent.pending is not None for side in cache.sides)


def test_tokens_of_another_dtype_are_not_served():
    cache, queries = filled("turbo4", 1, 1, 2, 190, (64, 64), mx.float16, 1)
    launcher = launcher_for(cache, queries, CUDA, None)
    wide = mx.random.normal((1, 1, 80, 64))
    append_unread(cache, wide, wide)  # beyond the capacity: the new tail is float32
    assert cache.value_side.recent.arrays[0].dtype == mx.float32
    assert launcher.run(queries, *cache.sides, 0.1, "causal", None) is None


def change(name, cache):
    x = mx.random.normal((1, 1, 80, 64)).astype(mx.float16)
    match name:
        case "a token":
            append_unread(cache, x[:, :, :1], x[:, :, :1])
        case "two tokens":
            append_unread(cache, x[:, :, :2], x[:, :, :2])
        case "a token less":
            cache.trim(1)
        case "a token beyond the capacity":
            for side in cache.sides:
                while side.recent.length < side.recent.capacity:
                    side.append(x[:, :, :1])
                    side.recent.write_pending()
            yield
            append_unread(cache, x[:, :, :1], x[:, :, :1])
        case "the first token leaves":
            for side in cache.sides:
                side.drop_front(1)
        case "packing":
            append_unread(cache, x, x)
            yield
            cache.pack_due()
    yield


@pytest.mark.parametrize(
    ("name", "looked_up_again"),
    [
        ("nothing", False),
        ("a token", False),
        ("two tokens", False),
        ("a token less", False),
        ("a token beyond the capacity", True),
        ("the first token leaves", True),
        ("packing", True),
    ],
)
@pytest.mark.parametrize("scheme", ["turbo4", "turbo0v4", "trellis2"])
@pytest.mark.parametrize("ahead", [False, True])
def test_kernels_get_the_current_sizes_after_every_change(
    recorded_strides, scheme, name, looked_up_again, ahead
):
    """Also when they are asked for before the next token is there, ``ahead``."""
    fine = parse_scheme(scheme).fine
    cache, queries = filled(scheme, 1, 1, 2, 190 + fine, (64, 64), mx.float16, 1)
    for side in cache.sides:  # without sinks, as in a window
        side.drop_front(side.sinks.length)
        side.recent.write_pending()
    launcher = launcher_for(cache, queries, CUDA, None)
    for _ in change(name, cache):
        before = launcher._layouts
        if ahead:
            recorded_strides.append(memoryview(launcher.next_token(*cache.sides).sizes).strides)
        else:
            assert serves(launcher, queries, cache.sides)
        values = cache.value_side
        stores = [cache.key_side.packed, values.packed, cache.key_side.recent, values.recent]
        stores += [values.fine] if fine else []
        rooms = [store.capacity | store.start << 32 for store in stores]
        first = values.sinks.length | values.fine.length << 32
        strides = [stride // 4 for stride in recorded_strides[-1]]  # in floats
        fine_splits = strides[1] >> 32
        assert 0 < fine_splits <= MAX_FINE_SPLITS if fine else not fine_splits
        second = values.packed.length | fine_splits << 32
        assert strides[:3] == [first, second, values.recent.length + ahead] and strides[5:] == rooms
    # Layouts are looked up again only after a change of revision.
    assert (launcher._layouts is not before) == looked_up_again


def test_more_blocks_than_counters_have_no_kernel():
    cache, queries = filled("turbo4", 2, 2, 1, 190, (64, 64), mx.float16, 1)
    assert plan_for(queries, *cache.sides, False, CUDA) is not None
    many = MAX_BLOCKS // 2
    wide = SchemeCache(parse_scheme("turbo4"))
    x = mx.zeros((many, 3, 110, 32), mx.float16)
    for part in (x[:, :, 1:], x[:, :, :1]):
        wide.update_and_fetch(part, part)
    assert plan_for(mx.zeros((many, 3, 1, 32), mx.float16), *wide.sides, False, CUDA) is None


@pytest.mark.parametrize(
    ("scheme", "dim", "on"),
    [
        ("turbo4", 56, CUDA),  # 7 words
        ("turbo8v5", 80, METAL),  # 10 and 3 words
        ("turbo6", 48, CUDA),  # 6 and 3 words
        ("turbo3", 80, METAL),  # fine tokens of 10 and 5 words
    ],
)
def test_rows_of_any_number_of_words_are_loaded_as_they_are_aligned(
    tmp_path, capfd, monkeypatch, scheme, dim, on
):
    checking = Emulator(tmp_path, checks_alignment=True)
    monkeypatch.setattr(workspace, "kernels", lambda: emulated_by(checking))
    cache, queries = filled(scheme, 1, 1, 2, 190 + parse_scheme(scheme).fine, (dim, dim), mx.float16, 1)
    launcher = launcher_for(cache, queries, on, None)
    assert_matches_plain_operations(checking, launcher, queries, cache)
    assert "misaligned" not in capfd.readouterr().err


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("where", ["packed key", "raw key", "raw value", "fine key", "fine value"])
def test_nan_reaches_the_output(emulator, where, dtype):
    scheme = "trellis2" if "fine" in where else "turbo4"
    cache, queries = filled(scheme, 1, 1, 2, 190 + parse_scheme(scheme).fine, (64, 64), dtype, 1)
    side = cache.value_side if "value" in where else cache.key_side
    encoded = side.fine if "fine" in where else side.packed
    array = side.recent.arrays[0] if "raw" in where else encoded.arrays[1]
    array[:, :, 7] = mx.nan
    for on in (METAL, TENSOR_CORES):
        launcher = launcher_for(cache, queries, on, None)
        assert mx.isnan(run_emulated(emulator, launcher, queries, *cache.sides)).all().item()


@pytest.mark.parametrize(
    ("kind", "role", "bits", "dim", "fitted"),
    [
        ("turbo", "key", 4, 128, True),
        ("turbo", "key", 3, 64, True),
        ("turbo", "key", 2, 80, False),
        ("turbo", "key", 2, 80, True),
        ("turbo", "value", 4, 256, True),
        ("turbo", "value", 6, 64, True),
        ("turbo", "key", 5, 128, True),
        ("trellis", "key", 2, 64, True),
        ("trellis", "value", 3, 33, True),
        ("trellis", "key", 4, 80, False),
        ("turbo", "key", 4, 16, True),
        ("turbo", "key", 2, 32, True),
        ("turbo", "key", 6, 128, True),
        ("turbo", "key", 4, 256, True),
        ("trellis", "key", 2, 256, True),
        ("trellis", "value", 4, 128, True),
        ("trellis", "value", 3, 16, True),
    ],
)
def test_encoding_matches_plain_operations(emulator, kind, role, bits, dim, fitted):
    mx.random.seed(9)
    x = (mx.random.normal((2, 2, 40, dim)) * mx.exp(mx.random.normal((1, 2, 1, dim)))).astype(mx.float16)
    format_ = make_format(FormatSpec(kind, bits), dim, role)
    assert isinstance(format_, TurboFormat)
    if fitted:
        statistics = (
            QueryStatistics(mx.exp(mx.random.normal((2, 2, 1, dim)))) if role == "key" else NO_STATISTICS
        )
        format_ = format_.fit(x, statistics)
    part = mx.contiguous(x[:, :, 5:21])
    packed_words, gains = format_.encode(part)
    plan = encode_plan(format_, part)
    found = emulator.run(plan.spec, encode_inputs(plan, format_, part), encode_launch(plan, part.shape))
    assert_same_in_place(emulator, plan, format_, part, found)
    if kind == "turbo":
        # Ties may be rounded differently.
        assert (found[0] == packed_words).mean().item() > 0.99
        assert mx.allclose(found[1].astype(mx.float32), gains.astype(mx.float32), rtol=2e-3).item()
        return
    # A CPU finds paths in another way, which are as cheap.
    blocks = (packed_words, gains), tuple(found)
    errors = [(format_.decode(block) - part).square().sum(axis=-1) for block in blocks]
    assert errors[1].sum().item() == pytest.approx(errors[0].sum().item(), rel=MAX_ERROR_RATIO - 1)
    assert mx.median(mx.abs(errors[1] / errors[0] - 1)).item() < 0.05


@pytest.mark.parametrize(
    ("kind", "role", "bits", "dim", "fitted", "storage", "dtype", "raw"),
    [
        ("turbo", "key", 1, 64, True, mx.float16, mx.float16, "sinks and tail"),
        ("turbo", "key", 2, 128, True, mx.bfloat16, mx.bfloat16, "sinks and tail"),
        ("turbo", "value", 3, 80, True, mx.float16, mx.float32, "tail"),
        ("turbo", "key", 4, 128, False, mx.float16, mx.float16, "nothing"),
        ("turbo", "value", 5, 256, True, mx.float16, mx.bfloat16, "sinks and tail"),
        ("turbo", "key", 6, 16, True, mx.float16, mx.float16, "sinks and tail"),
        ("turbo", "value", 6, 128, True, mx.float16, mx.float32, "nothing"),
        ("turbo", "key", 6, 80, True, mx.bfloat16, mx.float32, "nothing"),
        ("trellis", "key", 2, 64, True, mx.float16, mx.float16, "tail"),
        ("trellis", "value", 3, 33, True, mx.float16, mx.float16, "nothing"),
        ("trellis", "key", 4, 96, True, mx.bfloat16, mx.float16, "sinks and tail"),
        ("trellis", "value", 4, 32, True, mx.float16, mx.float16, "sinks and tail"),
        ("affine", "key", 8, 128, True, mx.float16, mx.float16, "sinks and tail"),
        ("affine", "value", 4, 80, True, mx.bfloat16, mx.bfloat16, "tail"),
        ("turbo", "key", 3, 32, True, mx.float16, mx.float16, "sinks and tail"),
        ("trellis", "key", 3, 256, True, mx.float16, mx.float16, "sinks and tail"),
        ("turbo", "key", 4, 256, True, mx.float32, mx.float32, "tail"),
        ("trellis", "value", 4, 128, True, mx.float16, mx.float16, "sinks and tail"),
    ],
)
def test_decoding_matches_plain_operations(emulator, kind, role, bits, dim, fitted, storage, dtype, raw):
    mx.random.seed(10)
    x = (mx.random.normal((2, 2, 90, dim)) * mx.exp(mx.random.normal((1, 2, 1, dim)))).astype(storage)
    format_ = make_format(FormatSpec(kind, bits), dim, role)
    if fitted:
        energy = mx.exp(mx.random.normal((2, 2, 1, dim)))
        format_ = format_.fit(x, QueryStatistics(energy) if role == "key" else NO_STATISTICS)
    block = format_.encode(x[:, :, 4:80])
    # As in storage: the tokens are a part of longer arrays.
    longer = [
        mx.concatenate([mx.full((*a.shape[:2], 7, a.shape[3]), 3, a.dtype), a, a], axis=2) for a in block
    ]
    mx.eval(longer)
    packed = tuple(array[:, :, 7 : 7 + 76] for array in longer)
    sinks = (x[:, :, :4],) if "sinks" in raw else ()
    tail = (x[:, :, 80:],) if "tail" in raw else ()
    plan = decode_plan(format_, sinks, packed, tail, dtype)
    assert plan.storage == (storage if raw != "nothing" else dtype)
    inputs = decode_inputs(plan, format_, sinks, packed, tail)
    expected = mx.concatenate(
        [a.astype(dtype) for a in (*sinks, format_.decode(block).astype(dtype), *tail)], axis=2
    )
    found = emulator.run(plan.spec, inputs, decode_launch(plan, expected.shape[:3]))[0]
    expected, found = expected.astype(mx.float32), found.astype(mx.float32)
    limit = 1e-5 if dtype == mx.float32 else 1e-2 if dtype == mx.bfloat16 else 2e-3
    # Entries of a trellis, and raw tokens, are the same; other values differ in the order of sums.
    assert mx.allclose(found, expected, rtol=limit, atol=limit * mx.abs(expected).max().item()).item()
    assert found.shape == expected.shape


@pytest.mark.parametrize("scheme", ["turbo4", "affine4"])
@pytest.mark.parametrize("packed", [1, 7, 8])
def test_inputs_of_decoding_are_in_device_memory(scheme, packed):
    cache, _ = filled(scheme, 1, 1, 1, 190, (32, 32), mx.float16, 1)
    cache.trim(cache.offset - cache.scheme.sinks - packed)
    for side in cache.sides:
        parts = side.sinks, side.packed, side.recent
        stores = tuple(store.view() if store.length else () for store in parts)
        assert stores[1][0].shape[2] == packed
        plan = decode_plan(side.format, *stores, mx.float16)
        if packed == MIN_INPUT_SIZE:
            assert plan is not None
        if plan is not None:
            assert all(x.size >= MIN_INPUT_SIZE for x in decode_inputs(plan, side.format, *stores))


@pytest.mark.parametrize("head_dim", [64, 80])
def test_layers_packed_by_kernels_have_the_errors_of_plain_operations(emulator, monkeypatch, head_dim):
    used = []
    compiled = emulated_by(emulator).compiled
    device = SimpleNamespace(
        compiled=lambda spec: used.append(spec.kernel) or compiled(spec),
        tensor_cores=False,
        trusted=Everything(),
        refused={},
    )

    mx.random.seed(3)
    tokens = mx.random.normal((2, 2, 1, 2, 400, head_dim)).astype(mx.float16)  # layers, sides

    def packed():
        layers = [SchemeCache(parse_scheme("trellis3")) for _ in tokens]
        for first, end in ((0, 330), (330, 364), (364, 400)):
            for layer, sides in zip(layers, tokens, strict=True):
                for side, x in zip(layer.sides, sides, strict=True):
                    side.append(x[:, :, first:end])
            pack_together(layers)
            assert layers[0].key_side.fine.length
        return layers

    plain = packed()
    for module in (encode, decode, side_module, joint_encode):
        monkeypatch.setattr(module, "kernels", lambda: device)
    found = packed()
    assert {"encode_scalar", "encode_trellis"} < set(used) and any(name.startswith("decode") for name in used)
    monkeypatch.undo()
    for one, other, sides in zip(plain, found, tokens, strict=True):
        assert [side.packed.length for side in one.sides] == [side.packed.length for side in other.sides]
        for a, b, x in zip(one.sides, other.sides, sides, strict=True):
            errors = [(side.fetch(mx.float32) - x).square().sum().item() for side in (a, b)]
            assert errors[1] == pytest.approx(errors[0], rel=MAX_ERROR_RATIO - 1)
