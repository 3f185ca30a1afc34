from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from tests.models import STARTER_FOLDER
from tqchat.cli import main
from tqchat.engine import backend
from tqchat.lab.api_bench import clients, replay, run
from tqchat.lab.api_bench.servers import Kind
from tqchat.lab.bench import machine
from tqchat.lab.bench.results import BenchRow

SCRIPTED = Path(__file__).with_name("scripted_server.py")
HISTORY = [f"one two three {number}" for number in range(6)]
Rows = Callable[..., tuple[list[BenchRow], dict[str, str], list[str]]]


def scripted(name: str, *options: str) -> Kind:
    """A server that counts words as tokens; see its options."""
    return Kind(name, lambda port: [sys.executable, str(SCRIPTED), str(port), *options])


def measured(*kinds: Kind) -> tuple[dict[str, BenchRow], dict[str, str], list[str]]:
    """Rows by name, servers that were left out and why, and lines of progress."""
    told: list[str] = []
    left_out: dict[str, str] = {}

    def leave_out(name: str, error: Exception) -> None:
        left_out[name] = str(error)

    prompts = (f"prompt {number}" for number in count())
    rows = list(run.side_by_side(kinds, HISTORY, prompts, told.append, leave_out))
    return {row.scheme: row for row in rows}, left_out, told


def test_tokens_read_again_are_counted_around_the_kill() -> None:
    rows, left_out, told = measured(scripted("keeps", "--keep"), scripted("forgets"))
    assert not left_out
    keeps, forgets = rows["keeps"], rows["forgets"]
    for row in (keeps, forgets):
        assert row.what == "api" and row.turns == len(HISTORY) and row.context == 6 * (4 + 2)
        assert row.most_reread == 0 and row.total_s is not None and row.slowest_s is not None
        assert row.total_s >= row.slowest_s >= row.median_s > 0 and row.restart_s is not None
    # Half of the history, each message with its reply.
    assert keeps.restart_reread == 0 and forgets.restart_reread == 3 * (4 + 2)
    assert keeps.resident_bytes is None or 0 < keeps.resident_bytes <= (keeps.peak_bytes or 0)
    assert (keeps.cache_bytes, keeps.fp16_bytes) == (36, 144) and forgets.cache_bytes is None
    turns = [line.split(":")[0] for line in told if " turn " in line]
    # Turn by turn, in rotating order.
    assert turns[:4] == [f"api {name} turn {n} of 6" for name, n in
                         (("keeps", 1), ("forgets", 1), ("forgets", 2), ("keeps", 2))]  # fmt: skip
    assert len(turns) == 12
    for number in run.CLIENTS:
        name = f"keeps, {number} client{'s' * (number > 1)}"
        assert rows[name].what == "api clients" and rows[name].tok_s == pytest.approx(1 / rows[name].median_s)


def test_a_server_that_fails_or_is_slow_does_not_lose_the_rows_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replay, "LIMIT_S", 0.5)
    monkeypatch.setattr(run, "CLIENTS", (1,))
    rows, left_out, told = measured(
        scripted("good"),
        scripted("stalls", "--stall-at", "4"),
        scripted("refuses", "--refuse-at", "2"),
        Kind("dies", lambda port: [sys.executable, "-c", "raise SystemExit('no model here')"]),
    )
    assert rows["good"].turns == len(HISTORY)
    assert rows["stalls"].turns == 4 and rows["refuses"].turns == 2
    assert rows["refuses"].restart_s is None and rows["refuses"].restart_reread is None
    assert left_out == {
        "dies": "it did not start: no model here",
        "refuses": "it answered 500: {'error': 'no'}",
    }
    assert "api stalls turn 5 of 6: time is up" in told
    assert [name for name in rows if ", " in name] == ["good, 1 client"]


def test_our_server_and_mlx_lms_are_measured_side_by_side(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(machine.COPY_BYTES, backend.prepare().name, 1 << 20)
    monkeypatch.setattr(run, "TURNS", 1)
    monkeypatch.setattr(run, "CLIENTS", (2,))
    monkeypatch.setattr(run, "CLIENT_ROUNDS", 1)
    monkeypatch.setattr(replay, "REPLY_TOKENS", 2)
    monkeypatch.setattr(clients, "REPLY_TOKENS", 2)
    out = tmp_path / "out.json"
    asked = ["--model", str(STARTER_FOLDER), "--what", "api", "--context", "400", "--json", str(out)]
    assert main(["lab", "bench", *asked]) == 0
    ours, peer, *asked_at_once = json.loads(out.read_text("utf-8"))["rows"]
    assert ours["scheme"] == "turbo4" and peer["scheme"].startswith("mlx_lm.server")
    assert ours["turns"] == peer["turns"] == 1 and ours["context"] == peer["context"] > 300
    assert ours["cache_bytes"] > 0 and ours["fp16_bytes"] > 0
    assert ours["peak_bytes"] > 1 << 26 and peer["peak_bytes"] > 1 << 26
    assert [row["what"] for row in asked_at_once] == ["api clients"] * 2
    shown = capsys.readouterr()
    assert "api turbo4 turn 1 of 1" in shown.err and "turbo4, 2 clients" in shown.out
