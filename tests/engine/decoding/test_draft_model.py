"""Speculative decoding: what a draft model proposes changes how fast a reply comes, never the reply."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.talk import TALE, assistant, greedy, held_is_consistent, send, user
from tests.models import tiny_llama
from tqchat.engine import models
from tqchat.engine.commands import Sampling
from tqchat.engine.failures import DraftMismatch
from tqchat.engine.models import LoadedModel
from tqchat.engine.session import Session
from tqchat.kv.scheme import TILE

ASKED = [user(TALE + "Tell me a story about the dog.")]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A tiny random model that speaks the same tokens."""
    return models.load(str(tiny_llama(tmp_path_factory.mktemp("other"), seed=5)))


@pytest.mark.parametrize("tiles", [1, 4])
@pytest.mark.parametrize("scheme", ["fp16", "turbo4", "turbo2"])
def test_the_starter_drafting_for_itself_says_what_it_says_alone(
    starter: LoadedModel, scheme: str, tiles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several are packed at once on a GPU, once enough are packed.
    monkeypatch.setattr(
        "tqchat.kv.storage.side._tokens_per_pack", lambda encoded: tiles * TILE if encoded else TILE
    )
    alone = send(Session(starter, scheme), ASKED, greedy(60))
    drafted = Session(starter, scheme, draft=starter)
    done = send(drafted, ASKED, greedy(60))
    assert done.text == alone.text
    assert done.counts.generated == alone.counts.generated
    assert done.counts.accepted > 0.8 * done.counts.drafted > 0
    assert alone.counts.drafted == 0
    assert held_is_consistent(drafted)
    assert done.report.packed_tokens == alone.report.packed_tokens


@pytest.mark.parametrize("scheme", ["turbo0v4", "turbo4"])
def test_a_draft_that_is_always_wrong_changes_nothing(
    starter: LoadedModel, other: LoadedModel, scheme: str
) -> None:
    alone, drafted = Session(starter, scheme), Session(starter, scheme, draft=other)
    said = []
    for session in (alone, drafted):
        first = send(session, ASKED, greedy(40))
        more = [*ASKED, assistant(first.text), user("And then?")]
        said.append((first.text, send(session, more, greedy(40))))
    assert said[0][0] == said[1][0]
    assert said[0][1].text == said[1][1].text
    assert said[1][1].counts.drafted > 0
    assert said[1][1].counts.accepted < 0.5 * said[1][1].counts.drafted
    assert held_is_consistent(drafted)
    assert drafted._cache.draft is not None and drafted._cache.draft.scheme == scheme


def test_a_repetition_penalty_sees_the_same_tokens(starter: LoadedModel) -> None:
    sampling = Sampling(temperature=0.0, repetition_penalty=1.3, max_tokens=40)
    said = [send(Session(starter, "turbo4", draft=d), ASKED, sampling).text for d in (None, starter)]
    assert said[0] == said[1]


def test_a_draft_with_another_vocabulary_is_refused(starter: LoadedModel) -> None:
    class Other:
        def get_vocab(self) -> dict[str, int]:
            return {"a": 0}

    from dataclasses import replace

    with pytest.raises(DraftMismatch, match="vocabularies differ"):
        Session(starter, draft=replace(starter, tokenizer=Other()))


def test_models_that_cannot_go_back_answer_without_the_draft(
    recurrent_folder: Path, other: LoadedModel
) -> None:
    model = models.load(str(recurrent_folder))
    done = send(Session(model, draft=other), [user("Hello")], greedy(8))
    assert (done.counts.drafted, done.counts.accepted) == (0, 0)


@pytest.fixture(scope="module")
def recurrent_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.engine import tiny

    return tiny.write(tmp_path_factory.mktemp("recurrent"), tiny.RECURRENT)
