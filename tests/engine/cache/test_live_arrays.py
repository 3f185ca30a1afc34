"""Every array that lives between two steps is counted by the gauge."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.engine import tiny as small
from tests.engine.talk import TALE, assistant, greedy, send, user
from tqchat import kv
from tqchat.engine import models
from tqchat.engine.commands import Limits
from tqchat.engine.events import PrefillProgress
from tqchat.engine.models import LoadedModel
from tqchat.engine.session import Session
from tqchat.store.vault import Vault

STORY = [user(TALE)]


def arrays() -> list[mx.array]:
    """Every array that Python holds."""
    gc.collect()
    return [found for found in gc.get_objects() if isinstance(found, mx.array)]


def live_bytes(known: set[int]) -> int:
    """Bytes of the buffers of all arrays but the ``known`` ones; views of one buffer count once."""
    ranges = sorted(
        np.lib.array_utils.byte_bounds(np.asarray(array.view(mx.uint8) if array.ndim else array))
        for array in arrays()
        if id(array) not in known and array.size
    )
    total = end = 0
    for low, high in ranges:
        total += max(0, high - max(low, end))
        end = max(end, high)
    return total


def uncounted(session: Session, known: set[int]) -> int:
    report = session.memory()
    shared = report.shared_bytes + (report.draft.shared_bytes if report.draft else 0)
    return live_bytes(known) - (report.allocated_bytes - shared)


@pytest.fixture(scope="module")
def tables(starter: LoadedModel) -> None:
    """Makes the tables that outlive conversations."""
    for scheme in ("turbo4", "turbo0v2", "turbo3", "turbo2", "affine4"):
        send(Session(starter, scheme, draft=starter), STORY, greedy(4))


@pytest.fixture
def known(tables: None) -> Iterator[set[int]]:
    """Weights, tables, and what other tests hold."""
    held = arrays()
    yield {id(array) for array in held}
    del held


@pytest.mark.parametrize("scheme", ["turbo4", "turbo2", "affine4", "fp16"])
def test_everything_alive_after_a_command_is_counted(
    starter: LoadedModel, scheme: str, known: set[int], tmp_path: Path
) -> None:
    session = Session(starter, scheme)
    done = send(session, STORY, greedy(24))
    assert uncounted(session, known) == 0
    more = [*STORY, assistant(done.text), user("And then?")]
    send(session, more, greedy(8))
    assert uncounted(session, known) == 0
    send(session, [*STORY, assistant("No."), user("Why?")], greedy(8))  # trims
    assert uncounted(session, known) == 0
    for other in ("turbo0v2", "fp16", "turbo3"):
        list(session.set_scheme(other))
        assert uncounted(session, known) == 0
    vault = Vault(tmp_path / "caches")
    session.save(vault, "story")
    del session
    again = Session(starter, "turbo3")
    assert again.restore(vault, "story", STORY)[0]
    assert uncounted(again, known) == 0
    list(again.set_scheme("turbo4", reread=True))
    assert again.memory().packed_tokens and uncounted(again, known) == 0


def test_a_draft_models_cache_is_counted(starter: LoadedModel, known: set[int]) -> None:
    session = Session(starter, "turbo4", draft=starter)
    send(session, STORY, greedy(24))
    report = session.memory()
    assert report.draft is not None and report.draft.tokens
    assert report.bytes > report.draft.bytes > report.bytes // 3
    assert report.fp16_bytes > 1.5 * report.draft.fp16_bytes
    assert uncounted(session, known) == 0
    list(session.set_scheme("turbo3"))
    assert session.memory().draft is None and uncounted(session, known) == 0


@pytest.fixture
def new_buffers() -> Iterator[None]:
    """No buffer is used again: MLX may give an array one that is up to two pages larger."""
    limit = mx.set_cache_limit(0)
    yield
    mx.set_cache_limit(limit)


@pytest.mark.usefixtures("new_buffers")
@pytest.mark.parametrize("scheme", ["turbo4", "turbo3", "affine4"])
def test_what_lives_between_two_steps_is_counted(starter: LoadedModel, scheme: str) -> None:
    cache = kv.make_prompt_cache(starter.model, scheme, dtype=starter.cache_dtype)
    tokens = mx.array([starter.tokenizer.encode(TALE)])
    for part in (tokens[:, :-4], tokens[:, -4:-3]):
        mx.eval(starter.model(part, cache=cache), [layer.state for layer in cache])
    for at in (-3, -2):
        mx.eval(starter.model(tokens[:, at : at + 1], cache=cache), [layer.state for layer in cache])
    report = kv.memory_report(cache)
    # Somebody evaluates the tokens decoded.
    for layer in cache:
        mx.eval(layer.keys_and_values())
    mx.synchronize()
    before = mx.get_active_memory()
    assert kv.memory_report(cache).allocated_bytes == report.allocated_bytes
    del cache, layer
    freed = before - mx.get_active_memory()
    # Rotations and tables stay; buffers are a little larger than their arrays.
    counted = report.allocated_bytes - report.shared_bytes
    assert counted <= freed < 1.04 * counted


def test_reading_that_was_stopped_leaves_nothing_raw_that_is_due(tiny: LoadedModel) -> None:
    session, stop = Session(tiny, "turbo4"), threading.Event()
    for event in session.send([user("word " * 450)], greedy(4), stop):
        if isinstance(event, PrefillProgress):
            stop.set()
    if session.tokens:
        assert session.memory().packed_tokens > 0


def test_a_re_read_packs_and_consults_the_budget(tiny: LoadedModel) -> None:
    session = Session(tiny, "turbo4")
    said = [user("word " * 300)]
    send(session, said, greedy(4))
    replied = session.memory()
    list(session.set_scheme("turbo4", reread=True))
    assert session.memory().packed_tokens == replied.packed_tokens
    session.limits = Limits(pack_prompts=True)
    list(session.set_scheme("turbo4", reread=True))
    assert all(layer.packs_prompts for layer in session._cache.cache)
    session.limits = Limits(budget=1000)
    (failed,) = session.set_scheme("turbo4", reread=True)
    assert "memory_budget" in failed.message  # type: ignore[union-attr]
    assert session.memory().packed_tokens == replied.packed_tokens


def test_checkpoints_of_windows_are_counted_and_hold_no_more_than_the_window(tmp_path: Path) -> None:
    window = 256
    config = small.SLIDING | {"sliding_window": window, "num_hidden_layers": 2}
    model = models.load(str(small.write(tmp_path / "model", config)))
    for scheme in ("turbo4", "turbo3"):  # makes their tables
        send(Session(model, scheme), STORY, greedy(1))
    held = arrays()
    known = {id(array) for array in held}
    session = Session(model, "turbo4")
    done = send(session, STORY, greedy(8))
    assert uncounted(session, known) == 0
    kept = [layer.key_side.length for one in session._cache.checkpoints for layer in one.layers.values()]
    assert set(kept) == {window}
    send(session, [*STORY, assistant(done.text), user("And then?")], greedy(8))
    assert uncounted(session, known) == 0
    send(session, [*STORY, assistant("No."), user("Why?")], greedy(8))  # rolls back
    for other in ("turbo3", "turbo4"):
        list(session.set_scheme(other))
        assert uncounted(session, known) == 0


@pytest.mark.parametrize("config", [small.SLIDING, small.RECURRENT, small.HYBRID])
def test_a_restored_cache_that_goes_back_to_a_checkpoint_counts_nothing_twice(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    model = models.load(str(small.write(tmp_path / "model", config)))
    send(Session(model, "turbo4"), STORY, greedy(1))  # makes its tables
    held = arrays()
    known = {id(array) for array in held}
    session, vault = Session(model, "turbo4"), Vault(tmp_path / "caches")
    said = [*STORY, assistant(send(session, STORY, greedy(24)).text), user("And then?")]
    send(session, said, greedy(24))
    assert uncounted(session, known) == 0
    session.save(vault, "story")
    del session
    again = Session(model, "turbo4")
    assert again.restore(vault, "story", said[:1])[0]
    assert again.memory().checkpoint_bytes and uncounted(again, known) == 0
    send(again, said, greedy(8))
    assert uncounted(again, known) == 0
