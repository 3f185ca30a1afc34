"""Log-probabilities of tokens in OpenAI's forms."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from tqchat.engine.events import TokenLogprob

LEAST = -9999.0
"""Stands for minus infinity, which JSON lacks; as with OpenAI."""


def of_chat(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """``choices[].logprobs`` of a chat."""
    content = [
        {**_entry(one.spelling, one.logprob), "top_logprobs": [_entry(*other) for other in one.top]}
        for one in tokens
    ]
    return {"content": content, "refusal": None}


def of_completion(tokens: Sequence[TokenLogprob], text: str, begin: int = 0) -> dict[str, Any]:
    """``choices[].logprobs`` of a text that is continued.

    Args:
        text: The piece of the answer that shows the tokens; it begins at ``begin``.
    """
    texts = [_text(one.spelling) for one in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [_finite(one.logprob) for one in tokens],
        "top_logprobs": [
            {_text(text): _finite(logprob) for text, logprob in (*one.top, (one.spelling, one.logprob))}
            for one in tokens
        ],
        "text_offset": _offsets(tokens, text, begin),
    }


def _offsets(tokens: Sequence[TokenLogprob], text: str, begin: int) -> list[int]:
    if not tokens:
        return []
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may be in several tokens
    decoded = [decoder.decode(one.spelling) for one in tokens]
    lengths = list(map(len, decoded))
    if not begin:  # an answer begins without the space of its first token
        lengths[0] -= max(0, _indent(decoded[0]) - _indent(text))
    return list(accumulate(lengths[:-1], initial=begin))


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip())


def _entry(spelled: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _text(spelled), "logprob": _finite(logprob), "bytes": list(spelled)}


def _text(spelled: bytes) -> str:
    return spelled.decode("utf-8", "replace")


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)
