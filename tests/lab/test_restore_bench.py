from __future__ import annotations

import sys
from pathlib import Path

from tqchat.engine import models
from tqchat.lab import restore_bench


def test_restore_rows_and_table(llama_folder: Path) -> None:
    model = models.load(str(llama_folder))
    rows = list(restore_bench.measure(model, ["fp16", "turbo2"], [300]))
    assert [(row.scheme, row.tokens) for row in rows] == [("fp16", 300), ("turbo2", 300)]
    for row in rows:
        assert row.memory_bytes <= row.disk_bytes < row.memory_bytes * 1.1 + 20_000
        assert row.turn_written_bytes > 0
        assert row.read_s > 0 and row.restore_s > 0 and row.save_s > 0
        assert (row.cold_restore_s is not None) == (sys.platform == "linux")
        assert row.question_s > 0 and row.first_step_s > 0
    assert rows[1].disk_bytes < rows[0].disk_bytes
    table = restore_bench.table(rows)
    assert len(table.splitlines()) == 4
    assert "`turbo2`" in table
