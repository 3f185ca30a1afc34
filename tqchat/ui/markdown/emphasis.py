"""Emphasis and strikethrough beside CJK punctuation.

CommonMark opens emphasis before punctuation only after a space or punctuation, and closes it accordingly.
CJK text has no spaces: ``含**「重点」**内容`` would show its stars. As in the proposal for CommonMark, CJK
punctuation does not count as punctuation here, and a CJK character counts as a space does.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import lru_cache, partial

from markdown_it.common.utils import isMdAsciiPunct, isPunctChar, isWhiteSpace
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Scanned

Rule = Callable[[StateInline, bool], bool]


def beside_cjk(rule: Rule) -> Rule:
    """A rule for delimiters that knows CJK text."""

    def knowing_cjk(state: StateInline, silent: bool) -> bool:
        state.scanDelims = partial(_scan, state)  # type: ignore[method-assign]
        return rule(state, silent)

    return knowing_cjk


def _scan(state: StateInline, begin: int, can_split_word: bool) -> Scanned:
    """``StateInline.scanDelims``: length of a run of delimiters, and whether it can open and close."""
    text, end = state.src, begin
    while end < state.posMax and text[end] == text[begin]:
        end += 1
    before, after = text[begin - 1] if begin else " ", text[end] if end < state.posMax else " "
    space_before, space_after = isWhiteSpace(ord(before)), isWhiteSpace(ord(after))
    mark_before, mark_after = _is_punctuation(before), _is_punctuation(after)
    cjk_before, cjk_after = is_cjk(before), is_cjk(after)
    free_before, free_after = (
        (space_before or mark_before or cjk_before),
        (space_after or mark_after or cjk_after),
    )
    left = not space_after and (not mark_after or cjk_after or free_before)
    right = not space_before and (not mark_before or cjk_before or free_after)
    opens = left and (can_split_word or not right or mark_before)
    closes = right and (can_split_word or not left or mark_after)
    return Scanned(opens, closes, end - begin)


def _is_punctuation(character: str) -> bool:
    return isMdAsciiPunct(ord(character)) or isPunctChar(character)


@lru_cache(1024)
def is_cjk(character: str) -> bool:
    """Whether a character, or a punctuation mark, is of a Chinese, Japanese or Korean script."""
    scripts = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "FULLWIDTH", "HALFWIDTH", "BOPOMOFO")
    name = unicodedata.name(character, "")
    return "\u3000" <= character <= "\u303f" or (character >= "\u1100" and name.startswith(scripts))
