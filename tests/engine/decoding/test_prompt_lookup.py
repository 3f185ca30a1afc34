"""Proposals from the conversation: where they are found, and that a reply is the same with them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from tests.engine import tiny
from tests.engine.scripted_model import scripted
from tests.engine.talk import TALE, assistant, held_is_consistent, send, user
from tqchat.cli import main
from tqchat.engine import models
from tqchat.engine.commands import Sampling, drafting_of
from tqchat.engine.decoding import no_draft_reason, prompt_lookup
from tqchat.engine.decoding.payoff import Payoff
from tqchat.engine.decoding.prompt_lookup import PromptLookup, TokenIndex
from tqchat.engine.events import Done, Event
from tqchat.engine.models import LoadedModel
from tqchat.engine.session import Session

TOLD = [user("Tell me about the dog."), assistant(TALE)]
"""An unfinished reply that repeats itself."""


def proposed(lookup: PromptLookup, tokens: Sequence[int], most: int = 4) -> list[int]:
    lookup.expects(tokens)
    return lookup.propose(tokens, 0, most)


def done_of(events: Iterable[Event]) -> Done:
    *_, last = events
    assert isinstance(last, Done), last
    return last


@pytest.fixture
def lookup() -> PromptLookup:
    """One whose proposals have paid before."""
    lookup = PromptLookup()
    lookup.stepped(1.0, read_ahead=True)
    lookup.verified(8, 8, 1.8)
    return lookup


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Propose as much as possible, mostly in vain, whatever it costs on a machine that is busy."""
    monkeypatch.setattr(Payoff, "proposals", lambda self, most, established: most)
    monkeypatch.setattr(prompt_lookup, "MATCH_TOKENS", 1)


def test_what_followed_the_last_tokens_is_proposed(lookup: PromptLookup) -> None:
    assert proposed(lookup, [1, 2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4]) == [5, 6, 7, 8]
    assert proposed(PromptLookup(), [1, 2, 3, 4, 5, 1, 2, 3]) == [], "no step was timed"
    assert proposed(lookup, [1, 2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 4]) == []


def test_the_place_with_the_longest_match_is_taken(lookup: PromptLookup) -> None:
    first = [9, 8, 1, 2, 3, 40, 41]
    assert proposed(lookup, [*first, 7, 7, 1, 2, 3, 50, 51, 9, 8, 1, 2, 3], 2) == [40, 41]


def test_a_text_that_repeats_is_continued(lookup: PromptLookup) -> None:
    assert proposed(lookup, [5, 6, 7, 5, 6, 7, 5, 6], 5) == [7, 5, 6, 7, 5]
    assert proposed(PromptLookup(), [1, 2, 3]) == []


@pytest.mark.parametrize(
    ("replaced", "by", "within"),
    [([30], [99], 0), ([30, 31], [98, 99], 0), ([30], [97, 98, 99], 1), ([30], [], 1), ([], [98, 99], 1)],
)
def test_copying_goes_on_behind_a_change(
    lookup: PromptLookup, replaced: list[int], by: list[int], within: int
) -> None:
    """After a change at most ``within`` tokens come without a right proposal."""
    old = [*range(10, 30), *replaced, *range(50, 70)]
    new = [*range(10, 30), *by, *range(50, 70)]
    tokens = [*old, 1]
    missed = 0
    for position, token in enumerate(new):
        right = proposed(lookup, tokens, 1) == [token]
        missed += position >= 20 + len(by) and not right
        tokens.append(token)
    assert missed <= within


def test_the_index_is_the_same_however_it_grows() -> None:
    tokens = [(7 * n * n) % 11 for n in range(300)]
    whole, grown = TokenIndex(), TokenIndex()
    whole.extend(tokens)
    for end in (0, 1, 2, 3, 50, 51, 300):
        grown.extend(tokens[:end])
    assert grown.find(tokens) == whole.find(tokens) > 0
    assert tokens[whole.find(tokens) - 3 : whole.find(tokens)] == tokens[-3:]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("scheme", "penalty"),
    [("fp16", None), ("turbo4", None), ("turbo4", 1.1), ("affine4", 1.1), ("trellis3", 1.1)],
)
def test_a_greedy_reply_is_the_plain_one(starter: LoadedModel, scheme: str, penalty: float | None) -> None:
    sampling = Sampling(temperature=0.0, repetition_penalty=penalty, max_tokens=20)
    plain, drafting = Session(starter, scheme), Session(starter, scheme, lookup=True)
    alone, drafted = (done_of(session.send(TOLD, sampling, continues=True)) for session in (plain, drafting))
    assert drafted.text == alone.text
    assert drafted.counts.drafted > 0 and alone.counts.drafted == 0
    assert drafted.report.packed_tokens == alone.report.packed_tokens
    assert plain.tokens == drafting.tokens and held_is_consistent(drafting)


@pytest.mark.usefixtures("always")
def test_a_seed_gives_the_same_reply_with_and_without_proposals(tiny: LoadedModel) -> None:
    told = [user("one two three four five six. " * 8)]
    for changes in ({}, {"top_p": 0.9, "repetition_penalty": 1.2}, {"xtc_probability": 0.5, "top_k": 50}):
        sampling = Sampling(temperature=0.8, max_tokens=30, seed=4, **changes)  # type: ignore[arg-type]
        sessions = Session(tiny), Session(tiny, lookup=True), Session(tiny, draft=tiny)
        alone, looked_up, modelled = (send(session, told, sampling) for session in sessions)
        assert alone.text == looked_up.text == modelled.text
        assert modelled.counts.accepted == modelled.counts.drafted > 0, "same distribution, same seeds"


def copying(folder: Path, reply: str, asked: str = "") -> LoadedModel:
    """A model that answers with ``reply``, whatever is proposed."""
    return models.load(str(scripted(folder, [([user(asked)], reply)])))


TEXT = "The dog runs to the sea, the cat sleeps by the fire, and a bird sings in the old tree. "


@pytest.mark.usefixtures("always")
def test_copied_text_comes_in_fewer_steps(tmp_path: Path) -> None:
    asked = f"Repeat: {TEXT}"
    session = Session(copying(tmp_path, f"{TEXT}<|im_end|>", asked), lookup=True)
    done = send(session, [user(asked)], Sampling(temperature=0.0, max_tokens=60))
    assert done.text == TEXT and done.stop_reason == "stop"
    assert done.counts.accepted > 0.6 * done.counts.generated
    assert held_is_consistent(session)


def ends_with_reply(session: Session, done: Done) -> bool:
    """Whether the cache holds prompt and reply, and nothing behind them."""
    return len(session.tokens) == done.counts.prompt + done.counts.generated and held_is_consistent(session)


@pytest.mark.usefixtures("always")
def test_a_reply_can_end_among_accepted_tokens(tmp_path: Path) -> None:
    """By its length, a stop, or an end of turn: the cache holds the reply's tokens and no others."""
    asked = f"Repeat: {TEXT}"
    model = copying(tmp_path, f"{TEXT}<|im_end|>\n", asked)
    whole = send(Session(model), [user(asked)], Sampling(temperature=0.0, max_tokens=60))
    for most in (9, 12, 14, 60):
        session = Session(model, lookup=True)
        limited = send(session, [user(asked)], Sampling(temperature=0.0, max_tokens=most))
        assert limited.counts.generated == min(most, whole.counts.generated)
        assert ends_with_reply(session, limited)
        stop, last = threading.Event(), None
        for seen, event in enumerate(session.send([user(asked)], Sampling(temperature=0.0), stop)):
            last = event
            if seen == most:
                stop.set()
        assert isinstance(last, Done) and last.stop_reason in ("stopped", "stop")
        assert ends_with_reply(session, last)
        assert whole.text.startswith(limited.text) and whole.text.startswith(last.text)


@pytest.mark.usefixtures("always")
def test_a_changed_scheme_and_a_later_turn_are_the_same(starter: LoadedModel) -> None:
    said = []
    for lookup in (False, True):
        session = Session(starter, "turbo4", lookup=lookup)
        first = done_of(session.send(TOLD, Sampling(temperature=0.0, max_tokens=12), continues=True))
        assert list(session.set_scheme("turbo2"))
        more = [TOLD[0], assistant(TALE + first.text), user("Say it once more.")]
        said.append((first.text, send(session, more, Sampling(temperature=0.0, max_tokens=8)).text))
    assert said[0] == said[1]


@pytest.mark.parametrize("config", [tiny.RECURRENT, tiny.SLIDING], ids=["recurrent", "windows"])
def test_a_model_that_cannot_take_tokens_back_answers_without_proposals(
    tmp_path: Path, config: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.write(tmp_path / "small", config)
    model = models.load(str(folder))
    assert "small replies without drafts" in (no_draft_reason(model) or "")
    done = send(Session(model, lookup=True), [user("a b c d " * 9)], Sampling(temperature=0.0, max_tokens=12))
    assert (done.counts.drafted, done.counts.generated) == (0, 12)
    if config is tiny.SLIDING:
        for drafts, told in (("prompt", True), ("auto", False), ("none", False)):
            asked = ["run", "hello", "--model", str(folder), "--draft", drafts, "--max-tokens", "4"]
            assert main(asked) == 0
            assert ("replies without drafts" in capsys.readouterr().err) == told


@pytest.mark.usefixtures("always")
def test_run_drafts_by_itself_unless_it_is_told_not_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = f"Repeat: {TEXT}"
    folder = scripted(tmp_path / "model", [([user(asked)], f"{TEXT}<|im_end|>")])
    proposals: list[int] = []
    monkeypatch.setattr(Payoff, "verified", lambda self, proposed, *rest: proposals.append(proposed))
    for options, drafts in (([], True), (["--draft", "prompt"], True), (["--draft", "none"], False)):
        proposals.clear()
        assert main(["run", asked, "--model", str(folder), "--json", *options]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["reply"] == TEXT
        assert bool(proposals) == drafts
        if options == ["--draft", "prompt"]:
            assert 0 < told["tokens"]["accepted"] <= told["tokens"]["drafted"] == sum(proposals)


def test_the_setting_names_what_proposes() -> None:
    assert drafting_of(None) == drafting_of("auto")
    assert drafting_of(None).lookup and not drafting_of(None).is_asked_for
    assert drafting_of("prompt").lookup and drafting_of("prompt").is_asked_for
    assert not drafting_of("none").lookup and drafting_of("none").model is None
    assert drafting_of("a/b").model == "a/b" and not drafting_of("a/b").lookup
