"""Kernels are compiled ahead of the first reply, and the user is told."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.engine.talk import send, user
from tqchat.engine.models import LoadedModel, warm_up
from tqchat.engine.session import Session


def test_a_model_and_scheme_is_warmed_up_once(
    starter: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not warm_up.is_needed(starter, "turbo4"), "only CUDA compiles kernels at their first use"
    monkeypatch.setattr(warm_up, "kernel_folder", lambda: tmp_path)
    before = send(Session(starter, "turbo4"), [user("Hi.")]).text
    assert warm_up.is_needed(starter, "turbo4")
    stopped = threading.Event()
    stopped.set()
    warm_up.warm_up(starter, "turbo4", stopped)
    assert warm_up.is_needed(starter, "turbo4"), "a warm-up that was stopped is repeated"
    warm_up.warm_up(starter, "turbo4", threading.Event())
    assert not warm_up.is_needed(starter, "turbo4") and warm_up.is_needed(starter, "trellis3")
    assert send(Session(starter, "turbo4"), [user("Hi.")]).text == before


def test_compiled_kernels_are_counted_as_they_come(tmp_path: Path) -> None:
    (tmp_path / "before.ptx").touch()
    counts: list[int] = []
    came = threading.Event()

    def say(count: int) -> None:
        counts.append(count)
        came.set()

    warm_up.KernelWatch(tmp_path, say)
    for name in ("one", "two"):
        came.clear()
        (tmp_path / f"{name}.ptx").touch()
        (tmp_path / f"{name}.txt").touch()
        assert came.wait(60)
    assert counts == [1, 2]
