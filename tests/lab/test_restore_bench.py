from __future__ import annotations

from pathlib import Path

from tqchat.engine import models
from tqchat.lab import restore_bench


def test_a_restore_is_measured_and_told(llama_folder: Path) -> None:
    model = models.load(str(llama_folder))
    rows = list(restore_bench.measure(model, ["fp16", "turbo2"], [300]))
    assert [(row.scheme, row.tokens) for row in rows] == [("fp16", 300), ("turbo2", 300)]
    for row in rows:
        assert row.memory <= row.disk < row.memory * 1.1 + 20_000
        assert row.turn_written > 0
        assert row.read > 0 and row.restore > 0 and row.save > 0
    assert rows[1].disk < rows[0].disk
    table = restore_bench.table(rows)
    assert len(table.splitlines()) == 4
    assert "`turbo2`" in table
