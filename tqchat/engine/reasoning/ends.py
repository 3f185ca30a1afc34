"""Where a model's turn ends: what its files name, and what its chat template writes there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqchat.engine.reasoning.controls import added_tokens, special_ids
from tqchat.engine.reasoning.stream import Ends

PLAIN_STOP = "\nUser:"
"""Where a reply ends for a model without a chat template: it has begun to speak for the person."""

SHORTEST_STOP_TEXT = 4
"""Characters; a shorter text between two turns is found in answers as well."""

_NESTED = ("text_config", "llm_config", "language_config", "language_model")
_SAID = ("Which colour?", "Vermilion, surely.", "And whose number?")
_MARK = re.compile(r"\s*(<[^\s<>]{2,}>|\[[^\s\[\]]{2,}\]|<\|[^\s<>|]+\|>)")


def ends_of(tokenizer: Any) -> Ends:
    """All ends of a model's turns.

    Args:
        tokenizer: mlx-lm's ``TokenizerWrapper``, with what ``named_ends`` found among its end tokens.
    """
    named = frozenset(token for token in tokenizer.eos_token_ids if type(token) is int)
    if not getattr(tokenizer, "has_chat_template", False):
        return Ends(named, texts=(PLAIN_STOP,))
    between = text_between_turns(tokenizer)
    if not between.strip():
        return Ends(named)
    added = {token for content, token in added_tokens(tokenizer).items() if _MARK.fullmatch(content)}
    marks = (added | special_ids(tokenizer)) & set(tokenizer.encode(between, add_special_tokens=False))
    if marks:
        return Ends(named, frozenset(marks) - named)
    return Ends(named, texts=(stop,) if (stop := _stop_text(between)) else ())


def named_ends(folder: Path) -> frozenset[int]:
    """The end tokens that ``config.json``, its nested configs and ``generation_config.json`` name."""
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        try:
            table = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        for part in (table, *(_nested(table))):
            found |= set(_ids(part.get("eos_token_id"))) if isinstance(part, dict) else set()
    return frozenset(found)


def text_between_turns(tokenizer: Any) -> str:
    """What the chat template writes between a reply and the next message; empty if it cannot be told."""
    first, reply, second = _SAID
    for as_parts in (False, True):
        turns = [
            {"role": role, "content": [{"type": "text", "text": text}] if as_parts else text}
            for role, text in (("user", first), ("assistant", reply), ("user", second))
        ]
        try:
            text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False))
        except Exception:  # a template can raise whatever it likes
            continue
        _, found, rest = text.partition(reply)
        between, also_found, _ = rest.partition(second)
        if found and also_found:
            return between
    return ""


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
    """The text at which a reply ends: a mark of ordinary characters, or the name of the next speaker."""
    if (mark := _MARK.match(between)) is not None:
        return mark[1]
    said = between.strip()
    if len(said) < SHORTEST_STOP_TEXT:
        return ""
    before = between[: len(between) - len(between.lstrip())]
    return before[-1:] + said
