"""A stop within a chunk of a prompt leaves the cache as it was before that chunk."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache

from tests.engine import tiny
from tests.engine.listener import SECONDS, Listener
from tests.engine.talk import TALE, greedy, send, user
from tests.kv import families
from tests.kv.test_families import short
from tests.models import STARTER_FOLDER
from tqchat.engine import models
from tqchat.engine.cache import stop_between_layers
from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.cache.stop_between_layers import PrefillStopped, StopBetweenLayers
from tqchat.engine.commands import Limits, LoadModel, Send
from tqchat.engine.events import Done, PrefillProgress, Saved
from tqchat.engine.models import LoadedModel
from tqchat.engine.models.token_arrays import token_array
from tqchat.engine.session import Session
from tqchat.engine.worker import Engine
from tqchat.kv import checkpoint
from tqchat.kv.cache import verifying
from tqchat.kv.prompt_cache import flat_layers, scheme_caches
from tqchat.paths import Paths

TEXT = TALE * 5
TOKENS = [3 + n * 7919 % 9_000 for n in range(700)]


class StopAtCall:
    """Says stop at one of the calls, and counts them."""

    def __init__(self, number: int) -> None:
        self.number, self.calls = number, 0

    def __call__(self) -> bool:
        self.calls += 1
        return self.calls > self.number


@pytest.fixture(autouse=True)
def _no_chunk_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_between_layers, "FINISH_SECONDS", 0.0)


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
    monkeypatch.setattr(stop_between_layers, "FINISH_SECONDS", 1e9)
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
    evaluate = StopBetweenLayers.__call__

    def one_layer(stop: StopBetweenLayers, index: int, *stored: mx.array) -> None:
        if any(event.done for event in heard.all(PrefillProgress)):
            after.append(engine._closing.is_set())
            if len(after) == 4:
                reached.set()
                while not engine._closing.is_set():
                    time.sleep(0.001)
        evaluate(stop, index, *stored)

    monkeypatch.setattr(StopBetweenLayers, "__call__", one_layer)
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


UNTRIMMABLE = families.SLIDING | families.PARTLY | families.HYBRID | families.WINDOWS_ONLY
FEWER_STOPS = {"baichuan_m1": 2, "minimax_m3_vl": 2}
"""Two caches of a layer store at once, or a layer shares another's."""


def small(family: str, scheme: str) -> PromptCache:
    model: Any = SimpleNamespace(
        model=families.model(family), resolve_scheme=short, cache_dtype=None, on_cpu=True
    )
    return empty(model, scheme, pack=scheme != "fp16")


def recurrent_states(session: Session) -> list[mx.array]:
    layers = [layer for layer in session._cache.cache if isinstance(layer, ArraysCache)]
    return [array for layer in layers for array in layer.state[0]]


def logits(held: PromptCache, tokens: list[int]) -> mx.array:
    found: mx.array = held.model.model(token_array(tokens)[None], cache=held.cache)[0]
    mx.eval(found)
    return found


@pytest.mark.parametrize("family", UNTRIMMABLE | families.LATENT_ONLY)
@pytest.mark.parametrize("scheme", ["fp16", "turbo4"])
@pytest.mark.parametrize("begin", [0, 130])  # windows are empty, full
def test_what_follows_a_stopped_chunk_has_the_logits_of_a_cache_that_never_saw_it(
    family: str, scheme: str, begin: int
) -> None:
    if mx.default_device() != mx.cpu:
        pytest.skip("a GPU reads whole chunks")
    tokens = [3 + n * 31 % 90 for n in range(begin + 50)]
    stops = StopAtCall(1_000)
    caches = stopped, never, single, never_single = [small(family, scheme) for _ in range(4)]
    counted = small(family, scheme)
    for held in (*caches, counted):
        for first in range(0, begin, 65):
            held.prefill(tokens[first : min(first + 65, begin)])
    counted.prefill(tokens[begin:], stops)
    assert stops.calls >= FEWER_STOPS.get(family, len(flat_layers(counted.cache)))
    kinds = [type(layer) for layer in flat_layers(stopped.cache)]
    for held in (stopped, single):
        for calls in range(stops.calls):
            with pytest.raises(PrefillStopped):
                held.prefill(tokens[begin:], StopAtCall(calls))
            assert len(held.tokens) == begin
    assert [type(layer) for layer in flat_layers(stopped.cache)] == kinds
    for more in (tokens[begin:], [5], [6]):
        assert mx.array_equal(logits(stopped, more), logits(never, more)).item()
    if begin:
        assert mx.array_equal(logits(single, [5]), logits(never_single, [5])).item()


@pytest.mark.parametrize(
    "config", [tiny.SLIDING, tiny.RECURRENT, tiny.HYBRID], ids=lambda one: one["model_type"]
)
def test_after_a_stop_within_a_chunk_the_next_message_continues_from_before_it(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.load(str(tiny.write(tmp_path / "model", config)))
    if not model.on_cpu:
        pytest.skip("a GPU reads whole chunks")
    session, between = Session(model, "turbo4"), Session(model, "turbo4")
    stop, stop_between = threading.Event(), threading.Event()
    evaluate = StopBetweenLayers.__call__

    def pressed_in_second_chunk(stopping: StopBetweenLayers, index: int, *stored: mx.array) -> None:
        if session.tokens and index == 1:
            stop.set()
        evaluate(stopping, index, *stored)

    with monkeypatch.context() as patched:
        patched.setattr(StopBetweenLayers, "__call__", pressed_in_second_chunk)
        patched.setattr("tqchat.engine.cache.prompt_cache.prefill_chunk_tokens", lambda *_: 128)
        assert send(session, [user(TEXT)], greedy(8), stop).stop_reason == "stopped"
        for event in between.send([user(TEXT)], greedy(8), stop_between):
            if isinstance(event, PrefillProgress) and event.done == 128:
                stop_between.set()
        assert session.tokens == between.tokens and len(session.tokens) == 128
        for ours, theirs in zip(recurrent_states(session), recurrent_states(between), strict=True):
            assert mx.array_equal(ours, theirs).item()
        done = send(session, [user(TEXT)], greedy(8))
        assert done.counts.reused == 128
        assert done.text == send(between, [user(TEXT)], greedy(8)).text


def test_nothing_is_copied_for_caches_that_cannot_stop_a_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.load(str(tiny.write(tmp_path / "model", tiny.OWN_CACHE)))
    held = PromptCache(model, "fp16")
    monkeypatch.setattr(checkpoint, "copy_layer", lambda layer: pytest.fail("copied"))
    held.prefill(TOKENS[:40], StopAtCall(0))
    assert len(held.tokens) == 40
