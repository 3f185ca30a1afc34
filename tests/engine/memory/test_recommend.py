from __future__ import annotations

import pytest

from tqchat.engine.hub import recommended
from tqchat.engine.memory import recommend
from tqchat.engine.memory.recommend import Machine, short_list, suggestions

GIB = 1 << 30


def names(machine: Machine) -> list[str]:
    return [one.model.repo.partition("/")[2] for one in short_list(suggestions(machine))]


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize("free", [2 * GIB, 6 * GIB, 12 * GIB, 70 * GIB])
def test_what_is_suggested_fits_with_its_cache(free: int, on_cpu: bool) -> None:
    found = short_list(suggestions(Machine("a machine", on_cpu, free)))
    assert 1 <= len(found) <= recommend.SHORT_LIST
    for one in found:
        assert not one.obstacle and one.sizes[0].verdict == "fits"
        assert one.estimate.weight_bytes + one.sizes[0].bytes < free
        assert [size.tokens for size in one.sizes] == [8_192, 32_768]
        assert all(size.bytes < size.fp16_bytes / 2 for size in one.sizes)
        assert one.estimate.weight_bytes >= one.model.bytes


def test_more_memory_brings_larger_models_and_a_cpu_small_ones() -> None:
    assert names(Machine("a Mac", False, 6 * GIB))[0] == "Qwen3-8B-4bit"
    assert names(Machine("a GPU", False, 70 * GIB))[0] == "Qwen3-32B-4bit"
    assert names(Machine("a CPU", True, 70 * GIB))[0] == "Qwen3-1.7B-4bit"


def test_the_smallest_is_named_where_none_fits() -> None:
    (only,) = short_list(suggestions(Machine("a watch", False, GIB // 8)))
    assert only.model is recommended.models()[-1]
    assert only.obstacle == "too large"


def test_every_model_that_does_not_suit_says_why() -> None:
    found = {one.model.repo: one.obstacle for one in suggestions(Machine("a CPU", True, 16 * GIB))}
    assert found["mlx-community/Qwen3-8B-4bit"] == "too slow"
    assert found["mlx-community/Qwen3-32B-4bit"] == "too large"


def test_this_machine_has_free_memory() -> None:
    machine = recommend.this_machine()
    assert machine.name and machine.free_bytes > 0
