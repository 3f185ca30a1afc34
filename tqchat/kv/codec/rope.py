"""Rotary position embedding as the cache sees it: which channels turn together, and how fast.

Keys arrive turned by their position. What they have in common is told before the turn: a prompt's average
over positions says little about the positions behind it, least where a pair turns once in thousands of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

_PROBED = (1, 997)
"""Positions at which a model's embedding is tried: its angles come from the first, the other proves them."""


@dataclass(frozen=True, eq=False)
class Rope:
    """A vector at position t is ``x * cos(angles * t) + x[partners] * sin(angles * t)``.

    ``angles`` is float64 ``[head_dim]``, in radians a position, of opposite sign in the two channels of a
    pair; ``partners`` is int32 ``[head_dim]``. A channel that does not turn has an angle of 0 and is its own
    partner.
    """

    angles: np.ndarray
    partners: np.ndarray

    @property
    def head_dim(self) -> int:
        return int(self.angles.shape[0])

    def to_json(self) -> list[list[float]]:
        """What ``from_json`` makes the same of again."""
        return [self.angles.tolist(), self.partners.tolist()]

    @classmethod
    def from_json(cls, told: Any) -> Rope:
        """The inverse of ``to_json``.

        Raises:
            ValueError: if it is none.
        """
        angles, partners = np.array(told, dtype=np.float64)
        count = len(angles)
        if not (np.isfinite(angles).all() and ((partners >= 0) & (partners < count)).all()):
            raise ValueError("These are no rotary angles.")
        return cls(angles, partners.astype(np.int32))

    def widened(self, head_dim: int) -> Rope | None:
        """The same for heads of ``head_dim``, whose other channels stay still; ``None`` if narrower."""
        more = head_dim - self.head_dim
        if more < 0:
            return None
        partners = np.concatenate([self.partners, np.arange(self.head_dim, head_dim, dtype=np.int32)])
        return Rope(np.concatenate([self.angles, np.zeros(more)]), partners) if more else self

    def partner(self, x: mx.array) -> mx.array:
        """Every channel's partner in its place: ``[..., head_dim]``."""
        return mx.take(x, mx.array(self.partners), axis=-1)

    def turned_back(self, x: mx.array, first: int, step: int = 1) -> mx.array:
        """Vectors ``[..., tokens, head_dim]``, ``step`` positions apart from ``first``, before their turn."""
        positions = first + step * np.arange(x.shape[-2])[:, None]
        turns = -positions * self.angles
        cos, sin = (mx.array(f(turns).astype(np.float32)) for f in (np.cos, np.sin))
        return x * cos + self.partner(x) * sin

    def average(self, x: mx.array, positions: int) -> mx.array:
        """The mean of a vector ``[..., head_dim]`` turned to each of the first ``positions`` positions."""
        half = self.angles / 2
        still = np.abs(half) < 1e-12
        safe = np.where(still, 1.0, half)
        size = np.where(still, 1.0, np.sin(positions * safe) / (positions * np.sin(safe)))
        middle = (positions - 1) * half
        cos, sin = (mx.array((size * f(middle)).astype(np.float32)) for f in (np.cos, np.sin))
        return x * cos + self.partner(x) * sin

    def has_turned(self, positions: int) -> mx.array:
        """Which channels turn at least once within so many positions: boolean ``[head_dim]``."""
        return mx.array(np.abs(self.angles) * positions > 2 * np.pi)


def probe(embedding: Callable[..., Any], head_dim: int) -> Rope | None:
    """The pairs and angles of a model's rotary embedding, from what it does to unit vectors.

    Returns:
        ``None`` if it is no such embedding: not linear, or not turning pairs at a steady rate.
    """
    try:
        one, far = (_matrix(embedding, head_dim, position) for position in _PROBED)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return None
    if not (np.isfinite(one).all() and np.isfinite(far).all()):
        return None
    off = one - np.diag(np.diag(one))
    # Row i is what becomes of unit vector i: channel j gets sin(angle_j) of its partner.
    channels = np.arange(head_dim)
    partners = np.where(np.abs(off).max(axis=0) > 0, np.abs(off).argmax(axis=0), channels)
    if (partners[partners] != channels).any():
        return None
    angles = np.arctan2(off[partners, channels], np.diag(one)).astype(np.float32).astype(np.float64)
    rope = Rope(angles, partners.astype(np.int32))
    turns = _PROBED[1] * angles
    expected = np.diag(np.cos(turns))
    expected[partners, channels] += np.sin(turns)
    # Some embeddings scale what they turn (YaRN).
    scale = np.linalg.norm(far, axis=0)
    if np.abs(scale - np.linalg.norm(one, axis=0)).max() > 0.01:
        return None
    return rope if np.abs(far / np.maximum(scale, 1e-9) - expected).max() < 0.02 else None


def _matrix(embedding: Callable[..., Any], head_dim: int, position: int) -> np.ndarray:
    units = mx.eye(head_dim).reshape(head_dim, 1, 1, head_dim)
    return np.array(embedding(units, offset=position).astype(mx.float32)).reshape(head_dim, head_dim)


def ropes(model: Any, layers: int) -> list[Rope | None]:
    """The rotary embedding of each layer that has a cache, where it is known.

    Attention modules keep theirs as ``rope``, which tells how many channels it turns (``dims``): the first of
    a head, if not all of them.
    """
    own = [_rope_of(layer) for layer in getattr(model, "layers", ())]
    if len(own) == layers:
        return own
    known = [rope for rope in own if rope is not None]
    alike = known and all(np.array_equal(rope.angles, known[0].angles) for rope in known)
    return [known[0] if alike else None] * layers


def _rope_of(layer: Any) -> Rope | None:
    modules = layer.modules() if hasattr(layer, "modules") else []
    attentions = [m for m in modules if callable(getattr(m, "rope", None))]
    if len(attentions) != 1 or hasattr(attentions[0], "qk_rope_head_dim"):
        return None
    embedding = attentions[0].rope
    dims = getattr(embedding, "dims", getattr(embedding, "dim", None))
    if not isinstance(dims, int) or dims < 2:
        return None
    return probe(embedding, dims)
