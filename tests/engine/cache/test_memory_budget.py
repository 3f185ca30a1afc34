"""The memory budget of a conversation's cache: before a prompt, and while a reply grows."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from tests.engine.talk import TALE, greedy, held_is_consistent, of, user
from tests.kv.storage.disks import Disk
from tests.models import tiny_llama
from tqchat.engine import models
from tqchat.engine.cache.memory_budget import MemoryBudget, PrefillPlan
from tqchat.engine.commands import Limits
from tqchat.engine.events import Done, Event, Failed, MemoryUpdate, Notice, SchemeChanged
from tqchat.engine.models import LoadedModel
from tqchat.engine.session import Session
from tqchat.kv.storage.array_file import ArrayFile

ASKED = [user(TALE * 2)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Two random layers with a long context limit."""
    folder = tiny_llama(tmp_path_factory.mktemp("roomy"), max_position_embeddings=4096, eos_token_id=[0])
    return models.load(str(folder))


def answer(session: Session, tokens: int = 24) -> list[Event]:
    return list(session.send(ASKED, greedy(tokens)))


def size(model: LoadedModel, scheme: str) -> int:
    """Allocated bytes for the prompt and one token under a scheme."""
    done = answer(Session(model, scheme), 1)[-1]
    assert isinstance(done, Done)
    return done.report.allocated_bytes


def test_a_prompt_that_does_not_fit_is_refused_with_a_remedy(tiny: LoadedModel) -> None:
    session = Session(tiny, "fp16", Limits(budget=int(0.6 * size(tiny, "fp16"))))
    events = answer(session)
    assert isinstance(events[-1], Failed)
    assert "would fit" in events[-1].message
    assert "step_down" in events[-1].message
    assert session.tokens == () and held_is_consistent(session)


def test_a_budget_too_small_for_any_scheme_is_reported(tiny: LoadedModel) -> None:
    events = answer(Session(tiny, "turbo4", Limits(budget=1000, step_down=True)))
    assert isinstance(events[-1], Failed)
    assert "raise memory_budget" in events[-1].message


def test_a_prompt_is_read_under_a_smaller_scheme_if_allowed(tiny: LoadedModel) -> None:
    budget = int(0.8 * size(tiny, "fp16"))
    session = Session(tiny, "fp16", Limits(budget=budget, step_down=True))
    events = answer(session)
    (changed,) = of(events, SchemeChanged)
    assert changed.previous == "fp16" and changed.scheme == session.scheme != "fp16"
    assert of(events, Notice)
    done = events[-1]
    assert isinstance(done, Done) and done.report.allocated_bytes <= budget
    assert done.report.layers_compressed == 2


@pytest.mark.parametrize("step_down", [True, False])
def test_a_reply_over_the_budget_continues_under_a_smaller_scheme_or_stops(
    tiny: LoadedModel, step_down: bool
) -> None:
    long = 300
    plain = Session(tiny, "fp16")
    whole = of(answer(plain, long), Done)[0]
    assert whole.counts.generated == long, "the tiny model must not end its reply early"
    # Enough for the prompt and 40 tokens of the reply.
    budget = whole.report.fp16_bytes * (whole.counts.prompt + 40) // whole.report.tokens
    session = Session(tiny, "fp16", Limits(budget=budget, step_down=step_down))
    session._memory.plan = lambda held, tokens: PrefillPlan(None, False)  # type: ignore[method-assign]
    events = answer(session, long)
    done = events[-1]
    assert isinstance(done, Done)
    assert held_is_consistent(session)
    if step_down:
        assert done.counts.generated == long
        changes = of(events, SchemeChanged)
        assert changes[0].previous == "fp16"
        assert done.scheme == changes[-1].scheme == session.scheme
        assert "memory budget" in of(events, Notice)[0].text
    else:
        assert done.stop_reason == "memory" and done.counts.generated < long
        assert whole.text.startswith(done.text)


def test_prompts_that_do_not_fit_raw_are_packed_during_prefill(tiny: LoadedModel) -> None:
    free, asked, tight = (
        Session(tiny, "turbo4", limits)
        for limits in (
            Limits(),
            Limits(pack_prompts=True),
            Limits(budget=int(0.6 * size(tiny, "fp16"))),
        )
    )
    reports = []
    for session in (free, asked, tight):
        done = answer(session, 1)[-1]
        assert isinstance(done, Done)
        reports.append(done.report)
    assert [report.packed_tokens > 0 for report in reports] == [True] * 3
    assert all(
        layer.packs_prompts is packs
        for session, packs in ((free, False), (asked, True), (tight, True))
        for layer in session._cache.cache
    )


def test_what_a_change_of_scheme_leaves_of_the_budget_may_wait_for_the_disk(
    tiny: LoadedModel, disk: Disk, tmp_path: Path
) -> None:
    session = Session(tiny, "fp16")
    answer(session, 1)
    cache = session._cache
    held = cache.allocated_bytes
    disk.is_open.clear()
    file = ArrayFile.temporary(tmp_path)
    for waiting in (0, 400):
        for more, spare in ((-1, 0), (0, 0), (1000, 1000 - waiting), (300, max(0, 300 - waiting))):
            budget = MemoryBudget(Limits(budget=held + more))
            assert budget.spare_bytes(cache, "turbo4") == spare
        assert budget.spare_bytes(cache, "fp16") <= spare
        file.write({"x": mx.arange(100)})


def test_the_report_has_the_peak_memory(tiny: LoadedModel) -> None:
    session = Session(tiny, "fp16")
    events = answer(session)
    report = of(events, Done)[0].report
    assert report.peak_bytes is not None and report.peak_bytes >= report.allocated_bytes
    assert all(update.report.peak_bytes for update in of(events, MemoryUpdate))


@pytest.mark.parametrize("step_down", [True, False])
def test_a_scheme_that_does_not_fit_is_refused_or_replaced(tiny: LoadedModel, step_down: bool) -> None:
    session = Session(tiny, "turbo4")
    assert isinstance(answer(session)[-1], Done)
    tokens, before = session.tokens, session.memory()
    session.limits = Limits(budget=int(0.7 * before.fp16_bytes), step_down=step_down)
    events = list(session.set_scheme("fp16"))
    last = events[-1]
    if step_down:
        assert isinstance(last, SchemeChanged)
        assert "would not fit" in of(events, Notice)[0].text
        assert last.scheme == session.scheme not in ("fp16", "turbo4")
        assert session.memory().bytes <= int(0.7 * before.fp16_bytes)
    else:
        assert isinstance(last, Failed)
        assert "under fp16 take" in last.message and "would fit" in last.message
        assert (session.scheme, session.memory().bytes) == ("turbo4", before.bytes)
    assert session.tokens == tokens and held_is_consistent(session)
    session.limits = Limits(budget=1000)
    (smaller,) = session.set_scheme("turbo2")  # over the budget still, but less so
    assert isinstance(smaller, SchemeChanged)


def test_the_draft_models_cache_counts_against_the_budget(tiny: LoadedModel) -> None:
    alone, drafted = Session(tiny, "fp16"), Session(tiny, "fp16", draft=tiny)
    for session in (alone, drafted):
        session.limits = Limits(budget=int(1.2 * size(tiny, "fp16")))
    assert isinstance(answer(alone, 1)[-1], Done)
    failed = answer(drafted, 1)[-1]
    assert isinstance(failed, Failed) and "would fit" in failed.message
