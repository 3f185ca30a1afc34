"""In-context recall: whether a model answers from facts in its prompt, under each scheme."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from tqchat import kv
from tqchat.engine.commands import ChatMessage
from tqchat.engine.models import LoadedModel
from tqchat.engine.templates import render
from tqchat.errors import TqchatError
from tqchat.kv.cache import SchemeCache
from tqchat.kv.prompt_cache import flat_layers
from tqchat.kv.scheme import Scheme, parse_scheme
from tqchat.lab.candidates import Candidate

MAX_ANSWER_TOKENS = 32
"""Maximum length of an answer."""

PREFILL_SCHEME = "turbo4"
"""Scheme of the shared prefill, which stays raw: one that records query statistics, since some schemes
need them."""


class BadRecall(TqchatError):
    """The recall file cannot be used."""

    exit_code = 2


@dataclass(frozen=True)
class RecallPrompt:
    """A transcript that ends with a question, and the text that the answer must contain."""

    messages: tuple[ChatMessage, ...]
    answer: str


def read_prompts(path: Path) -> list[RecallPrompt]:
    """Parse a JSON Lines file: ``{"messages": [{"role", "content"}, ...], "answer": "..."}``.

    Raises:
        BadRecall: if it cannot be read or a line has another form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadRecall(f"{path} cannot be read ({(error.strerror or str(error)).lower()}).") from error
    except ValueError as error:
        raise BadRecall(f"{path} is not UTF-8 text.") from error
    found: list[RecallPrompt] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            messages = tuple(ChatMessage(m["role"], m["content"]) for m in entry["messages"])
            answer = entry["answer"]
            if not (messages and isinstance(answer, str) and answer):
                raise ValueError
        except (ValueError, TypeError, KeyError) as error:
            raise BadRecall(
                f'Line {number} of {path} is not {{"messages": [{{"role", "content"}}, ...], "answer": ...}}.'
            ) from error
        found.append(RecallPrompt(messages, answer))
    if not found:
        raise BadRecall(f"{path} holds no prompts.")
    return found


def recall(
    model: LoadedModel,
    candidates: Sequence[Candidate],
    asked: Sequence[RecallPrompt],
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, float]:
    """Share of prompts whose greedy answer contains the expected text, for each scheme.

    Prompts stay raw while they are read, so one prefill is shared by all schemes if every layer has full
    attention; each scheme then packs as in the chat. mlx-lm's own caches are left out. Prompts beyond the
    context limit count as wrong."""
    ours = [c for c in candidates if c.is_ours]
    right = dict.fromkeys((c.name for c in ours), 0)
    for number, prompt in enumerate(asked):
        tokens = render(model.tokenizer, prompt.messages)
        if model.context_limit is not None and len(tokens) + MAX_ANSWER_TOKENS > model.context_limit:
            continue
        if progress is not None:
            progress("recall", number, len(asked))
        raw = _prefill(model, tokens[:-1], parse_scheme(PREFILL_SCHEME))
        for candidate in ours:
            cache = _cache_from(model, raw, tokens[:-1], candidate.scheme)
            right[candidate.name] += _answers_with(model, cache, tokens[-1], prompt.answer)
        mx.clear_cache()
    return {name: count / len(asked) for name, count in right.items()}


def _prefill(model: LoadedModel, tokens: Sequence[int], scheme: Scheme) -> list[Any]:
    cache = kv.make_prompt_cache(model.model, scheme, dtype=model.cache_dtype)
    step = 512 if model.on_cpu else 2048
    start = 0
    while start < len(tokens):
        # A single token would count as a decode step, which packs.
        stop = len(tokens) if len(tokens) - start <= step + 1 else start + step
        model.model(mx.array(list(tokens[start:stop]))[None], cache=cache)
        mx.eval([layer.state for layer in cache if not layer.empty()])
        start = stop
    return cache


def _cache_from(model: LoadedModel, raw: list[Any], tokens: Sequence[int], scheme: Scheme) -> list[Any]:
    """A cache with the prompt under a scheme, taken over from the raw one if possible."""
    cache = kv.make_prompt_cache(model.model, scheme, dtype=model.cache_dtype)
    layers = list(zip(flat_layers(cache), flat_layers(raw), strict=True))
    if any(type(layer) is not SchemeCache for pair in layers for layer in pair):
        return _prefill(model, tokens, scheme)
    for own, read in layers:
        own.copy_from(read)
    return cache


def _answers_with(model: LoadedModel, cache: list[Any], last: int, expected: str) -> bool:
    token, answer_tokens = last, []
    for _ in range(MAX_ANSWER_TOKENS):
        logits = model.model(mx.array([[token]]), cache=cache)
        token = int(logits[0, -1].argmax().item())
        if token in model.tokenizer.eos_token_ids:
            break
        answer_tokens.append(token)
        if expected in model.tokenizer.decode(answer_tokens):
            return True
    return False
