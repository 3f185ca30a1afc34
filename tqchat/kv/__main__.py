"""``python -m tqchat.kv SCHEME COMMAND ...``: a program of mlx-lm with caches under a scheme."""

from __future__ import annotations

import os
import sys
from typing import Any

USAGE = """usage: python -m tqchat.kv SCHEME COMMAND ...

COMMAND is one of mlx-lm (generate, chat, server, ...); its own options follow."""

GENERATING = ("generate", "chat", "server", "cache_prompt", "evaluate", "perplexity", "benchmark")
"""Programs of mlx-lm that read or write text with a model."""

MEMORY_SHARE = 0.7
"""Share of the memory that float32 weights may take, at most."""


def main() -> int:
    """Run mlx-lm's program with the arguments after the scheme; the exit code."""
    from tqchat.kv.scheme import UnknownScheme, parse_scheme

    if len(sys.argv) < 3 or sys.argv[1] in ("-h", "--help") or not _is_program(sys.argv[2]):
        print(USAGE, file=sys.stderr)
        return 2
    try:
        scheme = parse_scheme(sys.argv.pop(1))
    except UnknownScheme as error:
        print(error, file=sys.stderr)
        return 2
    from mlx_lm.cli import main as run

    from tqchat.kv import use_scheme

    use_scheme(scheme, dtype=_widen_weights() if sys.argv[1] in GENERATING else None)
    run()  # type: ignore[no-untyped-call]
    return 0


def _is_program(command: str) -> bool:
    from importlib.util import find_spec

    places = (f"mlx_lm.{command}", f"mlx_lm.quant.{command}")
    return command.isidentifier() and any(find_spec(place) is not None for place in places)


def _widen_weights() -> Any:
    """On a CPU, where 16-bit weights take seconds per token, have mlx-lm load them as float32, if they fit.

    Returns:
        The dtype for raw tokens of caches, which stay at 16 bits; ``None`` on other devices.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm import utils

    if mx.default_device() != mx.cpu:
        return None
    load_model = utils.load_model

    def load(*args: Any, **options: Any) -> Any:
        model, config = load_model(*args, **options)
        arrays: Any = tree_flatten(model.parameters())
        size = sum(array.nbytes for _, array in arrays)
        if 2 * size < MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            model.set_dtype(mx.float32)
        return model, config

    utils.load_model = load
    return mx.bfloat16


if __name__ == "__main__":
    sys.exit(main())
