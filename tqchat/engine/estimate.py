"""What a model will take, before it is loaded: its layers' shapes, without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqchat.engine import backend, chooser, prompts
from tqchat.engine.events import ModelEstimate
from tqchat.engine.hub import model_folder
from tqchat.kv.memory import MemoryReport

_FITS = 0.8


def estimate(folder: Path, ref: str) -> ModelEstimate:
    """Weights, the cache's shapes and the memory that is left for it, for a model on this machine.

    Must run on the thread that owns MLX.

    Raises:
        NotAModel, NeedsCustomCode: if the folder cannot be loaded.
        ModelUnusable: if mlx-lm does not know the architecture.
    """
    machine = backend.prepare()
    config = model_folder.check(folder)
    model = _empty(config, folder.name)
    weights = sum(file.stat().st_size for file in model_folder.weight_files(folder))
    if machine.name == "cpu":
        dense = _dense_bytes(model)
        weights = dense if dense < backend.available_memory() * _FITS else weights
    return ModelEstimate(
        ref=ref,
        weight_bytes=weights,
        shapes=cache_shapes(model),
        context_limit=prompts.context_limit(config),
        cache_budget=chooser.memory_budget(machine.memory_bytes, weights),
        memory_bytes=machine.memory_bytes,
    )


def _empty(config: dict[str, Any], name: str) -> Any:
    """The model as mlx-lm builds it, every weight a zero that is stored once: it takes next to nothing."""
    import mlx.core as mx
    from mlx.utils import tree_map
    from mlx_lm import utils

    from tqchat.engine.models import ModelUnusable

    try:
        model_class, arguments = utils._get_classes(config)
        model = model_class(arguments.from_dict(config))
    except Exception as error:
        kind = config["model_type"]
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if "not supported" in str(error):
            reason = f"mlx-lm does not know its architecture ({kind}); a newer mlx-lm may"
        raise ModelUnusable(f"{name} cannot be loaded: {reason.rstrip('.')}.") from error
    zero = mx.zeros((), dtype=mx.float16)
    model.update(tree_map(lambda weight: mx.broadcast_to(zero, weight.shape), model.parameters()))
    return model


def _dense_bytes(model: Any) -> int:
    """What the weights take as float32, as they are kept on a CPU."""
    from mlx.utils import tree_flatten

    leaves: Any = tree_flatten(model.parameters())
    return sum(4 * weight.size for _, weight in leaves)


def cache_shapes(model: Any) -> MemoryReport:
    """A report on a cache that has read one token. The graph that fills it is built and never computed."""
    import mlx.core as mx

    from tqchat import kv

    cache = kv.make_prompt_cache(model, "fp16")
    model(mx.array([[0]]), cache=cache)
    return kv.memory_report(cache)
