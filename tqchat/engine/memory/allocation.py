"""Bits by layer: more for the keys and values whose errors matter more, at the size of the uniform scheme.

Pure Python, no MLX. Figures are in ``CODEC.md``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from heapq import heapify, heappop, heappush
from typing import Any, Literal, NamedTuple

from tqchat.kv.memory import LayerReport, MemoryReport
from tqchat.kv.scheme import TRELLIS_BITS, TURBO_BITS, FormatSpec, Scheme

MIN_BITS = 2
"""Fewest bits of an allocated side of schemes with more than 2 bits."""

ONE_BIT_ERROR = 2.0
"""Error that a side of 1 bit is counted with. It is 0.57 after the unbiased gain, but errors this large are
not additive (see ``CODEC.md``)."""

Role = Literal["key", "value"]


@dataclass(frozen=True)
class Sensitivity:
    """Sensitivity of a model to quantisation errors, by layer.

    Attributes:
        keys, values: KLD in nats per unit of relative squared error of the layer's keys (values), by the
            index of the layer's cache; 0 for layers that schemes do not apply to.
    """

    keys: tuple[float, ...]
    values: tuple[float, ...]

    @classmethod
    def from_json(cls, saved: Any) -> Sensitivity:
        """From a dictionary of the attributes.

        Raises:
            ValueError: if one is not a list of finite numbers.
        """
        keys, values = (tuple(float(x) for x in saved[name]) for name in ("keys", "values"))
        if not all(0 <= x < math.inf for x in (*keys, *values)):
            raise ValueError("a sensitivity is not a finite number")
        return cls(keys, values)


@dataclass
class _Choice:
    """The bits of one side of one layer.

    Attributes:
        kind: Of the uniform format; widths that a trellis lacks are scalar codes.
        weight: Its sensitivity.
        vectors: Vectors per token of a full-attention layer.
    """

    role: Role
    layer: int
    kind: str
    spec: FormatSpec
    weight: float
    vectors: float
    dim: int

    def bytes_of(self, spec: FormatSpec) -> float:
        """Bytes per token under a format."""
        return self.vectors * spec.bytes_per_vector(self.dim)

    def next_step(self) -> _Step | None:
        """What one more bit changes; ``None`` if no format has it, or it would change nothing."""
        bits = self.spec.bits + 1
        more = _format(self.kind, bits)
        if bits not in TURBO_BITS or not more.saves_memory(self.dim):
            return None
        extra = self.bytes_of(more) - self.bytes_of(self.spec)
        gain = self.weight * (_error(self.spec) - _error(more)) / extra
        return _Step(more, extra, gain) if gain else None


class _Step(NamedTuple):
    """One more bit: the format, its additional bytes per token, and the KLD that each of them saves."""

    spec: FormatSpec
    bytes: float
    gain: float


@lru_cache(maxsize=64)
def allocate(scheme: Scheme, sensitivity: Sensitivity | None, shapes: MemoryReport) -> Scheme:
    """The scheme with bits given to each layer and side by their sensitivity.

    The packed tokens of all layers take at most as many bytes as under the uniform scheme. Only sides with
    a codebook take part; raw and affine sides stay as they are. Bits move between keys and values where a
    scheme gives both the same. The scheme itself is returned where nothing is known about the model's layers,
    or nothing can be moved.

    Args:
        shapes: Report on any cache of the model at the length to optimise for.
    """
    layers = shapes.layers
    if sensitivity is None or not len(layers) == len(sensitivity.keys) == len(sensitivity.values):
        return scheme
    choices = _choices(scheme, sensitivity, layers)
    if scheme.key == scheme.value:
        _distribute(choices, scheme.key)
    else:
        _distribute([choice for choice in choices if choice.role == "key"], scheme.key)
        _distribute([choice for choice in choices if choice.role == "value"], scheme.value)
    specs = {(choice.role, choice.layer): choice.spec for choice in choices}
    by_layer = tuple(
        (
            specs.get(("key", layer.index), scheme.key),
            specs.get(("value", layer.index), scheme.value),
        )
        for layer in layers
    )
    uniform = all(pair == (scheme.key, scheme.value) for pair in by_layer)
    return scheme if uniform else replace(scheme, layers=by_layer)


def _distribute(choices: list[_Choice], uniform: FormatSpec) -> None:
    """Give bits to the sides where they reduce the error most, within the bytes of a uniform format."""
    left = sum(choice.bytes_of(uniform) - choice.bytes_of(choice.spec) for choice in choices) + 1e-6
    steps = {index: step for index, choice in enumerate(choices) if (step := choice.next_step())}
    queue = [(-step.gain, index) for index, step in steps.items()]
    heapify(queue)
    while queue:
        _, index = heappop(queue)
        step = steps[index]
        if step.bytes > left:
            continue  # what is left only shrinks
        left -= step.bytes
        choices[index].spec = step.spec
        if (following := choices[index].next_step()) is not None:
            steps[index] = following
            heappush(queue, (-following.gain, index))


def _choices(scheme: Scheme, sensitivity: Sensitivity, layers: tuple[LayerReport, ...]) -> list[_Choice]:
    """The sides to allocate bits to, each with the fewest."""
    found = []
    fewest = 1 if scheme.key == scheme.value and scheme.key.bits <= MIN_BITS else MIN_BITS
    longest = max((layer.tokens for layer in layers), default=0)
    sides: tuple[tuple[Role, tuple[float, ...]], ...] = (
        ("key", sensitivity.keys),
        ("value", sensitivity.values),
    )
    for role, weights in sides:
        spec = _spec(scheme, role)
        if not spec.is_rotated or spec.bits <= fewest:
            continue
        for layer in layers:
            dim = layer.key_dim if role == "key" else layer.value_dim
            applies = layer.reason is None and layer.heads and spec.saves_memory(dim)
            if not applies:
                continue
            tokens = min(layer.tokens, layer.window or layer.tokens)
            vectors = layer.heads * tokens / longest
            first = _format(spec.kind, fewest)
            found.append(_Choice(role, layer.index, spec.kind, first, weights[layer.index], vectors, dim))
    return found


def _format(kind: str, bits: int) -> FormatSpec:
    """The format of a family and a width; a scalar code where a trellis of that width does not exist."""
    return FormatSpec("trellis" if kind == "trellis" and bits in TRELLIS_BITS else "turbo", bits)


def _error(spec: FormatSpec) -> float:
    return ONE_BIT_ERROR if spec.bits == 1 else spec.error


def _spec(scheme: Scheme, role: Role) -> FormatSpec:
    return scheme.key if role == "key" else scheme.value


def describe(bits: Sequence[tuple[int, int]]) -> str | None:
    """What was given to which layers, in one sentence; ``None`` if all have the same.

    Args:
        bits: Of the keys and of the values of each layer.
    """
    parts = []
    for name, widths in (("keys", [key for key, _ in bits]), ("values", [value for _, value in bits])):
        if len(set(widths)) > 1:
            most = [str(layer) for layer, width in enumerate(widths) if width == max(widths)]
            where = f"layer{'s' * (len(most) > 1)} {', '.join(most[:4])}{', …' * (len(most) > 4)}"
            parts.append(f"{name} {min(widths)} to {max(widths)} bits, most in {where}")
    return f"By this model's profile: {'; '.join(parts)}." if parts else None


def layer_bits(scheme: Scheme) -> list[tuple[int, int]]:
    """Bits of the keys and of the values of each layer; empty for a uniform scheme."""
    return [(key.bits, value.bits) for key, value in scheme.layers]
