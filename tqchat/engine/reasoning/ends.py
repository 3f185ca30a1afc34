"""End-of-turn tokens and stop sequences of a model, from its config files and chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqchat.engine.reasoning.controls import added_tokens, special_ids
from tqchat.engine.reasoning.stream import Ends
from tqchat.engine.templates import PLAIN_STOP, end_of_turn

SHORTEST_STOP_TEXT = 4
"""Characters; shorter texts between two turns also occur in answers."""

_NESTED = ("text_config", "llm_config", "language_config", "language_model")
_MARK = re.compile(r"\s*(<[^\s<>]{2,}>|\[[^\s\[\]]{2,}\]|<\|[^\s<>|]+\|>)")


def ends_of(tokenizer: Any) -> Ends:
    """The end-of-sequence tokens and stop texts of a model.

    Args:
        tokenizer: mlx-lm's ``TokenizerWrapper``, whose ``eos_token_ids`` include ``named_ends``.
    """
    named = frozenset(token for token in tokenizer.eos_token_ids if type(token) is int)
    written = end_of_turn(tokenizer)
    between = written.text
    if between == PLAIN_STOP:
        return Ends(named, texts=(PLAIN_STOP,))
    if not between.strip():
        return Ends(named, written.tokens - named)
    added = {token for content, token in added_tokens(tokenizer).items() if _MARK.fullmatch(content)}
    marks = (added | special_ids(tokenizer)) & set(tokenizer.encode(between, add_special_tokens=False))
    if marks := (marks - written.begins) | written.tokens:
        return Ends(named, frozenset(marks) - named)
    return Ends(named, texts=(stop,) if (stop := _stop_text(between)) else ())


def named_eos_tokens(folder: Path) -> frozenset[int]:
    """End-of-sequence tokens in ``config.json``, its nested configs and ``generation_config.json``."""
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        try:
            table = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        for part in (table, *(_nested(table))):
            found |= set(_ids(part.get("eos_token_id"))) if isinstance(part, dict) else set()
    return frozenset(found)


def _nested(table: Any) -> Iterator[Any]:
    if isinstance(table, dict):
        yield from (table.get(name) for name in _NESTED)


def _ids(value: Any) -> Iterator[int]:
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str) and one.isascii() and one.isdigit():
            yield int(one)
        elif type(one) is int and one >= 0:
            yield one


def _stop_text(between: str) -> str:
    """The stop sequence: a mark of ordinary characters, or the name of the next role."""
    if (mark := _MARK.match(between)) is not None:
        return mark[1]
    said = between.strip()
    if len(said) < SHORTEST_STOP_TEXT:
        return ""
    before = between[: len(between) - len(between.lstrip())]
    return before[-1:] + said
