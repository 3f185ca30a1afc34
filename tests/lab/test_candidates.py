from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import mlx.core as mx
import pytest

from tqchat import kv
from tqchat.kv.scheme import SCHEMES
from tqchat.lab.candidates import Candidate, UnknownCandidate, decode_runs, parse_candidates
from tqchat.lab.evaluation import Runner
from tqchat.lab.reading import encode

if TYPE_CHECKING:
    from tqchat.engine.models import LoadedModel


def test_all_means_the_listed_schemes_and_the_codecs_of_others() -> None:
    names = [candidate.name for candidate in parse_candidates("all")]
    others = ["mlx8", "mlx4", "kvarn4", "kvarn3", "kvarn2", "swift4", "swift3", "swift2"]
    assert names == [*(scheme.name for scheme in SCHEMES), *others]


def test_spellings_of_the_same_scheme_are_taken_once() -> None:
    assert [c.name for c in parse_candidates("turbo4, TURBO4v4,mlx4")] == ["turbo4", "mlx4"]


def test_the_error_for_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownCandidate, match=r"turbo9.*turbo<K>v<V>.*mlx8") as error:
        parse_candidates("turbo4,turbo9")
    assert error.value.exit_code == 2


@pytest.mark.parametrize("name", ["turbo4", "turbo0v2", "affine8"])
def test_tokens_fed_together_build_the_same_cache_as_single_steps(
    tiny: LoadedModel, prose: str, name: str
) -> None:
    ids = encode(tiny, prose)[:300]
    states = []
    for one_by_one in (True, False):
        (candidate,) = parse_candidates(name)
        runner = Runner(tiny, candidate, one_by_one)
        runner.read(ids[:150])
        for start in range(150, 300, 40):
            runner.decode(ids[start : start + 40])
        states.append(runner.cache)
    single, joined = (kv.memory_report(cache) for cache in states)
    for layer, other in zip(single.layers, joined.layers, strict=True):
        assert replace(layer, allocated_bytes=0) == replace(other, allocated_bytes=0)
    assert single.packed_tokens > 0
    for layer, other in zip(*states, strict=True):
        for x, y in zip(layer.keys_and_values(), other.keys_and_values(), strict=True):
            assert mx.abs(x.astype(mx.float32) - y.astype(mx.float32)).mean().item() < 1e-3


def test_a_run_never_crosses_a_packing_step() -> None:
    (candidate,) = parse_candidates("turbo4")
    scheme = candidate.scheme
    runs = list(decode_runs(scheme, 151, 400, 16))
    assert [start for start, _ in runs] == [151, *(stop for _, stop in runs[:-1])]
    assert runs[-1][1] == 400
    for start, stop in runs:
        packed = {scheme.packable(held - scheme.sinks) for held in range(start + 1, stop + 1)}
        assert len(packed) == 1
        packs = packed != {scheme.packable(start - scheme.sinks)}
        assert not packs or stop == start + 1
    assert max(stop - start for start, stop in runs) == 15


def test_mlx_lms_caches_prefill_at_fp16() -> None:
    (candidate,) = parse_candidates("mlx8")
    assert candidate == Candidate("mlx8", SCHEMES[0], 8)
