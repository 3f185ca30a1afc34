"""Kernel source as passed to MLX, and the split of a step."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest

from tests.kv.kernels.test_emulated import TENSOR_CORES, filled, launcher_for
from tqchat.kv.kernels import device, launch
from tqchat.kv.kernels.plan import MAX_FINE_SPLITS, MAX_RAW_SPLITS, MAX_SPLITS
from tqchat.kv.kernels.workspace import LAYOUT_CACHE_SIZE, ThreadWorkspace


def attend_spec_for(on):
    cache, queries = filled("turbo4", 1, 1, 2, 190, (64, 64), mx.float16, 1)
    return launcher_for(cache, queries, on, None).plan.attend_spec()


def test_launch_bounds_are_added_by_a_macro_of_the_function_name(monkeypatch):
    arguments = {}
    monkeypatch.setattr(mx.fast, "cuda_kernel", lambda **keywords: arguments.update(keywords), raising=False)
    spec = attend_spec_for(TENSOR_CORES)
    device.Kernels("cuda", tensor_cores=True).compiled(spec)
    function = f"custom_kernel_{arguments['name']}"
    threads = spec.threads
    line = f"#define {function} __launch_bounds__({threads}, {384 // threads}) {function}"
    assert arguments["header"].splitlines()[-1] == line
    assert arguments["source"].splitlines()[0] == f"#undef {function}"


def make_factory(simds=6, blocks=8, scheme="turbo4"):
    cache, queries = filled(scheme, 1, 1, 2, 210, (64, 64), mx.float16, 1)
    plan = replace(launcher_for(cache, queries, TENSOR_CORES, None).plan, simds=simds, group=1, rows=1)
    return launch._LayoutFactory(0, plan, (1, blocks, 1, 64))


def test_layouts_are_cached_by_capacities_and_starts():
    workspace, factory = ThreadWorkspace(), make_factory()
    workspace.reserve(factory.floats, launch._LayoutsByTail)

    def sizes(number):
        capacities, starts = launch.PerStore(256 * number, 512, 128, 192), launch.PerStore(number, 0, 0, 0)
        return memoryview(workspace.layouts(factory, 4, 1000, 0, capacities, starts)[70].sizes).strides

    numbers = range(3, LAYOUT_CACHE_SIZE + 6)
    strides = [sizes(number) for number in numbers]
    assert len(set(strides)) == len(strides)
    assert [sizes(number) for number in numbers] == strides
    # Strides in bytes of 4-byte floats.
    assert strides[0][5] // 4 == 768 | 3 << 32 and strides[0][:3] == (16, 4000, 280)


@pytest.mark.parametrize("blocks", [1, 4, 8, 32, 500])
@pytest.mark.parametrize("simds", [4, 6, 12])
def test_a_context_is_split_among_the_target_number_of_simd_groups(blocks, simds):
    for packed in (32, 1000, 4096, 65_000, 262_144):
        for raw in (1, 70, 130, 700):
            factory = make_factory(simds, blocks)
            zeros = launch.PerStore(0, 0, 0, 0)
            layout = factory.make(
                mx.zeros(8, mx.uint8), 4, packed, 0, raw - 4 if raw > 4 else raw, zeros, zeros
            )
            splits = layout.splits
            raw_splits = memoryview(layout.sizes).strides[3] >> 32
            packed_splits = splits - raw_splits
            assert raw_splits >= 1 and packed_splits >= 1
            assert splits <= MAX_SPLITS and raw_splits <= MAX_RAW_SPLITS
            assert splits * blocks * simds <= max(launch.TARGET_SIMD_GROUPS, 2 * blocks * simds)
            threads, *others = layout.launches.attend["grid"]
            assert others == [blocks, 1] and not threads % (simds * 32)
            most = min(splits + launch.GRID_STEP - 1, factory.max_splits)
            assert splits <= threads // (simds * 32) <= most
            # Raw tokens take no longer than the packed ones, if these are many.
            if packed >= 4096 and raw <= 130 and launch.TARGET_SIMD_GROUPS // (blocks * simds) > 2:
                assert -(-raw // (simds * 16 * raw_splits)) <= max(
                    1, -(-packed // (simds * 32 * packed_splits))
                )


@pytest.mark.parametrize("packed", [3000, 4096, 5000, 5376, 5377, 16_384])
def test_a_short_context_takes_two_steps_of_threadgroups_that_have_a_multiprocessor_each(packed):
    factory = make_factory(6, 8)
    zeros = launch.PerStore(0, 0, 0, 0)
    layout = factory.make(mx.zeros(8), 4, packed, 0, 120, zeros, zeros)
    raw_splits = memoryview(layout.sizes).strides[3] // 4 >> 32
    packed_splits = layout.splits - raw_splits
    steps = -(-packed // (6 * 32))
    if layout.splits * 8 <= launch.MULTIPROCESSORS:
        assert packed_splits < steps <= 2 * packed_splits and packed <= 5376
    else:
        assert packed > 5376 and packed_splits == min(steps, factory.max_splits - raw_splits)


@pytest.mark.parametrize("blocks", [1, 8, 32, 500])
def test_fine_tokens_get_threadgroups_of_their_own(blocks):
    factory = make_factory(6, blocks, "trellis2")
    zeros = launch.PerStore(0, 0, 0, 0)
    for packed in (0, 32, 1000, 65_000):
        for fine in (16, 160, 272):
            layout = factory.make(mx.zeros(8), 4, packed, fine, 20, zeros, zeros)
            sizes = [stride // 4 for stride in memoryview(layout.sizes).strides]
            raw_splits, fine_splits = sizes[3] >> 32, sizes[1] >> 32
            packed_splits = layout.splits - raw_splits - fine_splits
            assert raw_splits == 1 and 1 <= fine_splits <= min(MAX_FINE_SPLITS, 3)
            assert (packed_splits > 0) == (packed > 0)
            assert layout.splits * blocks * 6 <= max(launch.TARGET_SIMD_GROUPS, 3 * blocks * 6)
            if packed < 1000 and blocks == 8:
                assert fine_splits * 6 * 16 >= fine
    assert factory.make(mx.zeros(8), 4, 16, 160, 20, zeros, zeros) is None


@pytest.mark.parametrize("most", [3, 4, 5, 8])
def test_packed_tokens_keep_threadgroups_beside_many_fine_and_raw_ones(most):
    factory = make_factory(6, 8, "trellis2")
    factory.max_splits = most
    zeros = launch.PerStore(0, 0, 0, 0)
    layout = factory.make(mx.zeros(8), 4, 32, 2000, 2000, zeros, zeros)
    raw_splits, fine_splits = (memoryview(layout.sizes).strides[i] // 4 >> 32 for i in (3, 1))
    assert layout.splits <= most and layout.splits - raw_splits - fine_splits == 1
