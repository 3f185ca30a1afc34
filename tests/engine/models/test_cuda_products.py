"""Products with quantised matrices without MLX's kernels for several rows."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear

from tqchat.engine.models import cuda_products


@pytest.mark.parametrize(("mode", "bits", "group"), [("affine", 4, 64), ("affine", 3, 32), ("mxfp4", 4, 32)])
@pytest.mark.parametrize("shape", [(128,), (1, 7, 128), (1, 8, 128), (2, 30, 128)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_a_decoded_matrix_gives_the_same_product(
    mode: str, bits: int, group: int, shape: tuple[int, ...], bias: bool
) -> None:
    layer = QuantizedLinear(128, 64, bias=bias, bits=bits, group_size=group, mode=mode)
    if bias:
        layer["bias"] = mx.random.normal((64,))
    x = mx.random.normal(shape)
    assert_same(layer(x), cuda_products.linear(layer, x))
    embedding = QuantizedEmbedding(64, 128, bits=bits, group_size=group, mode=mode)
    assert_same(embedding.as_linear(x), cuda_products.as_linear(embedding, x))


def assert_same(expected: mx.array, product: mx.array) -> None:
    assert product.shape == expected.shape and product.dtype == expected.dtype
    assert mx.abs(product - expected).max().item() <= 1e-5 * mx.abs(expected).max().item()
