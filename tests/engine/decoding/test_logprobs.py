"""Log-probabilities of sampled tokens, and which of them a piece of text shows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import mlx.core as mx
import pytest

from tqchat.api.logprobs import of_chat
from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.commands import Sampling
from tqchat.engine.decoding import Decoder
from tqchat.engine.decoding.logprobs import Logprobs
from tqchat.engine.events import TextDelta, TokenLogprob
from tqchat.engine.models import LoadedModel
from tqchat.engine.reasoning.token_bytes import TokenBytes
from tqchat.engine.requests.answer import _with_logprobs

PHRASE = [300, 301, 302, 303, 304, 305]


def spelled(token: int) -> bytes:
    return f"{token} ".encode()


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0.0), Sampling(temperature=1.3, seed=5, presence_penalty=1.5, top_k=5)],
    ids=["greedy", "sampled"],
)
def test_they_are_the_models_own_with_and_without_proposals(starter: LoadedModel, sampling: Sampling) -> None:
    prompt = PHRASE * 6
    replies = []
    for lookup in (False, True):
        held = PromptCache(starter, "fp16")
        held.prefill(prompt[:-1])
        logprobs = Logprobs(4, spelled)
        decoder = Decoder(held, prompt, sampling, 12, lookup, logprobs=logprobs)
        reply, told = [], []
        for number, token in enumerate(decoder):
            logprobs.add(token, number)
            reply.append(token)
            told += logprobs.shown_by(spelled(token).decode())
        replies.append((reply, told))
        assert not logprobs._rows or min(logprobs._rows) >= len(reply)
    (reply, told), (again, told_again) = replies
    assert reply == again and len(told) == len(told_again) == len(reply)
    logits = starter.model(mx.array([prompt + reply]), cache=PromptCache(starter, "fp16").cache)[0]
    expected = logits.astype(mx.float32)
    expected = expected - mx.logsumexp(expected, axis=-1, keepdims=True)
    for number, token in enumerate(reply):
        row = expected[len(prompt) - 1 + number]
        best = sorted(row.tolist(), reverse=True)[:4]  # type: ignore[arg-type, type-var]
        for one in (told[number], told_again[number]):
            assert one.spelling == spelled(token)
            assert one.logprob == pytest.approx(row[token].item(), abs=2e-2)
            assert [logprob for _, logprob in one.top] == pytest.approx(best, abs=2e-2)


class Shown:
    """Tokens with these texts, of which pieces are shown."""

    def __init__(self, *texts: bytes) -> None:
        self.logprobs = Logprobs(0, lambda token: texts[token])
        for token in range(len(texts)):
            self.logprobs._take(token, mx.zeros((1, len(texts))), mx.array([token]))

    def known(self, *tokens: int) -> None:
        for token in tokens:
            self.logprobs.add(token, token)

    def by(self, text: str) -> list[bytes]:
        return [one.spelling for one in self.logprobs.shown_by(text)]


def test_a_token_is_told_with_the_text_in_which_it_begins() -> None:
    tokens = Shown(b" Hello", b" wor", b"ld", b" \xc3", b"\xa9", b"!", b" stop")
    tokens.known(0)
    assert tokens.by("Hello") == [b" Hello"], "white space at the beginning is dropped"
    tokens.known(1)
    assert tokens.by(" w") == [b" wor"], "the rest is held back"
    tokens.known(2)
    assert tokens.by("orld") == [b"ld"]
    tokens.known(3, 4)
    assert tokens.by(" é") == [b" \xc3", b"\xa9"]
    tokens.known(5, 6)
    assert tokens.by("!") == [b"!"]
    assert tokens.by("") == [], "what a stop text takes is not told"


def test_tokens_that_no_text_shows_are_left_out() -> None:
    tokens = Shown(b"<think>", b"Hm", b"</think>", b"\n\n", b"Yes", b"<call>", b".")
    tokens.known(0, 1)
    assert tokens.by("Hm") == [b"Hm"]
    tokens.known(2, 3, 4)
    assert tokens.by("Yes") == [b"Yes"]
    tokens.known(5, 6)
    assert tokens.by(".") == [b"."]


@pytest.mark.parametrize("cuts", [(), (5,), (1, 2, 3, 4), (7, 8), range(1, 13)], ids=str)
def test_offsets_are_places_in_the_text_however_it_is_cut(cuts: Sequence[int]) -> None:
    spellings = [b" Hi", b" th", b"ere", b"\xff", b" \xe4", b"\xb8\x96", b"bc\xff", b"de", b"."]
    tokens, text = Shown(*spellings), "Hi there 世bcde."
    tokens.known(*range(len(spellings)))
    found = [
        (one.spelling, one.offset)
        for begin, end in pairwise((0, *cuts, len(text)))
        for one in tokens.logprobs.shown_by(text[begin:end])
    ]
    shown = [one for one in spellings if one != b"\xff"]
    assert found == list(zip(shown, (0, 2, 5, 8, 9, 10, 12, 14), strict=True))


def test_an_answer_that_turns_out_to_be_reasoning_takes_its_tokens_along() -> None:
    texts = b"Hm", b"Yes", b"</think>", b"Yes"
    logprobs = Logprobs(0, lambda token: texts[token])
    for number, token in enumerate((0, 1, 2, 3)):
        row = [float(-number - (column != token)) for column in range(4)]
        logprobs._take(number, mx.array([row]), mx.array([token]))
        logprobs.add(token, number)
    pieces = TextDelta("", "Hm"), TextDelta("", "Yes", "reasoning", takes_answer=True), TextDelta("", "Yes")
    shown = [told.logprobs for one in pieces if isinstance(told := _with_logprobs(one, logprobs), TextDelta)]
    assert [[one.logprob for one in tokens] for tokens in shown] == [[0.0], [], [-3.0]]


@pytest.mark.parametrize("logprob", [float("nan"), float("-inf"), -1e30])
def test_what_json_lacks_is_told_as_a_very_small_number(logprob: float) -> None:
    (entry,) = of_chat([TokenLogprob(b"a", logprob)])["content"]
    assert entry["logprob"] == -9999.0


def test_a_token_that_was_not_sampled_has_none() -> None:
    tokens = Shown(b"a", b"b")
    tokens.logprobs.add(1, 0)
    tokens.logprobs.add(1, 9)
    assert tokens.by("b") == []


def test_the_bytes_of_tokens_are_those_of_their_text(starter: LoadedModel) -> None:
    text = "Grüße, 世界! 🦊 don't\n  def f(x):"
    tokens = starter.tokenizer.encode(text, add_special_tokens=False)
    bytes_of = TokenBytes(starter.tokenizer)
    assert b"".join(map(bytes_of, tokens)).decode() == text
    assert bytes_of(1 << 30) == b""
