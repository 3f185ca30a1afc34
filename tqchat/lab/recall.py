"""In-context recall: whether a model finds again, through its cache, what a prompt told it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from tqchat import kv
from tqchat.engine import prompts
from tqchat.engine.commands import ChatMessage
from tqchat.engine.models import LoadedModel
from tqchat.errors import TqchatError
from tqchat.kv.cache import SchemeCache
from tqchat.kv.prompt_cache import flat_layers
from tqchat.kv.scheme import Scheme, parse_scheme
from tqchat.lab.contestants import Contestant

ANSWER_TOKENS = 32
"""Longest answer that is waited for."""

OBSERVING = "turbo4"
"""The scheme prompts are read under, still raw: one that looks at the queries, which others do without."""


class BadRecall(TqchatError):
    """The recall file is not usable."""

    exit_code = 2


@dataclass(frozen=True)
class Prompt:
    """A transcript that ends with a question, and what the answer must contain."""

    messages: tuple[ChatMessage, ...]
    answer: str


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a JSON Lines file: ``{"messages": [{"role", "content"}, ...], "answer": "..."}``.

    Raises:
        BadRecall: if it cannot be read, or a line is something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadRecall(f"{path} cannot be read ({(error.strerror or str(error)).lower()}).") from error
    except ValueError as error:
        raise BadRecall(f"{path} is not UTF-8 text.") from error
    found: list[Prompt] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
            messages = tuple(ChatMessage(m["role"], m["content"]) for m in told["messages"])
            answer = told["answer"]
            if not (messages and isinstance(answer, str) and answer):
                raise ValueError
        except (ValueError, TypeError, KeyError) as error:
            raise BadRecall(
                f'Line {number} of {path} is not {{"messages": [{{"role", "content"}}, ...], "answer": ...}}.'
            ) from error
        found.append(Prompt(messages, answer))
    if not found:
        raise BadRecall(f"{path} holds no prompts.")
    return found


def recall(
    model: LoadedModel,
    contestants: Sequence[Contestant],
    asked: Sequence[Prompt],
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, float]:
    """The share of prompts that each scheme answers greedily with the wanted words in it, letter for letter.

    A prompt stays raw while it is read, under any scheme: it is read once where that is all there is to a
    cache, and every scheme begins its answer from there, packing as the chat does. mlx-lm's own caches are
    not asked. Prompts beyond the model's context count as not answered."""
    ours = [c for c in contestants if c.peer_bits is None]
    right = dict.fromkeys((c.name for c in ours), 0)
    for number, prompt in enumerate(asked):
        tokens = prompts.render(model.tokenizer, prompt.messages)
        if model.context_limit is not None and len(tokens) + ANSWER_TOKENS > model.context_limit:
            continue
        if progress is not None:
            progress("recall", number, len(asked))
        raw = _read(model, tokens[:-1], parse_scheme(OBSERVING))
        for contestant in ours:
            cache = _begun(model, raw, tokens[:-1], contestant.scheme)
            right[contestant.name] += _answers(model, cache, tokens[-1], prompt.answer)
        mx.clear_cache()
    return {name: count / len(asked) for name, count in right.items()}


def _read(model: LoadedModel, tokens: Sequence[int], scheme: Scheme) -> list[Any]:
    cache = kv.make_prompt_cache(model.model, scheme, dtype=model.cache_dtype)
    step = 512 if model.on_cpu else 2048
    start = 0
    while start < len(tokens):
        # A token by itself would be a decoding step, and pack.
        stop = len(tokens) if len(tokens) - start <= step + 1 else start + step
        model.model(mx.array(list(tokens[start:stop]))[None], cache=cache)
        mx.eval([layer.state for layer in cache if not layer.empty()])
        start = stop
    return cache


def _begun(model: LoadedModel, raw: list[Any], tokens: Sequence[int], scheme: Scheme) -> list[Any]:
    """A cache that has read the prompt under a scheme."""
    cache = kv.make_prompt_cache(model.model, scheme, dtype=model.cache_dtype)
    layers = list(zip(flat_layers(cache), flat_layers(raw), strict=True))
    if any(type(layer) is not SchemeCache for pair in layers for layer in pair):
        return _read(model, tokens, scheme)
    for own, read in layers:
        own.copy_from(read)
    return cache


def _answers(model: LoadedModel, cache: list[Any], last: int, wanted: str) -> bool:
    token, said = last, []
    for _ in range(ANSWER_TOKENS):
        logits = model.model(mx.array([[token]]), cache=cache)
        token = int(logits[0, -1].argmax().item())
        if token in model.tokenizer.eos_token_ids:
            break
        said.append(token)
        if wanted in model.tokenizer.decode(said):
            return True
    return False
