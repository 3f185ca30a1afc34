"""Cache sizes over a conversation."""

from __future__ import annotations

from dataclasses import replace

from tests.ui.scripted import report
from tqchat.store.database import Message
from tqchat.ui.controller.records import History


def test_a_full_history_is_thinned_and_trimmed_tokens_are_dropped() -> None:
    history = History(limit=16)
    for tokens in range(1, 200):
        history.add(report(tokens))
    assert len(history.samples) <= 17
    assert history.samples[0].tokens == 1 and history.samples[-1].tokens == 199
    history.add(report(100))
    assert max(sample.tokens for sample in history.samples) == 100


def test_the_history_starts_anew_with_another_model() -> None:
    def reply(model: str, tokens: int) -> Message:
        return Message(
            "m", "c", None, "assistant", "x", "complete", 0.0, tokens, scheme="turbo4", model=model,
            prompt_tokens=10, cache_bytes=tokens, fp16_bytes=3 * tokens,
        )  # fmt: skip

    said = [reply("one", 20), reply("two", 30), replace(reply("one", 40), fp16_bytes=None), reply("one", 50)]
    assert [one.tokens for one in History.of(said, "one").samples] == [0, 60]
    assert History.of(said, "two").samples == []
