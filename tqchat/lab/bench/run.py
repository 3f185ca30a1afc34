"""Runs the measurements that ``tqchat lab bench`` was asked for."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqchat.engine.models import LoadedModel
from tqchat.lab import convert_bench, reading, restore_bench, ui_bench
from tqchat.lab.api_bench import run as api_bench
from tqchat.lab.bench import attention, day, decode, drafting, encode, events, start, turn
from tqchat.lab.bench.attention import Layer
from tqchat.lab.bench.decode import LeaveOut
from tqchat.lab.bench.results import BenchRow
from tqchat.lab.candidates import Candidate


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        kinds: Some of ``commands.bench.KINDS``.
        candidates: The caches, mlx-lm's own included.
        contexts: Cache lengths in tokens.
        rounds: Timed runs of each candidate, after the warm-up round.
        layer: Attention shape for ``attention``, ``kernels`` and ``encode``.
        api_schemes: Schemes for ``api``.
    """

    kinds: Sequence[str]
    candidates: Sequence[Candidate]
    contexts: Sequence[int]
    rounds: int
    layer: Layer
    api_schemes: Sequence[str] = ()


def rows(
    model: LoadedModel | None, plan: Plan, tell: Callable[[str], None], leave_out: LeaveOut
) -> Iterator[BenchRow]:
    """Measure each kind of ``plan``. Without a model, kinds that need one are left out.

    Args:
        tell: Called with what is measured next.
        leave_out: Called for each measurement that a cache cannot take part in.
    """
    layer = plan.layer
    for kind in plan.kinds:
        match kind:
            case "decode" | "prefill" if model is not None:
                measure = decode.decode if kind == "decode" else decode.prefill
                text = _text(model, max(plan.contexts))
                yield from measure(model, plan.candidates, plan.contexts, text, plan.rounds, tell, leave_out)
            case "turn" if model is not None:
                text = _text(model, max(plan.contexts) + turn.TURN_TOKENS)
                yield from turn.turn(
                    model, plan.candidates, plan.contexts, text, plan.rounds, tell, leave_out
                )
            case "attention" | "kernels":
                attend = attention.attention if kind == "attention" else attention.kernels
                yield from attend(layer, plan.candidates, plan.contexts, plan.rounds, tell, leave_out)
            case "encode":
                yield from encode.encode(layer, plan.candidates, plan.rounds, tell)
            case "restore" if model is not None and model.tokenizer is not None:
                yield from _restore(model, plan, tell)
            case "convert" if model is not None:
                text = _text(model, max(plan.contexts))
                yield from convert_bench.convert(
                    model, own_schemes(plan.candidates), plan.contexts, text, plan.rounds, tell
                )
            case "day" if model is not None and model.tokenizer is not None:
                yield from day.day(model, plan.candidates, plan.contexts, _built_in_text(), plan.rounds, tell)
            case "drafting" if model is not None and model.tokenizer is not None:
                schemes = own_schemes(plan.candidates)
                yield from drafting.drafting(model, schemes, plan.contexts, plan.rounds, tell)
            case "api" if model is not None and model.tokenizer is not None:
                for context in plan.contexts:
                    yield from api_bench.measure(
                        model, plan.api_schemes, context, _built_in_text(), tell, leave_out
                    )
            case "events" if model is not None and model.tokenizer is not None:
                context = plan.contexts[0]
                yield from events.events(
                    model, plan.candidates, context, _tokens(model, context), plan.rounds
                )
            case "ui":
                tell("the screen")
                for row in ui_bench.measure():
                    yield BenchRow("ui", "opening", row.messages, row.opening_seconds, 0.0)
                    median_s, p95_s = row.lag_p50_ms / 1e3, row.lag_p95_ms / 1e3
                    yield BenchRow("ui", "lag", row.messages, median_s, p95_s - median_s)
            case "start":
                yield from start.start(plan.rounds, tell)
            case _:
                pass  # needs a model, or a tokenizer (models with random weights have none)


def own_schemes(candidates: Sequence[Candidate]) -> list[str]:
    """Schemes of the candidates that are not mlx-lm's own caches."""
    return [c.scheme.name for c in candidates if c.name == c.scheme.name]


def _restore(model: LoadedModel, plan: Plan, tell: Callable[[str], None]) -> Iterator[BenchRow]:
    for row in restore_bench.measure(model, own_schemes(plan.candidates), plan.contexts, tell):
        yield BenchRow("restore", row.scheme, row.tokens, row.restore_s, 0.0, row.tokens / row.restore_s)
        if (cold := row.cold_restore_s) is not None:
            yield BenchRow(
                "restore", f"{row.scheme}, from the disk", row.tokens, cold, 0.0, row.tokens / cold
            )
        new, name = restore_bench.QUESTION_TOKENS, f"{row.scheme}, then a message"
        yield BenchRow("restore", name, row.tokens, row.question_s, 0.0, new / row.question_s)
        name = f"{row.scheme}, then the first token"
        yield BenchRow("restore", name, row.tokens, row.first_step_s, 0.0)


def layer_of(model: LoadedModel | None) -> Layer:
    """The model's attention shape from its config; the default if the usual keys are missing."""
    config = {} if model is None else model.config
    heads = config.get("num_attention_heads")
    if not isinstance(heads, int):
        return Layer()
    kv_heads = config.get("num_key_value_heads") or heads
    return Layer(heads, kv_heads, config.get("head_dim") or config["hidden_size"] // heads)


def _text(model: LoadedModel, count: int) -> list[int] | None:
    """Tokens to fill caches with; ``None`` for models without a tokenizer, which have random weights."""
    return None if model.tokenizer is None else _tokens(model, count)


def _tokens(model: LoadedModel, count: int) -> list[int]:
    """``count`` tokens of the built-in text, repeated as needed: the time does not depend on the tokens."""
    ids = reading.encode(model, _built_in_text())
    return (ids * (count // len(ids) + 1))[:count]


def _built_in_text() -> str:
    return reading.read_text(Path(reading.__file__).with_name("text.txt"))
