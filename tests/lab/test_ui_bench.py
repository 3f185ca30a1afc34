"""The screen benchmark on a short run of the real app."""

from __future__ import annotations

from tqchat.lab.ui_bench import measure


def test_a_short_run_reports_opening_and_lag() -> None:
    (row,) = measure([30], tokens_per_second=60, seconds=1)
    assert (row.messages, row.tokens_per_second) == (30, 60)
    assert row.opening_seconds > 0 and row.widgets > 30
    assert 0 <= row.lag_p50_ms <= row.lag_p95_ms <= row.lag_max_ms
    assert 0 < row.busy_p95_ms <= row.busy_max_ms
