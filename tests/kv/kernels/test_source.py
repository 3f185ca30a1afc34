"""The text that MLX is given for a kernel, and how a step's work is split."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest

from tests.kv.kernels.test_emulated import TENSOR_CORES, filled, steps_for
from tqchat.kv.kernels import device, launch
from tqchat.kv.kernels.plan import MAX_RAW_SPLITS, MAX_SPLITS


def text_for(on):
    cache, queries = filled("turbo4", 1, 1, 2, 190, (64, 64), mx.float16, 1)
    return steps_for(cache, queries, on, None).plan.attend_spec()


def test_threads_are_named_beside_a_kernel_s_name_and_nowhere_else(monkeypatch):
    given = {}
    monkeypatch.setattr(mx.fast, "cuda_kernel", lambda **told: given.update(told), raising=False)
    text = text_for(TENSOR_CORES)
    device.Kernels("cuda", tensor_cores=True).compiled(text)
    function = f"custom_kernel_{given['name']}"
    threads = text.threads
    line = f"#define {function} __launch_bounds__({threads}, {384 // threads}) {function}"
    assert given["header"].splitlines()[-1] == line
    assert given["source"].splitlines()[0] == f"#undef {function}"


def layout_factory(simds=6, blocks=8):
    cache, queries = filled("turbo4", 1, 1, 2, 190, (64, 64), mx.float16, 1)
    plan = replace(steps_for(cache, queries, TENSOR_CORES, None).plan, simds=simds, group=1, rows=1)
    return launch._LayoutFactory(0, plan, (1, blocks, 1, 64))


def test_a_layout_is_for_the_rooms_that_were_asked_for():
    workspace, layouts = launch.Workspace(), layout_factory()
    workspace.reserve(layouts.floats)

    def told(number):
        capacities, starts = (256 * number, 512, 128, 192), (number, 0, 0, 0)
        return memoryview(workspace.tails(layouts, 4, 1000, capacities, starts)[70].sizes).strides

    numbers = range(3, launch.LAYOUT_CACHE_SIZE + 6)
    answers = [told(number) for number in numbers]
    assert len(set(answers)) == len(answers)
    assert [told(number) for number in numbers] == answers
    # A float has four bytes.
    assert answers[0][5] // 4 == 768 | 3 << 32 and answers[0][:3] == (16, 4000, 280)


@pytest.mark.parametrize("blocks", [1, 4, 8, 32, 500])
@pytest.mark.parametrize("simds", [4, 6, 12])
def test_a_step_is_split_among_what_runs_at_once(blocks, simds):
    for packed in (32, 1000, 4096, 65_000, 262_144):
        for raw in (1, 70, 130, 700):
            layouts = layout_factory(simds, blocks)
            layout = layouts.make(
                mx.zeros(8, mx.uint8), 4, packed, raw - 4 if raw > 4 else raw, (0,) * 4, (0,) * 4
            )
            splits = layout.splits
            raw_splits = memoryview(layout.sizes).strides[3] >> 32
            packed_splits = splits - raw_splits
            assert raw_splits >= 1 and packed_splits >= 1
            assert splits <= MAX_SPLITS and raw_splits <= MAX_RAW_SPLITS
            assert splits * blocks * simds <= max(launch.TARGET_SIMD_GROUPS, 2 * blocks * simds)
            assert layout.attend["grid"] == (splits * simds * 32, blocks, 1)
            # Nobody has_pending for the raw ones, unless there is nothing else to do.
            if packed >= 4096 and raw <= 130 and launch.TARGET_SIMD_GROUPS // (blocks * simds) > 2:
                assert -(-raw // (simds * 16 * raw_splits)) <= max(
                    1, -(-packed // (simds * 32 * packed_splits))
                )
