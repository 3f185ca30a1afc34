"""Weight dtypes: inspection, and conversion to float32 for CPUs."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

from typing import Any

import mlx.core as mx
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

_HALF = (mx.float16, mx.bfloat16)


def native_half_dtype(model: Any, config: dict[str, Any]) -> mx.Dtype:
    """The model's native 16-bit dtype, which its caches use."""
    stated = config.get("torch_dtype") or config.get("dtype")
    sizes = dict.fromkeys(_HALF, 0)
    for _, array in _arrays(model):
        if array.dtype in sizes:
            sizes[array.dtype] += array.size
    if not any(sizes.values()):
        return mx.bfloat16 if stated == "bfloat16" else mx.float16
    return max(sizes, key=lambda dtype: sizes[dtype])


def computes_in_half(model: Any) -> bool:
    """Whether any weight, or scale of a quantised weight, has 16 bits."""
    return any(array.dtype in _HALF for _, array in _arrays(model))


def has_half_experts(model: Any) -> bool:
    """Whether it has experts of 16 bits that are not quantised: MLX multiplies them on a GPU only."""
    return any(type(one) is SwitchLinear and one.weight.dtype in _HALF for one in model.modules())


def embedded_tokens(model: Any) -> int | None:
    """Number of tokens that the model has vectors for, ``None`` if it has no embedding of MLX's."""
    kinds = (Embedding, QuantizedEmbedding)
    return max((one.weight.shape[0] for one in model.modules() if isinstance(one, kinds)), default=None)


def float32_bytes(model: Any) -> int:
    """Bytes of the weights as float32."""
    quantised = {name for name, module in model.named_modules() if _is_quantised(module)}
    total = 0
    for name, module in model.named_modules():
        if name in quantised:
            total += _dense_size(module) * 4
    for name, array in _arrays(model):
        if name.rpartition(".")[0] not in quantised:
            total += array.size * 4 if array.dtype in _HALF else array.nbytes
    return total


def to_float32(model: Any) -> None:
    """Dequantise every quantised layer and widen 16-bit weights, in place and one layer at a time.

    On a CPU, MLX uses BLAS for float32 matrices only: models decode several times faster this way. Scales are
    widened before dequantising, so nothing is rounded to 16 bits in between.
    """
    for name, module in list(model.named_modules()):
        if not _is_quantised(module):
            continue
        dense = _dense_layer(module)
        mx.eval(dense.parameters())
        model.update_modules(tree_unflatten([(name, dense)]))
        del module, dense
        mx.clear_cache()
    widen(model)


def widen(model: Any) -> None:
    """Convert 16-bit arrays to float32, in place."""
    model.update(tree_map(lambda a: a.astype(mx.float32) if a.dtype in _HALF else a, model.parameters()))
    mx.eval(model.parameters())


def weight_bytes(model: Any) -> int:
    """Bytes of the weights in memory."""
    return sum(array.nbytes for _, array in _arrays(model))


def _arrays(model: Any) -> list[tuple[str, mx.array]]:
    flat: Any = tree_flatten(model.parameters())
    return list(flat)


def _is_quantised(module: Any) -> bool:
    """Whether a layer is quantised and can be replaced by a dense one. Others stay quantised."""
    kinds: tuple[type, ...] = (QuantizedLinear, QuantizedEmbedding, QuantizedSwitchLinear)
    return type(module) in kinds and module.get("global_scale") is None


def _dense_size(module: Any) -> int:
    return int(module.weight.size * 32 // module.bits)


def _dense_layer(module: Any) -> Any:
    affine = module.mode == "affine"
    scales = module.scales.astype(mx.float32) if affine else module.scales
    biases = module.get("biases")
    weight = mx.dequantize(
        module.weight,
        scales,
        biases.astype(mx.float32) if biases is not None else None,
        module.group_size,
        module.bits,
        module.mode,
        dtype=mx.float32,
    )
    dense: Any
    if isinstance(module, QuantizedEmbedding):
        dense = Embedding(1, 1)
    elif isinstance(module, QuantizedSwitchLinear):
        dense = SwitchLinear(1, 1, 1, bias="bias" in module)
    else:
        dense = Linear(1, 1, bias="bias" in module)
    dense.weight = weight
    if "bias" in module:
        dense.bias = module.bias.astype(mx.float32)
    return dense
