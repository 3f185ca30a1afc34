"""Log-probabilities of tokens in OpenAI's forms."""

from __future__ import annotations

from collections.abc import Sequence
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


def of_completion(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """``choices[].logprobs`` of a text that is continued."""
    return {
        "tokens": [_text(one.spelling) for one in tokens],
        "token_logprobs": [_finite(one.logprob) for one in tokens],
        "top_logprobs": [
            {_text(text): _finite(logprob) for text, logprob in (*one.top, (one.spelling, one.logprob))}
            for one in tokens
        ],
        "text_offset": [one.offset for one in tokens],
    }


def _entry(spelled: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _text(spelled), "logprob": _finite(logprob), "bytes": list(spelled)}


def _text(spelled: bytes) -> str:
    return spelled.decode("utf-8", "replace")


def _finite(logprob: float) -> float:
    return logprob if logprob > LEAST else LEAST  # also of a model whose logits are no numbers
