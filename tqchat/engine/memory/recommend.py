"""Which of the recommended models suit this machine, and what chats with them would take. Builds no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tqchat.engine import backend
from tqchat.engine.events import ModelEstimate
from tqchat.engine.hub import recommended
from tqchat.engine.hub.recommended import Recommended
from tqchat.engine.memory.auto_scheme import resolve_scheme
from tqchat.engine.memory.budget import (
    SHARE_OF_AVAILABLE,
    expected_tokens,
    memory_budget,
    weights_in_memory,
)
from tqchat.engine.memory.cache_sizes import CacheSize, cache_sizes
from tqchat.engine.memory.shapes import uniform_shapes
from tqchat.kv.scheme import AUTO, parse_scheme

SHORT_LIST = 5
"""Models suggested at once."""

MAX_CPU_PARAMETERS = 2_000_000_000
"""On a CPU, parameters that are read for one token; with more, desktops generate under 8 tokens a second."""

BYTES_PER_FLOAT32 = 4


@dataclass(frozen=True)
class Machine:
    """What a model has to fit into.

    Attributes:
        name: Device and backend, for the screen.
        free_bytes: Memory of the device that is free now.
    """

    name: str
    on_cpu: bool
    free_bytes: int


@dataclass(frozen=True)
class Suggestion:
    """A recommended model on this machine.

    Attributes:
        scheme: What ``auto`` picks for it here.
        estimate: With the free memory as the memory of the machine.
        sizes: Of caches at usual lengths, under ``scheme`` and FP16.
        obstacle: Why it does not suit this machine; empty if it does.
    """

    model: Recommended
    scheme: str
    estimate: ModelEstimate
    sizes: tuple[CacheSize, ...]
    obstacle: str = ""


def this_machine() -> Machine:
    """This machine, with the memory that is free now. Loads MLX if that was not done yet."""
    found = backend.prepare()
    on_cpu = found.name == "cpu"
    device = found.device if on_cpu else f"{found.device} ({found.name})"
    return Machine(device, on_cpu, backend.free_memory())


def suggestions(machine: Machine) -> list[Suggestion]:
    """All recommended models on ``machine``, from large to small."""
    return [suggestion(model, machine) for model in recommended.models()]


def suggestion(model: Recommended, machine: Machine) -> Suggestion:
    """A recommended model on ``machine``."""
    free = machine.free_bytes
    float32 = model.parameters * BYTES_PER_FLOAT32
    weights = weights_in_memory(model.bytes, float32, free, machine.on_cpu)
    shapes = uniform_shapes(model.layers, model.kv_heads, model.head_dim, model.window, model.full_every)
    budget = memory_budget(free, weights)
    choice = resolve_scheme(
        AUTO,
        shapes=shapes,
        budget=budget,
        expected=expected_tokens(0, model.context),
        on_cpu=machine.on_cpu,
    )
    estimate = ModelEstimate(model.repo, weights, shapes, model.context, budget, free)
    sizes = tuple(cache_sizes(estimate, parse_scheme(choice.scheme)))
    return Suggestion(model, choice.scheme, estimate, sizes, _obstacle(model, machine, weights, sizes[0]))


def short_list(found: Sequence[Suggestion]) -> list[Suggestion]:
    """The largest models that suit the machine, or the smallest of all if none does."""
    suited = [one for one in found if not one.obstacle]
    return suited[:SHORT_LIST] or list(found[-1:])


def _obstacle(model: Recommended, machine: Machine, weights: int, shortest: CacheSize) -> str:
    if weights > machine.free_bytes * SHARE_OF_AVAILABLE or shortest.verdict != "fits":
        return "too large"
    if machine.on_cpu and model.parameters_per_token > MAX_CPU_PARAMETERS:
        return "too slow"
    return ""
