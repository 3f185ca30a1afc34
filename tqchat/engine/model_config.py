"""Facts in a model's ``config.json``."""

from __future__ import annotations

from typing import Any

MAX_CONTEXT = 1 << 40
"""Greater numbers than any context stand for no limit."""

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
_NESTED = ("text_config", "llm_config", "language_config", "language_model")


def context_limit(config: dict[str, Any]) -> int | None:
    """The model's context length in tokens, ``None`` if its config does not say."""
    for table in (config, *(config.get(name) for name in _NESTED)):
        if not isinstance(table, dict):
            continue
        for key in _CONTEXT_KEYS:
            value = table.get(key)
            if isinstance(value, (int, float)) and 1 < value < MAX_CONTEXT:  # True is 1
                return int(value)
    return None
