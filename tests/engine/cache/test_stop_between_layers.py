"""A stop within a chunk of a prompt leaves the cache as it was before that chunk."""

from __future__ import annotations

import threading
import time
from typing import Any

import mlx.core as mx
import pytest

from tests.engine.listener import SECONDS, Listener
from tests.engine.talk import TALE, greedy, user
from tests.models import STARTER_FOLDER
from tqchat.engine.cache import prompt_cache
from tqchat.engine.cache.prompt_cache import PrefillStopped, PromptCache
from tqchat.engine.commands import Limits, LoadModel, Send
from tqchat.engine.events import Done, PrefillProgress, Saved
from tqchat.engine.models import LoadedModel
from tqchat.engine.worker import Engine
from tqchat.kv.cache import verifying
from tqchat.kv.prompt_cache import scheme_caches
from tqchat.paths import Paths

TEXT = TALE * 5
TOKENS = [3 + n * 7919 % 9_000 for n in range(700)]


class StopAtCall:
    """Says stop at one of the calls."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.fixture(autouse=True)
def _no_chunk_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_cache, "FINISH_SECONDS", 0.0)


def empty(model: LoadedModel, scheme: str, pack: bool) -> PromptCache:
    held = PromptCache(model, scheme)
    held.pack_prompts(pack)
    return held


def arrays(held: PromptCache) -> list[dict[str, Any]]:
    held.settle(certain=True)
    return [layer.state[1] for layer in scheme_caches(held.cache)]


@pytest.mark.parametrize("scheme", ["fp16", "turbo4", "turbo3", "trellis2", "turbo8v4"])
@pytest.mark.parametrize("pack", [False, True])
def test_what_was_stopped_and_read_again_equals_what_was_read_at_once(
    starter: LoadedModel, scheme: str, pack: bool
) -> None:
    if not starter.on_cpu:
        pytest.skip("a GPU reads whole chunks")
    straight, held = empty(starter, scheme, pack), empty(starter, scheme, pack)
    for _ in straight.prefill_in_chunks(TOKENS):
        pass
    layers = len(scheme_caches(held.cache))
    for calls in (layers // 2, layers + layers // 3):  # within the first chunk, then within the second
        reading = held.prefill_in_chunks(TOKENS, StopAtCall(calls))
        read = []
        with pytest.raises(PrefillStopped):
            read.extend(reading)
        assert len(read) == calls // layers
        assert len(held.tokens) == (read[-1] if read else 0)
        for layer in scheme_caches(held.cache):
            assert layer.offset == len(held.tokens) and layer.is_complete and layer.before_append is None
        if read:
            break
    for _ in held.prefill_in_chunks(TOKENS[len(held.tokens) :], lambda: False):
        pass
    assert held.tokens == straight.tokens
    for ours, theirs in zip(arrays(held), arrays(straight), strict=True):
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            assert mx.array_equal(array, theirs[name]).item(), name


def test_a_chunk_that_is_nearly_read_is_kept(starter: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_cache, "FINISH_SECONDS", 1e9)
    held = empty(starter, "turbo4", False)
    assert next(held.prefill_in_chunks(TOKENS, StopAtCall(1))) == len(held.tokens) > 0


@pytest.mark.parametrize(("scheme", "pack"), [("turbo4", True), ("turbo4", False), ("fp16", False)])
def test_a_stop_while_a_prompt_is_read_takes_one_layer_more_and_what_was_read_is_saved(
    starter: LoadedModel, paths: Paths, monkeypatch: pytest.MonkeyPatch, scheme: str, pack: bool
) -> None:
    """Of the seconds that a chunk takes on a CPU, a closed terminal leaves less than one."""
    if not starter.on_cpu:
        pytest.skip("a GPU reads whole chunks")
    heard = Listener()
    engine = Engine(heard, paths=paths, limits=lambda: Limits(pack_prompts=pack))
    after: list[bool] = []  # for each layer of the second chunk: whether stopped before
    reached = threading.Event()
    evaluate = prompt_cache._StopBetweenLayers.__call__

    def one_layer(stop: prompt_cache._StopBetweenLayers, keys: mx.array, values: mx.array) -> None:
        if any(event.done for event in heard.all(PrefillProgress)):
            after.append(engine._closing.is_set())
            if len(after) == 4:
                reached.set()
                while not engine._closing.is_set():
                    time.sleep(0.001)
        evaluate(stop, keys, values)

    monkeypatch.setattr(prompt_cache._StopBetweenLayers, "__call__", one_layer)
    engine.start()
    try:
        engine.submit(LoadModel(str(STARTER_FOLDER)))
        engine.submit(Send("a", (user(TEXT),), scheme, greedy(4)))
        assert reached.wait(SECONDS)
    finally:
        engine.shutdown(SECONDS)
    read = max(event.done for event in heard.all(PrefillProgress))
    assert read > 0 and after.count(True) <= 1 and len(after) <= 5
    (done,) = heard.all(Done)
    assert done.stop_reason == "stopped"
    (saved,) = heard.all(Saved)
    assert saved.tokens == read


def test_a_stopped_chunk_leaves_query_statistics_that_can_be_trimmed(starter: LoadedModel) -> None:
    if not starter.on_cpu:
        pytest.skip("a GPU reads whole chunks")
    held = empty(starter, "turbo4", pack=False)
    held.prefill(TOKENS[:40])
    with verifying(held.cache):
        held.prefill(TOKENS[40:44])
    with pytest.raises(PrefillStopped):
        held.prefill(TOKENS[44:100], StopAtCall(3))
    held.trim_to(30)
    for layer in scheme_caches(held.cache):
        energy = layer.queries.energy
        assert energy is not None and energy.shape[2] == 1
