"""Tokens to text, one at a time, for every tokenizer.

mlx-lm's streaming detokenizers index a table of ``len(tokenizer)`` tokens: ids beyond it, which vocabularies
padded to a round number have, print ``!`` or raise, and so do some added tokens. This one asks the tokenizer
itself to decode the last few tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"
_SPELLED = (REPLACEMENT, "ï¿½", "<0xEF><0xBF><0xBD>")
"""The replacement character in a vocabulary, in a byte-level one, and as SentencePiece's bytes."""

LONGEST_CHARACTER_TOKENS = 8
"""Pending tokens from which their bytes count as invalid, not as an incomplete character."""


class Detokenizer:
    """Returns whole characters; invalid bytes and ids that the tokenizer lacks are dropped."""

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()) -> None:
        """
        Args:
            before: Tokens of a text that goes on. Without it a space at the beginning is dropped.
        """
        self._tokenizer = tokenizer
        self._fast = _backend(tokenizer)
        self._window = [token for token in before[-LONGEST_CHARACTER_TOKENS:] if self._knows(token)]
        self._given = len(self._window)
        self._before = self._decode(self._window) if self._window else ""
        self._begun = bool(self._window)

    def add(self, token: int) -> str:
        """The text that this token completes."""
        if not self._knows(token):
            return ""
        self._window.append(token)
        text = self._decode(self._window)
        pending = len(self._window) - self._given
        if text.endswith(REPLACEMENT) and pending < LONGEST_CHARACTER_TOKENS and not self._is_meant():
            return ""
        return self._give(text)

    def flush(self) -> str:
        """The text of the pending tokens at the end of the reply."""
        if len(self._window) == self._given:
            return ""
        return self._give(self._decode(self._window))

    def _give(self, text: str) -> str:
        shared = len(self._before)
        if not text.startswith(self._before):
            shared = _common_prefix(text, self._before)
        new = text[shared:]
        if REPLACEMENT in new and not self._is_meant():
            new = new.replace(REPLACEMENT, "")
        # The last tokens are kept as context, because a token's text can depend on the one before it.
        self._window = self._window[self._given :]
        self._given = len(self._window)
        self._before = self._decode(self._window)
        if not self._begun and new:
            self._begun = True
            new = new.removeprefix(" ")
        return new

    def _decode(self, tokens: list[int]) -> str:
        text: str
        if self._fast is not None:
            text = self._fast.decode(tokens, skip_special_tokens=False)
            return text
        text = self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _knows(self, token: int) -> bool:
        if self._fast is not None:
            return 0 <= token < 2**32 and self._fast.id_to_token(token) is not None
        try:
            return self._tokenizer.convert_ids_to_tokens(token) is not None
        except (IndexError, KeyError, OverflowError, ValueError, TypeError):
            return False

    def _is_meant(self) -> bool:
        """Whether the pending tokens spell the replacement character itself."""
        pending = self._window[self._given :]
        name = "".join(str(self._tokenizer.convert_ids_to_tokens(token)) for token in pending)
        return any(spelled in name for spelled in _SPELLED)


def _backend(tokenizer: Any) -> Any:
    """The Rust tokenizer, several times as fast, if transformers' own ``decode`` only wraps it."""
    behind = getattr(tokenizer, "_tokenizer", tokenizer)
    decodes = next((base for base in type(behind).__mro__ if "decode" in vars(base)), None)
    ours = decodes is not None and decodes.__module__.startswith("transformers.")
    return getattr(behind, "backend_tokenizer", None) if ours else None


def _common_prefix(a: str, b: str) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
