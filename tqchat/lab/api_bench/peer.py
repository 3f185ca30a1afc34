"""mlx-lm's server as a process of ours, prepared as tqchat prepares itself.

On a CPU, OpenBLAS is loaded before MLX, and the weights are converted to float32 if that fits into memory:
mlx-lm does neither by itself, and would be compared by its BLAS. On a GPU it is as it comes.
"""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

from typing import Any

import mlx_lm.server

from tqchat.engine import backend
from tqchat.engine.models import loading, weights

_server: Any = mlx_lm.server
_load = _server.load


def load_as_float32(*arguments: Any, **options: Any) -> Any:
    """``mlx_lm.load`` with the weights in float32."""
    loaded = _load(*arguments, **options)
    model = loaded[0]
    if weights.computes_in_half(model) and loading.fits_as_float32(model):
        weights.to_float32(model)
    return loaded


def main() -> None:
    """Run the server with the options of ``mlx_lm.server``."""
    if backend.prepare().name == "cpu":
        _server.load = load_as_float32
    _server.main()


if __name__ == "__main__":
    main()
