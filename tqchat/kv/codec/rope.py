"""Rotary position embeddings as pairs of channels and angles, found by probing a model's module.

Needed because keys reach the cache already rotated, while their mean is best estimated before the rotation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.positional_encoding import RoPE

_PROBE_POSITIONS = (1, 997)
"""Positions at which an embedding is probed: angles are read from the first and verified at the second."""


@dataclass(frozen=True, eq=False)
class Rope:
    """Rotary embedding: position t maps x to ``x * cos(angles * t) + x[partners] * sin(angles * t)``.

    Attributes:
        angles: float64 ``[head_dim]``, radians per position, of opposite sign in the two channels of a pair;
            0 for a channel that is not rotated.
        partners: int32 ``[head_dim]``, the other channel of the pair; itself if not rotated.
    """

    angles: np.ndarray
    partners: np.ndarray

    @property
    def head_dim(self) -> int:
        return int(self.angles.shape[0])

    def to_json(self) -> list[list[float]]:
        """JSON form, read by ``from_json``."""
        return [self.angles.tolist(), self.partners.tolist()]

    @cached_property
    def json(self) -> str:
        """``to_json`` as text; the layers of a model share it."""
        return json.dumps(self.to_json())

    @classmethod
    def from_json(cls, data: Any) -> Rope:
        """The inverse of ``to_json``.

        Raises:
            ValueError: if the data is not a rotary embedding.
        """
        angles, partners = np.array(data, dtype=np.float64)
        count = len(angles)
        if not (np.isfinite(angles).all() and ((partners >= 0) & (partners < count)).all()):
            raise ValueError("These are no rotary angles.")
        return cls(angles, partners.astype(np.int32))

    def padded_to(self, head_dim: int) -> Rope | None:
        """The same embedding with ``head_dim`` channels, added ones not rotated; ``None`` if fewer."""
        extra = head_dim - self.head_dim
        if extra < 0:
            return None
        partners = np.concatenate([self.partners, np.arange(self.head_dim, head_dim, dtype=np.int32)])
        return Rope(np.concatenate([self.angles, np.zeros(extra)]), partners) if extra else self

    def partner(self, x: mx.array) -> mx.array:
        """Channels of ``x`` ``[..., head_dim]`` permuted to their partners."""
        return mx.take(x, mx.array(self.partners, dtype=mx.uint32), axis=-1)

    def unrotate(self, x: mx.array, first: int, step: int = 1) -> mx.array:
        """Vectors ``[..., tokens, head_dim]`` at positions ``first``, ``first + step``, ... before their
        rotation.
        """
        cos, sin = _back_turns(self.angles.tobytes(), range(first, first + step * x.shape[-2], step))
        return x * cos + self.partner(x) * sin

    def average(self, x: mx.array, positions: int) -> mx.array:
        """Mean of a vector ``[..., head_dim]`` rotated to each of the first ``positions`` positions."""
        half = self.angles / 2
        constant = np.abs(half) < 1e-12
        divisor = np.where(constant, 1.0, half)
        amplitude = np.where(constant, 1.0, np.sin(positions * divisor) / (positions * np.sin(divisor)))
        middle = (positions - 1) * half
        cos, sin = (mx.array((amplitude * f(middle)).astype(np.float32)) for f in (np.cos, np.sin))
        return x * cos + self.partner(x) * sin

    def full_turn_within(self, positions: int) -> mx.array:
        """Channels that complete a full turn within ``positions`` positions: boolean ``[head_dim]``."""
        return mx.array(np.abs(self.angles) * positions > 2 * np.pi)


@lru_cache(maxsize=2)
def _back_turns(angles: bytes, positions: range) -> tuple[mx.array, mx.array]:
    """Cosine and sine of the angles that take vectors back, float32 ``[positions, head_dim]``.

    The layers of a model share them until ``release_angles``; they take longer than the rest of a fit.

    Args:
        angles: Of ``Rope``, as bytes.
    """
    phases = -np.array(positions)[:, None] * np.frombuffer(angles)
    cos, sin = (mx.array(f(phases).astype(np.float32)) for f in (np.cos, np.sin))
    mx.eval(cos, sin)  # lazy arrays of one thread cannot be evaluated by another
    return cos, sin


def release_angles() -> None:
    """Release what the fits of a model's layers share."""
    _back_turns.cache_clear()


def probe_rope(embedding: Callable[..., Any], head_dim: int) -> Rope | None:
    """Pairs and angles of a model's rotary embedding, from its effect on unit vectors.

    Args:
        embedding: Called as ``embedding(x, offset=position)`` with x ``[batch, heads, 1, head_dim]``.

    Returns:
        ``None`` if it is not linear or does not rotate pairs at a constant rate.
    """
    try:
        one, far = (_matrix(embedding, head_dim, position) for position in _PROBE_POSITIONS)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return None
    if not (np.isfinite(one).all() and np.isfinite(far).all()):
        return None
    off = one - np.diag(np.diag(one))
    # Row i is the image of unit vector i: channel j receives sin(angle_j) of its partner.
    channels = np.arange(head_dim)
    partners = np.where(np.abs(off).max(axis=0) > 0, np.abs(off).argmax(axis=0), channels)
    if (partners[partners] != channels).any():
        return None
    angles = np.arctan2(off[partners, channels], np.diag(one)).astype(np.float32).astype(np.float64)
    rope = Rope(angles, partners.astype(np.int32))
    phases = _PROBE_POSITIONS[1] * angles
    expected = np.diag(np.cos(phases))
    expected[partners, channels] += np.sin(phases)
    # YaRN also scales the rotated vector.
    scale = np.linalg.norm(far, axis=0)
    if np.abs(scale - np.linalg.norm(one, axis=0)).max() > 0.01:
        return None
    return rope if np.abs(far / np.maximum(scale, 1e-9) - expected).max() < 0.02 else None


def _matrix(embedding: Callable[..., Any], head_dim: int, position: int) -> np.ndarray:
    units = mx.array(np.eye(head_dim, dtype=np.float32)).reshape(head_dim, 1, 1, head_dim)
    return np.array(embedding(units, offset=position).astype(mx.float32)).reshape(head_dim, head_dim)


def model_ropes(model: Any, layers: int) -> list[Rope | None]:
    """Rotary embedding of each layer that has a cache; ``None`` where unknown.

    Attention modules hold it as ``rope``, whose ``dims`` says how many leading channels it rotates.
    """
    probed: dict[Any, Rope | None] = {}  # most layers have equal embeddings
    per_layer = [_rope_of(layer, probed) for layer in getattr(model, "layers", ())]
    if len(per_layer) == layers:
        return per_layer
    known = [rope for rope in per_layer if rope is not None]
    all_equal = known and all(np.array_equal(rope.angles, known[0].angles) for rope in known)
    return [known[0] if all_equal else None] * layers


def _rope_of(layer: Any, probed: dict[Any, Rope | None]) -> Rope | None:
    modules = layer.modules() if hasattr(layer, "modules") else []
    attentions = [m for m in modules if callable(getattr(m, "rope", None))]
    if len(attentions) != 1 or hasattr(attentions[0], "qk_rope_head_dim"):
        return None
    embedding = attentions[0].rope
    dims = getattr(embedding, "dims", getattr(embedding, "dim", None))
    if not isinstance(dims, int) or dims < 2:
        return None
    if type(embedding) is not RoPE:  # others may hold arrays
        return probe_rope(embedding, dims)
    key = dims, embedding.traditional, embedding.base, embedding.scale
    if key not in probed:
        probed[key] = probe_rope(embedding, dims)
    return probed[key]
