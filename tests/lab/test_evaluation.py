from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import pytest

from tests.models import STARTER_FOLDER
from tqchat.engine import models
from tqchat.lab import evaluation, outliers
from tqchat.lab.candidates import parse_candidates
from tqchat.lab.evaluation import NotEnoughText, NotFinite, Runner, evaluate
from tqchat.lab.reading import BadText, encode, portion
from tqchat.lab.results import Row

if TYPE_CHECKING:
    from pathlib import Path

    from tqchat.engine.models import LoadedModel


def measure(model: LoadedModel, text: str, names: str, tokens: int = 260, **options: Any) -> dict[str, Row]:
    ids = encode(model, text)[: tokens + 1]
    rows, dropped = evaluate(model, parse_candidates(names), ids, tokens // 2, **options)
    assert not dropped
    return {row.scheme: row for row in rows}


def test_fp16_against_itself_is_exactly_zero(tiny: LoadedModel, prose: str) -> None:
    row = measure(tiny, prose, "fp16")["fp16"]
    assert (row.kld_mean, row.kld_median, row.kld_p99, row.top1, row.ratio) == (0, 0, 0, 1, 1)
    assert row.bytes == row.fp16_bytes == 260 * 2 * 2 * 2 * 64 * 2


def test_fewer_bits_take_fewer_bytes_and_diverge_more(tiny: LoadedModel, prose: str) -> None:
    rows = measure(tiny, prose, "turbo6,turbo5,turbo4")
    assert 0 < rows["turbo6"].kld_mean < rows["turbo5"].kld_mean < rows["turbo4"].kld_mean
    assert rows["turbo6"].bytes > rows["turbo5"].bytes > rows["turbo4"].bytes
    for row in rows.values():
        assert row.kld_median <= row.kld_p99
        assert row.ratio == pytest.approx(row.fp16_bytes / row.bytes)


def test_tokens_fed_together_measure_the_same_as_single_steps(tiny: LoadedModel, prose: str) -> None:
    joined = measure(tiny, prose, "turbo3", one_by_one=False)["turbo3"]
    single = measure(tiny, prose, "turbo3", one_by_one=True)["turbo3"]
    assert joined.kld_mean == pytest.approx(single.kld_mean, rel=0.01)
    assert (joined.top1, joined.bytes) == (single.top1, single.bytes)
    assert joined.ppl == pytest.approx(single.ppl, rel=1e-4)


def test_one_pass_or_several_give_the_same_rows(
    tiny: LoadedModel, prose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = measure(tiny, prose, "turbo4,turbo2")
    monkeypatch.setattr(evaluation, "_caches_per_pass", lambda *_: 1)
    assert measure(tiny, prose, "turbo4,turbo2") == together


def test_the_mlx_candidate_computes_what_mlx_lm_computes(tiny: LoadedModel, prose: str) -> None:
    from mlx_lm.models.cache import KVCache

    ids = encode(tiny, prose)[:200]
    (candidate,) = parse_candidates("mlx4")
    runner = Runner(replace(tiny, cache_dtype=None), candidate, one_by_one=True)
    runner.read(ids[:100])
    cache: Any = [KVCache() for _ in tiny.model.layers]
    tiny.model(mx.array(ids[:100])[None], cache=cache)
    cache = [layer.to_quantized(group_size=64, bits=4) for layer in cache]
    ours = runner.decode(ids[100:])
    theirs = mx.concatenate([tiny.model(mx.array([[i]]), cache=cache)[0] for i in ids[100:]])
    theirs = theirs - mx.logsumexp(theirs, axis=-1, keepdims=True)
    assert mx.abs(ours - theirs).max().item() < 1e-4


def test_the_mlx_candidates_bytes_are_those_of_16_bit_scales(tiny: LoadedModel, prose: str) -> None:
    row = measure(tiny, prose, "mlx4")["mlx4"]
    assert row.bytes * 8 == 260 * 2 * 2 * 2 * 64 * 4.5
    assert row.kld_mean > 0


def test_a_model_that_computes_nan_is_refused(llama_folder: Path, prose: str) -> None:
    broken = models.load(str(llama_folder))
    model: Any = broken.model
    model.model.norm.weight = model.model.norm.weight * float("nan")
    with pytest.raises(NotFinite):
        measure(broken, prose, "turbo4")


def test_a_scheme_with_nan_is_dropped_and_named(
    tiny: LoadedModel, prose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Runner.decode

    def with_nan(self: Runner, tokens: list[int]) -> mx.array:
        found = decode(self, tokens)
        return found * float("nan") if self.candidate.name == "turbo2" else found

    monkeypatch.setattr(Runner, "decode", with_nan)
    ids = encode(tiny, prose)[:200]
    rows, dropped = evaluate(tiny, parse_candidates("turbo2,turbo4"), ids, 100)
    assert [row.scheme for row in rows] == ["turbo4"]
    assert [one.name for one in dropped] == ["turbo2"]


def test_too_little_text_is_refused(tiny: LoadedModel, prose: str) -> None:
    with pytest.raises(BadText, match="too short"):
        portion(tiny, "Hello.", 100, None)
    with pytest.raises(BadText, match="at most 512"):
        portion(tiny, prose, 513, None)
    with pytest.raises(BadText, match="--prefill"):
        portion(tiny, prose, 100, 100)
    with pytest.raises(NotEnoughText):
        evaluate(tiny, parse_candidates("turbo4"), [1, 2, 3], 2)
    ids, prefill = portion(tiny, prose, None, None)
    assert (len(ids), prefill) == (513, 128)


def test_key_outliers_do_not_raise_the_divergence(prose: str) -> None:
    names = "turbo4,turbo3,turbo2"
    starter = models.load(str(STARTER_FOLDER))
    plain = measure(starter, prose, names, 600)  # with fewer tokens results differ by up to a fifth
    assert outliers.add_outliers(starter, 20.0) == 8
    hard = measure(starter, prose, names, 600)
    # Roundings differ, so that a single scheme's ratio depends on the machine's BLAS by a tenth.
    ratios = [row.kld_mean / plain[name].kld_mean for name, row in hard.items()]
    assert max(ratios) < 1.25 and fmean(ratios) < 1.1
    assert hard["turbo4"].ppl == pytest.approx(plain["turbo4"].ppl, rel=0.01)


def test_a_cache_that_does_not_run_here_is_dropped_with_the_reason(
    tiny: LoadedModel, prose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("QuantizedMatmul has no CUDA implementation.")

    monkeypatch.setattr(mx, "quantized_matmul", refuse)
    ids = encode(tiny, prose)[:161]
    rows, dropped = evaluate(tiny, parse_candidates("mlx4,turbo4"), ids, 80)
    assert [row.scheme for row in rows] == ["turbo4"]
    assert [(one.name, "no CUDA implementation" in one.reason) for one in dropped] == [("mlx4", True)]
