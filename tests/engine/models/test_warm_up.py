"""Kernels are compiled ahead of the first reply, and the user is told."""

from __future__ import annotations

import threading
from pathlib import Path
from queue import SimpleQueue

import pytest

from tests.engine.talk import send, user
from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.models import LoadedModel, warm_up
from tqchat.engine.session import Session
from tqchat.kv.prompt_cache import scheme_caches


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


@pytest.mark.parametrize("scheme", ["trellis2", "trellis3", "turbo4v2"])
def test_its_prompts_leave_fine_tokens_only_and_then_packed_ones(starter: LoadedModel, scheme: str) -> None:
    for sentences, packs in ((warm_up.SENTENCES, False), (warm_up.LONG_SENTENCES, True)):
        cache = PromptCache(starter, scheme)
        cache.prefill(starter.tokenizer.encode(warm_up.SENTENCE * sentences))
        cache.pack_due()
        for layer in scheme_caches(cache.cache):
            assert layer.key_side.fine.length
            assert (layer.key_side.packed.length >= 32) == packs


@pytest.mark.parametrize("had_some", [False, True])
def test_compiled_kernels_are_counted_as_they_come(
    had_some: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(warm_up, "POLL_INTERVAL_S", 0.01)
    if had_some:
        (tmp_path / "before.ptx").touch()
    said: SimpleQueue[str] = SimpleQueue()
    warm_up.KernelWatch(tmp_path, said.put)
    (tmp_path / "one.ptx").touch()
    (tmp_path / "one.txt").touch()
    assert said.get(timeout=60).endswith(" 1 so far.")
    assert said.get(timeout=60) == warm_up.COMPILED
    (tmp_path / "two.ptx").touch()
    assert "2" in said.get(timeout=60)
    assert said.get(timeout=60) == warm_up.COMPILED
