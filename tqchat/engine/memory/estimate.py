"""Estimate a model's memory before loading it, from its layers' shapes without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqchat.engine import backend
from tqchat.engine.events import ModelEstimate
from tqchat.engine.failures import ModelUnusable, as_model_error, reason_of
from tqchat.engine.hub import model_folder
from tqchat.engine.memory.budget import memory_budget, weights_in_memory
from tqchat.engine.memory.shapes import cache_shapes
from tqchat.engine.model_config import context_limit


def estimate(folder: Path, ref: str) -> ModelEstimate:
    """Bytes of weights, shapes of the cache and the memory budget of a model on this machine.

    Must run on the thread that owns MLX.

    Raises:
        NotAModel, NeedsCustomCode: if the folder cannot be loaded.
        ModelUnusable: if mlx-lm does not know the architecture.
    """
    machine = backend.prepare()
    config = model_folder.check(folder)
    name = model_folder.display_name(folder)
    model = model_without_weights(config, name)
    with as_model_error(name):
        shapes = cache_shapes(model)
    files = sum(file.stat().st_size for file in model_folder.weight_files(folder))
    on_cpu = machine.name == "cpu"
    weights = weights_in_memory(files, float32_bytes(model), backend.available_memory(), on_cpu)
    return ModelEstimate(
        ref=ref,
        weight_bytes=weights,
        shapes=shapes,
        context_limit=context_limit(config),
        memory_budget=memory_budget(machine.memory_bytes, weights),
        memory_bytes=machine.memory_bytes,
    )


def model_without_weights(config: dict[str, Any], name: str) -> Any:
    """The model as mlx-lm builds it, each weight a broadcast zero: almost no memory."""
    import mlx.core as mx
    from mlx.utils import tree_map
    from mlx_lm import utils

    try:
        model_class, arguments = utils._get_classes(config)
        model = model_class(arguments.from_dict(config))
    except Exception as error:
        kind = config["model_type"]
        reason = reason_of(error)
        if "not supported" in str(error):
            reason = f"mlx-lm does not know its architecture ({kind}); a newer mlx-lm may"
        raise ModelUnusable(f"{name} cannot be loaded: {reason.rstrip('.')}.") from error
    zero = mx.zeros((), dtype=mx.float16)
    with as_model_error(name):
        model.update(tree_map(lambda weight: mx.broadcast_to(zero, weight.shape), model.parameters()))
    return model


def float32_bytes(model: Any) -> int:
    """Bytes of the weights as float32, which is how a CPU keeps them."""
    from mlx.utils import tree_flatten

    leaves: Any = tree_flatten(model.parameters())
    return sum(4 * weight.size for _, weight in leaves)
