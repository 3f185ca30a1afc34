"""Products with quantised matrices on CUDA, without the kernels that MLX would compile for them.

MLX's library has kernels for up to seven rows. Those for more are compiled when they are first used, which
takes 15 to 35 s for each quantisation, kind of shape and number of rows. A matrix that is decoded first is
multiplied by the library of matrix products that every CUDA installation has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear

MAX_ROWS = 7
"""Most rows that MLX multiplies with a quantised matrix without compiling a kernel."""

_linear: Callable[[Any, mx.array], mx.array] = QuantizedLinear.__call__
_as_linear: Callable[[Any, mx.array], mx.array] = QuantizedEmbedding.as_linear


def install() -> None:
    """Let the quantised layers of this process multiply in this way. May be called again."""
    QuantizedLinear.__call__ = linear  # type: ignore[method-assign]
    QuantizedEmbedding.as_linear = as_linear  # type: ignore[method-assign]


def linear(layer: Any, x: mx.array) -> mx.array:
    """The output of a quantised linear layer, ``[..., output_dims]`` for ``[..., input_dims]``."""
    if x.size <= MAX_ROWS * x.shape[-1]:
        return _linear(layer, x)
    product = x @ _decoded(layer, x.dtype).T
    return product + layer["bias"] if "bias" in layer else product


def as_linear(layer: Any, x: mx.array) -> mx.array:
    """Logits from a quantised embedding, ``[..., tokens]`` for ``[..., dims]``."""
    return _as_linear(layer, x) if x.size <= MAX_ROWS * x.shape[-1] else x @ _decoded(layer, x.dtype).T


def _decoded(layer: Any, dtype: mx.Dtype) -> mx.array:
    matrix = mx.dequantize(
        layer["weight"],
        layer["scales"],
        layer.get("biases"),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )
    return matrix.astype(dtype)
