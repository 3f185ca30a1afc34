"""Products with quantised matrices on CUDA, without the kernels that MLX would compile for them.

MLX's library has kernels for up to seven rows. Those for more are compiled when they are first used, which
takes 15 to 30 s for each quantisation, kind of shape and number of rows. A matrix that is decoded first is
multiplied by the library of matrix products that every CUDA installation has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.nn.layers.quantized import QuantizedLinear

MAX_ROWS = 7
"""Most rows that MLX multiplies with a quantised matrix without compiling a kernel."""

_multiply: Callable[[Any, mx.array], mx.array] = QuantizedLinear.__call__


def install() -> None:
    """Let the quantised layers of this process multiply in this way. May be called again."""
    QuantizedLinear.__call__ = multiply  # type: ignore[method-assign]


def multiply(layer: Any, x: mx.array) -> mx.array:
    """The layer's product with ``x``, ``[..., input_dims]``; it has the shape ``[..., output_dims]``."""
    if x.size <= MAX_ROWS * x.shape[-1]:
        return _multiply(layer, x)
    matrix = mx.dequantize(
        layer["weight"],
        layer["scales"],
        layer.get("biases"),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )
    product = x @ matrix.astype(x.dtype).T
    return product + layer["bias"] if "bias" in layer else product
