"""Changing a live cache's scheme."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace

import pytest

from tests.engine.talk import GREEDY, TALE, assistant, greedy, held_is_consistent, of, send, user
from tests.kv.tiny import REPRESENTATIVE
from tqchat.engine.commands import ChatMessage, Limits
from tqchat.engine.events import Event, Failed, Notice, PrefillProgress, SchemeChanged
from tqchat.engine.models import LoadedModel
from tqchat.engine.session import Session
from tqchat.kv.memory import LayerReport, MemoryReport

STORY = [user(TALE)]
NAMES = list(REPRESENTATIVE)
PAIRS = sorted(
    {("fp16", name) for name in NAMES}
    | {(name, "fp16") for name in NAMES}
    | set(zip(NAMES, reversed(NAMES), strict=True))
)


def changed(events: Iterable[Event]) -> SchemeChanged:
    last = list(events)[-1]
    assert isinstance(last, SchemeChanged), last
    return last


def packed_session(model: LoadedModel, scheme: str) -> tuple[Session, list[ChatMessage]]:
    """A session that has packed some tokens (where its scheme packs), and its transcript."""
    session = Session(model, scheme)
    done = send(session, STORY, greedy(8))
    return session, [*STORY, assistant(done.text)]


@pytest.mark.parametrize(("previous", "scheme"), PAIRS)
def test_a_cache_is_converted_to_another_scheme(starter: LoadedModel, previous: str, scheme: str) -> None:
    session, said = packed_session(starter, previous)
    tokens, before = session.tokens, session.memory()
    change = changed(session.set_scheme(scheme))
    assert (change.previous, change.scheme, change.tokens) == (previous, scheme, len(tokens))
    assert change.bytes_before == before.bytes
    assert change.bytes_after == change.report.bytes == session.memory().bytes
    assert change.report.scheme == scheme
    assert session.tokens == tokens
    assert held_is_consistent(session)
    done = send(session, [*said, user("What is my name?")])
    assert done.counts.reused >= len(tokens) - 1
    assert done.scheme == scheme


def test_a_reply_goes_on_under_the_present_scheme_where_the_change_before_it_fails(
    starter: LoadedModel,
) -> None:
    session, said = packed_session(starter, "turbo4")
    session.limits = Limits(budget=int(1.5 * session.memory().bytes))
    (notice,) = session.prepare_scheme("fp16", threading.Event(), "talk")
    assert isinstance(notice, Notice) and notice.text.endswith("The reply is generated under turbo4.")
    done = send(session, [*said, user("Go on.")], greedy(4))
    assert (done.scheme, done.counts.generated) == ("turbo4", 4)


def test_conversion_to_more_bits_reports_kept_rounding(starter: LoadedModel) -> None:
    session, _ = packed_session(starter, "turbo0v2")
    assert changed(session.set_scheme("turbo0v4")).kept_rounding
    assert changed(session.set_scheme("fp16")).kept_rounding
    # Back at two bits, no coarser rounding is kept.
    assert not changed(session.set_scheme("turbo0v2")).kept_rounding


def test_conversion_to_fewer_bits_reports_no_kept_rounding(starter: LoadedModel) -> None:
    session, _ = packed_session(starter, "fp16")
    assert not changed(session.set_scheme("turbo0v2")).kept_rounding


def test_without_packed_tokens_no_rounding_is_kept(starter: LoadedModel) -> None:
    session = Session(starter, "turbo0v2")
    send(session, [user("Hello!")], greedy(5))
    assert not changed(session.set_scheme("fp16")).kept_rounding


def test_re_reading_equals_a_fresh_cache_under_the_new_scheme(starter: LoadedModel) -> None:
    session, said = packed_session(starter, "turbo0v2")
    events = list(session.set_scheme("fp16", reread=True, messages=said))
    change = changed(events)
    assert change.reread
    assert not change.kept_rounding
    steps = of(events, PrefillProgress)
    assert steps[-1].done == steps[-1].total == change.tokens
    asked = [*said, user("What is my name?")]
    assert send(session, asked).text == send(Session(starter, "fp16"), asked).text


def test_re_reading_without_a_transcript_reads_the_caches_tokens(starter: LoadedModel) -> None:
    session, _ = packed_session(starter, "turbo0v2")
    tokens = session.tokens
    changed(session.set_scheme("fp16", reread=True))
    assert session.tokens == tokens


def test_a_stopped_re_reading_keeps_the_old_cache(tiny: LoadedModel) -> None:
    session = Session(tiny, "turbo0v4")
    send(session, [user("word " * 400)], greedy(2))
    before, stop = session.memory(), threading.Event()
    stop.set()
    many = [user("word " * 450)]
    (*_, last) = session.set_scheme("fp16", reread=True, messages=many, stop=stop)
    if isinstance(last, Failed):  # more than one chunk
        assert "turbo0v4" in last.message
        assert session.scheme == "turbo0v4"
        assert session.memory() == before
    else:
        assert len(session.tokens) <= 512


def test_an_unknown_scheme_changes_nothing(starter: LoadedModel) -> None:
    session, said = packed_session(starter, "turbo0v4")
    before, tokens = session.memory(), session.tokens
    (failed,) = session.set_scheme("turbo9")
    assert isinstance(failed, Failed)
    assert "turbo9" in failed.message
    assert (session.scheme, session.memory(), session.tokens) == ("turbo0v4", before, tokens)
    assert send(session, [*said, user("Hi")]).text


def test_a_failed_conversion_keeps_the_old_cache(
    starter: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tqchat.kv import prompt_cache

    session, _ = packed_session(starter, "turbo0v4")
    before, tokens = session.memory(), session.tokens
    whole = prompt_cache._convert_replaceable
    calls = 0

    def breaks(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("[malloc] Unable to allocate 1 bytes")
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(prompt_cache, "_convert_replaceable", breaks)
    (failed,) = session.set_scheme("affine4")
    assert isinstance(failed, Failed)
    assert "memory" in failed.message
    assert (session.scheme, session.tokens) == ("turbo0v4", tokens)
    assert without_slack(session.memory()) == without_slack(before)
    assert held_is_consistent(session)


def without_slack(report: MemoryReport) -> list[LayerReport]:
    """Layers without allocated slack: a converted layer has none."""
    return [replace(layer, allocated_bytes=0) for layer in report.layers]


def test_a_stopped_conversion_keeps_the_old_cache(starter: LoadedModel) -> None:
    session, _ = packed_session(starter, "turbo0v4")
    before, tokens = session.memory(), session.tokens
    stop = threading.Event()
    stop.set()
    (failed,) = session.set_scheme("turbo4", stop=stop)
    assert isinstance(failed, Failed) and "stopped" in failed.message
    assert (session.scheme, session.tokens) == ("turbo0v4", tokens)
    assert without_slack(session.memory()) == without_slack(before)
    assert held_is_consistent(session)


def test_the_same_scheme_changes_nothing(starter: LoadedModel) -> None:
    session, _ = packed_session(starter, "affine8")
    session.changed = False
    change = changed(session.set_scheme("affine8"))
    assert change.bytes_before == change.bytes_after
    assert not session.changed


def test_an_empty_conversation_takes_any_scheme(tiny: LoadedModel) -> None:
    session = Session(tiny, "fp16")
    assert changed(session.set_scheme("turbo0v2")).tokens == 0
    assert send(session, [user("Hi")], GREEDY).scheme == "turbo0v2"
