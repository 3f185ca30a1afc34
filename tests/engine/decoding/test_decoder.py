"""When a reply's first token comes, and what the cache holds after each token."""

from __future__ import annotations

from typing import Any

import pytest

from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.commands import Sampling
from tqchat.engine.decoding import Decoder
from tqchat.engine.models import LoadedModel
from tqchat.kv.storage import joint_encode

PROMPT = [7 + n % 40 for n in range(150)]


def packed(held: PromptCache) -> int:
    return max(layer.packed_tokens for layer in held.cache)


@pytest.mark.parametrize("lookup", [False, True])
def test_the_first_token_waits_neither_for_packing_nor_for_the_next_step(
    starter: LoadedModel, lookup: bool
) -> None:
    held = PromptCache(starter, "turbo4")
    held.prefill(PROMPT[:-1])
    decoder = Decoder(held, PROMPT, Sampling(temperature=0.0), 4, lookup)
    tokens = iter(decoder)
    said = [next(tokens)]
    assert held.tokens == PROMPT and packed(held) == 0
    said.append(next(tokens))
    assert packed(held) >= 64, "then the prompt is packed"
    assert held.tokens[: len(PROMPT) + 1] == [*PROMPT, said[0]]
    said += tokens
    decoder.complete()
    assert held.tokens == [*PROMPT, *said]
    assert [layer.offset for layer in held.cache] == [len(held.tokens)] * len(held.cache)


@pytest.mark.parametrize("scheme", ["fp16", "turbo4"])
def test_a_reply_of_one_token_is_in_the_cache_when_it_is_complete(starter: LoadedModel, scheme: str) -> None:
    held = PromptCache(starter, scheme)
    held.prefill(PROMPT[:-1])
    decoder = Decoder(held, PROMPT, Sampling(temperature=0.0), 1)
    said = list(decoder)
    decoder.complete()
    held.settle(certain=True)
    assert len(said) == 1 and held.tokens == [*PROMPT, *said]
    assert (packed(held) > 0) == (scheme == "turbo4")


@pytest.mark.parametrize("later_step", [False, True])
def test_a_cache_whose_packing_failed_is_read_again(
    starter: LoadedModel, later_step: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = PromptCache(starter, "turbo4")
    held.prefill(PROMPT[:-1])
    decoder = Decoder(held, PROMPT, Sampling(temperature=0.0), 60)
    tokens = iter(decoder)
    for _ in range(2 if later_step else 1):
        next(tokens)

    def fail(*_: Any) -> Any:
        raise RuntimeError("[malloc] Unable to allocate")

    with monkeypatch.context() as failing, pytest.raises(RuntimeError, match="allocate"):
        failing.setattr(joint_encode, "encode", fail)
        list(tokens)
    held.settle(certain=False)
    assert not held.tokens, "the tokens that were to be packed are in no store"
