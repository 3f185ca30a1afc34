"""What a cache takes, the figures behind the gauge. Pure Python: ``report.py`` counts the live arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tqchat.kv.scheme import FormatSpec, Scheme, fitted_bytes, rotation_bytes

LayerKind = Literal["full", "sliding", "recurrent", "other"]


@dataclass(frozen=True)
class LayerReport:
    """One layer of a cache, counted from its live arrays. Sizes in bytes, counts in tokens.

    ``bytes`` covers the tokens held; ``allocated_bytes`` also the slack that growth keeps ready.
    ``key_bytes`` and ``value_bytes`` add up to ``bytes`` where a layer has keys and values. ``fp16_bytes`` is
    the same layer and tokens at two bytes a value. ``reason`` says why a layer stays as the model made it,
    ``None`` where the scheme applies. ``window`` is how many tokens a sliding-window layer that schemes reach
    holds at most.
    """

    index: int
    kind: LayerKind
    scheme: str
    reason: str | None
    tokens: int
    key_bytes: int
    value_bytes: int
    bytes: int
    allocated_bytes: int
    fp16_bytes: int
    packed_tokens: int
    tail_tokens: int
    sink_tokens: int
    heads: int
    key_dim: int
    value_dim: int
    window: int | None = None

    @property
    def compressed(self) -> bool:
        """Whether the layer holds packed tokens now, not only whether it will."""
        return self.packed_tokens > 0


@dataclass(frozen=True)
class MemoryReport:
    """What a whole cache takes now. ``shared_bytes`` are arrays that serve every layer (rotation signs);
    ``checkpoint_bytes`` are copies of windows and recurrent states, to go back to.

    ``peak_bytes`` is the most that MLX had allocated since the turn began, weights and all else that was
    there before not counted: the cache and what was computed beside it; ``None`` where nobody watched."""

    scheme: str
    tokens: int
    layers: tuple[LayerReport, ...]
    shared_bytes: int = 0
    checkpoint_bytes: int = 0
    peak_bytes: int | None = None

    @property
    def bytes(self) -> int:
        """Bytes of the tokens held, everything that is needed to use them included."""
        return self._common_bytes + sum(layer.bytes for layer in self.layers)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the live arrays as allocated, growth slack included."""
        return self._common_bytes + sum(layer.allocated_bytes for layer in self.layers)

    @property
    def _common_bytes(self) -> int:
        return self.shared_bytes + self.checkpoint_bytes

    @property
    def fp16_bytes(self) -> int:
        """What the same layers and tokens would take at two bytes a value."""
        return sum(layer.fp16_bytes for layer in self.layers)

    @property
    def ratio(self) -> float:
        """How many times smaller than FP16; 1.0 for an empty cache."""
        return self.fp16_bytes / self.bytes if self.bytes and self.fp16_bytes else 1.0

    @property
    def saved_bytes(self) -> int:
        """FP16 bytes not taken; negative if the cache takes more."""
        return self.fp16_bytes - self.bytes if self.fp16_bytes else 0

    @property
    def key_bytes(self) -> int:
        return sum(layer.key_bytes for layer in self.layers)

    @property
    def value_bytes(self) -> int:
        return sum(layer.value_bytes for layer in self.layers)

    @property
    def packed_tokens(self) -> int:
        """Packed tokens of the layer that has packed the most."""
        return max((layer.packed_tokens for layer in self.layers), default=0)

    @property
    def tail_tokens(self) -> int:
        return max((layer.tail_tokens for layer in self.layers), default=0)

    @property
    def sink_tokens(self) -> int:
        return max((layer.sink_tokens for layer in self.layers), default=0)

    @property
    def layers_compressed(self) -> int:
        """Layers that hold packed tokens now."""
        return sum(layer.compressed for layer in self.layers)

    @property
    def layers_total(self) -> int:
        return len(self.layers)

    def to_json(self) -> dict[str, int | float]:
        """The final memory report as ``tqchat run --json`` prints it."""
        return {
            "bytes": self.bytes,
            "allocated_bytes": self.allocated_bytes,
            "fp16_bytes": self.fp16_bytes,
            "ratio": round(self.ratio, 4),
            "layers_compressed": self.layers_compressed,
            "layers_total": self.layers_total,
        }


def predict_bytes(report: MemoryReport, scheme: Scheme) -> int:
    """What the same tokens would take under another scheme, from the layers' own shapes.

    The arithmetic of ``convert``: a test holds it against real conversions. Layers that a scheme does not
    reach count as they are.
    """
    rotations: set[tuple[str, int]] = set()
    total = 0
    alike: dict[tuple[int, int, int, int, int | None], int] = {}  # most layers are of one shape
    for layer in report.layers:
        if layer.reason is not None and layer.window is None:
            total += layer.bytes
            continue
        shape = (layer.tokens, layer.heads, layer.key_dim, layer.value_dim, layer.window)
        if shape not in alike:
            alike[shape] = _predicted(layer, scheme, rotations)
        total += alike[shape]
    return total + sum(rotation_bytes(dim) for _, dim in rotations)


def _predicted(layer: LayerReport, scheme: Scheme, rotations: set[tuple[str, int]]) -> int:
    """What one layer would take; the rotations that it needs go into the set."""
    sides: tuple[tuple[Literal["key", "value"], FormatSpec, int], ...] = (
        ("key", scheme.key, layer.key_dim),
        ("value", scheme.value, layer.value_dim),
    )
    tokens = layer.tokens if layer.window is None else min(layer.tokens, layer.window)
    due = scheme.packable(tokens if layer.window else tokens - scheme.sinks)
    total = 0
    for role, spec, dim in sides:
        packed = due if spec.pays(dim) else 0
        head_bytes = packed * spec.bytes_per_vector(dim) + (tokens - packed) * 2 * dim
        if packed:
            head_bytes += fitted_bytes(spec, role, dim)
            if spec.kind == "turbo":
                rotations.add((role, dim))
        total += head_bytes * layer.heads
    return total
