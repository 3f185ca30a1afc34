from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine import tiny as tiny_models
from tests.engine.talk import GREEDY, assistant, greedy, held_is_consistent, of, send, user
from tqchat.engine import models
from tqchat.engine.commands import ChatMessage, Limits, Sampling
from tqchat.engine.events import Done, Failed, MemoryUpdate, Notice, PrefillProgress, SchemeChanged, TextDelta
from tqchat.engine.models import LoadedModel
from tqchat.engine.reasoning import Ends, ReplyFormat, ReplyStream
from tqchat.engine.session import REPORT_INTERVAL_S, Session

ADA = [user("Hello! My name is Ada.")]
LONG = "It was a good day and the sun was up. " * 120


def test_the_starter_answers_and_remembers(starter: LoadedModel) -> None:
    session = Session(starter, "turbo0v4")
    hello = send(session, ADA)
    asked = [*ADA, assistant(hello.text), user("What is my name?")]
    done = send(session, asked)
    assert "Ada" in done.text
    assert done.stop_reason == "stop"
    assert done.counts.reused > 0
    assert done.counts.prompt == done.counts.restored + done.counts.reused + done.counts.prefilled
    assert done.scheme == "turbo0v4"
    assert done.model == "starter"
    assert done.decode_tokens_per_second > 0
    assert done.prompt_tokens_per_second > 0
    assert 0 < done.first_token_seconds < 30
    assert done.report.tokens == len(session.tokens)
    assert held_is_consistent(session)


def test_deltas_make_up_the_text_and_show_no_special_tokens(starter: LoadedModel) -> None:
    events = list(Session(starter).send([user("Tell me a story about a dog.")], greedy(400)))
    done = events[-1]
    assert isinstance(done, Done)
    assert "".join(delta.text for delta in of(events, TextDelta)) == done.text
    assert done.stop_reason == "stop"
    assert "<|" not in done.text


def test_the_cache_holds_prompt_and_reply_token_for_token(starter: LoadedModel) -> None:
    session = Session(starter)
    done = send(session, ADA, greedy(4))
    assert done.stop_reason == "length"
    assert done.counts.generated == 4
    assert len(session.tokens) == done.counts.prompt + 4
    assert starter.tokenizer.decode(session.tokens).endswith(done.text)
    assert held_is_consistent(session)


def test_only_the_new_part_is_read(starter: LoadedModel) -> None:
    whole, pieces = Session(starter), Session(starter)
    first = send(pieces, ADA)
    asked = [*ADA, assistant(first.text), user("Tell me a joke.")]
    again, fresh = send(pieces, asked), send(whole, asked)
    assert again.text == fresh.text
    assert fresh.counts.reused == 0
    assert again.counts.reused >= first.counts.prompt + first.counts.generated - 1
    assert again.counts.prefilled < fresh.counts.prefilled


def test_asking_the_same_again_reads_one_token(starter: LoadedModel) -> None:
    session = Session(starter)
    first, second = send(session, ADA), send(session, ADA)
    assert second.text == first.text
    assert second.counts.prefilled == 1
    assert second.counts.reused == first.counts.prompt - 1


def test_a_rewound_conversation_keeps_what_is_shared(starter: LoadedModel) -> None:
    # What is shared was packed: finely, for the first word of this reply is all but a tie.
    session = Session(starter, "affine8")
    send(session, [user("Tell me a story about a dog.")], greedy(200))
    shorter = [user("Tell me a story about a cat.")]
    assert send(session, shorter).text == send(Session(starter, "affine8"), shorter).text
    assert held_is_consistent(session)


def test_a_penalty_does_not_depend_on_what_was_cached(starter: LoadedModel) -> None:
    sampling = replace(greedy(40), repetition_penalty=1.3)
    session = Session(starter)
    send(session, ADA, sampling)
    assert send(session, ADA, sampling).text == send(Session(starter), ADA, sampling).text
    assert send(session, ADA, sampling).text != ""


def test_a_seed_repeats_a_reply(starter: LoadedModel) -> None:
    asked = [user("Tell me a story.")]
    texts = [
        send(Session(starter), asked, Sampling(temperature=1.0, max_tokens=30, seed=seed)).text
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_progress_counts_the_new_tokens_in_chunks(tiny: LoadedModel) -> None:
    roomy = replace(tiny, info=replace(tiny.info, context_limit=4096))
    events = list(Session(roomy).send([user(LONG)], greedy(1)))
    steps = of(events, PrefillProgress)
    done = events[-1]
    assert isinstance(done, Done)
    assert steps[0].done == 0
    assert steps[-1].done == steps[-1].total == done.counts.prefilled
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert len(steps) >= 1 + done.counts.prefilled / (512 if roomy.on_cpu else 2048)


def test_the_gauge_hears_of_a_long_reply_at_least_twice_a_second(starter: LoadedModel) -> None:
    events = list(Session(starter, "turbo0v4").send([user("Tell me a story about a dog.")], greedy(120)))
    done = events[-1]
    assert isinstance(done, Done)
    seconds = done.counts.generated / done.decode_tokens_per_second
    updates = of(events, MemoryUpdate)
    assert len(updates) >= int(seconds * 2)
    assert all(update.tokens_per_second for update in updates)


@pytest.mark.parametrize("packs", [False, True])
def test_the_gauge_hears_of_a_prompt_while_it_is_read(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, packs: bool
) -> None:
    monkeypatch.setattr("tqchat.engine.session.REPORT_INTERVAL_S", 0.0)
    roomy = replace(tiny, info=replace(tiny.info, context_limit=4096))
    session = Session(roomy, "turbo4", Limits(pack_prompts=packs))
    send(session, ADA, greedy(1))
    held = len(session.tokens)
    events = list(session.send([user("Read this. " + LONG)], greedy(1)))
    first = next(index for index, event in enumerate(events) if isinstance(event, TextDelta | Done))
    steps = [step for step in of(events[:first], PrefillProgress) if step.done]
    updates = of(events[:first], MemoryUpdate)
    assert len(updates) >= 2
    assert [one.report.tokens for one in updates] == [one.held + one.done for one in steps[: len(updates)]]
    assert all(one.tokens_per_second is None for one in updates)
    sizes = [one.report.bytes for one in updates]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert [one.report.packed_tokens > 0 for one in updates] == [packs] * len(updates)
    done = events[-1]
    assert isinstance(done, Done)
    assert 0 < steps[0].held < held
    assert {one.held + one.total for one in steps} == {done.counts.prompt}


def test_reports_during_a_prompt_are_no_more_frequent_than_in_a_reply(tiny: LoadedModel) -> None:
    roomy = replace(tiny, info=replace(tiny.info, context_limit=4096))
    times = []
    began = time.perf_counter()
    for event in Session(roomy).send([user(LONG)], greedy(1)):
        if isinstance(event, MemoryUpdate):
            times.append(time.perf_counter() - began)
    assert len(times) <= (time.perf_counter() - began) / REPORT_INTERVAL_S


@pytest.mark.parametrize("scheme", ["fp16", "turbo0v2"])
def test_stop_takes_effect_within_one_token(starter: LoadedModel, scheme: str) -> None:
    session, stop = Session(starter, scheme), threading.Event()
    pieces = 0
    for event in session.send([user("Tell me a story about a dog.")], greedy(300), stop):
        if isinstance(event, TextDelta):
            pieces += 1
            if pieces == 5:
                stop.set()
    assert isinstance(event, Done)
    assert event.stop_reason == "stopped"
    # The fifth piece's own token is the last; held back text may come with it.
    assert pieces <= 6
    assert event.text
    assert held_is_consistent(session)
    follow = [user("Tell me a story about a dog."), assistant(event.text), user("Go on.")]
    assert send(session, follow).counts.reused > event.counts.prompt


def test_stop_while_the_prompt_is_read_keeps_what_was_read(tiny: LoadedModel) -> None:
    roomy = replace(tiny, info=replace(tiny.info, context_limit=4096))
    session, stop = Session(roomy), threading.Event()
    for event in session.send([user(LONG)], GREEDY, stop):
        if isinstance(event, PrefillProgress) and event.done:
            stop.set()
    assert isinstance(event, Done)
    assert event.stop_reason == "stopped"
    assert event.text == ""
    assert 0 < len(session.tokens) < event.counts.prompt
    assert held_is_consistent(session)
    again = send(session, [user(LONG)])
    assert again.counts.reused == len(session.tokens) - again.counts.prefilled - again.counts.generated > 0
    assert again.text == send(Session(roomy), [user(LONG)]).text


def test_a_stop_before_the_start_answers_nothing(tiny: LoadedModel) -> None:
    stop = threading.Event()
    stop.set()
    done = send(Session(tiny), ADA, GREEDY, stop)
    assert (done.stop_reason, done.text, done.counts.generated) == ("stopped", "", 0)


def test_leaving_a_reply_halfway_keeps_cache_and_tokens_in_step(starter: LoadedModel) -> None:
    session = Session(starter, "turbo0v4")
    events = session.send([user("Tell me a story about a dog.")], greedy(300))
    for event in events:
        if isinstance(event, MemoryUpdate):
            break
    events.close()  # type: ignore[attr-defined]
    assert held_is_consistent(session)
    assert send(session, ADA).text == send(Session(starter, "turbo0v4"), ADA).text


def test_a_prompt_beyond_the_context_fails_and_loses_nothing(tiny: LoadedModel) -> None:
    session = Session(tiny)
    send(session, ADA, greedy(3))
    before = session.tokens
    (failed,) = list(session.send([*ADA, user(LONG)], GREEDY))
    assert isinstance(failed, Failed)
    assert "512" in failed.message
    assert failed.message.endswith(".")
    assert session.tokens == before
    assert held_is_consistent(session)


def test_a_reply_ends_at_the_context_limit(tiny: LoadedModel) -> None:
    small = replace(tiny, info=replace(tiny.info, context_limit=40), tokenizer=_no_end(tiny))
    session = Session(small)
    done = send(session, ADA, greedy(400))
    assert done.stop_reason == "context"
    assert len(session.tokens) == 40


def _no_end(model: LoadedModel) -> object:
    from mlx_lm.utils import load_tokenizer

    tokenizer = load_tokenizer(model.folder)
    tokenizer.eos_token_ids = set()
    return tokenizer


def shown_by(stream: ReplyStream, tokens: Sequence[int]) -> str:
    spans = [span for token in tokens for span in stream.add(token)] + stream.finish()
    return "".join(span.text for span in spans)


def test_a_reply_cut_inside_a_character_shows_only_whole_ones(tiny: LoadedModel) -> None:
    # A rainbow takes four bytes, and the starter's vocabulary has no token for it.
    ids = tiny.tokenizer.encode("ok \N{RAINBOW} fine", add_special_tokens=False)
    for cut in range(len(ids) + 1):
        stream = ReplyStream(tiny.reply_format)
        shown = shown_by(stream, ids[:cut])
        assert "\ufffd" not in shown
        assert "ok \N{RAINBOW} fine".startswith(shown)
        assert stream.text == shown
    assert shown == "ok \N{RAINBOW} fine"


def test_special_tokens_never_show(tiny: LoadedModel) -> None:
    stream = ReplyStream(tiny.reply_format)
    ids = tiny.tokenizer.encode("a<|im_start|>b<|im_end|>", add_special_tokens=False)
    assert shown_by(stream, ids) == "ab"


@pytest.mark.parametrize("cut", [1, 7, 20])
def test_a_reply_that_was_cut_off_goes_on_as_if_it_had_not_been(starter: LoadedModel, cut: int) -> None:
    asked = [user("Tell me a story about a dog.")]
    whole = send(Session(starter), asked, greedy(40))
    session = Session(starter)
    first = send(session, asked, greedy(cut))
    rest = go_on(session, [*asked, assistant(first.text)], 40 - cut)
    assert first.text + rest.text == whole.text
    assert rest.counts.prefilled == 1
    assert held_is_consistent(session)


def test_a_reply_goes_on_in_a_session_that_does_not_hold_it(starter: LoadedModel) -> None:
    asked = [user("Tell me a story about a dog.")]
    whole = send(Session(starter), asked, greedy(40)).text
    half = whole[: whole.index(" ", len(whole) // 2)]
    rest = go_on(Session(starter), [*asked, assistant(half)], 40)
    assert rest.text.startswith(" ")
    assert (half + rest.text).startswith(whole)


def test_a_reply_cut_inside_a_character_goes_on_with_the_rest_of_it(tiny: LoadedModel) -> None:
    ids = tiny.tokenizer.encode("ok \N{RAINBOW} fine", add_special_tokens=False)
    for cut in range(len(ids)):
        first, rest = ReplyStream(tiny.reply_format), ReplyStream(tiny.reply_format)
        shown = shown_by(first, ids[:cut])
        rest.begin_after(ids[:cut])
        shown += shown_by(rest, ids[cut:])
        assert shown == "ok \N{RAINBOW} fine"


def go_on(session: Session, messages: list[ChatMessage], max_tokens: int) -> Done:
    *_, done = session.send(messages, greedy(max_tokens), continues=True)
    assert isinstance(done, Done), done
    return done


def test_without_a_template_a_reply_ends_where_the_other_speaks(tiny: LoadedModel) -> None:
    stream = ReplyStream(ReplyFormat(tiny.tokenizer, Ends(texts=("\nUser:",))))
    ids = tiny.tokenizer.encode("Fine.\nUsually so.\nUser: and you?", add_special_tokens=False)
    shown = ""
    for token in ids:
        shown += "".join(span.text for span in stream.add(token))
        if stream.ended:
            break
    assert shown + shown_by(stream, []) == "Fine.\nUsually so."
    assert stream.ended


def test_what_cannot_be_rendered_fails_in_one_sentence(tiny: LoadedModel) -> None:
    (failed,) = list(Session(tiny).send([], GREEDY))
    assert isinstance(failed, Failed)
    assert failed.message == "There is no message to answer yet."


@pytest.mark.parametrize("kind", ["sliding", "recurrent"])
def test_a_cache_that_cannot_go_back_is_read_afresh_and_says_so(tmp_path: Path, kind: str) -> None:
    config = {"sliding": tiny_models.SLIDING, "recurrent": tiny_models.RECURRENT}[kind]
    model = models.load(str(tiny_models.write(tmp_path / kind, config)))
    session = Session(model)
    send(session, [user(LONG)], greedy(4))
    assert held_is_consistent(session)

    # Within its first message it has no place to go back to.
    edited = [user(f"{LONG} At last.")]
    events = list(session.send(edited, greedy(30)))
    (notice,) = of(events, Notice)
    again = events[-1]
    assert isinstance(again, Done)
    assert kind in notice.text
    assert f"{again.counts.prompt:,}" in notice.text
    assert again.counts.reused == 0
    assert again.text == send(Session(model), edited, greedy(30)).text


def test_a_sliding_window_goes_forward_without_reading_again(tmp_path: Path) -> None:
    model = models.load(str(tiny_models.write(tmp_path / "sliding", tiny_models.SLIDING)))
    session, stop = Session(model), threading.Event()
    asked = [user(LONG)]
    for event in session.send(asked, GREEDY, stop):
        if isinstance(event, PrefillProgress) and event.done:
            stop.set()
    read = len(session.tokens)
    assert read > tiny_models.SLIDING["sliding_window"]
    events = list(session.send(asked, GREEDY))
    done = events[-1]
    assert isinstance(done, Done)
    assert not of(events, Notice)
    assert done.counts.reused == read
    assert done.text == send(Session(model), asked).text


def test_an_empty_conversation_can_have_any_scheme(starter: LoadedModel) -> None:
    session = Session(starter, "fp16")
    for scheme in ("turbo2", "affine8", "turbo4", "turbo0v4", "turbo3"):
        (change,) = session.set_scheme(scheme)
        assert isinstance(change, SchemeChanged)
        assert session.scheme == scheme
