"""Control tokens in text, each as one *control character*: a lone surrogate, which no text contains."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_FIRST = 0xDC00
"""UTF-8 cannot decode to lone surrogates."""
_COUNT = 0x400
_SHAPE = re.compile(r"[<\[◁].+[>\]▷]", re.DOTALL)


class Controls:
    """The tokens of a tokenizer that appear in marks, and their characters."""

    def __init__(self, tokenizer: Any, marks: Iterable[str]) -> None:
        self._tokenizer = tokenizer
        self.added = added_tokens(tokenizer)
        self._special = special_ids(tokenizer)
        self._ids: dict[str, int] = {}
        self._character: dict[int, str] = {}
        self._pattern = re.compile("(?!)")
        for mark in marks:
            self._learn(mark)
        if self._ids:
            longest_first = sorted(self._ids, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def _learn(self, mark: str) -> None:
        found = [content for content in self.added if content in mark and _SHAPE.fullmatch(content)]
        if not found and (token := single_token(self._tokenizer, mark)) is not None:
            self.added[mark] = token
            found = [mark]
        for content in found:
            token = self.added[content]
            if token not in self._character and len(self._character) < _COUNT:
                self._ids[content] = token
                self._character[token] = chr(_FIRST + len(self._character))

    def character(self, token: int) -> str | None:
        """The character of a token, ``None`` if it appears in no mark."""
        return self._character.get(token)

    def text(self, mark: str) -> str:
        """A mark with its control tokens as characters."""
        return self._pattern.sub(lambda match: self._character[self._ids[match[0]]], mark)

    def is_control(self, mark: str) -> bool:
        """Whether a mark contains control tokens."""
        return self._pattern.search(mark) is not None

    def may_be_text(self, mark: str) -> bool:
        """Whether a mark is one token that is not special: text that spells it has that token too."""
        token = self._ids.get(mark)
        return token is not None and token not in self._special

    def encode(self, mark: str) -> list[int]:
        """The token ids of a mark with text around it."""
        ids: list[int] = []
        end = 0
        for match in self._pattern.finditer(mark):
            ids += self._ordinary(mark[end : match.start()])
            ids.append(self._ids[match[0]])
            end = match.end()
        return ids + self._ordinary(mark[end:])

    def _ordinary(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False)) if text else []


def added_tokens(tokenizer: Any) -> dict[str, int]:
    """Contents and ids of the tokens that were added to the vocabulary, control tokens among them."""
    try:
        return dict(tokenizer.get_added_vocab())
    except (AttributeError, NotImplementedError):
        return {}


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens that are never text: named special tokens, and added ones that are marked as special."""
    found = set(tokenizer.all_special_ids)
    for token, added in getattr(tokenizer, "added_tokens_decoder", {}).items():
        if getattr(added, "special", False):
            found.add(int(token))
    return frozenset(found)


def single_token(tokenizer: Any, text: str) -> int | None:
    """The id of a token that is exactly this text, if the vocabulary has one."""
    token = tokenizer.convert_tokens_to_ids(text)
    known = isinstance(token, int) and token != getattr(tokenizer, "unk_token_id", None)
    return token if known and tokenizer.convert_ids_to_tokens(token) == text else None


def without_controls(text: str) -> str:
    """Text without control characters."""
    return "".join(character for character in text if not _FIRST <= ord(character) < _FIRST + _COUNT)
