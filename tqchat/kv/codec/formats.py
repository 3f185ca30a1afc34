"""The storage format of a side, made from its specification."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import mlx.core as mx

from tqchat.kv.codec.affine import AffineFormat
from tqchat.kv.codec.base import Format, RawFormat
from tqchat.kv.codec.centres import Centres
from tqchat.kv.codec.quantiser import FINE_QUANTISER, ScalarQuantiser
from tqchat.kv.codec.rotation import KEY_SEED, VALUE_SEED, draw_rotation, restore_rotation
from tqchat.kv.codec.trellis import TrellisQuantiser
from tqchat.kv.codec.turbo import TurboFormat
from tqchat.kv.scheme import FormatSpec


def make_format(
    spec: FormatSpec,
    head_dim: int,
    role: Literal["key", "value"],
    shared: dict[str, mx.array] | None = None,
    fitted: dict[str, mx.array] | None = None,
) -> Format:
    """The format of ``spec`` for vectors of ``head_dim``.

    Args:
        shared: ``Format.shared`` of a saved format of the same spec; drawn anew if ``None``.
        fitted: ``Format.fitted`` of that format.

    Raises:
        UnsupportedHeadDim: if a turbo or trellis format has no rotation of this size.
    """
    if spec.kind == "raw":
        return RawFormat()
    if spec.kind == "affine":
        return AffineFormat(spec, head_dim, role, **(fitted or {}))
    drawn = draw_rotation(head_dim, KEY_SEED if role == "key" else VALUE_SEED)
    rotation = restore_rotation(shared["rotation"], drawn) if shared else drawn
    quantiser = TrellisQuantiser(spec.bits) if spec.kind == "trellis" else ScalarQuantiser(spec.bits)
    if not fitted:
        return TurboFormat(quantiser, rotation, role)
    centres = Centres(fitted["centres"], fitted["centre_scales"])
    return TurboFormat(quantiser, rotation, role, centres, fitted.get("balance"), fitted.get("metric"))


def make_fine_format(packed: Format) -> Format:
    """The format of the fine part before packed tokens in this one: same rotation and fit, other codes.

    Only rotated formats have a fine part; ``RawFormat`` for others.
    """
    if not isinstance(packed, TurboFormat):
        return RawFormat()
    return replace(packed, quantiser=FINE_QUANTISER)
