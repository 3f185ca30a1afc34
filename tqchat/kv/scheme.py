"""Cache schemes: how keys and values are stored, and their exact size. Pure Python, no MLX."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from tqchat.errors import TqchatError

TURBO_BITS = (1, 2, 3, 4, 5, 6)
"""Code widths that have a Lloyd-Max codebook."""

TURBO_ERRORS = (0.3634, 0.1175, 0.0345, 0.0095, 0.0025, 0.00064)
"""Mean squared error of those codebooks on the standard normal, in the same order."""
TRELLIS_BITS = (2, 3, 4)
"""Code widths that have a trellis."""
TRELLIS_ERRORS = (0.0789, 0.0216, 0.0054)
"""Mean squared error of trellis codes, in the same order."""

AFFINE_GROUP = 64
"""Values per scale and bias of affine formats; half as many where 64 does not divide the head dimension."""

TILE = 16
"""Tokens packed in one step."""

MIN_FIT_TOKENS = 80
"""Raw tokens behind the sinks that formats are fitted to at least, and from which schemes with a fine part
encode the first. Schemes with a long tail need about as many for a tile."""

FINE_BITS = 6
"""Code width of the fine part: tokens between the tail and the packed ones, at scalar turbo codes."""

CENTRES = 16
"""Centres of a turbo format per head; a power of two, as the index of one takes low bits of the gain."""


class UnknownScheme(TqchatError):
    """No scheme has this name."""

    exit_code = 2

    def __init__(self, name: str) -> None:
        super().__init__(
            f"There is no cache scheme {name!r}. Choose fp16, affine8, affine4, "
            "turbo<K>v<V> with K of 0, 1 to 6 or 8 and V of 1 to 6 (turbo4 is turbo4v4), "
            "or trellis<K>v<V> with K of 0, 2 to 4 or 8 and V of 2 to 4."
        )


@dataclass(frozen=True)
class FormatSpec:
    """Storage format of one side (keys or values) behind the tail.

    ``raw`` is 16 bits a value. ``affine`` is MLX's group quantisation, with a 16-bit scale and bias per
    group. ``turbo`` is a rotated vector quantised with a Lloyd-Max codebook, with one 16-bit gain per vector.
    ``trellis`` is the same with a trellis code, of the same size.
    """

    kind: Literal["raw", "affine", "turbo", "trellis"]
    bits: int

    @property
    def is_rotated(self) -> bool:
        """Whether vectors are rotated and have a gain."""
        return self.kind in ("turbo", "trellis")

    def to_json(self) -> list[str | int]:
        """For saved caches; see ``from_json``."""
        return [self.kind, self.bits]

    @classmethod
    def from_json(cls, saved: Any) -> FormatSpec:
        """The inverse of ``to_json``.

        Raises:
            ValueError: if there is no such format.
        """
        kind, bits = saved
        allowed = {"raw": (16,), "affine": (4, 8), "turbo": TURBO_BITS, "trellis": TRELLIS_BITS}
        if type(bits) is not int or bits not in allowed.get(kind, ()):
            raise ValueError(f"no format {kind!r} of {bits!r} bits")
        return cls(kind, bits)

    def group_size(self, head_dim: int) -> int:
        """Values per affine scale: 64 where that divides ``head_dim``, else 32."""
        return AFFINE_GROUP if head_dim % AFFINE_GROUP == 0 else AFFINE_GROUP // 2

    def padded_dim(self, head_dim: int) -> int:
        """Stored width of ``head_dim`` values; affine pads to a multiple of its group size."""
        unit = self.group_size(head_dim) if self.kind == "affine" else 1
        return -(-head_dim // unit) * unit

    def bytes_per_vector(self, head_dim: int) -> int:
        """Bytes of one packed vector of ``head_dim`` values, with its gain or scales and biases."""
        if self.kind == "raw":
            return 2 * head_dim
        if self.kind == "affine":
            dim = self.padded_dim(head_dim)
            return dim * self.bits // 8 + 4 * (dim // self.group_size(head_dim))
        return 4 * self.words_per_vector(head_dim) + 2

    def words_per_vector(self, head_dim: int) -> int:
        """32-bit words of codes of a turbo or trellis vector."""
        if self.kind == "trellis":
            return sum(-(-head_dim * width // 32) for width in (2, self.bits - 2))
        return words_per_vector(head_dim, self.bits)

    def bits_per_number(self, head_dim: int) -> float:
        """Exact bits per stored number of a packed vector, its gain or scales included."""
        return 8 * self.bytes_per_vector(head_dim) / head_dim

    @property
    def error(self) -> float:
        """Expected squared error of a packed vector relative to its squared length; 0 for ``raw``."""
        if self.kind == "turbo":
            return TURBO_ERRORS[TURBO_BITS.index(self.bits)]
        if self.kind == "trellis":
            return TRELLIS_ERRORS[TRELLIS_BITS.index(self.bits)]
        # Uniform steps over a range of about six standard deviations.
        return 0.0 if self.kind == "raw" else (6 / (1 << self.bits)) ** 2 / 12

    def saves_memory(self, head_dim: int) -> bool:
        """Whether a packed vector is smaller than a raw one.

        At very small or odd head dimensions padding and scales cost more than packing saves; such vectors
        stay raw.
        """
        return self.kind != "raw" and head_dim > 1 and self.bytes_per_vector(head_dim) < 2 * head_dim


def plane_widths(bits: int) -> tuple[int, ...]:
    """Widths in bits of the planes a code is split into, so that no code crosses a 32-bit word."""
    return {3: (2, 1), 5: (4, 1), 6: (4, 2)}.get(bits, (bits,))


class FittedShape(NamedTuple):
    """Shape of a fitted array per head, and bytes per element."""

    rows: int
    columns: int
    itemsize: int


def fitted_shapes(spec: FormatSpec, role: Literal["key", "value"], head_dim: int) -> dict[str, FittedShape]:
    """The arrays that a format is fitted with, by name: centres or mean; for keys also balance and metric."""
    vector = FittedShape(1, head_dim, 2)
    if spec.kind == "raw" or (spec.kind == "affine" and role == "value"):
        return {}
    if spec.kind == "affine":
        return {"mean": vector, "balance": vector}
    centres = {"centres": FittedShape(CENTRES, head_dim, 1), "centre_scales": FittedShape(CENTRES, 1, 2)}
    return centres if role == "value" else centres | {"balance": vector, "metric": vector}


def fitted_bytes(spec: FormatSpec, role: Literal["key", "value"], head_dim: int) -> int:
    """Bytes of the fitted arrays per head."""
    shapes = fitted_shapes(spec, role, head_dim).values()
    return sum(rows * columns * itemsize for rows, columns, itemsize in shapes)


def rotation_bytes(head_dim: int) -> int:
    """Bytes of a float32 rotation, shared by all layers: signs for a power of two, else a matrix."""
    return 4 * head_dim if head_dim & (head_dim - 1) == 0 else 4 * head_dim**2


def words_per_vector(head_dim: int, bits: int) -> int:
    """32-bit words that hold ``head_dim`` scalar codes of ``bits`` bits."""
    return sum(-(-head_dim * width // 32) for width in plane_widths(bits))


@dataclass(frozen=True)
class Scheme:
    """A named pair of formats, and which tokens stay at 16 bits.

    Attributes:
        key, value: Formats of keys and of values.
        tail: Minimum number of recent tokens kept raw.
        sinks: Number of first tokens that are never packed.
        fine: Minimum number of tokens before the tail that are kept at ``FINE_BITS``; 0 for no such part.
        layers: Formats of keys and values of each layer of a particular model, by the index of its cache;
            empty if all layers have ``key`` and ``value`` (see ``allocation``).
    """

    name: str
    key: FormatSpec
    value: FormatSpec
    tail: int = 128
    sinks: int = 4
    fine: int = 0
    layers: tuple[tuple[FormatSpec, FormatSpec], ...] = ()

    def of_layer(self, index: int) -> Scheme:
        """The scheme of one layer: the same name, and the formats of that layer for ``key`` and ``value``."""
        if not self.layers:
            return self
        key, value = self.layers[index]
        return replace(self, key=key, value=value, layers=())

    @property
    def compresses(self) -> bool:
        """Whether the scheme packs keys or values."""
        return self.key.kind != "raw" or self.value.kind != "raw"

    def bits_per_key(self, head_dim: int) -> float:
        """Exact bits per stored number of a packed key."""
        return self.key.bits_per_number(head_dim)

    def bits_per_value(self, head_dim: int) -> float:
        """Exact bits per stored number of a packed value vector."""
        return self.value.bits_per_number(head_dim)

    def least_to_encode(self, begun: bool = False) -> int:
        """Fewest raw tokens behind the sinks of which some are encoded: a tile and the tail.

        Args:
            begun: Whether tokens have been encoded before. The first time the raw ones are what formats are
                fitted to, and the short tail of schemes with a fine part leaves too few of them.
        """
        least = self.tail + TILE
        return max(least, MIN_FIT_TOKENS) if self.fine and not begun else least

    def packable(self, recent: int, begun: bool = False) -> int:
        """Tokens to encode out of ``recent`` raw ones behind the sinks: whole tiles, leaving the tail.

        Those that ``surplus`` leaves of them are fine, the others packed. ``begun`` as for
        ``least_to_encode``.
        """
        return (recent - self.tail) // TILE * TILE if recent >= self.least_to_encode(begun) else 0

    def surplus(self, fine: int) -> int:
        """Tokens to pack out of ``fine`` ones: whole tiles, leaving the fine part."""
        return max(0, (fine - self.fine) // TILE * TILE) if self.fine else fine

    @property
    def description(self) -> str:
        """One sentence for lists of schemes."""
        if not self.compresses:
            return "Nothing compressed: every key and value at 16 bits."
        if self.key.kind == self.value.kind == "affine":
            return f"Keys and values at {self.key.bits} bits, MLX's own quantisation."
        how = {"raw": "", "affine": " (affine)", "turbo": " (rotated)", "trellis": " (rotated, trellis)"}
        keys, values = (f"at {spec.bits} bits{how[spec.kind]}" for spec in (self.key, self.value))
        both = f"Keys and values {keys}" if self.key == self.value else f"Keys {keys}, values {values}"
        return f"{both}, recent tokens at {FINE_BITS}." if self.fine else f"{both}."


RAW = FormatSpec("raw", 16)

FINE = FormatSpec("turbo", FINE_BITS)
"""Format of the fine part, with the rotation and the fit of the packed one."""


def _rotated(kind: Literal["turbo", "trellis"], key_bits: int, value_bits: int) -> Scheme:
    """The scheme ``<kind><K>v<V>``, or ``<kind><K>`` if both are equal."""
    name = f"{kind}{key_bits}" if key_bits == value_bits else f"{kind}{key_bits}v{value_bits}"
    key = {0: RAW, 8: FormatSpec("affine", 8)}.get(key_bits, FormatSpec(kind, key_bits))
    # With packed keys a raw token costs 2.5 to 7.5 packed ones, so the tail is shorter to keep the ratio at
    # 4k tokens. Where it costs most, the newest tokens are at 6 bits for the same bytes: the more, the more
    # bits a packed one has.
    fine = 0
    if key_bits == 0:
        tail = 112
    elif key_bits == 8:
        tail = 56
    elif min(key_bits, value_bits) >= 4:
        tail = 72
    else:
        tail = 16
        fine = 144 if key_bits + value_bits <= 4 else 160 if key_bits != value_bits else 208
    return Scheme(name, key, FormatSpec(kind, value_bits), tail, fine=fine)


def _affine(bits: int) -> Scheme:
    return Scheme(f"affine{bits}", FormatSpec("affine", bits), FormatSpec("affine", bits))


FP16 = Scheme("fp16", RAW, RAW)

SCHEMES: tuple[Scheme, ...] = (
    FP16,
    _affine(8),
    _affine(4),
    *(_rotated("turbo", key, value) for key in (0, 8) for value in (4, 3, 2)),
    *(_rotated("turbo", bits, bits) for bits in (6, 5)),
    *(_rotated("turbo", key, value) for key, value in ((4, 4), (4, 2), (3, 3), (3, 2), (2, 2))),
    *(_rotated("trellis", key, value) for key, value in ((0, 4), (8, 4), (4, 4), (4, 2), (3, 3), (2, 2))),
)
"""The schemes shown in lists, in that order."""

_NAMED = {scheme.name: scheme for scheme in SCHEMES}
_PATTERN = re.compile(r"(turbo|trellis)([0-68])(?:v([1-6]))?", re.ASCII)


def parse_scheme(name: str) -> Scheme:
    """The scheme of that name: a listed one or any ``turbo<K>v<V>`` or ``trellis<K>v<V>``; ``turbo4`` means
    ``turbo4v4``.

    Raises:
        UnknownScheme: for any other name.
    """
    name = name.strip().lower()
    if name in _NAMED:
        return _NAMED[name]
    match = _PATTERN.fullmatch(name)
    if match is None:
        raise UnknownScheme(name)
    kind: Literal["turbo", "trellis"] = "turbo" if match[1] == "turbo" else "trellis"
    widths = TURBO_BITS if kind == "turbo" else TRELLIS_BITS
    key_bits = int(match[2])
    value_bits = key_bits if match[3] is None else int(match[3])
    if key_bits not in (0, 8, *widths) or value_bits not in widths:
        raise UnknownScheme(name)
    return _rotated(kind, key_bits, value_bits)


AUTO = "auto"
"""Setting value that leaves the scheme to the chooser."""


def scheme_setting(name: str) -> str:
    """``auto`` or the canonical name of a scheme: a valid value of the ``scheme`` setting.

    Raises:
        UnknownScheme: for any other name.
    """
    return AUTO if name.strip().lower() == AUTO else parse_scheme(name).name
