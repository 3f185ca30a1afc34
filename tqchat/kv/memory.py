"""Memory reports: bytes of a cache. Pure Python; ``report.py`` counts the live arrays."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Literal

from tqchat.kv.scheme import FINE, FormatSpec, Scheme, fitted_bytes, rotation_bytes

LayerKind = Literal["full", "sliding", "recurrent", "other"]


@dataclass(frozen=True)
class LayerReport:
    """Bytes and tokens of one layer of a cache, counted from its live arrays.

    Attributes:
        reason: Why the scheme does not apply to this layer; ``None`` where it does.
        bytes: Bytes of the tokens held and of what is kept beside them between steps.
        allocated_bytes: The same with the spare capacity of growing arrays.
        fp16_bytes: Bytes of the same tokens at two bytes a value.
        window: Window size of a sliding-window layer that schemes apply to.
        rounded_tokens: Tokens that were rounded under an earlier scheme at least as coarsely as under this.
        rounded_bits: The fewest bits of such keys and values; 16 if there are none.
        rounded_times: How often such a token was rounded under earlier schemes, at most.
        packed_tokens: Packed tokens, fine ones included.
        fine_tokens: How many of them are at ``FINE_BITS``, as the newest are under schemes of few bits.
        key_bits, value_bits: Code widths of packed keys and values; 16 if they stay raw.
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
    rounded_tokens: int = 0
    rounded_bits: tuple[int, int] = (16, 16)
    rounded_times: int = 0
    key_bits: int = 16
    value_bits: int = 16
    fine_tokens: int = 0

    @property
    def compressed(self) -> bool:
        """Whether the layer holds packed tokens now."""
        return self.packed_tokens > 0


@dataclass(frozen=True)
class MemoryReport:
    """Bytes of a whole cache.

    Attributes:
        shared_bytes: Arrays shared by layers (rotations, the kernels' working memory).
        checkpoints: Copies of windows and recurrent states, the layers of each.
        peak_bytes: Peak MLX allocation of the turn above its start: cache and temporaries, without weights;
            ``None`` if not measured.
        earlier: Formats that the cache had before and of which all layers can take back the tokens.
        draft: Report on the draft model's cache of the conversation.
    """

    scheme: str
    tokens: int
    layers: tuple[LayerReport, ...]
    shared_bytes: int = 0
    checkpoints: tuple[tuple[LayerReport, ...], ...] = ()
    peak_bytes: int | None = None
    earlier: frozenset[tuple[str, FormatSpec]] = frozenset()
    draft: MemoryReport | None = None

    @property
    def bytes(self) -> int:
        """Bytes of the tokens held, with everything needed to use them."""
        draft = self.draft.bytes if self.draft else 0
        return self.shared_bytes + self.checkpoint_bytes + sum(layer.bytes for layer in self.layers) + draft

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of the copies of windows and recurrent states."""
        return sum(layer.bytes for layers in self.checkpoints for layer in layers)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the live arrays as allocated, spare capacity included."""
        draft = self.draft.allocated_bytes if self.draft else 0
        held = (self.layers, *self.checkpoints)
        return self.shared_bytes + sum(layer.allocated_bytes for layers in held for layer in layers) + draft

    @property
    def fp16_bytes(self) -> int:
        """Bytes of the same layers and tokens at two bytes a value."""
        draft = self.draft.fp16_bytes if self.draft else 0
        return sum(layer.fp16_bytes for layer in self.layers) + draft

    @property
    def ratio(self) -> float:
        """FP16 bytes divided by bytes; 1.0 for an empty cache."""
        return self.fp16_bytes / self.bytes if self.bytes and self.fp16_bytes else 1.0

    @property
    def saved_bytes(self) -> int:
        """FP16 bytes minus bytes; negative if the cache is larger."""
        return self.fp16_bytes - self.bytes if self.fp16_bytes else 0

    @property
    def key_bytes(self) -> int:
        return sum(layer.key_bytes for layer in self.layers)

    @property
    def value_bytes(self) -> int:
        return sum(layer.value_bytes for layer in self.layers)

    @property
    def packed_tokens(self) -> int:
        """Packed tokens of the layer with the most."""
        return max((layer.packed_tokens for layer in self.layers), default=0)

    @property
    def fine_tokens(self) -> int:
        """Packed tokens at ``FINE_BITS`` of the layer with the most."""
        return max((layer.fine_tokens for layer in self.layers), default=0)

    @property
    def tail_tokens(self) -> int:
        return max((layer.tail_tokens for layer in self.layers), default=0)

    @property
    def sink_tokens(self) -> int:
        return max((layer.sink_tokens for layer in self.layers), default=0)

    @property
    def rounded_tokens(self) -> int:
        """Tokens that carry earlier rounding, in the layer with the most."""
        return max((layer.rounded_tokens for layer in self.layers), default=0)

    @property
    def rounded_bits(self) -> tuple[int, int]:
        """The fewest bits of keys and of values that were rounded earlier; 16 if none were."""
        bits = [layer.rounded_bits for layer in self.layers] or [(16, 16)]
        return min(keys for keys, _ in bits), min(values for _, values in bits)

    @property
    def rounded_times(self) -> int:
        """The largest number of roundings of a token that carries earlier rounding."""
        return max((layer.rounded_times for layer in self.layers), default=0)

    @property
    def layers_compressed(self) -> int:
        """Layers that hold packed tokens now."""
        return sum(layer.compressed for layer in self.layers)

    @property
    def layers_total(self) -> int:
        return len(self.layers)

    def to_json(self) -> dict[str, int | float]:
        """The ``memory`` object of ``tqchat run --json``."""
        return {
            "bytes": self.bytes,
            "allocated_bytes": self.allocated_bytes,
            "fp16_bytes": self.fp16_bytes,
            "ratio": round(self.ratio, 4),
            "layers_compressed": self.layers_compressed,
            "layers_total": self.layers_total,
        }


def predict_bytes(report: MemoryReport, scheme: Scheme) -> int:
    """Bytes of the same tokens and checkpoints under another scheme, computed from the layers' shapes.

    Must agree with ``convert``; a test compares it with real conversions. Layers that schemes do not apply to
    count as they are.
    """
    rotations: set[tuple[str, int]] = set()
    total = 0
    known: dict[tuple[Scheme, int, int, int, int, int | None], int] = {}  # most layers share one shape
    for layer in chain(report.layers, *report.checkpoints):
        if layer.reason is not None and layer.window is None:
            total += layer.bytes
            continue
        own = scheme.of_layer(layer.index)
        shape = (own, layer.tokens, layer.heads, layer.key_dim, layer.value_dim, layer.window)
        if shape not in known:
            known[shape] = _predicted(layer, own, rotations)
        total += known[shape]
    draft = predict_bytes(report.draft, scheme) if report.draft else 0
    return total + sum(rotation_bytes(dim) for _, dim in rotations) + draft


def _predicted(layer: LayerReport, scheme: Scheme, rotations: set[tuple[str, int]]) -> int:
    """Bytes of one layer under ``scheme``; adds the rotations it needs to ``rotations``."""
    sides: tuple[tuple[Literal["key", "value"], FormatSpec, int], ...] = (
        ("key", scheme.key, layer.key_dim),
        ("value", scheme.value, layer.value_dim),
    )
    tokens = layer.tokens if layer.window is None else min(layer.tokens, layer.window)
    packable = scheme.packable(tokens if layer.window else tokens - scheme.sinks)
    total = 0
    for role, spec, dim in sides:
        encoded = packable if spec.saves_memory(dim) else 0
        packed = scheme.surplus(encoded)
        head_bytes = packed * spec.bytes_per_vector(dim) + (tokens - encoded) * 2 * dim
        head_bytes += (encoded - packed) * FINE.bytes_per_vector(dim)
        if encoded:
            head_bytes += fitted_bytes(spec, role, dim)
            if spec.is_rotated:
                rotations.add((role, dim))
        total += head_bytes * layer.heads
    return total
