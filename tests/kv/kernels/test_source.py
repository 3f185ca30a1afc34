"""The text that MLX is given for a kernel, and how a step's work is split."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from tests.kv.kernels.test_emulated import CUDA, METAL, TENSOR_CORES, filled, steps_for
from tqchat.kv.kernels import device, launch, source
from tqchat.kv.kernels.plan import MOST_RAW_SPLITS, MOST_SPLITS

INCLUDE = re.compile(r'^#include "(.*)"$', re.MULTILINE)


def text_for(on):
    cache, queries = filled("turbo4", 1, 1, 2, 190, (64, 64), mx.float16, 1)
    return steps_for(cache, queries, on, None).plan.attend_text()


def included(text):
    return INCLUDE.sub(lambda found: Path(found[1]).read_text(), text)


def code(text):
    return [line for line in (part.split("//")[0].strip() for part in text.splitlines()) if line]


@pytest.mark.parametrize("on", [CUDA, TENSOR_CORES])
def test_what_mlx_copies_at_every_launch_is_short_and_means_the_same(on):
    text = text_for(on)
    whole, short = text.whole("cuda"), text.short("cuda")
    assert len(short.header + short.body) < len(whole.header + whole.body) / 5
    assert [code(included(part)) for part in short] == [code(part) for part in whole]
    # MLX passes the shapes and strides whose names it sees.
    names = set(re.findall(r"\w+_(?:shape|strides)\b", whole.body))
    assert "queries_strides" in names and all(name in short.body for name in names)


def test_metal_is_given_all_of_it():
    text = text_for(METAL)
    assert text.short("metal") == text.whole("metal") and "#include" not in "".join(text.whole("metal"))


def test_a_folder_that_cannot_be_named_in_the_text_is_not(monkeypatch, tmp_path):
    text = text_for(CUDA)
    for name, is_named in (("a folder", True), ('a "quoted" folder', False)):
        shutil.copytree(Path(source.__file__).parent, tmp_path / name)
        monkeypatch.setattr(source, "_FOLDER", tmp_path / name)
        assert ("#include" in text.short("cuda").body) == is_named
    assert text.short("cuda") == text.whole("cuda")


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


def test_a_layout_is_for_the_rooms_that_were_asked_for():
    layouts = launch._Layouts(0, 32, 192, 96, 6, 8, 1, 8)

    def told(rooms):
        return memoryview(layouts.of(4, 1000, 70, rooms).sizes).strides

    asked = [(256 * n, n, 512, 0, 128, 0, 192, 0) for n in range(launch.LAST + 3)]
    answers = [told(rooms) for rooms in asked]
    assert len(set(answers)) == len(asked)
    assert [told(rooms) for rooms in asked] == answers
    assert answers[3][5] == 768 | 3 << 32 and answers[3][:3] == (4, 1000, 70)


@pytest.mark.parametrize("blocks", [1, 4, 8, 32, 500])
@pytest.mark.parametrize("simds", [4, 6, 12])
def test_a_step_is_split_among_what_runs_at_once(blocks, simds):
    for packed in (32, 1000, 4096, 65_000, 262_144):
        for raw in (1, 70, 130, 700):
            layouts = launch._Layouts(0, 32, simds * 32, simds * 16, simds, blocks, 1, 8)
            layout = layouts.of(4, packed, raw - 4 if raw > 4 else raw, (0,) * 8)
            splits = layout.splits
            raw_splits = memoryview(layout.sizes).strides[3] >> 32
            packed_splits = splits - raw_splits
            assert raw_splits >= 1 and packed_splits >= 1
            assert splits <= MOST_SPLITS and raw_splits <= MOST_RAW_SPLITS
            assert splits * blocks * simds <= max(launch.SIMDS_WANTED, 2 * blocks * simds)
            assert layout.grid == (splits * simds * 32, blocks, 1)
            # Nobody waits for the raw ones, unless there is nothing else to do.
            if packed >= 4096 and raw <= 130 and launch.SIMDS_WANTED // (blocks * simds) > 2:
                assert -(-raw // (simds * 16 * raw_splits)) <= max(
                    1, -(-packed // (simds * 32 * packed_splits))
                )
