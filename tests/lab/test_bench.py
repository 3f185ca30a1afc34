from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache

from tests.models import STARTER_FOLDER
from tqchat.cli import main
from tqchat.engine import backend
from tqchat.lab.bench import attention, decode, drafting, kv_caches, machine, shapes, timing, turn
from tqchat.lab.bench.results import BenchResults, BenchRow, tables
from tqchat.lab.candidates import Candidate
from tqchat.lab.results import BadResults

KEYS = ["what", "scheme", "context", "median_s", "spread_s", "tok_s", "ratio_fp16", "ratio_mlx"]
KEYS += ["peak_bytes", "read_bytes", "read_bytes_s", "ratio_fresh", "memory_ratio", "resident_ratio"]
KEYS += ["ratio_plain"]
KEYS += ["total_s", "most_reread", "turns", "slowest_s", "restart_s", "restart_reread"]
KEYS += ["resident_bytes", "device_bytes", "cache_bytes", "fp16_bytes"]
QUICK = ["lab", "bench", "--shape", "tiny", "--context", "200", "--rounds", "2", "--schemes", "fp16,turbo4"]


@pytest.fixture(autouse=True)
def small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bandwidth of the test's machine is of no interest."""
    monkeypatch.setitem(machine.COPY_BYTES, backend.prepare().name, 1 << 20)


def test_bench_writes_json_svg_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "out.json", tmp_path / "out.svg"
    asked = ["--what", "decode,prefill,attention,encode", "--json", str(out), "--plot", str(plot)]
    assert main([*QUICK, *asked]) == 0
    told = json.loads(out.read_text("utf-8"))
    assert list(told) == ["device", "model", "copy_bytes_s", "rows"]
    assert [list(row) for row in told["rows"]] == [KEYS] * len(told["rows"])
    names = ["mlx16", "mlx8", "mlx4", "fp16", "turbo4"]
    for what in ("decode", "prefill", "attention"):
        rows = {row["scheme"]: row for row in told["rows"] if row["what"] == what}
        packed = ["turbo4 packed as read"] if what == "prefill" else []
        assert list(rows) == names + packed
        assert rows["mlx16"]["ratio_fp16"] == 1.0 and rows["turbo4"]["ratio_mlx"] is not None
        assert all(row["median_s"] > 0 and row["peak_bytes"] > 0 for row in rows.values())
    assert [row["context"] for row in told["rows"] if row["what"] == "encode"] == [16, 2048]
    # Packed caches read fewer bytes.
    decoded = {row["scheme"]: row for row in told["rows"] if row["what"] == "attention"}
    assert decoded["turbo4"]["read_bytes"] < decoded["fp16"]["read_bytes"]
    ElementTree.fromstring(plot.read_text("utf-8"))
    assert "| `turbo4`" in capsys.readouterr().out
    assert BenchResults.read(out).rows[0].scheme == "mlx16"


def test_a_day_of_chatting_leaves_a_cache_like_a_fresh_one(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    asked = ["--what", "day", "--model", str(STARTER_FOLDER), "--schemes", "turbo4", "--context", "80"]
    assert main(["lab", "bench", *asked, "--rounds", "1", "--json", str(out)]) == 0
    (row,) = json.loads(out.read_text("utf-8"))["rows"]
    assert row["what"] == "day" and row["scheme"] == "turbo4" and row["context"] > 20
    assert row["ratio_fresh"] > 0 and row["median_s"] > 0
    # What else lives in the process of the tests adds to it.
    assert row["memory_ratio"] > 0.99 and row["resident_ratio"] > 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        ["--what", "walk"],
        ["--context", "many"],
        ["--rounds", "0"],
        ["--shape", "enormous"],
        ["--schemes", "turbo9"],
        ["--what", "encode", "--query-heads", "3", "--kv-heads", "2"],
        ["--head-dim", "0"],
        ["--json", "/no/such/folder/out.json"],
    ],
)
def test_bad_options_are_refused_in_one_sentence(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUICK, *wrong]) in (1, 2)
    told = capsys.readouterr().err
    assert told.startswith("tqchat: ") and told.count("\n") == 1


def test_kernels_are_skipped_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    if mx.default_device() != mx.cpu:
        pytest.skip("here it has")
    assert main([*QUICK, "--what", "kernels"]) == 0
    told = capsys.readouterr()
    assert "a CPU has none" in told.err and "|" not in told.out


class Device:
    """A device on a fake clock: busy for the given seconds, and submitting takes the host one second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: list[float], each: float) -> None:
        self.now, self.seconds, self.each, self.calls = 0.0, iter(seconds), each, 0
        self.busy, self.queued = object(), object()
        monkeypatch.setattr(attention.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(attention.mx, "synchronize", lambda: None)
        monkeypatch.setattr(attention.mx, "eval", self.wait)
        monkeypatch.setattr(attention, "_chain", self.submit)

    def begin(self) -> object:
        self.free = self.now + next(self.seconds)
        return self.busy

    def double(self) -> bool:
        return self.now < 100

    def submit(self, cache: object, queries: object, calls: int) -> object:
        self.now, self.calls = self.now + 1, calls
        return self.queued

    def wait(self, what: object) -> None:
        self.now = max(self.now, self.free) + (self.calls * self.each if what is self.queued else 0)


def test_device_time_starts_when_the_busy_work_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, [0.5, 1.1, 2.0], 0.01)
    assert attention._time_on_device(None, None, 10, device) == pytest.approx(0.01)
    assert next(device.seconds, None) is None


def test_messages_and_scheme_changes_are_timed_on_random_weights(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert main([*QUICK, "--what", "turn,convert", "--json", str(out)]) == 0
    rows = json.loads(out.read_text("utf-8"))["rows"]
    assert [row["scheme"] for row in rows if row["what"] == "turn"] == ["mlx16", "fp16", "turbo4"]
    changes = ["fp16 to turbo4", "turbo4 to fp16", "fp16 to turbo4, again"]
    assert [row["scheme"] for row in rows if row["what"] == "convert"] == changes


def test_caches_longer_than_a_chunk_of_their_filling_can_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_caches, "FILL_CHUNK_TOKENS", 150)
    layer = attention.Layer(query_heads=4, kv_heads=2, head_dim=64)
    for candidate in kv_caches.candidates("turbo4"):
        cache = attention._layer_cache(candidate, layer, 500)
        queries = mx.random.normal((1, 4, 1, 64))
        assert cache.offset == 500 and mx.isfinite(attention._chain(cache, queries, 2)).all().item()


@pytest.mark.parametrize("calls", [1, 4, 27, 28, 40])
def test_all_calls_are_submitted_before_waiting(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    cache = KVCache()
    x = mx.random.normal((1, 2, 4, 32))
    cache.update_and_fetch(x, x)
    given: list[mx.array] = []
    monkeypatch.setattr(attention.mx, "async_eval", given.append)
    last = attention._chain(cache, mx.random.normal((1, 2, 1, 32)), calls)
    assert given[-1] is last and len(given) == -(-calls // attention.CALLS_PER_EVAL)


def test_a_device_that_does_not_queue_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, [0.0] * 1000, 0.01)
    with pytest.raises(attention._CannotQueue):
        attention._time_on_device(None, None, 10, device)


def test_all_candidates_hold_the_same_tokens() -> None:
    model = shapes.build("tiny")
    base = kv_caches.random_filled(model, 200)
    keys = base[0].keys_and_values()[0]
    for candidate in kv_caches.candidates("fp16,turbo4"):
        cache = kv_caches.make_cache(candidate, base, model)
        assert [layer.offset for layer in cache] == [200, 200]
        if candidate.name in ("mlx16", "fp16"):
            assert mx.allclose(cache[0].keys_and_values()[0], keys)


def test_ratios_compare_times_of_the_same_round() -> None:
    seconds = {"fast": iter([9.0, 1.0, 2.0, 4.0]), "slow": iter([9.0, 2.0, 4.0, 8.0])}
    times = timing.time_interleaved({name: own.__next__ for name, own in seconds.items()}, 3)
    assert times == {"fast": [1.0, 2.0, 4.0], "slow": [2.0, 4.0, 8.0]}
    assert timing.ratio(times["fast"], times["slow"]) == 0.5
    assert timing.ratio(None, times["slow"]) is None
    assert timing.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == 2.0


def test_the_mlx_counterpart_has_as_many_bits() -> None:
    candidates = kv_caches.candidates("turbo8v2,turbo4,affine4,turbo0v4")
    counterparts = {c.name: kv_caches.mlx_counterpart(c) for c in candidates}
    assert counterparts == {
        "mlx16": "", "mlx8": "", "mlx4": "", "turbo8v2": "mlx8", "turbo4": "mlx4", "affine4": "mlx4",
        "turbo0v4": "mlx8",
    }  # fmt: skip
    assert all(isinstance(c, Candidate) for c in kv_caches.MLX_CACHES)


def test_empty_columns_are_left_out() -> None:
    row = BenchRow("start", "import tqchat.cli", 0, 0.2, 0.01)
    header = tables(BenchResults("a machine", None, None, (row,))).splitlines()[4]
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["scheme", "median", "spread"]


def test_a_file_that_is_not_results_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text("[1]")
    with pytest.raises(BadResults):
        BenchResults.read(file)


def test_events_and_restore_print_their_rows(llama_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--model", str(llama_folder), "--what", "events,restore", "--context", "200", "--rounds", "1"]
    assert main(["lab", "bench", *asked, "--schemes", "turbo4"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("piece of text", "memory report", "look at the budget"))
    assert "**restore**" in printed and "turbo4, then the first token" in printed
    assert ("turbo4, from the disk" in printed) == (sys.platform == "linux")


def test_a_turn_over_a_packed_history_is_timed(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(turn, "TURN_TOKENS", 40)
    out = tmp_path / "out.json"
    asked = ["--model", str(llama_folder), "--what", "turn,convert", "--context", "200", "--rounds", "1"]
    assert main(["lab", "bench", *asked, "--schemes", "turbo4,affine4", "--json", str(out)]) == 0
    rows = json.loads(out.read_text("utf-8"))["rows"]
    turns = [row for row in rows if row["what"] == "turn"]
    assert [row["scheme"] for row in turns] == ["mlx16", "turbo4", "affine4"]
    assert all(row["ratio_fp16"] > 0 and row["peak_bytes"] > 0 for row in turns)
    changes = {row["scheme"] for row in rows if row["what"] == "convert"}
    assert changes == {
        f"{a} to {b}{how}"
        for name in ("turbo4", "affine4")
        for a, b, how in (("fp16", name, ""), (name, "fp16", ""), ("fp16", name, ", again"))
    }


def test_drafting_is_timed_beside_plain_decoding(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(drafting, "REPLY_TOKENS", 24)
    out = tmp_path / "out.json"
    asked = ["--model", str(llama_folder), "--what", "drafting", "--context", "100", "--rounds", "1"]
    assert main(["lab", "bench", *asked, "--schemes", "turbo4", "--json", str(out)]) == 0
    rows = {row["scheme"]: row for row in json.loads(out.read_text("utf-8"))["rows"]}
    assert list(rows) == [f"turbo4 {task} {how}" for task in ("edit", "prose") for how in ("plain", "prompt")]
    assert all((row["ratio_plain"] == 1) or name.endswith("prompt") for name, row in rows.items())


def test_a_cache_that_does_not_run_here_is_left_out_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("QuantizedMatmul has no CUDA implementation.\nmore")

    monkeypatch.setattr(mx, "quantized_matmul", refuse)
    monkeypatch.setattr(decode, "DECODED_TOKENS", 2)
    out = tmp_path / "out.json"
    asked = ["--what", "decode,prefill,attention", "--context", "64", "--rounds", "1", "--json", str(out)]
    assert main([*QUICK, *asked]) == 0
    told = capsys.readouterr()
    for name in ("mlx8", "mlx4"):
        sentence = f"tqchat: {name} was left out: it does not run here (QuantizedMatmul has no CUDA"
        assert told.err.count(sentence) == 1
    assert "Traceback" not in told.err
    rows = json.loads(out.read_text("utf-8"))["rows"]
    assert {row["what"] for row in rows} == {"decode", "prefill", "attention"}
    assert {row["scheme"] for row in rows} == {"mlx16", "fp16", "turbo4", "turbo4 packed as read"}


def test_an_error_of_our_own_caches_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(kv_caches, "make_cache", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main([*QUICK, "--what", "decode", "--rounds", "1"])
